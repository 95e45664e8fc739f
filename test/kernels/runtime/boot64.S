/*
 * Multiboot 1 entry of the 64-bit kernels, and the start of further CPUs. Both go from 32-bit protected mode
 * without paging to 64-bit mode on boot_pml4:
 *   0..1 GiB  identity, supervisor, 2 MiB pages
 *   1..2 GiB  physical 0..1 GiB again, for CPL 3 (USER_ALIAS)
 *   3..4 GiB  identity, supervisor, uncached: APICs and HPET
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
    .globl boot_pml4, boot_pdpt
boot_pml4:
    .skip 4096
boot_pdpt:
    .skip 4096
boot_directories:
    .skip 4 * 4096
    .globl cpu_stacks
cpu_stacks:
    .skip MAX_CPUS * STACK_BYTES
next_cpu:
    .long 0

    .text
    .code32
    .globl _start
_start:
    cli
    cld
    mov $boot_directories, %edi
    mov $0x83, %eax                     /* P W PS */
    xor %edx, %edx
1:  mov %eax, (%edi, %edx, 8)           /* identity */
    lea 4(%eax), %ebx
    mov %ebx, 4096(%edi, %edx, 8)       /* user alias */
    lea 0xc0000010(%eax), %ebx
    mov %ebx, 3 * 4096(%edi, %edx, 8)   /* devices, PCD */
    add $0x200000, %eax
    inc %edx
    cmp $512, %edx
    jb 1b
    movl $boot_directories + 7, boot_pdpt
    movl $boot_directories + 4096 + 7, boot_pdpt + 8
    movl $boot_directories + 3 * 4096 + 7, boot_pdpt + 24
    movl $boot_pdpt + 7, boot_pml4

    .globl enter_long_mode
enter_long_mode:
    turn_long_mode_on
    lgdt boot_gdt_register
    ljmp $KERNEL_CS, $1f
    .code64
1:  load_data_segments
    mov $1, %edi
    lock xadd %edi, next_cpu(%rip)
    lea 1(%rdi), %eax
    imul $STACK_BYTES, %eax, %eax
    lea cpu_stacks(%rax), %rsp
    fninit
    xor %ebp, %ebp
    push %rbp
    jmp runtime_start

    .data
    .align 8
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff            /* KERNEL_CS */
    .quad 0x00cf93000000ffff            /* KERNEL_DS */
    .quad 0x00cf9b000000ffff            /* KERNEL_CS32 */
boot_gdt_register:
    .word 4 * 8 - 1
    .quad boot_gdt

/* Copied to TRAMPOLINE, where a start-up IPI sends a CPU in real mode. */
    .text
    .code16
    .globl trampoline_start, trampoline_end
trampoline_start:
    cli
    xor %ax, %ax
    mov %ax, %ds
    lgdtl TRAMPOLINE + trampoline_gdt_register - trampoline_start
    mov $0x11, %eax                     /* PE ET */
    mov %eax, %cr0
    ljmpl $KERNEL_CS32, $TRAMPOLINE + 1f - trampoline_start
    .code32
1:  mov $KERNEL_DS, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov $enter_long_mode, %eax
    jmp *%eax
    .align 8
trampoline_gdt_register:
    .word 4 * 8 - 1
    .long boot_gdt
trampoline_end:
