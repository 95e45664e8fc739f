/* The way into a test's state and back, on the processor itself. See oracle.c.
 *
 * oracle_enter() loads everything from oracle_io and leaves by IRETQ, which takes RIP, CS, RFLAGS, RSP and SS
 * in one step and so reaches 64-bit and compatibility-mode code alike. The way back is a signal: the kernel
 * has put the registers into its frame on the alternate stack; oracle_on_signal() saves what the frame does
 * not hold, gives the C library its FS base back, and returns to the caller of oracle_enter().
 * Where the kernel does not let user code write the FS and GS bases (its context switches would lose them), both are
 * written and read by system calls.
 * Offsets into oracle_io: struct oracle_io in oracle.c, checked there.
 */
#define IO_FRAME 128
#define IO_FS_BASE 168
#define IO_GS_BASE 176
#define IO_DS 184
#define IO_ES 186
#define IO_FS 188
#define IO_GS 190
#define IO_XSAVE 192
#define IO_MASK 200
#define IO_HOME_RSP 208
#define IO_HOME_FS_BASE 216
#define IO_OUT_FS_BASE 224
#define IO_OUT_GS_BASE 232
#define IO_OUT_DS 240
#define IO_OUT_ES 242
#define IO_OUT_FS 244
#define IO_OUT_GS 246
#define IO_USES_CALLS 248

#define SYS_ARCH_PRCTL 158
#define ARCH_SET_GS 0x1001
#define ARCH_SET_FS 0x1002
#define ARCH_GET_FS 0x1003
#define ARCH_GET_GS 0x1004

    .text
    .globl oracle_enter
    .hidden oracle_enter
    .type oracle_enter, @function
oracle_enter:
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, oracle_io + IO_HOME_RSP(%rip)
    movq oracle_io + IO_XSAVE(%rip), %rcx
    movl oracle_io + IO_MASK(%rip), %eax
    xorl %edx, %edx
    xrstor64 (%rcx)
    movw oracle_io + IO_DS(%rip), %ds
    movw oracle_io + IO_ES(%rip), %es
    movw oracle_io + IO_FS(%rip), %fs
    movw oracle_io + IO_GS(%rip), %gs
    cmpb $0, oracle_io + IO_USES_CALLS(%rip)
    jne 1f
    movq oracle_io + IO_FS_BASE(%rip), %rax
    wrfsbase %rax
    movq oracle_io + IO_GS_BASE(%rip), %rax
    wrgsbase %rax
    jmp 2f
1:
    movl $ARCH_SET_FS, %esi
    movq oracle_io + IO_FS_BASE(%rip), %rdx
    call oracle_base
    movl $ARCH_SET_GS, %esi
    movq oracle_io + IO_GS_BASE(%rip), %rdx
    call oracle_base
2:
    movq oracle_io + 0(%rip), %rax
    movq oracle_io + 8(%rip), %rcx
    movq oracle_io + 16(%rip), %rdx
    movq oracle_io + 24(%rip), %rbx
    movq oracle_io + 40(%rip), %rbp
    movq oracle_io + 48(%rip), %rsi
    movq oracle_io + 56(%rip), %rdi
    movq oracle_io + 64(%rip), %r8
    movq oracle_io + 72(%rip), %r9
    movq oracle_io + 80(%rip), %r10
    movq oracle_io + 88(%rip), %r11
    movq oracle_io + 96(%rip), %r12
    movq oracle_io + 104(%rip), %r13
    movq oracle_io + 112(%rip), %r14
    movq oracle_io + 120(%rip), %r15
    leaq oracle_io + IO_FRAME(%rip), %rsp
    iretq
    .size oracle_enter, . - oracle_enter

    .globl oracle_on_signal
    .hidden oracle_on_signal
    .type oracle_on_signal, @function
oracle_on_signal:
    pushq $2
    popfq
    andq $-16, %rsp
    cmpb $0, oracle_io + IO_USES_CALLS(%rip)
    jne 1f
    rdfsbase %r8
    rdgsbase %r9
    movq %r8, oracle_io + IO_OUT_FS_BASE(%rip)
    movq %r9, oracle_io + IO_OUT_GS_BASE(%rip)
    call oracle_selectors
    movq oracle_io + IO_HOME_FS_BASE(%rip), %rax
    wrfsbase %rax
    xorl %eax, %eax
    wrgsbase %rax
    jmp 2f
1:
    movq %rdi, %rbx
    movq %rsi, %rbp
    movq %rdx, %r12
    movl $ARCH_GET_FS, %esi
    leaq oracle_io + IO_OUT_FS_BASE(%rip), %rdx
    call oracle_base
    movl $ARCH_GET_GS, %esi
    leaq oracle_io + IO_OUT_GS_BASE(%rip), %rdx
    call oracle_base
    call oracle_selectors
    movl $ARCH_SET_FS, %esi
    movq oracle_io + IO_HOME_FS_BASE(%rip), %rdx
    call oracle_base
    movl $ARCH_SET_GS, %esi
    xorl %edx, %edx
    call oracle_base
    movq %rbx, %rdi
    movq %rbp, %rsi
    movq %r12, %rdx
2:
    call oracle_record
    movq oracle_io + IO_HOME_RSP(%rip), %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    ret
    .size oracle_on_signal, . - oracle_on_signal

    /* Keep DS, ES, FS and GS as the stream left them, and take null selectors. */
    .type oracle_selectors, @function
oracle_selectors:
    movw %ds, oracle_io + IO_OUT_DS(%rip)
    movw %es, oracle_io + IO_OUT_ES(%rip)
    movw %fs, oracle_io + IO_OUT_FS(%rip)
    movw %gs, oracle_io + IO_OUT_GS(%rip)
    xorl %eax, %eax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %fs
    movw %ax, %gs
    ret
    .size oracle_selectors, . - oracle_selectors

    /* arch_prctl(ESI, RDX) */
    .type oracle_base, @function
oracle_base:
    movl $SYS_ARCH_PRCTL, %edi
    jmp oracle_syscall
    .size oracle_base, . - oracle_base

    /* The only place the child's system-call filter lets calls come from. long oracle_syscall(nr, a, b, c) */
    .globl oracle_syscall
    .hidden oracle_syscall
    .type oracle_syscall, @function
oracle_syscall:
    movq %rdi, %rax
    movq %rsi, %rdi
    movq %rdx, %rsi
    movq %rcx, %rdx
    syscall
    .globl oracle_syscall_site
    .hidden oracle_syscall_site
oracle_syscall_site:
    ret
    .size oracle_syscall, . - oracle_syscall

    .section .note.GNU-stack, "", @progbits
