# A loop through LLVM: what its iterations check at the same place is checked once before it, and the way back looks
# whether the vCPU shall stop.
# RUN: %lift %t.bin | FileCheck %s

# CHECK: define hidden preserve_nonecc void @r0
# CHECK: icmp eq i64
# CHECK: phi i64
# CHECK-NEXT: phi i64
# CHECK-NOT: load i64
# CHECK: load volatile i64
# CHECK: load volatile i8, ptr addrspace(256)
# CHECK: asm "cmp ${3:q}, ${1:q}\0A\09lahf
# CHECK: musttail
movq $1, (%rsi)
1: add (%rsi), %rax
add $1, %rcx
cmp %rdx, %rcx
jne 1b
ret
