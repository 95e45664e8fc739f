# A retpoline is one indirect jump: its word is stored, RSP stays, no return's landing is made and none is taken.
# RUN: %emit64 %t.bin | FileCheck %s

# CHECK-LABEL: block 0 at 0x400000
# CHECK: emitted {{.*}} mov [rsp+{{r[0-9a-z]+}}*1-0x08], rax
# CHECK-NOT: lea rsp
# CHECK-NOT: lea {{r[0-9a-z]+}}, [0x
# CHECK: emitted {{.*}} mov [[TARGET:r[0-9a-z]+]], rax
# CHECK: emitted {{.*}} xor [[TARGET]], gs:[0x
# CHECK: emitted {{.*}} cmp [[TARGET]], gs:[{{.*}}]
# CHECK-NEXT: emitted {{.*}} jnz
# CHECK: emitted {{.*}} jmp {{(r[0-9a-z]+|gs:)}}
# CHECK: site {{[0-9]+}} jump-miss guest 0
call 2f
1: pause
lfence
jmp 1b
2: mov %rax, (%rsp)
ret

# The gap may be anything; what is pushed before shares the check.
# CHECK-LABEL: block 1 at 0x400011
# CHECK: emitted {{.*}} mov [rsp+[[A:r[0-9a-z]+]]*1-0x08], rbx
# CHECK: emitted {{.*}} mov [rsp+[[A]]*1-0x10], r11
# CHECK: emitted {{.*}} lea rsp, [rsp-0x08]
# CHECK: emitted {{.*}} jmp {{(r[0-9a-z]+|gs:)}}
push %rbx
call 4f
int3
4: mov %r11, (%rsp)
ret

# Another store is none.
# CHECK-LABEL: block 2 at
# CHECK: emitted {{.*}} lea rsp, [rsp-0x08]
# CHECK: site {{[0-9]+}} link guest 0
call 6f
int3
6: mov %rax, 8(%rsp)
ret
