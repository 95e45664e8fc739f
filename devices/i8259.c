/* Two 8259As in cascade: initialisation words, operation words, priorities.
 *
 * Priorities are counted from the input after `lowest`: that one is the highest, `lowest` the last. An edge
 * request is latched in the IRR until acknowledged; a level request is the line itself. */
#include "devices/i8259.h"

#include <pthread.h>
#include <stdlib.h>

#define CASCADE 2
#define NO_INPUT (-1)
#define ICW1 0x10
#define ICW1_ICW4 0x01
#define ICW1_SINGLE 0x02
#define ICW1_LEVEL 0x08
#define ICW4_AUTO_EOI 0x02
#define ICW4_SPECIAL_FULLY_NESTED 0x10
#define OCW3 0x08

enum init_step { INIT_DONE, INIT_ICW2, INIT_ICW3, INIT_ICW4 };

struct chip {
    uint8_t irr, isr, imr;
    uint8_t lines;        /* input levels */
    uint8_t elcr;         /* inputs that are level-triggered */
    uint8_t elcr_allowed; /* bits of it that software may set */
    uint8_t base;         /* vector of input 0 */
    uint8_t lowest;       /* input of lowest priority */
    uint8_t icw3;
    enum init_step step;
    bool needs_icw4, single, all_level;
    bool auto_eoi, rotate_auto_eoi, special_mask, special_fully_nested;
    bool read_isr, poll;
};

struct i8259 {
    pthread_mutex_t lock;
    struct irq_line intr;
    bool intr_level;
    struct chip chips[2];
};

static uint8_t level_inputs(const struct chip *chip) {
    return chip->all_level ? 0xff : chip->elcr;
}

/* The highest-priority input of a set, or NO_INPUT. */
static int first_input(const struct chip *chip, uint8_t set) {
    for (unsigned i = 1; i <= 8; i++) {
        unsigned input = (chip->lowest + i) & 7;
        if (set & 1u << input)
            return (int)input;
    }
    return NO_INPUT;
}

static unsigned rank(const struct chip *chip, int input) {
    return input == NO_INPUT ? 8 : ((unsigned)input - chip->lowest - 1) & 7;
}

/* The input whose request would be given to the processor now, or NO_INPUT. */
static int chip_request(const struct chip *chip, bool master) {
    int request = first_input(chip, chip->irr & (uint8_t)~chip->imr);
    if (request == NO_INPUT)
        return NO_INPUT;
    uint8_t service = chip->isr;
    if (chip->special_mask)
        service &= (uint8_t)~chip->imr;
    /* In special fully nested mode the slave may interrupt again while one of its inputs is served. */
    if (chip->special_fully_nested && master)
        service &= (uint8_t) ~(1u << CASCADE);
    int served = first_input(chip, service);
    if (chip->special_mask)
        return service & 1u << request ? NO_INPUT : request;
    return rank(chip, request) < rank(chip, served) ? request : NO_INPUT;
}

static void input_set(struct chip *chip, unsigned input, bool level) {
    uint8_t bit = (uint8_t)(1u << input);
    if (level_inputs(chip) & bit) {
        chip->irr = level ? chip->irr | bit : chip->irr & (uint8_t)~bit;
    } else if (level && !(chip->lines & bit)) {
        chip->irr |= bit;
    }
    chip->lines = level ? chip->lines | bit : chip->lines & (uint8_t)~bit;
}

/* Drive the slave's output into the master and the master's to the processor. */
static void outputs_update(struct i8259 *pic) {
    struct chip *master = &pic->chips[0], *slave = &pic->chips[1];
    bool cascade = chip_request(slave, false) != NO_INPUT;
    /* The slave's INT is a level that the master must not latch: it goes with its cause. */
    if (cascade)
        master->irr |= 1u << CASCADE;
    else
        master->irr &= (uint8_t) ~(1u << CASCADE);
    bool level = chip_request(master, true) != NO_INPUT;
    if (level != pic->intr_level) {
        pic->intr_level = level;
        irq_line_set(&pic->intr, level);
    }
}

