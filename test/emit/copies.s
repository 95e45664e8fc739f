# What touches no memory runs as it is, registers and vectors alike; the translator adds nothing to it. The first
# instruction overwrites all flags: it stands twice, so that neither entry saves them or gives them back.
# RUN: %emit64 %t.bin | FileCheck %s

# CHECK: emitted +0 {{.*}} mov r{{[0-9]+}}d, gs:[0x{{[0-9A-F]+}}]
# CHECK-NEXT: emitted guest 0, flags in memory:
# CHECK-NEXT: emitted {{.*}}48 01 d8{{ .*}}add rax, rbx
# CHECK-NEXT: emitted {{.*}} jmp 0x
# CHECK-NEXT: guest 0:
# CHECK-NEXT: emitted {{.*}} mov r{{[0-9]+}}d, gs:[0x{{[0-9A-F]+}}]
# CHECK-NEXT: emitted {{.*}}48 01 d8{{ .*}}add rax, rbx
# CHECK-NEXT: guest 3
# CHECK-NEXT: emitted {{.*}}48 0f af ca{{ .*}}imul rcx, rdx
# CHECK-NEXT: guest 7
# CHECK-NEXT: emitted {{.*}}66 0f fe c1{{ .*}}paddd xmm0, xmm1
# CHECK-NEXT: guest 11
# CHECK-NEXT: emitted {{.*}}c5 f4 58 d0{{ .*}}vaddps ymm2, ymm1, ymm0
# CHECK-NEXT: guest 15
# CHECK-NEXT: emitted {{.*}}d8 c1{{ .*}}fadd
# CHECK-NEXT: guest 17
# CHECK-NEXT: emitted {{.*}}48 83 c4 08{{ .*}}add rsp, 0x08
add %rbx, %rax
imul %rdx, %rcx
paddd %xmm1, %xmm0
vaddps %ymm0, %ymm1, %ymm2
fadd %st(1)
add $8, %rsp
jmp 1f

# An address relative to RIP becomes a constant.
# CHECK: emitted {{.*}} mov {{(rax, |eax, )}}0x40{{[0-9A-F]+}}
1: lea 0x10(%rip), %rax
jmp 1f
1:
