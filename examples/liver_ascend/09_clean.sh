#!/usr/bin/env bash
# Guide 2.6: outputs that inference does not need. Nothing to do for a bundle with one head; may also be run beside step 8.
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
step "clean"
offline_infer clean "$work"
offline_infer clean "$work" --apply