static void chip_acknowledge(struct chip *chip, unsigned input) {
    uint8_t bit = (uint8_t)(1u << input);
    if (chip->auto_eoi) {
        if (chip->rotate_auto_eoi)
            chip->lowest = (uint8_t)input;
    } else {
        chip->isr |= bit;
    }
    if (!(level_inputs(chip) & bit))
        chip->irr &= (uint8_t)~bit;
}

uint8_t i8259_acknowledge(struct i8259 *pic) {
    struct chip *master = &pic->chips[0], *slave = &pic->chips[1];
    pthread_mutex_lock(&pic->lock);
    uint8_t vector;
    int input = chip_request(master, true);
    if (input == NO_INPUT) {
        vector = (master->base | 7);
    } else if (input == CASCADE) {
        int behind = chip_request(slave, false);
        chip_acknowledge(master, CASCADE);
        if (behind == NO_INPUT) {
            vector = (slave->base | 7);
        } else {
            chip_acknowledge(slave, (unsigned)behind);
            vector = (uint8_t)(slave->base + behind);
        }
    } else {
        chip_acknowledge(master, (unsigned)input);
        vector = (uint8_t)(master->base + input);
    }
    outputs_update(pic);
    pthread_mutex_unlock(&pic->lock);
    return vector;
}

void i8259_irq_set(struct i8259 *pic, unsigned irq, bool level) {
    if (irq >= 16 || irq == CASCADE)
        return;
    pthread_mutex_lock(&pic->lock);
    input_set(&pic->chips[irq >> 3], irq & 7, level);
    outputs_update(pic);
    pthread_mutex_unlock(&pic->lock);
}

static void icw1_write(struct chip *chip, uint8_t value) {
    chip->imr = 0;
    chip->isr = 0;
    /* The edge detectors are reset: only lines of level-triggered inputs still request. */
    chip->all_level = value & ICW1_LEVEL;
    chip->irr = chip->lines & level_inputs(chip);
    chip->lowest = 7;
    chip->special_mask = false;
    chip->read_isr = false;
    chip->poll = false;
    chip->auto_eoi = false;
    chip->rotate_auto_eoi = false;
    chip->special_fully_nested = false;
    chip->needs_icw4 = value & ICW1_ICW4;
    chip->single = value & ICW1_SINGLE;
    chip->step = INIT_ICW2;
}

static void ocw2_write(struct chip *chip, uint8_t value) {
    unsigned level = value & 7;
    int served = first_input(chip, chip->special_mask ? chip->isr & (uint8_t)~chip->imr : chip->isr);
    switch (value >> 5) {
    case 0: /* rotate in automatic EOI mode: clear */
    case 4: /* set */
        chip->rotate_auto_eoi = value >> 5 == 4;
        break;
    case 1: /* non-specific EOI */
    case 5: /* with rotation */
        if (served != NO_INPUT) {
            chip->isr &= (uint8_t) ~(1u << served);
            if (value >> 5 == 5)
                chip->lowest = (uint8_t)served;
        }
        break;
    case 3: /* specific EOI */
        chip->isr &= (uint8_t) ~(1u << level);
        break;
    case 6: /* set priority */
        chip->lowest = (uint8_t)level;
        break;
    case 7: /* specific EOI with rotation */
        chip->isr &= (uint8_t) ~(1u << level);
        chip->lowest = (uint8_t)level;
        break;
    default:
        break;
    }
}

static void ocw3_write(struct chip *chip, uint8_t value) {
    if (value & 0x04)
        chip->poll = true;
    if (value & 0x02)
        chip->read_isr = value & 0x01;
    if (value & 0x40)
        chip->special_mask = value & 0x20;
}

