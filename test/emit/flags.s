# A probe clobbers the flags: they are saved before it, where a fault finds them, and given back before their reader.
# RUN: %emit64 %t.bin | FileCheck %s

# CHECK: guest {{.*}} shl rdx, 0x03
# CHECK: emitted {{.*}} shl rdx, 0x03
# CHECK: emitted {{.*}} lahf
# CHECK-NEXT: emitted {{.*}} seto al
# CHECK: emitted {{.*}} cmp {{r[0-9a-z]+}}, [{{r[0-9a-z]+}}]{{$}}
# CHECK: emitted guest {{[0-9]+}}, flags in memory:
# CHECK-NEXT: emitted {{.*}} mov eax, [{{.*}}]
# CHECK: emitted {{.*}} add al, 0x7F
# CHECK-NEXT: emitted {{.*}} sahf
# CHECK: emitted {{.*}} setz bl
shl $3, %rdx
mov (%rdi), %eax
setz %bl
jmp 1f

# Once is enough for any number of probes.
# CHECK: guest {{.*}} shr r8, 0x03
# CHECK: emitted {{.*}} shr r8, 0x03
# CHECK: emitted {{.*}} lahf
# CHECK-NOT: {{(lahf|sahf)}}
# CHECK: emitted {{.*}} mov eax, [{{.*}}]
# CHECK-NOT: {{(lahf|sahf)}}
# CHECK: emitted {{.*}} mov ecx, [{{.*}}]
# CHECK: emitted {{.*}} sahf
# CHECK: emitted {{.*}} setnz dl
1: shr $3, %r8
mov (%rdi), %eax
mov (%rsi), %ecx
setnz %dl
jmp 1f
1:
