#!/usr/bin/env bash
# Guide 1.3.5: the validation cases of the fold, with their reference label maps. Planning is not needed: the checkpoint brings its plans.
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
step "validation cases of fold ${LIVER_FOLD}"
offline_infer pick-fold "$LIVER_SPLITS" "${data_set}/imagesTr" "$input" --fold "$LIVER_FOLD" \
    --labels "${data_set}/labelsTr" --labels-output "$labels"
