#!/usr/bin/env bash
# Guide 2.9: Dice, in nnU-Net v1's own summary.json. Cases that were not segmented yet are left out and named.
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
step "evaluate"
offline_infer evaluate "$output" "$labels" --bundle "$bundle" --format nnunet-v1 --allow-missing \
    -o "${LIVER_ENVIRONMENT}/summary.json"
