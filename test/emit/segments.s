# The guest's FS and GS bases are state of the vCPU: their addresses are computed, the host's FS is never used.
# RUN: %emit64 %t.bin | FileCheck %s

# CHECK-NOT: emitted{{.*}} fs:
# CHECK: emitted {{.*}} {{(add|mov)}} {{r[0-9a-z]+}}, gs:[0x{{[0-9A-F]+}}]
# CHECK: emitted {{.*}} cmp {{r[0-9a-z]+}}, [{{r[0-9a-z]+}}+0x40]
# CHECK-NEXT: emitted {{.*}} jnz
# CHECK-NOT: {{mov rax, .s:}}
# CHECK: emitted {{.*}} mov rax, [{{.*}}]
mov %fs:0x28, %rax
# CHECK: emitted {{.*}} cmp {{r[0-9a-z]+}}, [{{r[0-9a-z]+}}+0x48]
# CHECK-NEXT: emitted {{.*}} jnz
# CHECK: emitted {{.*}} mov [{{.*}}], edx
mov %edx, %gs:(%rcx)
# CHECK-NOT: emitted{{.*}} fs:
jmp *%rax
