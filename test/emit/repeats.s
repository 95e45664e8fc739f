# REP MOVS and STOS within a page run at the host's own speed, behind one check of each page; the rest is a helper's.
# RUN: %emit64 %t.bin | FileCheck %s

# CHECK-LABEL: block 0 at
# CHECK: emitted {{.*}} cmp {{r[0-9a-z]+}}, [{{r[0-9a-z]+}}+0x48]
# CHECK: emitted {{.*}} cmp {{r[0-9a-z]+}}, [{{r[0-9a-z]+}}+0x40]
# CHECK: emitted {{.*}} rep movsb
# CHECK: site {{[0-9]+}} helper {{.*}}(string)
rep movsb
jmp 1f
# CHECK-LABEL: block 1 at
# CHECK: emitted {{.*}} cmp {{r[0-9a-z]+}}, [{{r[0-9a-z]+}}+0x48]
# CHECK: emitted {{.*}} rep stosq
# CHECK: site {{[0-9]+}} helper {{.*}}(string)
1: rep stosq
jmp 1f
# CHECK-LABEL: block 2 at
# CHECK: decoded {{.*}} interpret {{.*}}cmpsb
# CHECK-NOT: emitted {{.*}} cmpsb
1: repe cmpsb
