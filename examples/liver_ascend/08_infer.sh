#!/usr/bin/env bash
# Guide 2.5: one session per device, watched; a device that fails loses nothing but time. Same command again: only what is missing.
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
step "infer with ${LIVER_TOOL} on devices ${LIVER_DEVICES}"
case "$LIVER_TOOL" in
    benchmark) wrapper="benchmark.$(uname -m).sh" ;;
    *) wrapper="${LIVER_TOOL}.sh" ;;
esac
"${wrappers}/${wrapper}" "$bundle" "$work" --devices "$LIVER_DEVICES"
