/* Single ports of a PC: reset control (0xCF9), fast A20 and reset (0x92), POST code (0x80), and the two of
 * test benches: debug console (0xE9) and debug exit. Stateless but for what is read back; thread-safe. */
#ifndef NESTOR_DEVICES_SYSTEM_PORTS_H
#define NESTOR_DEVICES_SYSTEM_PORTS_H

#include <stdatomic.h>

#include "base/types.h"

struct system_ports {
    void (*reset)(void *context);
    void (*debug_exit)(void *context, uint32_t value);                      /* optional */
    void (*debug_write)(void *context, const uint8_t *bytes, size_t count); /* optional */
    void *context;
    _Atomic uint8_t reset_control;
    _Atomic uint8_t control_a; /* port 0x92 */
    _Atomic uint8_t post_code;
};

void system_ports_reset(struct system_ports *ports);

/* 0xCF9: a 0 to 1 change of bit 2 resets. */
uint8_t reset_control_read(struct system_ports *ports);
void reset_control_write(struct system_ports *ports, uint8_t value);
/* 0x92: bit 0 rising resets, bit 1 is A20 (always open). */
uint8_t control_a_read(struct system_ports *ports);
void control_a_write(struct system_ports *ports, uint8_t value);
/* 0x80 */
uint8_t post_code_read(struct system_ports *ports);
void post_code_write(struct system_ports *ports, uint8_t value);
/* 0xE9: reads as 0xE9, which says that it is there. */
uint8_t debug_console_read(struct system_ports *ports);
void debug_console_write(struct system_ports *ports, uint8_t value);
void debug_exit_write(struct system_ports *ports, uint32_t value);

#endif
