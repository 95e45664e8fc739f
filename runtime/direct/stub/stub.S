/* The whole program of a stub process: it has no stack, no data and no decisions. The monitor (its tracer) sets
 * every register before it lets it run, and orders it to make system calls only between runs of guest code. */
#include "layout.h"

    .text
    .globl _start
_start: /* STUB_AT_WAIT: until the tracer comes */
    mov $34, %eax /* pause */
    syscall
    jmp _start

    .org STUB_AT_APPLY
1:  mov 0(%rbx), %rax
    mov 8(%rbx), %rdi
    mov 16(%rbx), %rsi
    mov 24(%rbx), %rdx
    mov 32(%rbx), %r10
    mov 40(%rbx), %r8
    .org STUB_AT_CALL - 4, 0x90
    mov 48(%rbx), %r9
    .org STUB_AT_CALL
    syscall
    cmp $-4096, %rax
    ja 2f
    add $STUB_ORDER_SIZE, %rbx
    dec %r12
    jnz 1b
2:  .org STUB_AT_DONE, 0x90
    int3 /* not UD2: virtual machines leave for the hypervisor at that */
    .org 0x1000
