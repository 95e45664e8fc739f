/* There is no BIOS, but loaders that probe for one (a Multiboot hypervisor's real-mode part, for one) call it
 * all the same. An empty vector table would send them into the data at address 0. Here every interrupt
 * returns, those of services with carry set and AH = 0x86, "not supported", and INT 11h and 12h, which have
 * no way to say no, answer. */
#include "devices/firmware_bios.h"

#include <string.h>

#define BIOS_SEGMENT 0xf000
/* Where a PC's BIOS has its IRET for vectors that nobody took. */
#define BIOS_IRET 0xff53
#define BIOS_ABSENT 0xff54
#define BIOS_EQUIPMENT 0xff40
#define BIOS_MEMORY 0xff48

#define VECTOR_EQUIPMENT 0x11
#define VECTOR_MEMORY 0x12
#define VECTOR_SERVICES 0x10
#define VECTOR_SERVICES_END 0x1b

/* The BIOS data area, at segment 0x40. */
#define BDA_EXTENDED 0x40e
#define BDA_MEMORY_KIB 0x413

static void put16(uint8_t *at, uint32_t value) {
    at[0] = (uint8_t)value;
    at[1] = (uint8_t)(value >> 8);
}

void firmware_bios_data(uint8_t *bytes, uint32_t low_end) {
    memset(bytes, 0, FIRMWARE_BIOS_DATA_SIZE);
    for (unsigned vector = 0; vector < 256; vector++) {
        unsigned offset = BIOS_IRET;
        if (vector == VECTOR_EQUIPMENT)
            offset = BIOS_EQUIPMENT;
        else if (vector == VECTOR_MEMORY)
            offset = BIOS_MEMORY;
        else if (vector >= VECTOR_SERVICES && vector < VECTOR_SERVICES_END)
            offset = BIOS_ABSENT;
        put16(&bytes[vector * 4], offset);
        put16(&bytes[vector * 4 + 2], BIOS_SEGMENT);
    }
    put16(&bytes[BDA_EXTENDED], low_end >> 4);
    put16(&bytes[BDA_MEMORY_KIB], low_end >> 10);
}

void firmware_bios_code(uint8_t *image, uint32_t low_end) {
    static const uint8_t absent[] = {
        0x55,                   /* push bp */
        0x89, 0xe5,             /* mov bp, sp */
        0x80, 0x4e, 0x06, 0x01, /* or byte [bp + 6], 1: carry in the flags that IRET takes */
        0x5d,                   /* pop bp */
        0xb4, 0x86,             /* mov ah, 0x86 */
        0xcf,                   /* iret */
    };
    /* mov ax, imm16; iret */
    uint8_t answer[] = {0xb8, 0, 0, 0xcf};
    memcpy(&image[BIOS_EQUIPMENT], answer, sizeof answer);
    put16(&answer[1], low_end >> 10);
    memcpy(&image[BIOS_MEMORY], answer, sizeof answer);
    image[BIOS_IRET] = 0xcf;
    memcpy(&image[BIOS_ABSENT], absent, sizeof absent);
}
