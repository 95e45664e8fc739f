# A module (assembled) or kernel (linked) in small: one place of each kind that a kernel patches in itself. The unit
# test says what becomes of each; the fuzzer changes bytes of it. OLD_LAYOUT: entries of Linux 6.1 instead of 6.12.

    .macro place section:req, at:req
    .pushsection \section, "a"
    .long \at - .
    .popsection
    .endm

# An alternative for feature (OR'ed with flags << 16, or bit 15 for the old layout).
    .macro alternative at:req, length:req, replacement:req, replacement_length:req, feature:req, flags=0
    .pushsection .altinstructions, "a"
    .long \at - .
    .long \replacement - .
#ifdef OLD_LAYOUT
    .short \feature | (\flags << 15)
#else
    .short \feature
    .short \flags
#endif
    .byte \length, \replacement_length
    .popsection
    .endm

    .set FEATURE_ALWAYS, 3 * 32 + 21
    .set FEATURE_XENPV, 8 * 32 + 16
    .set FEATURE_UNKNOWN, 21 * 32 + 30

    .text
    .globl _start, _text
_start:
_text:
    ret

    .type traced, @function
traced:
1:  call __fentry__
    .pushsection __mcount_loc, "a"
    .quad 1b
    .popsection
traced_return:
    .byte 0xe9
    .long __x86_return_thunk - . - 4
    place .return_sites, traced_return

    .type labels, @function
labels:
label_off:
    .byte 0x0f, 0x1f, 0x44, 0x00, 0x00
    .pushsection __jump_table, "aw"
    .long label_off - ., label_target - .
    .quad key_off - .
    .popsection
label_on:
    .byte 0xeb, label_target - (. + 1)
    .pushsection __jump_table, "aw"
    .long label_on - ., label_target - .
    .quad key_on - .
    .popsection
    nop
label_target:
    ret

    .type calls, @function
calls:
call_set:
    call traced
    .pushsection .static_call_sites, "aw"
    .long call_set - ., call_key - .
    .popsection
call_none:
    call traced
    .pushsection .static_call_sites, "aw"
    .long call_none - ., none_key - .
    .popsection
tail_none:
    .byte 0xe9
    .long traced - . - 4
    .pushsection .static_call_sites, "aw"
    .long tail_none - ., none_key + 1 - .
    .popsection

    .type thunks, @function
thunks:
thunk_call:
    call __x86_indirect_thunk_r11
    place .retpoline_sites, thunk_call
thunk_jump:
    .byte 0xe9
    .long __x86_indirect_thunk_rax - . - 4
    place .retpoline_sites, thunk_jump
thunk_condition:
    .byte 0x0f, 0x84
    .long __x86_indirect_thunk_rax - . - 4
    place .retpoline_sites, thunk_condition
    ret

    .type alternatives, @function
alternatives:
alternative_taken:
    .fill 9, 1, 0x90
    alternative alternative_taken, 9, 771f, 5, FEATURE_ALWAYS
    .pushsection .altinstr_replacement, "ax"
771: call traced
    .popsection
alternative_left:
    .fill 7, 1, 0x90
    alternative alternative_left, 7, 772f, 2, FEATURE_XENPV
    .pushsection .altinstr_replacement, "ax"
772: cli
    nop
    .popsection
alternative_absent:
    sti
    nop
    alternative alternative_absent, 2, 773f, 1, FEATURE_XENPV, 1
    .pushsection .altinstr_replacement, "ax"
773: cli
    .popsection
alternative_jump:
    .fill 5, 1, 0x90
    alternative alternative_jump, 5, 774f, 5, FEATURE_ALWAYS
    .pushsection .altinstr_replacement, "ax"
774: .byte 0xe9
    .long alternative_end - . - 4
    .popsection
alternative_either:
    .fill 3, 1, 0x90
    alternative alternative_either, 3, 775f, 3, FEATURE_UNKNOWN
    .pushsection .altinstr_replacement, "ax"
775: lfence
    .popsection
alternative_end:
    ret

    .type sealed, @function
sealed:
    endbr64
    place .ibt_endbr_seal, sealed
locked:
    lock incl (%rdi)
    place .smp_locks, locked
    ud2
    ret

    .type __fentry__, @function
__fentry__:
    ret
    .balign 32
    .globl __x86_indirect_thunk_array
__x86_indirect_thunk_array:
__x86_indirect_thunk_rax:
    jmp *%rax
    .fill 30, 1, 0xcc
    .fill 32 * 10, 1, 0xcc
__x86_indirect_thunk_r11:
    jmp *%r11
    .balign 32, 0xcc
    .fill 32 * 4, 1, 0xcc
    .type __x86_return_thunk, @function
__x86_return_thunk:
    ret

# Too long for a unit of the test's generator; by its name kernel_init begins what a boot runs.
    .type long_function, @function
long_function:
    nop
long_back:
    test %eax, %eax
    jz long_far
label_long:
    .byte 0x0f, 0x1f, 0x44, 0x00, 0x00
    .pushsection __jump_table, "aw"
    .long label_long - ., long_end - .
    .quad key_off - .
    .popsection
    .fill 35, 1, 0x90
long_far:
    dec %eax
    jnz long_back
long_end:
    ret
    .type kernel_init, @function
kernel_init:
    call long_function
    ret
    .type lonely, @function
lonely:
    ret

    .data
    .balign 8
key_off:
    .quad 0, 0
key_on:
    .quad 1, 0
call_key:
    .quad traced, 0
none_key:
    .quad 0, 0

    .section __ex_table, "a"
    .long locked - ., traced - ., 1

    .section .note.GNU-stack, "", @progbits
