#!/usr/bin/env bash
# Guide, the end: its two tables, precision and performance, made from the records of the steps before.
#
# LIVER_ONNX_SUMMARY and LIVER_FRAMEWORK_SUMMARY name summary.json files of the same cases by ONNX Runtime on a GPU and by the
# framework itself. Without the first, the graph is run here and now (streaming, the engine this machine has); without
# the second, the published figures of the checkpoint stand in their column.
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
onnx_summary="${LIVER_ONNX_SUMMARY:-}"
if [ -z "$onnx_summary" ]; then
    step "the same cases through the ONNX graph"
    from="$input"
    [ "$LIVER_CASE" = all ] || from="${input}/${LIVER_CASE}_0000.nii.gz"
    onnx_summary="${LIVER_ENVIRONMENT}/summary_onnx.json"
    # shellcheck disable=SC2086
    offline_infer predict "$bundle" "$from" "${LIVER_ENVIRONMENT}/output_onnx" --folds "$LIVER_FOLD" $LIVER_OPTIONS
    offline_infer evaluate "${LIVER_ENVIRONMENT}/output_onnx" "$labels" --bundle "$bundle" --format nnunet-v1 --allow-missing \
        -o "$onnx_summary"
fi
framework=(--precision "published:1=95.80,2=65.60")
[ -z "${LIVER_FRAMEWORK_SUMMARY:-}" ] || framework=(--precision "framework=${LIVER_FRAMEWORK_SUMMARY}")
step "tables"
offline_infer guide-tables "${framework[@]}" --precision "ONNX=${onnx_summary}" \
    --precision "${LIVER_SOC}=${LIVER_ENVIRONMENT}/summary.json" \
    --performance "${LIVER_SOC}, no data=${performance}" \
    --performance "${LIVER_SOC}, the cases=${work}/perf/performance.json" \
    --baseline "${LIVER_BASELINE_NAME:-ONNX Runtime}=${performance}/baseline.json" \
    --soc "$LIVER_SOC" --bundle "$bundle" -o "${LIVER_ENVIRONMENT}/tables.md"
