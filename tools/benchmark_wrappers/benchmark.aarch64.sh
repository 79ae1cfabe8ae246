#!/usr/bin/env bash
# benchmark.aarch64: see benchmark.sh, which takes the same arguments.
WRAPPER_MACHINE=aarch64 exec "$(dirname "${BASH_SOURCE[0]}")/benchmark.sh" "$@"
