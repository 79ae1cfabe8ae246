#!/usr/bin/env bash
# Guide 1.3.3: the Decathlon task in nnU-Net's naming.
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
step "convert ${LIVER_TASK}"
offline_infer convert-msd "$LIVER_TASK" "$(dirname "$data_set")"
