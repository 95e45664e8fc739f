/* Where things stand in a stub's address space, for the stub's assembly and for the monitor: the last two
 * pages of the user half, which Linux guests leave free more surely than any others. Constants only. */
#ifndef NESTOR_DIRECT_STUB_LAYOUT_H
#define NESTOR_DIRECT_STUB_LAYOUT_H

#define STUB_ORDERS 0x7fffffffd000 /* one page, read-only: the calls to make */
#define STUB_TEXT 0x7fffffffe000   /* one page: stub.S */
#define STUB_END 0x7ffffffff000    /* the end of what user mode can have mapped on x86-64 Linux */

/* Offsets in the text page. */
#define STUB_AT_WAIT 0x00
#define STUB_AT_APPLY 0x40 /* RBX: the orders, R12: how many */
#define STUB_AT_CALL 0x60  /* one call, its arguments in registers; R12 is 1 */
#define STUB_AT_DONE 0x80  /* INT3; R12: orders not done, RAX: the last result */
#define STUB_AT_STOP 0x81  /* RIP then */

/* An order: the number of the call and its six arguments, eight bytes each. */
#define STUB_ORDER_SIZE 56

#endif
