/* Keyboard controller: commands to port 0x64, their parameters and the keyboard's at port 0x60, one queue of
 * answers.
 *
 * The A20 bit of the output port is kept but gates nothing: the machine's A20 is always open. */
#include "devices/i8042.h"

#include <pthread.h>
#include <stdlib.h>

#define QUEUE_SIZE 32

#define STATUS_OUTPUT_FULL 0x01
#define STATUS_SYSTEM 0x04
#define STATUS_COMMAND 0x08
#define STATUS_UNLOCKED 0x10
#define STATUS_AUX 0x20
#define CONTROL_KBD_IRQ 0x01
#define CONTROL_AUX_IRQ 0x02
#define CONTROL_SYSTEM 0x04
#define CONTROL_KBD_OFF 0x10
#define CONTROL_AUX_OFF 0x20
#define CONTROL_TRANSLATE 0x40
#define OUTPUT_NO_RESET 0x01
#define OUTPUT_A20 0x02
#define KEYBOARD_ACK 0xfa
#define KEYBOARD_RESEND 0xfe
#define KEYBOARD_SELF_TEST_OK 0xaa

enum source { FROM_CONTROLLER, FROM_KEYBOARD, FROM_AUX };

struct answer {
    uint8_t byte;
    enum source source;
};

struct i8042 {
    pthread_mutex_t lock;
    struct irq_line irq1, irq12;
    void (*reset)(void *context);
    void *context;
    struct answer queue[QUEUE_SIZE];
    unsigned head, count;
    uint8_t ram[32]; /* byte 0 is the control byte */
    uint8_t output_port;
    uint8_t command;          /* awaits its parameter at port 0x60, or 0 */
    uint8_t keyboard_command; /* the same for the keyboard */
    uint8_t scancode_set;
    uint8_t last_status_command;
    bool irq1_level, irq12_level;
};

static void irqs_update(struct i8042 *kbc) {
    bool full = kbc->count > 0;
    bool aux = full && kbc->queue[kbc->head].source == FROM_AUX;
    bool irq1 = full && !aux && kbc->ram[0] & CONTROL_KBD_IRQ;
    bool irq12 = aux && kbc->ram[0] & CONTROL_AUX_IRQ;
    if (irq1 != kbc->irq1_level)
        irq_line_set(&kbc->irq1, irq1);
    if (irq12 != kbc->irq12_level)
        irq_line_set(&kbc->irq12, irq12);
    kbc->irq1_level = irq1;
    kbc->irq12_level = irq12;
}

static void answer(struct i8042 *kbc, enum source source, uint8_t byte) {
    if (kbc->count == QUEUE_SIZE)
        return;
    kbc->queue[(kbc->head + kbc->count++) % QUEUE_SIZE] = (struct answer){byte, source};
}

static void keyboard_parameter(struct i8042 *kbc, uint8_t command, uint8_t value) {
    answer(kbc, FROM_KEYBOARD, KEYBOARD_ACK);
    if (command != 0xf0)
        return;
    if (value == 0)
        answer(kbc, FROM_KEYBOARD, kbc->scancode_set);
    else if (value <= 3)
        kbc->scancode_set = value;
}

/* A byte to the keyboard: IBM PS/2 keyboard commands. */
static void keyboard_write(struct i8042 *kbc, uint8_t value) {
    kbc->ram[0] &= (uint8_t)~CONTROL_KBD_OFF;
    if (kbc->keyboard_command) {
        uint8_t command = kbc->keyboard_command;
        kbc->keyboard_command = 0;
        keyboard_parameter(kbc, command, value);
        return;
    }
    switch (value) {
    case 0xed: /* LEDs */
    case 0xf0: /* scan code set */
    case 0xf3: /* typematic rate */
        kbc->keyboard_command = value;
        answer(kbc, FROM_KEYBOARD, KEYBOARD_ACK);
        break;
    case 0xee: /* echo */
        answer(kbc, FROM_KEYBOARD, 0xee);
        break;
    case 0xf2: /* identify: an MF2 keyboard, translated if the controller translates */
        answer(kbc, FROM_KEYBOARD, KEYBOARD_ACK);
        answer(kbc, FROM_KEYBOARD, 0xab);
        answer(kbc, FROM_KEYBOARD, kbc->ram[0] & CONTROL_TRANSLATE ? 0x41 : 0x83);
        break;
    case 0xff: /* reset */
        kbc->scancode_set = 2;
        answer(kbc, FROM_KEYBOARD, KEYBOARD_ACK);
        answer(kbc, FROM_KEYBOARD, KEYBOARD_SELF_TEST_OK);
        break;
    case 0xf4: /* enable */
    case 0xf5: /* defaults, disable */
    case 0xf6: /* defaults */
    case 0xf7 ... 0xfd:
        answer(kbc, FROM_KEYBOARD, KEYBOARD_ACK);
        break;
    default:
        answer(kbc, FROM_KEYBOARD, KEYBOARD_RESEND);
        break;
    }
}

/* The parameter of a controller command. Returns true if the reset line went low. */
static bool parameter_write(struct i8042 *kbc, uint8_t command, uint8_t value) {
    switch (command) {
    case 0x60 ... 0x7f:
        kbc->ram[command & 31] = value;
        break;
    case 0xd1:
        kbc->output_port = value;
        return !(value & OUTPUT_NO_RESET);
    case 0xd2:
        answer(kbc, FROM_KEYBOARD, value);
        break;
    case 0xd3:
        answer(kbc, FROM_AUX, value);
        break;
    case 0xd4: /* to a mouse that is not there: the controller reports a time-out as a resend */
        answer(kbc, FROM_AUX, KEYBOARD_RESEND);
        break;
    default:
        break;
    }
    return false;
}

