#!/usr/bin/env bash
# Guide 1.3.6, 1.3.7, 2.1: checkpoint to ONNX, with everything a run needs, in one folder. Only the final head is exported:
# nothing redundant is written later. KEEP_HEADS=1 exports all five, as the published graph does.
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
step "export ${LIVER_CHECKPOINT}"
options=(--folds "$LIVER_FOLD" --opset 13 --overwrite)
[ "${KEEP_HEADS:-0}" = 1 ] && options+=(--keep-deep-supervision)
# shellcheck disable=SC2086
offline_infer export "$LIVER_CHECKPOINT" -o "$bundle" "${options[@]}" ${LIVER_EXPORT_OPTIONS:-}
