#!/bin/sh
# Runs every program of DIRECTORY/tests (in a guest: of /selftests.tar, unpacked) and prints what each said between two lines:
#     TEST name
#     DONE name STATUS
# selftests.sh [DIRECTORY [NAME...]]; the names may also come by the kernel's command line, as test=NAME.
directory=${1:-/}
[ $# -gt 0 ] && shift
if [ $# -eq 0 ] && [ -e /selftests.tar ]; then
    tar xf /selftests.tar -C /
    rm /selftests.tar
    # Only warnings of the kernel's own: what tests provoke is theirs.
    dmesg -n 4
    set -- $(tr ' ' '\n' </proc/cmdline | sed -n 's/^test=//p')
fi
[ $# -gt 0 ] || set -- $(cd "$directory/tests" && ls | LC_ALL=C sort)
cd /tmp || exit 1
for name; do
    echo "TEST $name"
    # As a session of its own, since some stop themselves and some send signals to their group. One that is traced for
    # thousands of calls stays on one CPU: the tracer's kernel sleeps a tick each time that the other CPU is not done.
    case $name in
    syscall_numbering*) pin="taskset 1" ;;
    *) pin= ;;
    esac
    $pin setsid timeout -s KILL 60 "$directory/tests/$name" </dev/null 2>&1
    status=$?
    echo
    echo "DONE $name $status"
done
exit 0
