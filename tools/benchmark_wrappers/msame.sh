#!/usr/bin/env bash
# msame, which ends with status 0 even when it failed.
#
#   msame.sh BUNDLE WORK [--devices 0,1,2,3 ...]              N devices, N parallel sessions over a work folder
#   msame.sh --model M.om --input DIR --output DIR ...        one session with the tool's own options; its result is checked
set -euo pipefail
# shellcheck source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

ascend_environment
case "${1:-}" in
    -*) ;;
    *) parallel_sessions msame "$@" ;;
esac

tool="$(find_tool msame)" || fail "msame is not on PATH and not in this folder; put it there or set TOOL_PATH"
model="" inputs="" outputs="" format=BIN word=""
for each in "$@"; do
    case $word in
        --model) model=$each ;; --input) inputs=$each ;; --output) outputs=$each ;; --outfmt) format=$each ;;
    esac
    case $each in
        --model=*) model=${each#*=} ;; --input=*) inputs=${each#*=} ;;
        --output=*) outputs=${each#*=} ;; --outfmt=*) format=${each#*=} ;;
    esac
    word=$each
done
log="$(mktemp)"
trap 'rm -f "$log"' EXIT
status=0
"$tool" "$@" 2>&1 | tee "$log" || status=$?
[ "$status" -eq 0 ] || fail "${tool} ended with status ${status}"
grep -q "Execute sample success" "$log" || fail "${tool} ended with status 0, but without saying 'Execute sample success'"
if grep -q "^\[ERROR\]" "$log"; then
    fail "${tool} reported success, but passed over inputs: $(grep -m 1 "^\[ERROR\]" "$log")"
fi
if [ -d "$inputs" ] && [ -n "$outputs" ]; then
    ending=txt
    [ "$format" = "BIN" ] && ending=bin
    check_outputs msame "$model" "$inputs" "$outputs" --ending "$ending" --since "$log"
fi
