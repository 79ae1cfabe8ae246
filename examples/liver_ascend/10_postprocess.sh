#!/usr/bin/env bash
# Guide 2.7: stitch the outputs to label maps in the images' own space. Nothing has to be moved before.
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
step "stitch"
offline_infer postprocess "$bundle" "$work" "$output"
