#include "devices/system_ports.h"

#define RESET_CPU 0x04
#define CONTROL_A_RESET 0x01
#define CONTROL_A_A20 0x02
#define DEBUG_CONSOLE_PRESENT 0xe9

void system_ports_reset(struct system_ports *ports) {
    atomic_store(&ports->reset_control, 0);
    atomic_store(&ports->control_a, CONTROL_A_A20);
    atomic_store(&ports->post_code, 0);
}

uint8_t reset_control_read(struct system_ports *ports) {
    return atomic_load(&ports->reset_control);
}

void reset_control_write(struct system_ports *ports, uint8_t value) {
    uint8_t before = atomic_exchange(&ports->reset_control, value & 0x0e);
    if (value & RESET_CPU && !(before & RESET_CPU) && ports->reset)
        ports->reset(ports->context);
}

uint8_t control_a_read(struct system_ports *ports) {
    return atomic_load(&ports->control_a);
}

void control_a_write(struct system_ports *ports, uint8_t value) {
    uint8_t before = atomic_exchange(&ports->control_a, value);
    if (value & CONTROL_A_RESET && !(before & CONTROL_A_RESET) && ports->reset)
        ports->reset(ports->context);
}

uint8_t post_code_read(struct system_ports *ports) {
    return atomic_load(&ports->post_code);
}

void post_code_write(struct system_ports *ports, uint8_t value) {
    atomic_store(&ports->post_code, value);
}

uint8_t debug_console_read(struct system_ports *ports) {
    (void)ports;
    return DEBUG_CONSOLE_PRESENT;
}

void debug_console_write(struct system_ports *ports, uint8_t value) {
    if (ports->debug_write)
        ports->debug_write(ports->context, &value, 1);
}

void debug_exit_write(struct system_ports *ports, uint32_t value) {
    if (ports->debug_exit)
        ports->debug_exit(ports->context, value);
}
