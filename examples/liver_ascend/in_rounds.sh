#!/usr/bin/env bash
# Steps 6 to 10 for all validation cases (guide 2.2 to 2.8) on a disk budget: cut, infer, merge, delete, in rounds.
# Instead of those steps. Interrupted: the same command goes on with the case it was at.
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
step "all cases within ${LIVER_SCRATCH} of scratch disk"
# shellcheck disable=SC2086
offline_infer staged "$bundle" "$input" "${LIVER_ENVIRONMENT}/rounds" "$output" --scratch "$LIVER_SCRATCH" \
    --folds "$LIVER_FOLD" --tool "$LIVER_TOOL" --devices "$LIVER_DEVICES" $LIVER_OPTIONS
