#!/bin/sh
# expect-exit.sh STATUS COMMAND...: runs the command with no input and succeeds when its exit status is STATUS.
want=$1
shift
"$@" </dev/null
got=$?
if [ "$got" -ne "$want" ]; then
    echo "FAIL exit status: got $got, want $want"
    exit 1
fi
