#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# archive, as the kernel starts it: archive PID TID UID GID SIGNAL TIME RLIMIT DUMPABLE PIDFD EXE < CORE
# In a storm of crashes ten at most have an interpreter at a time, and the others wait here, in a tenth of its memory: at a
# gate, a file that root alone can open, for two minutes at most. Calm is where fewer than ten tasks want a processor.
gate=/run/coresnap/gate.${1#"${1%?}"}
if read -r _ _ _ tasks _ </proc/loadavg && [ "${tasks%%/*}" -ge 10 ] && [ -f "$gate" ] && command exec 9<"$gate"; then
    /usr/bin/flock -w 120 9
fi
exec /usr/bin/python3 -IS -c 'import sys
sys.path.insert(0, sys.argv.pop(1))
from coresnap.archive import main
sys.exit(main(sys.argv[1:]))' "${0%/*}/python" "$@"
