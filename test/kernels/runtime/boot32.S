/*
 * Multiboot 1 entry of the 32-bit kernels: flat segments, paging off, SSE and x87 on.
 */
#include "layout.h"
#include "macros.inc"

#define MULTIBOOT_MAGIC 0x1badb002
#define MULTIBOOT_FLAGS 3

    .section .multiboot, "a"
    .align 4
    .long MULTIBOOT_MAGIC, MULTIBOOT_FLAGS, -(MULTIBOOT_MAGIC + MULTIBOOT_FLAGS)

    .bss
    .align 4096
stack:
    .skip STACK_BYTES
stack_top:

    .text
    .code32
    .globl _start
_start:
    cli
    cld
    lgdt boot_gdt_register
    ljmp $KERNEL_CS, $1f
1:  load_data_segments
    mov $0x600, %eax                    /* OSFXSR OSXMMEXCPT */
    mov %eax, %cr4
    mov $0x33, %eax                     /* NE ET MP PE */
    mov %eax, %cr0
    fninit
    mov $stack_top, %esp
    xor %ebp, %ebp
    push $0                             /* the CPU's number */
    call runtime_start
    ud2

    .data
    .align 8
boot_gdt:
    .quad 0
    .quad 0x00cf9b000000ffff            /* KERNEL_CS */
    .quad 0x00cf93000000ffff            /* KERNEL_DS */
boot_gdt_register:
    .word 3 * 8 - 1
    .long boot_gdt