static void data_write(struct chip *chip, uint8_t value) {
    switch (chip->step) {
    case INIT_DONE:
        chip->imr = value;
        break;
    case INIT_ICW2:
        chip->base = value & 0xf8;
        chip->step = !chip->single ? INIT_ICW3 : chip->needs_icw4 ? INIT_ICW4 : INIT_DONE;
        break;
    case INIT_ICW3:
        chip->icw3 = value;
        chip->step = chip->needs_icw4 ? INIT_ICW4 : INIT_DONE;
        break;
    case INIT_ICW4:
        chip->auto_eoi = value & ICW4_AUTO_EOI;
        chip->special_fully_nested = value & ICW4_SPECIAL_FULLY_NESTED;
        chip->step = INIT_DONE;
        break;
    }
}

void i8259_write(struct i8259 *pic, unsigned index, unsigned offset, uint8_t value) {
    struct chip *chip = &pic->chips[index & 1];
    pthread_mutex_lock(&pic->lock);
    if (offset & 1)
        data_write(chip, value);
    else if (value & ICW1)
        icw1_write(chip, value);
    else if (value & OCW3)
        ocw3_write(chip, value);
    else
        ocw2_write(chip, value);
    outputs_update(pic);
    pthread_mutex_unlock(&pic->lock);
}

/* The poll command makes the next read an acknowledgement. */
static uint8_t poll_read(struct chip *chip, bool master) {
    chip->poll = false;
    int input = chip_request(chip, master);
    if (input == NO_INPUT)
        return 0;
    chip_acknowledge(chip, (unsigned)input);
    return (uint8_t)(0x80 | input);
}

uint8_t i8259_read(struct i8259 *pic, unsigned index, unsigned offset) {
    struct chip *chip = &pic->chips[index & 1];
    uint8_t value;
    pthread_mutex_lock(&pic->lock);
    if (chip->poll) {
        value = poll_read(chip, !(index & 1));
        outputs_update(pic);
    } else if (offset & 1) {
        value = chip->imr;
    } else {
        value = chip->read_isr ? chip->isr : chip->irr;
    }
    pthread_mutex_unlock(&pic->lock);
    return value;
}

uint8_t i8259_elcr_read(struct i8259 *pic, unsigned index) {
    pthread_mutex_lock(&pic->lock);
    uint8_t value = pic->chips[index & 1].elcr;
    pthread_mutex_unlock(&pic->lock);
    return value;
}

void i8259_elcr_write(struct i8259 *pic, unsigned index, uint8_t value) {
    struct chip *chip = &pic->chips[index & 1];
    pthread_mutex_lock(&pic->lock);
    chip->elcr = value & chip->elcr_allowed;
    chip->irr = (chip->irr & (uint8_t)~chip->elcr) | (chip->lines & chip->elcr);
    outputs_update(pic);
    pthread_mutex_unlock(&pic->lock);
}

void i8259_reset(struct i8259 *pic) {
    pthread_mutex_lock(&pic->lock);
    for (unsigned i = 0; i < 2; i++) {
        uint8_t lines = pic->chips[i].lines;
        /* Timer, keyboard and cascade, RTC and FPU error are always edges. */
        pic->chips[i] =
            (struct chip){.lines = lines, .lowest = 7, .imr = 0xff, .elcr_allowed = i ? 0xde : 0xf8};
        pic->chips[i].base = i ? 0x70 : 0x08;
    }
    outputs_update(pic);
    pthread_mutex_unlock(&pic->lock);
}

struct i8259 *i8259_create(struct irq_line intr) {
    struct i8259 *pic = calloc(1, sizeof *pic);
    if (!pic)
        return NULL;
    pthread_mutex_init(&pic->lock, NULL);
    pic->intr = intr;
    i8259_reset(pic);
    return pic;
}

void i8259_destroy(struct i8259 *pic) {
    if (!pic)
        return;
    pthread_mutex_destroy(&pic->lock);
    free(pic);
}
