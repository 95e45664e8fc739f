# Pushes and pops that share a check move RSP once, before what looks at it or may leave the block.
# RUN: %emit64 %t.bin | FileCheck %s

# CHECK-LABEL: block 0
# CHECK: emitted {{.*}} mov [rsp+[[A:r[0-9a-z]+]]*1-0x08], r12
# CHECK-NOT: rsp, [
# CHECK: emitted {{.*}} xor r12d, r12d
# CHECK: emitted guest 5, rsp -8{{[:,]}}
# CHECK: emitted {{.*}} mov [rsp+[[A]]*1-0x10], rbp
# CHECK-NOT: rsp, [
# CHECK: emitted {{.*}} mov [rsp+[[A]]*1-0x18], rbx
# CHECK-NOT: rsp, [
# CHECK: emitted {{.*}} lea rsp, [rsp-0x18]
# CHECK: emitted {{.*}} jz 0x
# CHECK: emitted {{.*}} mov rax, [rsp+{{.*}}]
# CHECK-NOT: rsp, [
# CHECK: emitted {{.*}} mov rcx, [rsp+{{.*}}+0x08]
# CHECK-NOT: rsp, [
# CHECK: emitted {{.*}} lea rsp, [rsp+0x10]
# CHECK: emitted {{.*}} mov rdx, rsp
# CHECK: emitted {{.*}} jmp 0x
push %r12
xor %r12d, %r12d
push %rbp
push %rbx
cmp $1, %edi
je 1f
pop %rax
pop %rcx
mov %rsp, %rdx
1: jmp 2f

# CHECK-LABEL: block 1
# CHECK: emitted {{.*}} mov rbx, [rsp+{{r[0-9a-z]+}}*1]
# CHECK-NOT: rsp, [
# CHECK: emitted {{.*}} mov rbp, [rsp+{{r[0-9a-z]+}}*1+0x08]
# CHECK-NOT: rsp, [
# CHECK: emitted {{.*}} mov r11, [rsp+{{r[0-9a-z]+}}*1+0x10]
# CHECK: emitted {{.*}} lea rsp, [rsp+0x20]
# CHECK: emitted {{.*}} jmp gs:
2: pop %rbx
pop %rbp
ret $8
