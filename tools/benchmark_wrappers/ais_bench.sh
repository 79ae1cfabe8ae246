#!/usr/bin/env bash
# ais_bench, as a program or as a Python module.
#
#   ais_bench.sh BUNDLE WORK [--devices 0,1,2,3 ...]          N devices, N parallel sessions over a work folder
#   ais_bench.sh --model M.om --input DIR --output DIR ...    one session with the tool's own options
set -euo pipefail
# shellcheck source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

ascend_environment
case "${1:-}" in
    -*) ;;
    *) parallel_sessions ais_bench "$@" ;;
esac

model="" inputs="" outputs="" name="" format=BIN word=""
for each in "$@"; do
    case $word in
        --model | -m) model=$each ;; --input | -i) inputs=$each ;; --output | -o) outputs=$each ;;
        --output_dirname) name=$each ;; --outfmt) format=$each ;;
    esac
    case $each in
        --model=*) model=${each#*=} ;; --input=*) inputs=${each#*=} ;; --output=*) outputs=${each#*=} ;;
        --output_dirname=*) name=${each#*=} ;; --outfmt=*) format=${each#*=} ;;
    esac
    word=$each
done

umask 0027 # newer releases refuse files that others may write
marker="$(mktemp)"
trap 'rm -f "$marker"' EXIT
if tool="$(find_tool ais_bench)"; then
    command=("$tool")
else
    "$python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("ais_bench") is None)' ||
        fail "ais_bench is neither on PATH nor a module of ${python}; install its wheels or set TOOL_PATH"
    command=("$python" -m ais_bench)
fi
status=0
"${command[@]}" "$@" || status=$?
[ "$status" -eq 0 ] || fail "ais_bench ended with status ${status}"
if [ -d "$inputs" ] && [ -n "$outputs" ]; then
    ending="$(printf '%s' "$format" | tr '[:upper:]' '[:lower:]')"
    check_outputs ais_bench "$model" "$inputs" "${outputs}${name:+/$name}" --ending "$ending" --since "$marker"
fi
