# A loop of ring 3 asks a memo of one page before the TLB: no look at the TLB's entry on the way. A loop that names nearly all
# registers stays one block with a single scratch. An address that is known needs no index; kernel loops and accesses that
# wander go to the TLB.
# RUN: %emit64 --cpl 3 %t.bin | FileCheck %s
# RUN: %emit64 --cpl 0 %t.bin | FileCheck %s --check-prefix=KERNEL

# CHECK-LABEL: block 0 at
# KERNEL-LABEL: block 0 at
# CHECK: emitted {{.*}} lea [[A:r[0-9a-z]+]], [rcx+rax*1]
# CHECK-NEXT: emitted {{.*}} sub [[A]], gs:[
# CHECK-NEXT: emitted {{.*}} cmp [[A]], 0xFF0
# CHECK-NEXT: emitted {{.*}} jnbe
# CHECK-NEXT: emitted {{.*}} mov [[A]], gs:[
# CHECK-NEXT: emitted {{.*}} lea [[A]], [[[A]]+rax*1]
# CHECK-NEXT: emitted
# CHECK-NEXT: emitted {{.*}} movapd xmm0, [rcx+[[A]]*1]
# KERNEL: emitted {{.*}} jnz
# KERNEL: emitted {{.*}} movapd
1: movapd (%rcx,%rax), %xmm0
add $16, %rax
cmp $0x800, %rax
jne 1b

# The next address is what was loaded. Ring 3 has a larger TLB.
# CHECK-LABEL: block 1 at
# KERNEL-LABEL: block 1 at
# CHECK: emitted {{.*}} and {{r[0-9a-z]+}}, 0x7FFE0
# KERNEL: emitted {{.*}} and {{r[0-9a-z]+}}, 0x1FFE0
# CHECK: emitted {{.*}} jnz
# CHECK: emitted {{.*}} mov rdi, [{{.*}}]
2: mov (%rdi), %rdi
test %rdi, %rdi
jne 2b

# One scratch: the way to the TLB borrows two registers and gives them back on either way out.
# CHECK-LABEL: block 2 at
# CHECK: scratches r13 r13
# CHECK: emitted {{.*}} sub r13, gs:[
# CHECK: emitted {{.*}} jnbe
# CHECK: emitted {{.*}} mov r14d, [rbp+r13*1]
# CHECK: emitted {{.*}} mov gs:[[[SAVED:0x[0-9A-F]+]]], rsi
# CHECK-NEXT: emitted {{.*}} mov gs:[{{.*}}], rdx
# CHECK: emitted {{.*}} cmp rdx, [rsi+0x40]
# CHECK: emitted {{.*}} mov rsi, gs:[[[SAVED]]]
# CHECK-NEXT: emitted {{.*}} mov rdx, gs:[
# CHECK-NEXT: emitted {{.*}} jmp
# CHECK: emitted {{.*}} mov rsi, gs:[[[SAVED]]]
3: mov (%rbp,%rdi), %r14d
add (%r12,%rdi), %r14d
add %r14d, %eax
add %ecx, %edx
add %ebx, %esi
add %r8d, %r9d
add %r10d, %r11d
add %r14d, %r15d
add $4, %rdi
cmp $0x100, %rdi
jne 3b

# CHECK-LABEL: block 3 at
# CHECK: emitted {{.*}} mov [[E:r[0-9]+]], gs:[
# CHECK-NEXT: emitted {{.*}} cmp qword ptr [[[E]]+{{.*}}], 0x40{{.*}}
# CHECK-NEXT: emitted {{.*}} jnz
# CHECK-NEXT: emitted {{.*}} add {{r[0-9a-z]+}}, [[[E]]+
4: mov 0x1234(%rip), %rax
jmp *%rax
