#!/usr/bin/env bash
# Speed of an ONNX file with ONNX Runtime: onnx_infer.sh MODEL 1,1,128,128,128 [--device cuda:0|tensorrt:0|cpu] ...
set -euo pipefail
# shellcheck source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
exec "$python" "${wrapper_folder}/onnx_infer.py" "$@"
