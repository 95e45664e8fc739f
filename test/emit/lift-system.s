# System instructions through LLVM: those that only change the vCPU's own words are written out, the others leave for C and
# are come back from at an entry behind them.
# RUN: %lift %t.bin | FileCheck %s

# CHECK: define hidden preserve_nonecc void @r0
# CHECK: store volatile i8 0, ptr addrspace(256)
# CHECK: asm sideeffect "rdtsc"
# CHECK: store volatile i8 2, ptr addrspace(256)
cli
rdtsc
sti
# CHECK: asm sideeffect "rep movsb"
rep movsb
# CHECK: asm sideeffect "{{.*}}.byte 0xf0,
lock addl $1, (%rdi)
# CHECK: define hidden preserve_nonecc void @r1
wrmsr
mov %rax, %rbx
ret
# CHECK: entry 0 at
# CHECK: entry 12 at
