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

umask 0027 # newer releases refuse files that others may write
if tool="$(find_tool ais_bench)"; then
    exec "$tool" "$@"
fi
"$python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("ais_bench") is None)' ||
    fail "ais_bench is neither on PATH nor a module of ${python}; install its wheels or set TOOL_PATH"
exec "$python" -m ais_bench "$@"
