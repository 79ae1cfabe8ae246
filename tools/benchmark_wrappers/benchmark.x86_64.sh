#!/usr/bin/env bash
# benchmark.x86_64: see benchmark.sh, which takes the same arguments.
WRAPPER_MACHINE=x86_64 exec "$(dirname "${BASH_SOURCE[0]}")/benchmark.sh" "$@"
