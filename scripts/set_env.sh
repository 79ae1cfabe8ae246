# shellcheck shell=sh
# Find the Ascend toolkit (CANN) on this machine and set the environment for atc, benchmark, msame and ais_bench.
#
#     . scripts/set_env.sh          (bash, sh, dash, zsh; safe to source twice)
#
# Known layouts, looked for in this order: what ASCEND_TOOLKIT_HOME or ASCEND_HOME_PATH name; then under each root
#     cann/                         CANN 8.5 and later
#     ascend-toolkit/               5.x to 8.3, with its own set_env.sh
#     nnae/, nnrt/                  the smaller packages (nnrt has no atc)
#     ascend-toolkit/latest/fwkacllib   5.0 and older, without a set_env.sh: variables are set here
# Roots: /usr/local/Ascend and $HOME/Ascend, or the colon-separated list in OFFLINE_INFER_ASCEND_ROOTS.
# OFFLINE_INFER_QUIET=1 keeps it silent except for errors. Status: 0 found, 1 nothing found; the shell is never ended.

_oi_say() { [ -n "${OFFLINE_INFER_QUIET:-}" ] || printf 'set_env: %s\n' "$*"; }

# _oi_prepend NAME DIR...: put existing folders in front of a path list, in this order, each only once.
_oi_prepend() {
    _oi_name=$1
    shift
    eval "_oi_old=\${${_oi_name}:-}"
    _oi_new=
    for _oi_dir in "$@"; do
        [ -d "$_oi_dir" ] && _oi_new="${_oi_new:+$_oi_new:}$_oi_dir"
    done
    _oi_unique "${_oi_new}${_oi_new:+${_oi_old:+:}}${_oi_old}"
    if [ -n "$_oi_list" ]; then
        eval "${_oi_name}=\$_oi_list"
        export "${_oi_name?}"
    fi
    return 0
}

# _oi_unique LIST: sets _oi_list to the colon-separated list without repetitions; the first of equal entries stays.
_oi_unique() {
    _oi_rest=$1
    _oi_list=
    while [ -n "$_oi_rest" ]; do
        _oi_part=${_oi_rest%%:*}
        case $_oi_rest in *:*) _oi_rest=${_oi_rest#*:} ;; *) _oi_rest= ;; esac
        case ":$_oi_list:" in
            *":$_oi_part:"*) ;;
            *) [ -n "$_oi_part" ] && _oi_list="${_oi_list:+$_oi_list:}$_oi_part" ;;
        esac
    done
    return 0
}

# _oi_version DIR: prints the release a toolkit folder says it is, or nothing.
_oi_version() {
    for _oi_file in "$1/version.cfg" "$1/version.info" "$1/$(uname -m)-linux/ascend_toolkit_install.info" \
        "$1/ascend_toolkit_install.info" "$1/ascend_nnae_install.info" "$1/toolkit/version.info" \
        "$1/compiler/version.info" "$1/runtime/version.info" "$1/fwkacllib/version.info" "$1/opp/version.info"; do
        if [ -r "$_oi_file" ]; then
            _oi_line=$(sed -n 's/^[[:space:]]*\(toolkit_running_\|runtime_running_\|running_\)\{0,1\}[Vv]ersion[[:space:]]*=[[:space:]]*//p' "$_oi_file" | head -n 1)
            _oi_line=${_oi_line#\[}
            _oi_line=${_oi_line%%\]*}
            _oi_line=${_oi_line##*:}
            if [ -n "$_oi_line" ]; then
                printf '%s' "$_oi_line"
                return 0
            fi
        fi
    done
    return 0
}

# _oi_newer A B: whether release A is newer than B, comparing number by number (10.0.0 is newer than 9.0.0, and 8.0.RC2
# than 8.0.RC1). Where numbers and letters meet, the number counts as newer: 8.0.1 came after 8.0.RC3.
_oi_newer() {
    [ -n "$2" ] || return 0
    [ "$1" != "$2" ] || return 1
    [ "$(printf '%s\n%s\n' "$1" "$2" | awk '
        function key(text,   parts, count, i, made, piece) {
            count = split(text, parts, /[.]/)
            for (i = 1; i <= count; i++) {
                piece = parts[i]
                if (piece ~ /^[0-9]+$/) made = made sprintf("2%012d", piece)
                else { gsub(/[^0-9]/, "", piece); made = made sprintf("1%012d", piece) }
            }
            return made "1z" # an alpha of a release came before the release
        }
        { print key($0) "\t" $0 }' | LC_ALL=C sort | tail -n 1 | cut -f 2)" = "$1" ]
}

# _oi_vendor FILE: source a vendor script, first in a subshell: what fails there must not end this shell.
_oi_vendor() {
    (set +eu && . "$1") >/dev/null 2>&1 || return 1
    case $- in *u*) _oi_nounset=1 ;; *) _oi_nounset= ;; esac
    case $- in *e*) _oi_errexit=1 ;; *) _oi_errexit= ;; esac
    set +eu
    # shellcheck disable=SC1090
    . "$1" >/dev/null
    [ -z "$_oi_nounset" ] || set -u
    [ -z "$_oi_errexit" ] || set -e
    return 0
}

