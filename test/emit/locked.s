# Locked instructions stay locked instructions, on the guest's RAM itself; plain ones get no lock.
# RUN: %emit64 %t.bin | FileCheck %s

# CHECK: emitted {{.*}} cmp {{r[0-9a-z]+}}, [{{r[0-9a-z]+}}+0x48]
# CHECK-NEXT: emitted {{.*}} jnz
# CHECK: emitted {{.*}} lock xadd [{{.*}}], eax
lock xadd %eax, (%rdi)
# CHECK: emitted {{.*}} lock cmpxchg [{{.*}}], rdx
lock cmpxchg %rdx, (%rsi)
# CHECK: emitted {{.*}} xchg [{{.*}}], ecx
xchg %ecx, (%rbx)
# CHECK-NOT: lock
# CHECK: emitted {{.*}} inc {{(dword ptr )?}}[{{.*}}]
incl (%r8)
# CHECK-NOT: lock
jmp *%rax
