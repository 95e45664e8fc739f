#ifndef KERNELS_CONTROL64_H
#define KERNELS_CONTROL64_H

void fpu_check(void); /* fpu64.c: x87, SSE and XSAVE state under CR0, CR4 and XCR0; #MF, #XM, #AC */

#endif
