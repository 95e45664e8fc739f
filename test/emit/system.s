# Ring 0: what is hot has inline paths, what is rare a helper that goes on behind itself; what leaves a state that the
# block was not made for ends it.
# RUN: %emit64 --cpl 0 %t.bin | FileCheck %s
# RUN: %emit64 --cpl 3 %t.bin | FileCheck %s --check-prefix=USER

# CHECK: decoded {{.*}} cli {{.*}}cli
# CHECK: decoded {{.*}} swapgs {{.*}}swapgs
# CHECK: decoded {{.*}} rdtsc {{.*}}rdtsc
# CHECK: decoded {{.*}} helper {{.*}}rdmsr (rdmsr)
# CHECK: decoded {{.*}} helper {{.*}}wrmsr (wrmsr)
# CHECK: decoded {{.*}} read-cr {{.*}}mov
# CHECK: decoded {{.*}} helper {{.*}}mov (read-cr)
# CHECK: decoded {{.*}} sti {{.*}}sti

# The interrupt flag is a bit in memory, never the host's.
# CHECK-NOT: emitted {{.*}} {{(cli|sti|swapgs|rdmsr|wrmsr)$}}
# CHECK: emitted {{.*}} rdtsc
# CHECK: site {{[0-9]+}} helper {{.*}}(rdmsr)
# CHECK: site {{[0-9]+}} helper {{.*}}(wrmsr)

# USER: decoded {{.*}} interpret {{.*}}cli
cli
swapgs
rdtsc
rdmsr
wrmsr
mov %cr2, %rax
mov %cr8, %rcx
sti
jmp 1f

# CHECK: decoded {{.*}} helper-end {{.*}}iretq (iret)
# CHECK: site {{[0-9]+}} helper {{.*}}(iret)
1: iretq

# CHECK: decoded {{.*}} interpret {{.*}}hlt
# CHECK: site {{[0-9]+}} interpret
hlt
