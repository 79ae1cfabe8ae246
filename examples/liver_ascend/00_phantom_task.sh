#!/usr/bin/env bash
# Only with USE_STANDINS=1: phantom CTs laid out as the Decathlon liver task, and a split of them.
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
if [ "$USE_STANDINS" != 1 ]; then
    echo "the real task is used: unpack Task03_Liver.tar to ${LIVER_TASK}, put splits_final.pkl to ${LIVER_SPLITS}"
    exit 0
fi
step "phantom task in ${LIVER_TASK}"
"$PYTHON" "${here}/phantom_task.py" "$LIVER_TASK" "$LIVER_SPLITS"