/* Returns true if the reset line was pulsed. */
static bool command_write(struct i8042 *kbc, uint8_t value) {
    kbc->command = 0;
    switch (value) {
    case 0x20 ... 0x3f:
        answer(kbc, FROM_CONTROLLER, kbc->ram[value & 31]);
        break;
    case 0x60 ... 0x7f:
    case 0xd1 ... 0xd4:
        kbc->command = value;
        break;
    case 0xa7:
        kbc->ram[0] |= CONTROL_AUX_OFF;
        break;
    case 0xa8:
        kbc->ram[0] &= (uint8_t)~CONTROL_AUX_OFF;
        break;
    case 0xa9: /* test the mouse's lines: good */
        answer(kbc, FROM_CONTROLLER, 0x00);
        break;
    case 0xaa: /* self-test */
        kbc->ram[0] |= CONTROL_SYSTEM;
        answer(kbc, FROM_CONTROLLER, 0x55);
        break;
    case 0xab: /* test the keyboard's lines: good */
        answer(kbc, FROM_CONTROLLER, 0x00);
        break;
    case 0xad:
        kbc->ram[0] |= CONTROL_KBD_OFF;
        break;
    case 0xae:
        kbc->ram[0] &= (uint8_t)~CONTROL_KBD_OFF;
        break;
    case 0xc0: /* input port: keyboard not locked */
        answer(kbc, FROM_CONTROLLER, 0x80);
        break;
    case 0xd0:
        answer(kbc, FROM_CONTROLLER, kbc->output_port | (kbc->count ? 0x10 : 0));
        break;
    case 0xdd:
        kbc->output_port &= (uint8_t)~OUTPUT_A20;
        break;
    case 0xdf:
        kbc->output_port |= OUTPUT_A20;
        break;
    case 0xf0 ... 0xff: /* pulse the output lines whose bit is 0; line 0 resets the processor */
        return !(value & 1);
    default:
        break;
    }
    return false;
}

void i8042_write(struct i8042 *kbc, unsigned offset, uint8_t value) {
    bool reset = false;
    pthread_mutex_lock(&kbc->lock);
    kbc->last_status_command = offset & 1 ? STATUS_COMMAND : 0;
    if (offset & 1) {
        reset = command_write(kbc, value);
    } else if (kbc->command) {
        uint8_t command = kbc->command;
        kbc->command = 0;
        reset = parameter_write(kbc, command, value);
    } else {
        keyboard_write(kbc, value);
    }
    irqs_update(kbc);
    pthread_mutex_unlock(&kbc->lock);
    if (reset && kbc->reset)
        kbc->reset(kbc->context);
}

uint8_t i8042_read(struct i8042 *kbc, unsigned offset) {
    uint8_t value;
    pthread_mutex_lock(&kbc->lock);
    const struct answer *first = &kbc->queue[kbc->head];
    if (offset & 1) {
        value =
            STATUS_UNLOCKED | (kbc->ram[0] & CONTROL_SYSTEM ? STATUS_SYSTEM : 0) | kbc->last_status_command;
        if (kbc->count)
            value |= STATUS_OUTPUT_FULL | (first->source == FROM_AUX ? STATUS_AUX : 0);
    } else {
        value = first->byte; /* of an empty buffer, what was last there */
        if (kbc->count > 0) {
            /* The line falls between two bytes, so that an edge-triggered input sees the second. */
            unsigned left = kbc->count - 1;
            kbc->count = 0;
            irqs_update(kbc);
            kbc->count = left;
            if (left)
                kbc->head = (kbc->head + 1) % QUEUE_SIZE;
            irqs_update(kbc);
        }
    }
    pthread_mutex_unlock(&kbc->lock);
    return value;
}

void i8042_reset(struct i8042 *kbc) {
    pthread_mutex_lock(&kbc->lock);
    kbc->head = 0;
    kbc->count = 0;
    kbc->command = 0;
    kbc->keyboard_command = 0;
    kbc->scancode_set = 2;
    kbc->last_status_command = 0;
    /* As firmware leaves it: self-test passed, both ports' interrupts off. */
    kbc->ram[0] = CONTROL_SYSTEM | CONTROL_TRANSLATE | CONTROL_AUX_OFF;
    kbc->output_port = 0xcc | OUTPUT_NO_RESET | OUTPUT_A20;
    irqs_update(kbc);
    pthread_mutex_unlock(&kbc->lock);
}

struct i8042 *i8042_create(struct irq_line irq1, struct irq_line irq12, void (*reset)(void *context),
                           void *context) {
    struct i8042 *kbc = calloc(1, sizeof *kbc);
    if (!kbc)
        return NULL;
    pthread_mutex_init(&kbc->lock, NULL);
    kbc->irq1 = irq1;
    kbc->irq12 = irq12;
    kbc->reset = reset;
    kbc->context = context;
    i8042_reset(kbc);
    return kbc;
}

void i8042_destroy(struct i8042 *kbc) {
    if (!kbc)
        return;
    pthread_mutex_destroy(&kbc->lock);
    free(kbc);
}
