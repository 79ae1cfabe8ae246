#!/usr/bin/env bash
# The vendor's benchmark tool, for the machine named in WRAPPER_MACHINE (default: this one).
#
#   benchmark.sh BUNDLE WORK [--devices 0,1,2,3 ...]     N devices, N parallel sessions over the items of a work folder
#   benchmark.sh -model_type=vision -device_id=0 ...     one session with the tool's own options; its result is checked
set -euo pipefail
# shellcheck source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

machine="${WRAPPER_MACHINE:-$(uname -m)}"
[ "$machine" = "arm64" ] && machine=aarch64
[ "$machine" = "$(uname -m)" ] || [ "$(uname -m)" = "arm64" ] ||
    fail "this machine is $(uname -m): use benchmark.$(uname -m).sh"
ascend_environment
case "${1:-}" in
    -*) ;;
    *) parallel_sessions benchmark "$@" ;;
esac

tool="$(find_tool "benchmark.${machine}")" ||
    fail "benchmark.${machine} is not on PATH and not in this folder; put it there or set TOOL_PATH"
list="" device=0 binary=False model=""
for word in "$@"; do
    case $word in
        -input_text_path=*) list=${word#*=} ;;
        -device_id=*) device=${word#*=} ;;
        -output_binary=*) binary=${word#*=} ;;
        -om_path=*) model=${word#*=} ;;
    esac
done
# Outputs of an earlier run with the same names must not pass for this one's.
marker="$(mktemp)"
trap 'rm -f "$marker"' EXIT
status=0
"$tool" "$@" || status=$?
[ "$status" -eq 0 ] || fail "${tool} ended with status ${status}"
[ -n "$list" ] || exit 0 # a run without data (-round=N)
ending=txt
[ "$binary" = "True" ] && ending=bin
check_outputs benchmark "$model" "$list" "result/dumpOutput_device${device}" --ending "$ending" --since "$marker"
