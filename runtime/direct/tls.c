/* The three descriptors that user mode may choose: in the stub's GDT as in the guest's, so that loading a
 * selector gives the same segment in both. */
#define _GNU_SOURCE
#include "cpu/descriptor.h"
#include "direct/private.h"

#include <asm/ldt.h>
#include <errno.h>
#include <sys/ptrace.h>

#define DPL_USER 3

static uint32_t base_of(uint64_t raw) {
    return (uint32_t)(raw >> 16 & 0xffffff) | (uint32_t)(raw >> 56) << 24;
}

/* Only what Linux hands out: flat or not, a present segment of ring 3's. Anything else is as if it were not
 * there. */
static struct user_desc describe(unsigned index, uint64_t raw) {
    unsigned type = descriptor_type(raw);
    struct user_desc empty = {.entry_number = index, .read_exec_only = 1, .seg_not_present = 1};
    if (!descriptor_present(raw) || !descriptor_is_segment(raw) || descriptor_dpl(raw) != DPL_USER ||
        type & TYPE_CODE)
        return empty;
    return (struct user_desc){
        .entry_number = index,
        .base_addr = base_of(raw),
        .limit = (uint32_t)(raw & 0xffff) | (uint32_t)(raw >> 32 & 0xf0000),
        .seg_32bit = raw >> 54 & 1,
        .contents = type >> 2 & 3,
        .read_exec_only = !(type & TYPE_WRITABLE),
        .limit_in_pages = raw >> 55 & 1,
        .useable = raw >> 52 & 1,
    };
}

int tls_sync(struct vcpu *vcpu, struct direct_stub *stub) {
    uint64_t raw[TLS_ENTRIES] = {0};
    unsigned last = (TLS_FIRST + TLS_ENTRIES) * sizeof *raw - 1;
    uint64_t linear = vcpu->gdtr.base + TLS_FIRST * sizeof *raw;
    if (vcpu->gdtr.limit >= last && cpu_is_canonical(linear) &&
        vmem_read(vcpu, linear, raw, sizeof raw, AS_SYSTEM) != CPU_OK)
        raw[0] = raw[1] = raw[2] = 0;
    for (unsigned i = 0; i < TLS_ENTRIES; i++) {
        if (raw[i] == stub->tls[i])
            continue;
        struct user_desc entry = describe(TLS_FIRST + i, raw[i]);
        if (ptrace(PTRACE_SET_THREAD_AREA, stub->pid, (void *)(uintptr_t)(TLS_FIRST + i), &entry))
            return -errno;
        stub->tls[i] = raw[i];
    }
    return 0;
}

bool tls_agrees(const struct vcpu *vcpu, const struct direct_stub *stub) {
    for (enum segment_index i = SEG_FS; i <= SEG_GS; i++) {
        const struct segment *segment = &vcpu->segment[i];
        unsigned entry = segment->selector >> 3;
        if (entry >= TLS_FIRST && entry < TLS_FIRST + TLS_ENTRIES &&
            segment->base != base_of(stub->tls[entry - TLS_FIRST]))
            return false;
    }
    return true;
}
