#!/usr/bin/env bash
# Guide 2.1: ONNX to OM. If atc fails with E90003, add: LIVER_COMPILE_OPTIONS=--decompose-instance-norm
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
step "compile for ${LIVER_SOC}"
# shellcheck disable=SC2086
offline_infer compile "$bundle" --soc "$LIVER_SOC" ${LIVER_COMPILE_OPTIONS:-}
