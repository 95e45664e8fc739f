# Direct branches are jumps that can be patched, with an exit behind each; a call pushes the guest's return address, and
# tells returns where its landing is, which looks whether it is meant; indirect branches ask the jump cache, whose key is
# compared whole.
# RUN: %emit64 %t.bin | FileCheck %s

# CHECK-LABEL: block 0 at 0x400000
# CHECK: emitted {{.*}} test rax, rax
# CHECK: emitted {{.*}} jz 0x
# CHECK: emitted {{.*}} add rcx, rdx
# CHECK: emitted {{.*}} jmp 0x
# CHECK: site {{[0-9]+}} link guest 3 {{.*}} to 0x400008
# CHECK: site {{[0-9]+}} link guest {{[0-9]+}} {{.*}} to 0x40000a
test %rax, %rax
jz 1f
add %rdx, %rcx
1: jmp 2f

# CHECK-LABEL: block 1 at 0x40000a
# CHECK: emitted {{.*}} mov qword ptr [{{.*}}], 0x40000F
# CHECK-NEXT: emitted {{.*}} lea rsp, [rsp-0x08]
# CHECK: emitted {{.*}} lea [[LANDING:r[0-9a-z]+]], [0x
# CHECK-NEXT: emitted {{.*}} mov gs:[0x{{[0-9A-F]+}}], [[LANDING]]
# CHECK-NEXT: emitted {{.*}} jmp 0x
# CHECK: emitted {{.*}} cmp r11, 0x40000F
# CHECK-NEXT: emitted {{.*}} jnz 0x
# CHECK-NEXT: emitted {{.*}} jmp 0x
# CHECK: site {{[0-9]+}} link guest 0 {{.*}} to 0x40000f
# CHECK: site {{[0-9]+}} {{(memory|stack)}} guest 0
# CHECK: site {{[0-9]+}} link guest 0 {{.*}} to 0x40000f
2: call 3f

# CHECK-LABEL: block 2 at 0x40000f
# CHECK: emitted {{.*}} xor [[KEY:r[0-9a-z]+]], gs:[0x
# CHECK: emitted {{.*}} cmp [[KEY]], gs:[{{.*}}]
# CHECK-NEXT: emitted {{.*}} jnz
# CHECK: emitted {{.*}} jmp {{(r[0-9a-z]+|gs:)}}
# CHECK: site {{[0-9]+}} jump-miss guest 0
3: jmp *%rax

# The stack pointer has moved before the jump, not before the load. The slot is that of the target's low byte.
# CHECK-LABEL: block 3 at 0x400011
# CHECK: emitted {{.*}} mov r11, [{{.*}}]
# CHECK-NEXT: emitted {{.*}} lea rsp, [rsp+0x08]
# CHECK: emitted {{.*}} mov r9d, 0x
# CHECK-NEXT: emitted {{.*}} movzx r10d, r11b
# CHECK-NEXT: emitted {{.*}} jmp gs:[r10*8+0x
# CHECK: site {{[0-9]+}} jump-miss guest 0
ret
