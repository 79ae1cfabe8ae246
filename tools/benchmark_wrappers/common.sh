# shellcheck shell=bash
# Shared by the wrappers in this folder; to be sourced, not run.

wrapper_folder="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
repository="$(cd "${wrapper_folder}/../.." && pwd)"
python="${PYTHON:-python3}"

# fail TEXT...: say what is wrong and end with status 2.
fail() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 2
}

# ascend_environment: set the Ascend environment unless it is set already; without a toolkit the tool itself will complain.
ascend_environment() {
    if [ -z "${ASCEND_TOOLKIT_HOME:-}${ASCEND_HOME_PATH:-}" ] && [ -r "${repository}/scripts/set_env.sh" ]; then
        # shellcheck source=/dev/null
        OFFLINE_INFER_QUIET=1 . "${repository}/scripts/set_env.sh" 2>/dev/null || true
    fi
}

# find_tool NAME: path of a program: the one in TOOL_PATH (file or folder), on PATH, or in the working directory.
find_tool() {
    local name=$1 given=${TOOL_PATH:-}
    if [ -n "$given" ]; then
        [ -d "$given" ] && given="${given%/}/${name}"
        [ -x "$given" ] || fail "TOOL_PATH: ${given} is not an executable file"
        printf '%s' "$given"
    elif command -v "$name" >/dev/null 2>&1; then
        command -v "$name"
    elif [ -x "./${name}" ]; then
        printf '%s' "./${name}"
    else
        return 1
    fi
}

# check_outputs TOOL MODEL INPUTS OUTPUTS: every input must have all the outputs the model gives, whole. INPUTS is a folder
# or an info file. What the model gives is read from the bundle around it, or else taken from the outputs that are there.
check_outputs() {
    "$python" "${wrapper_folder}/check_outputs.py" "$@" || fail "its outputs are not complete"
}

# parallel_sessions TOOL BUNDLE WORK [OPTION...]: one session per device, watched, through the package.
parallel_sessions() {
    local tool=$1
    shift
    [ $# -ge 2 ] || fail "expected BUNDLE WORK [--devices 0,1,2,3 ...], or the tool's own options; see README.md"
    local options=()
    [ -n "${TOOL_PATH:-}" ] && options=(--tool-path "${TOOL_PATH}")
    exec "$python" -m offline_infer infer "$1" "$2" --tool "$tool" ${options[@]+"${options[@]}"} "${@:3}"
}
