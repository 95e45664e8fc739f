#ifndef KERNELS_SEGMENTS32_H
#define KERNELS_SEGMENTS32_H

void segments_use_check(void); /* segments_use32.c: stack, code and null segments, LDT, TR, table registers */
void segments_return_check(void); /* segments_return32.c: far returns and IRET */

#endif
