/* There is no BIOS, but loaders that probe for one (a Multiboot hypervisor's real-mode part, for one) call it
 * all the same. An empty vector table would send them into the data at address 0. Here every interrupt
 * returns, those of services with carry set and AH = 0x86, "not supported", and INT 11h and 12h, which have
 * no way to say no, answer. Hardware interrupts are ended, and the timer's counted: Multiboot 3.2 promises a
 * kernel that goes back to real mode the interrupt controllers as a BIOS has them, so HLT there ends. */
#include "devices/firmware_bios.h"

#include <string.h>

#define BIOS_SEGMENT 0xf000
/* Where a PC's BIOS has INT 8, and its handler of hardware interrupts that nobody took. */
#define BIOS_TIMER 0xfea5
#define BIOS_END_MASTER 0xff23
#define BIOS_END_SLAVE 0xff30
/* Where a PC's BIOS has its IRET for vectors that nobody took. */
#define BIOS_IRET 0xff53
#define BIOS_ABSENT 0xff54
#define BIOS_EQUIPMENT 0xff40
#define BIOS_MEMORY 0xff48

#define VECTOR_TIMER 0x08 /* first of the master's */
#define VECTOR_MASTER_END 0x10
#define VECTOR_SLAVE 0x70
#define VECTOR_SLAVE_END 0x78
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
        else if (vector == VECTOR_TIMER)
            offset = BIOS_TIMER;
        else if (vector > VECTOR_TIMER && vector < VECTOR_MASTER_END)
            offset = BIOS_END_MASTER;
        else if (vector >= VECTOR_SLAVE && vector < VECTOR_SLAVE_END)
            offset = BIOS_END_SLAVE;
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
    /* The ticks since midnight are at 0x46c, the days at 0x470. */
    static const uint8_t timer[] = {
        0x1e,                               /* push ds */
        0x66, 0x50,                         /* push eax */
        0x31, 0xc0,                         /* xor ax, ax */
        0x8e, 0xd8,                         /* mov ds, ax */
        0x66, 0xa1, 0x6c, 0x04,             /* mov eax, [0x46c] */
        0x66, 0x40,                         /* inc eax */
        0x66, 0x3d, 0xb0, 0x00, 0x18, 0x00, /* cmp eax, 0x1800b0 */
        0x72, 0x07,                         /* jb over the next two */
        0x66, 0x31, 0xc0,                   /* xor eax, eax */
        0xfe, 0x06, 0x70, 0x04,             /* inc byte [0x470] */
        0x66, 0xa3, 0x6c, 0x04,             /* mov [0x46c], eax */
        0xcd, 0x1c,                         /* int 0x1c: whoever wants to count, too */
        0xb0, 0x20,                         /* mov al, 0x20 */
        0xe6, 0x20,                         /* out 0x20, al */
        0x66, 0x58,                         /* pop eax */
        0x1f,                               /* pop ds */
        0xcf,                               /* iret */
    };
    /* push ax; mov al, 0x20; out 0xa0 (the slave's), al; out 0x20, al; pop ax; iret */
    static const uint8_t end_master[] = {0x50, 0xb0, 0x20, 0xe6, 0x20, 0x58, 0xcf};
    static const uint8_t end_slave[] = {0x50, 0xb0, 0x20, 0xe6, 0xa0, 0xe6, 0x20, 0x58, 0xcf};
    _Static_assert(BIOS_TIMER + sizeof timer <= BIOS_END_MASTER &&
                       BIOS_END_MASTER + sizeof end_master <= BIOS_END_SLAVE &&
                       BIOS_END_SLAVE + sizeof end_slave <= BIOS_EQUIPMENT,
                   "the handlers have room");
    /* mov ax, imm16; iret */
    uint8_t answer[] = {0xb8, 0, 0, 0xcf};
    memcpy(&image[BIOS_EQUIPMENT], answer, sizeof answer);
    put16(&answer[1], low_end >> 10);
    memcpy(&image[BIOS_MEMORY], answer, sizeof answer);
    image[BIOS_IRET] = 0xcf;
    memcpy(&image[BIOS_ABSENT], absent, sizeof absent);
    memcpy(&image[BIOS_TIMER], timer, sizeof timer);
    memcpy(&image[BIOS_END_MASTER], end_master, sizeof end_master);
    memcpy(&image[BIOS_END_SLAVE], end_slave, sizeof end_slave);
}
