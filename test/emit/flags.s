# A probe clobbers the flags: they are saved before it, where a fault finds them, and given back before their reader.
# RUN: %emit64 %t.bin | FileCheck %s

# CHECK: guest {{.*}} shl rdx, 0x03
# CHECK: emitted {{.*}} shl rdx, 0x03
# CHECK: emitted {{.*}} lahf
# CHECK-NEXT: emitted {{.*}} seto al
# CHECK: emitted {{.*}} cmp {{r[0-9a-z]+}}, [{{r[0-9a-z]+}}+0x40]
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

# A block whose flags die before anything reads them takes them in either place; a reader wants them live.
# CHECK: guest {{.*}} test rbx, rbx
# CHECK-NOT: {{(lahf|sahf)}}
# CHECK: emitted {{.*}} mov rcx, rax
# CHECK-NOT: {{(lahf|sahf)}}
# CHECK: emitted {{.*}} test rbx, rbx
# CHECK-NEXT: emitted {{.*}} jmp 0x
# CHECK-NOT: {{(lahf|sahf)}}
# CHECK: emitted {{.*}} test rbx, rbx
# CHECK-NOT: {{(lahf|sahf)}}
# CHECK: emitted {{.*}} jz 0x
# CHECK: guest {{.*}} adc rax, rbx
# CHECK: sahf
# CHECK: emitted {{.*}} adc rax, rbx
1: mov %rax, %rcx
test %rbx, %rbx
jz 1f
jmp 1f
1: adc %rbx, %rax
jmp 1f
1:
