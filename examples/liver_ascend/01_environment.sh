#!/usr/bin/env bash
# Guide 1.2, 1.3.1, 1.4: what this machine has. No framework, no patch, no environment variables are needed.
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
step "machine"
mkdir -p "$LIVER_ENVIRONMENT"
offline_infer doctor
