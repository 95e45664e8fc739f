#ifndef KERNELS_LAYOUT_H
#define KERNELS_LAYOUT_H
/*
 * Numbers that assembly and C share: selectors, addresses, offsets.
 */

/* 64-bit kernels. */
#define KERNEL_CS 0x08
#define KERNEL_DS 0x10
#define KERNEL_CS32 0x18
#define USER_CS32 0x23
#define USER_DS 0x2b
#define USER_CS 0x33
#define SCRATCH_SELECTOR 0x40 /* sixteen free descriptors: 0x40..0xbf */
#define TSS_SELECTOR 0xc0     /* 16 bytes for each CPU in 64-bit kernels */
#define GDT_BYTES 0x100

/* 32-bit kernels; KERNEL_CS and KERNEL_DS are the same. */
#define USER32_CS 0x1b
#define USER32_DS 0x23
#define CODE16_SELECTOR 0x28
#define DATA16_SELECTOR 0x30
#define TSS32_SELECTOR 0xc0
#define TSS32_FAULT_SELECTOR 0xc8
#define TSS32_OTHER_SELECTOR 0xd0

#define MAX_CPUS 4
#define STACK_BYTES 0x4000
#define TRAMPOLINE 0x8000

/* Linear address at which CPL 3 sees physical address 0 (1 GiB long). */
#define USER_ALIAS 0x40000000

#define VECTOR_DONE 0x40 /* INT of this ends a context; its gate has DPL 3 */

#define CPU_SAVED_SP 0
#define CPU_CONTEXT 8

#define DEBUG_EXIT_PORT 0xf4

#endif
