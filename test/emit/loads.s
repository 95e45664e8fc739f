# A load or store is made through the TLB: the probe compares the page of the last byte with the tag for that access, and
# only behind it comes the guest's own instruction, on the host's memory.
# RUN: %emit64 %t.bin | FileCheck %s

# The vCPU's words are named relative to RIP, but for the poll, which asks for the present GS.
# CHECK: cpu0 block 0 at
# CHECK: emitted {{.*}} 89 05 {{.*}} mov gs:[{{.*}}], eax
# CHECK: emitted {{.*}} 65 {{.*}} mov r{{[0-9]+}}d, gs:[[[POLL:0x[0-9A-F]+]]]
# CHECK: emitted {{.*}} cmp {{r[0-9a-z]+}}, [{{r[0-9a-z]+}}+0x40]
# CHECK-NEXT: emitted {{.*}} jnz
# CHECK-NOT: gs:[[[POLL]]]
# CHECK: emitted {{.*}} mov eax, [{{.*}}]
mov (%rdi), %eax

# CHECK: emitted {{.*}} lea {{r[0-9a-z]+}}, [{{r[0-9a-z]+}}+0x07]
# CHECK: emitted {{.*}} cmp {{r[0-9a-z]+}}, [{{r[0-9a-z]+}}+0x48]
# CHECK-NEXT: emitted {{.*}} jnz
# CHECK: emitted {{.*}} mov [{{.*}}], rcx
mov %rcx, 0x100(%rsi)

# A read-modify-write is checked as a write.
# CHECK: emitted {{.*}} cmp {{r[0-9a-z]+}}, [{{r[0-9a-z]+}}+0x48]
# CHECK-NEXT: emitted {{.*}} jnz
# CHECK: emitted {{.*}} add {{(dword ptr )?}}[{{.*}}], 0x05
addl $5, (%rbx)

# CHECK: emitted {{.*}} cmp {{r[0-9a-z]+}}, [{{r[0-9a-z]+}}+0x40]
# CHECK-NEXT: emitted {{.*}} jnz
# CHECK: emitted {{.*}} movups xmm3, [{{.*}}]
movups (%rdx,%rcx,4), %xmm3

# CHECK: emitted {{.*}} jmp
# CHECK: site {{[0-9]+}} memory guest 0 {{.*}}read of 4 bytes
# CHECK: site {{[0-9]+}} memory guest 2 {{.*}}write of 8 bytes
# CHECK: site {{[0-9]+}} memory {{.*}}write of 4 bytes
# CHECK: site {{[0-9]+}} memory {{.*}}read of 16 bytes
jmp *%rax
