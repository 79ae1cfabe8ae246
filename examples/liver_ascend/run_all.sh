#!/usr/bin/env bash
# All steps in order; stops at the first that fails.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
for script in "${here}"/[0-9][0-9]_*.sh; do
    "$script"
done