# _oi_variables DIR: for a toolkit without (working) set_env.sh.
_oi_variables() {
    _oi_arch="$1/$(uname -m)-linux"
    _oi_prepend LD_LIBRARY_PATH "$1/lib64" "$_oi_arch/lib64" "$1/fwkacllib/lib64" "$1/atc/lib64" "$1/acllib/lib64" \
        "$1/compiler/lib64" "$1/runtime/lib64"
    _oi_prepend PYTHONPATH "$1/python/site-packages" "$1/fwkacllib/python/site-packages" \
        "$1/toolkit/python/site-packages" "$1/atc/python/site-packages" "$1/pyACL/python/site-packages/acl" \
        "$1/opp/built-in/op_impl/ai_core/tbe"
    _oi_prepend PATH "$1/bin" "$_oi_arch/bin" "$1/compiler/bin" "$1/atc/bin" "$1/fwkacllib/bin" \
        "$1/fwkacllib/ccec_compiler/bin" "$1/compiler/ccec_compiler/bin"
    export ASCEND_TOOLKIT_HOME="$1" ASCEND_HOME_PATH="$1" ASCEND_AICPU_PATH="$1" ASCEND_OPP_PATH="$1/opp"
    export TOOLCHAIN_HOME="$1/toolkit"
}

# _oi_finish LAYOUT DIR ROOT: driver, build variables, tidy lists, report.
_oi_finish() {
    _oi_home=${ASCEND_TOOLKIT_HOME:-${ASCEND_HOME_PATH:-$2}}
    [ -d "$_oi_home" ] || _oi_home=$2
    for _oi_driver in "$3/driver" /usr/local/Ascend/driver; do
        [ -d "$_oi_driver/lib64" ] && break
        _oi_driver=
    done
    if [ -n "$_oi_driver" ]; then
        _oi_prepend LD_LIBRARY_PATH "$_oi_driver/lib64" "$_oi_driver/lib64/common" "$_oi_driver/lib64/driver"
    else
        # Without a driver atc needs a stand-in for libascend_hal.so, which the toolkit brings.
        _oi_prepend LD_LIBRARY_PATH "$_oi_home/$(uname -m)-linux/devlib" "$_oi_home/devlib"
    fi
    if [ -z "${DDK_PATH:-}" ]; then
        export DDK_PATH="$_oi_home"
    fi
    if [ -z "${NPU_HOST_LIB:-}" ]; then
        for _oi_dir in "$_oi_home/runtime/lib64/stub" "$_oi_home/acllib/lib64/stub" "$_oi_home/$(uname -m)-linux/devlib"; do
            if [ -d "$_oi_dir" ]; then
                export NPU_HOST_LIB="$_oi_dir"
                break
            fi
        done
    fi
    # Vendor scripts add their folders anew each time they are sourced.
    _oi_prepend PATH
    _oi_prepend LD_LIBRARY_PATH
    _oi_prepend PYTHONPATH
    _oi_found=$(_oi_version "$_oi_home")
    _oi_say "CANN ${_oi_found:-of unknown version} in $_oi_home (layout: $1)"
    _oi_found=$(command -v atc || true)
    _oi_say "atc: ${_oi_found:-not in this package; compile where the toolkit is}"
    _oi_say "driver: ${_oi_driver:-none on this machine (compiling needs none)}"
    _oi_found=$(command -v npu-smi || true)
    _oi_say "npu-smi: ${_oi_found:-not found}"
}

