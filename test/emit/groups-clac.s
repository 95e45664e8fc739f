# What ring 0 reached with AC set it may not reach behind CLAC: the accesses there have a check of their own.
# RUN: %emit64 --cpl 0 %t.bin | FileCheck %s

# CHECK: decoded {{.*}} clac
# CHECK: emitted {{.*}} cmp
# CHECK: emitted {{.*}} mov [rcx{{.*}}], rax
# CHECK-NOT: {{ cmp }}
# CHECK: emitted {{.*}} mov [rcx{{.*}}], rax
# CHECK: emitted {{.*}} mov byte ptr gs:
# CHECK: emitted {{.*}} cmp
# CHECK: emitted {{.*}} mov [{{.*}}], rax
mov %rax, (%rcx)
mov %rax, 8(%rcx)
clac
mov %rax, 16(%rcx)
hlt
