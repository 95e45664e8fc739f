/*
 * The way into S3 and back. suspend_run() saves the stack and writes to the port that puts the machine to sleep; the
 * copy of waking_start at WAKING_ADDRESS (real mode) or waking_protected (32-bit, flat) is where the machine wakes, and
 * what they find goes to struct waking_state in suspend64.c.
 */
#include "layout.h"
#include "macros.inc"
#include "waking.h"

#define AT(label) (WAKING_ADDRESS + label - waking_start)

    .text
    .code16
    .globl waking_start, waking_end
waking_start:
    mov %cs, %bx
    xor %ax, %ax
    mov %ax, %ds
    mov %ax, %ss
    mov $WAKING_STACK, %sp
    mov %bx, WAKING_STATE + 0
    pushfl
    popl WAKING_STATE + 4
    mov %cr0, %eax
    mov %eax, WAKING_STATE + 8
    lgdtl AT(waking_gdt_register)
    mov $0x11, %eax                     /* PE ET */
    mov %eax, %cr0
    ljmpl $KERNEL_CS32, $AT(2f)
    .code32
2:  mov $KERNEL_DS, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov $waking_long, %eax
    jmp *%eax
    .align 8
waking_gdt_register:
    .word 4 * 8 - 1
    .long waking_gdt
waking_end:

    .globl waking_protected
waking_protected:
    movl $0xffffffff, WAKING_STATE + 0
    mov $WAKING_STACK, %esp
    pushf
    popl WAKING_STATE + 4
    mov %cr0, %eax
    mov %eax, WAKING_STATE + 8
    lgdt AT(waking_gdt_register)
    ljmp $KERNEL_CS32, $waking_long
waking_long:
    mov $0xc0000080, %ecx               /* EFER */
    rdmsr
    mov %eax, WAKING_STATE + 12
    turn_long_mode_on
    ljmp $KERNEL_CS, $3f
    .code64
3:  load_data_segments
    mov saved_sp(%rip), %rsp
    pop_kept_registers
    ret

/* void suspend_run(uint16_t port, uint16_t value): returns when the machine has woken. Nothing behind the OUT may
 * run. */
    .globl suspend_run
suspend_run:
    push_kept_registers
    mov %rsp, saved_sp(%rip)
    mov %edi, %edx
    mov %esi, %eax
    out %ax, %dx
1:  incl WAKING_STATE + 16
    jmp 1b

    .data
    .align 8
saved_sp:
    .quad 0
waking_gdt:
    .quad 0
    .quad 0x00af9b000000ffff            /* KERNEL_CS */
    .quad 0x00cf93000000ffff            /* KERNEL_DS */
    .quad 0x00cf9b000000ffff            /* KERNEL_CS32 */
