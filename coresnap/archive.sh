#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# archive, as the kernel starts it: archive PID TID UID GID SIGNAL TIME RLIMIT DUMPABLE PIDFD EXE < CORE
# In a storm of crashes ten at most have an interpreter at a time. The others wait here, in a tenth of its memory: calm is
# where fewer than ten tasks want a processor. First they leave a note, and wait as long as an archive carries, which is as
# long as one has the pipe `carriers` open: it gives the service what the notes tell of, and ends us (coresnap/capture/carry.py).
# Whoever it leaves goes on as if nobody had carried, and carries for others: through a gate, a file that root alone can open,
# after two minutes at most. What the service cannot be given, its own crash and journald's, leaves no note.
run=/run/coresnap
gate=$run/gate.${1#"${1%?}"}
if read -r _ _ _ tasks _ </proc/loadavg && [ "${tasks%%/*}" -ge 10 ] && [ -f "$gate" ] && command exec 9<"$gate"; then
    alone=
    while read -r group; do
        case $group in */init.scope* | */systemd-journald* | */coresnap.slice/*) alone=1 ;; esac
    done <"/proc/$1/cgroup" || alone=1
    set -C # a note that another process of our number has left may be in somebody's hands still: it is none of ours
    trap : URG # whom nobody can carry is woken so; a program that is run next passes it over
    # shellcheck disable=SC2094  # it is opened for both, so that opening it does not wait for somebody to carry
    if [ -z "$alone" ] && [ -p "$run/carriers" ] && command exec 5<&0 7>"$run/waiting/$$" 8<>"$run/carriers" <"$run/carriers"; then
        exec 8>&-
        printf '%s\0' "$@" >&7 # should we be killed, it tells coresnapd whose core is lost
        read -r _
        exec <&5
        command exec 8<>"$run/carriers"
    fi
    # Meanwhile it can be carried still: in parentheses, since some shells close these for as long as a command runs, in place
    # of closing them for the command.
    (exec /usr/bin/flock -w 120 9 </dev/null 5<&- 7>&- 8>&-)
    exec 5<&-
fi
exec /usr/bin/python3 -IS -c 'import sys
sys.path.insert(0, sys.argv.pop(1))
from coresnap.archive import main
sys.exit(main(sys.argv[1:]))' "${0%/*}/python" "$@"
