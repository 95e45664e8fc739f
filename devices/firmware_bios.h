/* What real-mode code finds of a BIOS: vectors that return, say that a service does not exist, or end a
 * hardware interrupt. */
#ifndef NESTOR_DEVICES_FIRMWARE_BIOS_H
#define NESTOR_DEVICES_FIRMWARE_BIOS_H

#include "base/types.h"

/* The interrupt vectors and the BIOS data area, from guest-physical address 0. */
#define FIRMWARE_BIOS_DATA_SIZE 0x500
/* Offset in the last 64 KiB below 1 MiB, from which on firmware_bios_code() fills. */
#define FIRMWARE_BIOS_CODE 0xfea0

/* Write FIRMWARE_BIOS_DATA_SIZE bytes. low_end: where conventional memory ends, in bytes, a multiple of 1 KiB
 * below 1 MiB. */
void firmware_bios_data(uint8_t *bytes, uint32_t low_end);
/* Write the services into the image of the last 64 KiB below 1 MiB. low_end: as above. */
void firmware_bios_code(uint8_t *image, uint32_t low_end);

#endif
