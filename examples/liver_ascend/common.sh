# shellcheck shell=bash
# Paths and settings of all steps; sourced by each. Every variable can be set from outside.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
repository="$(cd "${here}/../.." && pwd)"
PYTHON="${PYTHON:-python3}"
export PYTHON
wrappers="${repository}/tools/benchmark_wrappers"

# USE_STANDINS=1: phantom images and stand-ins for the Ascend tools, on any machine. Otherwise: the real task and the real tools.
USE_STANDINS="${USE_STANDINS:-0}"

# Where everything is put (guide: /home/.../environment).
LIVER_ENVIRONMENT="${LIVER_ENVIRONMENT:-${PWD}/environment}"
LIVER_TASK="${LIVER_TASK:-${LIVER_ENVIRONMENT}/Task03_Liver}"              # the unpacked Decathlon task
LIVER_SPLITS="${LIVER_SPLITS:-${LIVER_ENVIRONMENT}/splits_final.pkl}"      # whose fold 0 is evaluated
LIVER_FOLD="${LIVER_FOLD:-0}"
LIVER_CHECKPOINT="${LIVER_CHECKPOINT:-${LIVER_ENVIRONMENT}/nnUNetPlusPlusTrainerV2__nnUNetPlansv2.1}"
LIVER_CASE="${LIVER_CASE:-liver_11}"                                       # one case as in the guide, or: all
LIVER_SOC="${LIVER_SOC:-Ascend310}"                                        # 'Ascend' + Name in npu-smi info
LIVER_TOOL="${LIVER_TOOL:-benchmark}"                                      # benchmark, msame or ais_bench
LIVER_DEVICES="${LIVER_DEVICES:-0,1,2,3}"
LIVER_SCRATCH="${LIVER_SCRATCH:-20GB}"                                     # for in_rounds.sh
LIVER_OPTIONS="${LIVER_OPTIONS:-}"                                         # of preprocess, e.g. --no-tta

if [ "$USE_STANDINS" = 1 ]; then
    standins="${repository}/tools/standins"
    bin="$(dirname "$(command -v "$PYTHON")")" # the stand-ins run in the first python3 on PATH
    export PATH="${standins}/bin:${bin}:${PATH}"
    export OFFLINE_INFER_STANDIN_SOC="$LIVER_SOC" OFFLINE_INFER_STANDIN_DEVICES=4
    LIVER_SPLITS="${LIVER_ENVIRONMENT}/splits_final.json"
    LIVER_CHECKPOINT="${repository}/offline_infer/demo/model/nnUNet/3d_fullres/Task003_Liver/nnUNetPlusPlusTrainerV2__nnUNetPlansv2.1"
    LIVER_OPTIONS="${LIVER_OPTIONS:---no-tta}"
else
    # shellcheck source=/dev/null
    OFFLINE_INFER_QUIET=1 . "${repository}/scripts/set_env.sh" || true
fi

data_set="${LIVER_ENVIRONMENT}/nnUNet_raw/Task003_Liver"
input="${LIVER_ENVIRONMENT}/input"
labels="${LIVER_ENVIRONMENT}/labels"
bundle="${LIVER_ENVIRONMENT}/bundle"
work="${LIVER_ENVIRONMENT}/work"
output="${LIVER_ENVIRONMENT}/output"
performance="${LIVER_ENVIRONMENT}/performance"

step() { printf '\n== %s\n' "$*"; }
offline_infer() { "$PYTHON" -m offline_infer "$@"; }