# _oi_try LAYOUT DIR ROOT SCRIPT...: use DIR if it exists; the first script that works, else variables set here.
_oi_try() {
    [ -d "$2" ] || return 1
    _oi_layout=$1
    _oi_dir_used=$2
    _oi_root_used=$3
    shift 3
    for _oi_script in "$@"; do
        if [ -r "$_oi_script" ] && _oi_vendor "$_oi_script"; then
            _oi_finish "$_oi_layout" "$_oi_dir_used" "$_oi_root_used"
            return 0
        fi
    done
    for _oi_script in compiler runtime atc fwkacllib opp bin; do
        if [ -d "$_oi_dir_used/$_oi_script" ]; then
            _oi_variables "$_oi_dir_used"
            _oi_finish "$_oi_layout, variables set by this script" "$_oi_dir_used" "$_oi_root_used"
            return 0
        fi
    done
    return 1
}

_oi_search() {
    for _oi_named in "${ASCEND_TOOLKIT_HOME:-}" "${ASCEND_HOME_PATH:-}"; do
        if [ -n "$_oi_named" ]; then
            _oi_parent=$(dirname "$_oi_named")
            _oi_try "named by the environment" "$_oi_named" "$(dirname "$_oi_parent")" \
                "$_oi_named/set_env.sh" "$_oi_parent/set_env.sh" "$_oi_named/bin/setenv.bash" && return 0
        fi
    done
    _oi_roots=${OFFLINE_INFER_ASCEND_ROOTS:-/usr/local/Ascend${HOME:+:$HOME/Ascend}}
    _oi_left=$_oi_roots
    while [ -n "$_oi_left" ]; do
        _oi_root=${_oi_left%%:*}
        case $_oi_left in *:*) _oi_left=${_oi_left#*:} ;; *) _oi_left= ;; esac
        [ -d "$_oi_root" ] || continue
        _oi_try "cann (8.5 and later)" "$_oi_root/cann" "$_oi_root" "$_oi_root/cann/set_env.sh" && return 0
        for _oi_kind in ascend-toolkit nnae nnrt; do
            _oi_try "$_oi_kind" "$_oi_root/$_oi_kind/latest" "$_oi_root" \
                "$_oi_root/$_oi_kind/set_env.sh" "$_oi_root/$_oi_kind/latest/set_env.sh" \
                "$_oi_root/$_oi_kind/latest/bin/setenv.bash" && return 0
            # Some installations have no 'latest': take the newest versioned folder.
            _oi_last=
            for _oi_dir in "$_oi_root/$_oi_kind"/[0-9]*; do
                if [ -d "$_oi_dir" ] && _oi_newer "${_oi_dir##*/}" "${_oi_last##*/}"; then
                    _oi_last=$_oi_dir
                fi
            done
            [ -n "$_oi_last" ] && _oi_try "$_oi_kind, $(basename "$_oi_last")" "$_oi_last" "$_oi_root" \
                "$_oi_root/$_oi_kind/set_env.sh" "$_oi_last/set_env.sh" && return 0
        done
    done
    printf 'set_env: no Ascend toolkit found under %s; set ASCEND_TOOLKIT_HOME to its folder, or install CANN\n' \
        "$_oi_roots" >&2
    return 1
}

_oi_main() {
    # In zsh an unmatched pattern is an error unless told otherwise.
    if [ -n "${ZSH_VERSION:-}" ]; then
        setopt local_options no_nomatch 2>/dev/null || true
    fi
    if _oi_search; then _oi_status=0; else _oi_status=1; fi
    unset -f _oi_say _oi_prepend _oi_unique _oi_version _oi_newer _oi_vendor _oi_variables _oi_finish _oi_try _oi_search
    unset _oi_name _oi_old _oi_new _oi_dir _oi_list _oi_rest _oi_part _oi_file _oi_line _oi_nounset _oi_errexit _oi_arch \
        _oi_home _oi_driver _oi_found _oi_layout _oi_dir_used _oi_root_used _oi_script _oi_named _oi_parent _oi_roots \
        _oi_left _oi_root _oi_kind _oi_last
    return "$_oi_status"
}

# The status of this last command is the status of sourcing; it is never 'exit'.
_oi_main
