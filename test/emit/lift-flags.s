# Flags through LLVM: a condition is a comparison of the operands; what the manual leaves undefined is what the processor
# makes it, by the same operation once more where the flags are left behind.
# RUN: %lift %t.bin | FileCheck %s

# CHECK: define hidden preserve_nonecc void @r0
# CHECK: icmp slt i64 %4, %5
# CHECK-NOT: lahf
# CHECK: br i1
cmp %rsi, %rdi
jge 1f
# CHECK-DAG: asm "shl %cl, ${1:q}\0A\09lahf\0A\09seto %al"
shl $3, %rax
jmp 2f
# CHECK-DAG: asm "imul ${3:k}, ${1:k}\0A\09lahf\0A\09seto %al"
1: imul %ecx, %edx
2: hlt
