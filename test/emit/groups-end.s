# An addend lives in a scratch register, which C leaves as it likes. What C does now and then ends a group: the accesses behind
# have a check of their own.
# RUN: %emit64 %t.bin | FileCheck %s

# CHECK: emitted {{.*}} cmp {{r[0-9a-z]+}}, 0x
# CHECK: emitted {{.*}} mov [rsp{{.*}}], rbx
# CHECK-NOT: {{ cmp }}
# CHECK: emitted {{.*}} mov [rsp{{.*}}], rsi
# CHECK: emitted {{.*}} mov edx, gs:[
# CHECK: emitted {{.*}} sub {{r[0-9a-z]+}}, gs:[
# CHECK: emitted {{.*}} cmp {{r[0-9a-z]+}}, 0x
# CHECK: emitted {{.*}} mov rsi, [rsp
# CHECK-NOT: {{ cmp }}
# CHECK: emitted {{.*}} mov rbx, [rsp
push %rbx
push %rsi
cpuid
pop %rsi
pop %rbx
# CHECK: emitted {{.*}} mov rax, [rbx
# CHECK-NOT: {{ cmp }}
# CHECK: emitted {{.*}} mov rdx, [rbx
# CHECK: emitted {{.*}} rep movsb
# CHECK: emitted {{.*}} cmp
# CHECK: emitted {{.*}} mov rdx, [rbx
# CHECK-NOT: {{ cmp }}
# CHECK: emitted {{.*}} mov rax, [rbx
mov (%rbx), %rax
mov 8(%rbx), %rdx
rep movsb
mov 16(%rbx), %rdx
mov 24(%rbx), %rax
hlt
