/* Offsets in a stub's page of text, for its assembly and for the monitor. Constants only. */
#ifndef NESTOR_DIRECT_STUB_LAYOUT_H
#define NESTOR_DIRECT_STUB_LAYOUT_H

#define STUB_AT_WAIT 0x00
#define STUB_AT_APPLY 0x40 /* RBX: the orders, R12: how many */
#define STUB_AT_CALL 0x60  /* one call, its arguments in registers; R12 is 1 */
#define STUB_AT_DONE 0x80  /* INT3; R12: orders not done, RAX: the last result */
#define STUB_AT_STOP 0x81  /* RIP then */

/* An order: the number of the call and its six arguments, eight bytes each. */
#define STUB_ORDER_SIZE 56

#endif
