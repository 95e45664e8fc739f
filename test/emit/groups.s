# Accesses off one base register share one check of the bytes from the first to the last; another base has its own.
# RUN: %emit64 %t.bin | FileCheck %s
# RUN: %emit64 %t.bin | FileCheck %s --check-prefix=ONE

# CHECK: emitted {{.*}} lea {{r[0-9a-z]+}}, [{{r[0-9a-z]+}}+0x17]
# CHECK: emitted {{.*}} cmp {{r[0-9a-z]+}}, [{{r[0-9a-z]+}}+0x40]
# CHECK-NEXT: emitted {{.*}} jnz
# CHECK-NOT: {{ (cmp|jnz) }}
# CHECK: emitted {{.*}} mov rax, [{{.*}}]
# CHECK-NOT: {{ (cmp|jnz) }}
# CHECK: emitted {{.*}} mov rcx, [{{.*}}+0x08]
# CHECK-NOT: {{ (cmp|jnz) }}
# CHECK: emitted {{.*}} mov rdx, [{{.*}}+0x10]
mov (%rdi), %rax
mov 8(%rdi), %rcx
mov 16(%rdi), %rdx
# The base is another one now.
# CHECK: emitted {{.*}} cmp {{r[0-9a-z]+}}, [{{r[0-9a-z]+}}+0x40]
# CHECK-NEXT: emitted {{.*}} jnz
# CHECK: emitted {{.*}} mov rsi, [{{.*}}]
mov %r9, %rdi
mov (%rdi), %rsi
jmp *%rax

# ONE-COUNT-1: shared check
# ONE-NOT: shared check
