# Code through LLVM: registers are arguments and values, accesses off one register share a check, flags that nobody reads
# are made at the exits alone, and a region is left by tail calls.
# RUN: %lift %t.bin | FileCheck %s

# One check for both loads, made as one for the 24 bytes from RDI + 8 to RDI + 31; none for the store behind it but that
# of a write.
# CHECK: define hidden preserve_nonecc void @r0
# CHECK: add i64 %4, 8
# CHECK: add i64 %4, 31
# CHECK: icmp eq
# CHECK: br i1 {{.*}} !prof
# CHECK: load volatile i64
# CHECK-NOT: icmp eq i64
# CHECK: load volatile i64
# CHECK: musttail call preserve_nonecc void @x
# CHECK: ret void
# CHECK: }
mov 8(%rdi), %rax
add 24(%rdi), %rax
ret

# An entry saves the flags where they are live, takes a poll, and gives LLVM the C stack; an exit takes it back.
# CHECK: entry 0 at
# CHECK: host +0003 lahf
# CHECK: host {{.*}} mov byte ptr gs:[{{.*}}], 0x00
# CHECK-NEXT: host {{.*}} mov r8, rbx
# CHECK-NEXT: host {{.*}} mov r9, rbp
# CHECK-NEXT: host {{.*}} mov r11, rsp
# CHECK-NEXT: host {{.*}} mov rsp, gs:
# CHECK: host {{.*}} mov rbx, r8
# CHECK-NEXT: host {{.*}} mov rbp, r9
# CHECK-NEXT: host {{.*}} mov rsp, r11
