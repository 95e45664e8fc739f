/*
 * Entry of all 256 vectors in 64-bit mode, and the switch into a context and back (see trap.h). The frame that
 * is built here is the head of struct context.
 */
#include "layout.h"
#include "macros.inc"

    .text
    .code64
    .align 16
    .globl trap_stubs
trap_stubs:
    .set vector, 0
    .rept 256
    .align 16
    .if (vector == 8) || (vector >= 10 && vector <= 14) || (vector == 17) || (vector == 21)
    .else
    push $0
    .endif
    push $vector
    jmp trap_common
    .set vector, vector + 1
    .endr

trap_common:
    push %rax
    push %rcx
    push %rdx
    push %rbx
    push %rbp
    push %rsi
    push %rdi
    push %r8
    push %r9
    push %r10
    push %r11
    push %r12
    push %r13
    push %r14
    push %r15
    cld
    mov %rsp, %rdi
    mov %rsp, %rbx
    and $~15, %rsp
    call trap_entry
    mov %rbx, %rsp
restore_frame:
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %r11
    pop %r10
    pop %r9
    pop %r8
    pop %rdi
    pop %rsi
    pop %rbp
    pop %rbx
    pop %rdx
    pop %rcx
    pop %rax
    add $16, %rsp
    .globl trap_iret
trap_iret:
    iretq

/* void context_enter(struct context *context, struct cpu *cpu) */
    .globl context_enter
context_enter:
    push_kept_registers
    pushf
    mov %rsp, CPU_SAVED_SP(%rsi)
    sub $22 * 8, %rsp
    mov %rdi, %rsi
    mov %rsp, %rdi
    mov $22, %ecx
    cld
    rep movsq
    jmp restore_frame

/* void context_leave(struct cpu *cpu): returns from context_enter */
    .globl context_leave
context_leave:
    mov CPU_SAVED_SP(%rdi), %rsp
    mov $KERNEL_DS, %eax
    mov %eax, %ss
    mov %eax, %ds
    mov %eax, %es
    popf
    pop_kept_registers
    ret
