/*
 * Into real mode and back. The blob lies at REAL_BASE, below 64 KiB; all vectors lead to real_vectors, which saves the
 * state at REAL_STATE (struct real_state in real16.c) and returns to 32-bit code.
 */
#include "layout.h"
#include "macros.inc"

#define REAL_BASE 0x5000
#define REAL_STATE 0x4000
#define REAL_STACK 0x7000
#define AT(label) (REAL_BASE + label - real_start)

    .text
    .globl real_start, real_end, real_vectors, real_run
    .balign 16
real_start:
    .code16
/* From real_run, in a 16-bit code segment of base 0: CX:DX is where to go. */
real_enter:
    mov $DATA16_SELECTOR, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %fs
    mov %ax, %gs
    mov %ax, %ss
    mov %cr0, %eax
    and $~1, %al
    mov %eax, %cr0
    ljmp $0, $AT(1f)
1:  xor %ax, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %fs
    mov %ax, %gs
    mov %ax, %ss
    mov $REAL_STACK, %sp
    lidtl AT(real_idt)
    push %cx
    push %dx
    xor %eax, %eax
    xor %ebx, %ebx
    xor %ecx, %ecx
    xor %edx, %edx
    xor %esi, %esi
    xor %edi, %edi
    xor %ebp, %ebp
    lret

    .balign 8
real_vectors:
    .set vector, 0
    .rept 256
    pushw $vector
    jmp real_common
    .balign 8
    .set vector, vector + 1
    .endr

real_common:
    pushl %eax
    push %ds
    xor %ax, %ax
    mov %ax, %ds
    pop %ax
    mov %ax, REAL_STATE + 0
    popl %eax
    mov %eax, REAL_STATE + 16
    mov %ebx, REAL_STATE + 20
    mov %ecx, REAL_STATE + 24
    mov %edx, REAL_STATE + 28
    mov %esi, REAL_STATE + 32
    mov %edi, REAL_STATE + 36
    mov %ebp, REAL_STATE + 40
    mov %es, REAL_STATE + 2
    mov %ss, REAL_STATE + 4
    popw REAL_STATE + 6                 /* vector */
    popw REAL_STATE + 8                 /* ip */
    popw REAL_STATE + 10                /* cs */
    popw REAL_STATE + 12                /* flags */
    mov %esp, REAL_STATE + 44
    cli
    cld
    lgdtl AT(real_gdt)
    mov %cr0, %eax
    or $1, %al
    mov %eax, %cr0
    ljmpl $KERNEL_CS, $real_back

    .balign 4
real_idt:
    .word 0x3ff
    .long 0
    .balign 4
real_gdt:
    .word GDT_BYTES - 1
    .long gdt
real_end:

    .code32
/* void real_run(uint16_t segment, uint16_t offset) */
real_run:
    push %ebx
    push %ebp
    push %esi
    push %edi
    sidt saved_idt
    mov 20(%esp), %ecx
    mov 24(%esp), %edx
    mov %esp, saved_sp
    ljmp $CODE16_SELECTOR, $REAL_BASE

real_back:
    load_data_segments
    mov saved_sp, %esp
    lidt saved_idt
    pop %edi
    pop %esi
    pop %ebp
    pop %ebx
    ret

    .bss
    .balign 8
saved_idt:
    .skip 8
saved_sp:
    .skip 4
