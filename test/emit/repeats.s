# REP MOVS and STOS run at the host's own speed, behind one check of each page; over the ends of pages in pieces, between
# which requests are looked for. Only a page that the TLB lacks is the helper's.
# RUN: %emit64 %t.bin | FileCheck %s

# CHECK-LABEL: block 0 at
# CHECK: emitted {{.*}} cmp {{r[0-9a-z]+}}, [{{r[0-9a-z]+}}+0x48]
# CHECK: emitted {{.*}} cmp {{r[0-9a-z]+}}, [{{r[0-9a-z]+}}+0x40]
# CHECK: emitted {{.*}} rep movsb
# CHECK: emitted {{.*}} jmp
# CHECK-NEXT: emitted {{.*}} cmp dword ptr gs:[{{.*}}], 0x00
# CHECK-NEXT: emitted {{.*}} jnz
# CHECK: emitted {{.*}} sub rcx, [[PIECE:r[0-9a-z]+]]
# CHECK-NEXT: emitted {{.*}} mov gs:[[[REST:0x[0-9A-F]+]]], rcx
# CHECK-NEXT: emitted {{.*}} mov rcx, [[PIECE]]
# CHECK: emitted {{.*}} cmp {{r[0-9a-z]+}}, [{{r[0-9a-z]+}}+0x48]
# CHECK: emitted {{.*}} cmp {{r[0-9a-z]+}}, [{{r[0-9a-z]+}}+0x40]
# CHECK: emitted {{.*}} rep movsb
# CHECK: emitted {{.*}} mov rcx, gs:[[[REST]]]
# CHECK: emitted {{.*}} add rcx, gs:[[[REST]]]
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
