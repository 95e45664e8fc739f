#!/bin/bash
# What takes a processor to be one: a debugger's breakpoints, watchpoints and steps; programs that write code as they run.
cd /tmp || exit 1
dmesg -n emerg # a busy host makes the kernel complain of late timers, between the lines that are asked for
cat >counted.c <<'END'
int counter;
int step(int i) { counter += i; return counter; }
int main(void) {
    for (int i = 0; i < 1000; i++)
        step(i);
    return counter == 499500 ? 0 : 1;
}
END
gcc -g -O0 counted.c -o counted
gdb -q -nx -batch -ex 'break step if i == 500' -ex run -ex 'printf "BROKE at %d\n", counter' -ex delete \
    -ex 'watch counter' -ex continue -ex 'printf "WATCHED %d\n", counter' -ex delete \
    -ex 'stepi 300' -ex 'printf "STEPPED to %d\n", counter > 125250 && counter < 150000' \
    -ex 'tbreak step if i == 900' -ex continue -ex 'printf "BROKE at %d\n", counter' -ex continue ./counted 2>&1 |
    grep -E 'BROKE|WATCHED|STEPPED|exited'
node -e 'let s = 1; for (let i = 0; i < 3e7; i++) s = (Math.imul(s, 31) + i) | 0; console.log("NODE", s)'
python3 -c 'print("PYTHON", sum(i * i % 7 for i in range(1000000)))'
rm -f keys
java -Xshare:auto -version 2>&1 | grep -c Runtime
keytool -genkeypair -alias a -keyalg RSA -keysize 3072 -dname CN=a -storepass 123456 -keystore keys 2>/dev/null
keytool -list -storepass 123456 -keystore keys 2>/dev/null | grep -c PrivateKeyEntry
echo "TOOLS over"
