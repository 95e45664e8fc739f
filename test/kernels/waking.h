#ifndef KERNELS_WAKING_H
#define KERNELS_WAKING_H
/* Where suspend64 wakes, and what it finds there. */

/* Not a multiple of 16: the offset of CS:IP is not zero. */
#define WAKING_ADDRESS 0x9008
#define WAKING_STACK 0xa000
#define WAKING_STATE 0xa000

#endif
