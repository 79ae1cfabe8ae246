#!/bin/sh
# Delete the outputs of a staged run that inference does not need; safe while the tool is still writing.
# A thin wrapper around "python -m offline_infer clean": what is redundant is decided there, from the run's own manifest.
set -eu

usage() {
    cat <<'TEXT'
usage: clear_outputs.sh [--apply] [--every SECONDS] [--] WORK

Deletes redundant outputs (heads that inference does not need) of the staged run in the folder WORK.
Without --apply nothing is deleted: it only says what would be.

  WORK             work folder of a staged run; a folder that is not marked as a work folder is refused
  --apply          really delete
  --every SECONDS  go on until interrupted, with a pause of SECONDS between passes (a whole number, at least 1)
  --help           this text

The interpreter is $PYTHON, else $VIRTUAL_ENV/bin/python, else .venv/bin/python of this repository, else python3.
Exit status: that of "offline-infer clean" (0 done, 2 wrong usage).
TEXT
}

fail() {
    printf 'clear_outputs.sh: error: %s; see clear_outputs.sh --help\n' "$1" >&2
    exit 2
}

apply=
every=
work=
while [ "$#" -gt 0 ]; do
    case $1 in
        --help | -h)
            usage
            exit 0
            ;;
        --apply) apply=--apply ;;
        --every)
            [ "$#" -ge 2 ] || fail "--every needs a number of seconds"
            every=$2
            shift
            case $every in
                '' | *[!0-9]* | 0*) fail "--every needs a whole number of seconds from 1 on, not '$every'" ;;
            esac
            ;;
        --)
            shift
            [ "$#" -eq 1 ] && [ -z "$work" ] || fail "give exactly one work folder"
            work=$1
            ;;
        -*) fail "unknown option '$1'" ;;
        *)
            [ -z "$work" ] || fail "give exactly one work folder, not '$work' and '$1'"
            work=$1
            ;;
    esac
    shift
done
[ -n "$work" ] || fail "name the work folder"
[ -d "$work" ] || fail "'$work' is not a folder"
# A path that begins with a dash must not be taken for an option further on.
case $work in
    -*) work=./$work ;;
esac

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
if [ -n "${PYTHON:-}" ]; then
    python=$PYTHON
elif [ -n "${VIRTUAL_ENV:-}" ] && [ -x "$VIRTUAL_ENV/bin/python" ]; then
    python=$VIRTUAL_ENV/bin/python
elif [ -x "$here/../.venv/bin/python" ]; then
    python=$here/../.venv/bin/python
else
    python=python3
fi

while :; do
    "$python" -m offline_infer clean "$work" ${apply:+"$apply"}
    [ -n "$every" ] || exit 0
    sleep "$every"
done
