#!/usr/bin/env bash
# Guide 2.2, 2.3: cut one case (LIVER_CASE, or: all) into tiles. The forecast of the disk comes before the first byte.
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
step "cut ${LIVER_CASE}"
from="$input"
[ "$LIVER_CASE" = all ] || from="${input}/${LIVER_CASE}_0000.nii.gz"
# shellcheck disable=SC2086
offline_infer preprocess "$bundle" "$from" "$work" --folds "$LIVER_FOLD" $LIVER_OPTIONS
