# 32-bit code: addresses are truncated to 32 bits before the probe, pushes are of four bytes.
# RUN: %emit32 --cpl 3 %t.bin | FileCheck %s
.code32

# CHECK: emitted {{.*}} cmp {{r[0-9a-z]+}}, [{{r[0-9a-z]+}}+0x40]
# CHECK-NEXT: emitted {{.*}} jnz
# CHECK: emitted {{.*}} mov eax, [{{.*}}]
mov 8(%edi,%ecx,2), %eax
# CHECK: emitted {{.*}} mov {{(dword ptr )?}}[{{.*}}], eax
push %eax
# CHECK: emitted {{.*}} {{(inc ecx|add ecx, 0x01|lea ecx, .*)}}
inc %ecx
# CHECK: site {{[0-9]+}} memory guest 0 {{.*}}read of 4 bytes
# CHECK: site {{[0-9]+}} {{(memory|stack)}} guest 4
jmp *%eax
