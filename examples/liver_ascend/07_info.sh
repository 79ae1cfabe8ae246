#!/usr/bin/env bash
# Guide 2.4: the lists of tiles. The next step makes its own; these are for runs by hand.
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
step "lists"
devices="${LIVER_DEVICES//[^,]/}"
offline_infer info "$work" --shards $((${#devices} + 1)) --format benchmark
