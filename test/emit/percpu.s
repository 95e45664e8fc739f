# Ring 0 reaches constant offsets from GS's base by a table of pages: no address is computed, and the TLB is asked in the cold
# path alone, which fills the table. Ring 3, and what moves with a register, ask the TLB as ever.
# RUN: %emit64 --cpl 0 %t.bin | FileCheck %s
# RUN: %emit64 --cpl 3 %t.bin | FileCheck %s --check-prefix=USER

# CHECK: emitted {{.*}} mov [[T:r[0-9]+]], gs:[[[TABLE:0x[0-9A-F]+]]]
# CHECK-NEXT: emitted {{.*}} mov [[T]], [[[T]]{{.*}}]
# CHECK-NEXT: emitted {{.*}} test [[T]], [[T]]
# CHECK-NEXT: emitted {{.*}} jz
# CHECK: emitted {{.*}} mov rax, [[[T]]+0x123]
mov %gs:0x2123, %rax

# The same page has the same slot for reads, another one for writes.
# CHECK: emitted {{.*}} mov [[U:r[0-9]+]], gs:[[[TABLE]]]
# CHECK-NEXT: emitted {{.*}} mov [[U]], [[[U]]+0x200]
# CHECK: emitted {{.*}} mov [[[U]]+0x128], ecx
mov %ecx, %gs:0x2128

# CHECK: emitted {{.*}} and {{.*}}, 0x
# CHECK: emitted {{.*}} mov rdx, [{{.*}}]
mov %gs:8(%rbx), %rdx
jmp 1f
1: nop

# USER-NOT: emitted {{.*}} test
# USER: decoded
