# Flags that their maker can make again are not saved before a check. What needs them makes them: a later instruction, the cold path
# of the check, and a fault, for which code that makes them and faults again stands behind the block.
# RUN: %emit64 --cpl 3 %t.bin | FileCheck %s

# CHECK-LABEL: block 0 at
# CHECK: emitted {{.*}} cmp rax, rbx
# CHECK-NOT: lahf
# CHECK: flags made again:
# CHECK-NOT: lahf
# CHECK: emitted {{.*}} mov rdx, [
# CHECK-NEXT: emitted {{.*}}flags made again:
# CHECK-NEXT: emitted {{.*}} cmp rax, rbx
# CHECK-NEXT: emitted {{.*}} jz
# The cold path of the check:
# CHECK: emitted {{.*}} cmp rax, rbx
# CHECK-NEXT: emitted {{.*}} mov {{.*}}, rax
# CHECK-NEXT: emitted {{.*}} lahf
# A fault of the access:
# CHECK: emitted        guest 3:
# CHECK-NEXT: emitted {{.*}} cmp rax, rbx
# CHECK-NEXT: emitted {{.*}} ud2
cmp %rbx, %rax
mov (%rdi), %rdx
je 1f
jmp 1f
# What a register no longer holds cannot be made again.
# CHECK-LABEL: block 1 at
# CHECK: emitted {{.*}} cmp rax, rbx
# CHECK: emitted {{.*}} lahf
# CHECK: emitted {{.*}} mov rax, [
1: cmp %rbx, %rax
mov (%rdi), %rax
jmp 2f
# A loop stands twice; its second body saves no flags.
# CHECK-LABEL: block 2 at
# CHECK: emitted {{.*}} lahf
# CHECK: emitted {{.*}} sub rcx, 0x01
# CHECK-NEXT: emitted {{.*}}guest
# CHECK-NEXT: emitted {{.*}} jnz
# CHECK-NOT: lahf
# CHECK: emitted {{.*}} add [
# CHECK: emitted {{.*}} sub rcx, 0x01
# CHECK-NEXT: emitted {{.*}}guest
# CHECK-NEXT: emitted {{.*}} jnz
# CHECK: emitted {{.*}} lea [[T:r[0-9a-z]+]], [rcx+0x01]
# CHECK-NEXT: emitted {{.*}} cmp [[T]], 0x01
2: add %rdx, (%rsi)
sub $1, %rcx
jne 2b
jmp *%rax
