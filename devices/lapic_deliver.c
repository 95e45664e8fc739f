/* Interrupt messages between processors and from devices: who is meant, and what becomes of it there
 * (SDM volume 3, "Issuing Interprocessor Interrupts", "Determining IPI Destination", "Message Signalled
 * Interrupts").
 *
 * One physical destination, the common case, is an array access as long as no guest has written an xAPIC ID.
 */
#include "devices/lapic_private.h"

#define ICR_LOGICAL (1u << 11)
#define ICR_ASSERT (1u << 14)
#define ICR_LEVEL (1u << 15)
#define BROADCAST_X2APIC UINT32_MAX
#define BROADCAST_XAPIC 0xffu

/* What a message does at one LAPIC. True if it was taken. */
static bool deliver_one(struct lapic *lapic, enum lapic_delivery mode, uint8_t vector, bool level_triggered) {
    if (!lapic_enabled(lapic))
        return false;
    const struct lapic_cpu_ops *ops = lapic->ops;
    switch (mode) {
    case LAPIC_FIXED:
    case LAPIC_LOWEST_PRIORITY:
        if (!lapic_software_enabled(lapic))
            return false;
        lapic_accept(lapic, vector, level_triggered);
        return true;
    case LAPIC_NMI:
        if (ops)
            ops->nmi(lapic->context);
        return true;
    case LAPIC_INIT:
        if (ops)
            ops->init(lapic->context);
        return true;
    case LAPIC_STARTUP:
        if (ops)
            ops->sipi(lapic->context, vector);
        return true;
    case LAPIC_EXTINT:
        atomic_store(&lapic->extint_latched, 1);
        lapic_kick(lapic);
        return true;
    default:
        return false;
    }
}

static bool matches_physical(struct lapic *lapic, uint32_t destination) {
    return destination == lapic_reg(lapic, REG_ID);
}

static bool matches_logical(struct lapic *lapic, uint32_t destination) {
    uint32_t ldr = lapic_reg(lapic, REG_LDR);
    if (lapic_x2apic(lapic))
        return destination >> 16 == ldr >> 16 && (destination & ldr & 0xffff);
    ldr >>= 24;
    if (destination > 0xff)
        return false;
    if (lapic_reg(lapic, REG_DFR) >> 28 == 0xf) /* flat */
        return destination & ldr;
    return (destination >> 4 == ldr >> 4 || destination >> 4 == 0xf) && (destination & ldr & 0xf);
}

/* Lower is preferred: the arbitration priority, without its focus rule. */
static uint32_t arbitration_priority(struct lapic *lapic) {
    return atomic_load_explicit(&lapic->ppr, memory_order_relaxed) & 0xf0;
}

static unsigned deliver_lowest(struct lapic_set *set, uint32_t destination, bool logical, bool broadcast,
                               uint8_t vector, bool level_triggered) {
    unsigned count = set->config.count;
    unsigned start = atomic_fetch_add_explicit(&set->arbitration, 1, memory_order_relaxed) % count;
    struct lapic *best = NULL;
    for (unsigned i = 0; i < count; i++) {
        struct lapic *lapic = &set->lapics[(start + i) % count];
        if (!lapic_enabled(lapic) || !lapic_software_enabled(lapic))
            continue;
        if (!broadcast &&
            !(logical ? matches_logical(lapic, destination) : matches_physical(lapic, destination)))
            continue;
        if (!best || arbitration_priority(lapic) < arbitration_priority(best))
            best = lapic;
    }
    return best && deliver_one(best, LAPIC_FIXED, vector, level_triggered);
}

/* except: the sender of an "all but self", or NULL. */
static unsigned deliver_matching(struct lapic_set *set, const struct lapic *except, uint32_t destination,
                                 bool logical, bool broadcast, enum lapic_delivery mode, uint8_t vector,
                                 bool level_triggered) {
    if (mode == LAPIC_LOWEST_PRIORITY && !except)
        return deliver_lowest(set, destination, logical, broadcast, vector, level_triggered);
    unsigned count = set->config.count;
    if (!logical && !broadcast && !atomic_load_explicit(&set->ids_moved, memory_order_relaxed))
        return destination < count && deliver_one(&set->lapics[destination], mode, vector, level_triggered);
    unsigned taken = 0;
    for (unsigned i = 0; i < count; i++) {
        struct lapic *lapic = &set->lapics[i];
        if (lapic == except)
            continue;
        if (broadcast ||
            (logical ? matches_logical(lapic, destination) : matches_physical(lapic, destination)))
            taken += deliver_one(lapic, mode, vector, level_triggered);
    }
    return taken;
}

unsigned lapic_set_deliver(struct lapic_set *set, uint32_t destination, bool logical,
                           enum lapic_delivery mode, uint8_t vector, bool level_triggered) {
    if (mode == LAPIC_STARTUP)
        return 0; /* reserved but for a processor's ICR */
    bool broadcast = destination == BROADCAST_X2APIC || (!logical && destination == BROADCAST_XAPIC);
    return deliver_matching(set, NULL, destination, logical, broadcast, mode, vector, level_triggered);
}

void lapic_set_msi(struct lapic_set *set, uint64_t address, uint32_t data) {
    if (address >> 20 != LAPIC_DEFAULT_BASE >> 20)
        return;
    uint32_t destination = address >> 12 & 0xff;
    bool logical = address & 1u << 2;
    enum lapic_delivery mode = (enum lapic_delivery)(data >> 8 & 7);
    /* The redirection hint asks for one of the logical destination's processors. */
    if (logical && address & 1u << 3 && mode == LAPIC_FIXED)
        mode = LAPIC_LOWEST_PRIORITY;
    lapic_set_deliver(set, destination, logical, mode, (uint8_t)data, data & 1u << 15);
}

void lapic_send(struct lapic *lapic, uint32_t icr, uint32_t destination) {
    enum lapic_delivery mode = (enum lapic_delivery)(icr >> 8 & 7);
    bool logical = icr & ICR_LOGICAL;
    uint8_t vector = (uint8_t)icr;
    switch (mode) {
    case LAPIC_FIXED:
    case LAPIC_LOWEST_PRIORITY:
        if (vector < 16) {
            lapic_error(lapic, ESR_SEND_ILLEGAL_VECTOR);
            return;
        }
        break;
    case LAPIC_INIT:
        /* "INIT level de-assert" set arbitration IDs on old processors and does nothing since. */
        if (icr & ICR_LEVEL && !(icr & ICR_ASSERT))
            return;
        break;
    case LAPIC_NMI:
    case LAPIC_STARTUP:
        break;
    default:
        return; /* SMI: there is no SMM; the rest is reserved */
    }
    uint32_t all = lapic_x2apic(lapic) ? BROADCAST_X2APIC : BROADCAST_XAPIC;
    switch (icr >> 18 & 3) {
    case 0:
        deliver_matching(lapic->set, NULL, destination, logical,
                         destination == all && (!logical || lapic_x2apic(lapic)), mode, vector, false);
        break;
    case 1:
        deliver_one(lapic, mode, vector, false);
        break;
    case 2:
        deliver_matching(lapic->set, NULL, 0, false, true, mode, vector, false);
        break;
    case 3:
        deliver_matching(lapic->set, lapic, 0, false, true, mode, vector, false);
        break;
    }
}
