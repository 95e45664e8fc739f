/*
 * Entry of all 256 vectors in 32-bit protected mode, and the switch into a context and back (see trap.h). The
 * frame that is built here is the head of struct context.
 */
#include "layout.h"

#define OFFSET_IP 56
#define OFFSET_CS 60
#define OFFSET_FLAGS 64
#define OFFSET_SP 68
#define OFFSET_SS 72
#define CONTEXT_WORDS 23

    .text
    .code32
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
    pusha
    push %ds
    push %es
    push %fs
    push %gs
    mov $KERNEL_DS, %eax
    mov %eax, %ds
    mov %eax, %es
    cld
    mov %esp, %ebx
    and $~15, %esp
    sub $12, %esp
    push %ebx
    call trap_entry
    mov %ebx, %esp
restore_frame:
    pop %gs
    pop %fs
    pop %es
    pop %ds
    popa
    add $8, %esp
    .globl trap_iret
trap_iret:
    iret

/* void context_enter(struct context *context, struct cpu *cpu) */
    .globl context_enter
context_enter:
    mov 4(%esp), %ecx
    mov 8(%esp), %edx
    push %ebx
    push %ebp
    push %esi
    push %edi
    pushf
    mov %esp, CPU_SAVED_SP(%edx)
    testl $0x20000, OFFSET_FLAGS(%ecx)
    jnz 1f
    testl $3, OFFSET_CS(%ecx)
    jnz 1f
    lss OFFSET_SP(%ecx), %esp           /* same level: IRET leaves the stack alone */
1:  sub $CONTEXT_WORDS * 4, %esp
    mov %ecx, %esi
    mov %esp, %edi
    mov $CONTEXT_WORDS, %ecx
    cld
    testl $0x20000, OFFSET_FLAGS(%esi)
    jnz 2f
    testl $3, OFFSET_CS(%esi)
    jnz 2f
    add $6 * 4, %esp                    /* its frame ends at the flags, and ESP comes out as asked */
    mov %esp, %edi
    mov $OFFSET_SP / 4, %ecx
2:  rep movsl
    jmp restore_frame

/* void context_leave(struct cpu *cpu): returns from context_enter */
    .globl context_leave
context_leave:
    mov 4(%esp), %edx
    mov $KERNEL_DS, %eax
    mov %eax, %ss
    mov CPU_SAVED_SP(%edx), %esp
    mov %eax, %ds
    mov %eax, %es
    popf
    pop %edi
    pop %esi
    pop %ebp
    pop %ebx
    ret
