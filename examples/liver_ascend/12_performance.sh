#!/usr/bin/env bash
# Guide 2.10: speed without data on one device, the card's figure, and the ONNX Runtime baseline.
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
runs="${LIVER_RUNS:-20}"
step "speed of one device (${runs} runs without data)"
mkdir -p "$performance"
om="$("$PYTHON" "${here}/performance.py" om "$bundle" "$LIVER_SOC")"
(
    cd "$performance"
    case "$LIVER_TOOL" in
        benchmark) "${wrappers}/benchmark.$(uname -m).sh" -round="$runs" "-om_path=${om}" -device_id=0 -batch_size=1 ;;
        msame) "${wrappers}/msame.sh" --model "$om" --loop "$runs" --device 0 | tee msame_device_0.log ;;
        ais_bench) "${wrappers}/ais_bench.sh" --model "$om" --loop "$runs" --device 0 --output "$performance" --output_dirname pure ;;
    esac
)
"$PYTHON" "${here}/performance.py" show "$performance" "$LIVER_SOC" "$LIVER_TOOL"

step "baseline: ONNX Runtime on the same graph"
device=(--device "${LIVER_BASELINE_DEVICE:-tensorrt:0}")
[ "$USE_STANDINS" = 1 ] && device=(--device cpu --rounds "${LIVER_ROUNDS:-12}")
read -r onnx shape < <("$PYTHON" "${here}/performance.py" onnx "$bundle")
"${wrappers}/onnx_infer.sh" "$onnx" "$shape" "${device[@]}" --json >"${performance}/baseline.json"
"$PYTHON" "${here}/performance.py" baseline "${performance}/baseline.json"
