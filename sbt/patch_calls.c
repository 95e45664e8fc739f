/* Places that keep changing while a kernel runs: jump labels, static calls, calls for tracing.
 *
 * Jump labels (struct jump_entry): s32 code, s32 target, s64 key, each relative to itself; bit 0 of key is
 * what the branch does while its key is off, bit 1 marks code that is given back. Static calls (struct
 * static_call_site): s32 address, s32 key; bit 0 of key marks a tail call. Both are 4-byte aligned tables.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sbt/patch_private.h"

#define JUMP_ENTRY 16u
#define STATIC_CALL_SITE 8u
#define OPCODE_CALL 0xe8
#define OPCODE_JMP 0xe9

static int64_t table_read(const uint8_t *at, unsigned size) {
    int64_t value = 0;
    memcpy(&value, at, size);
    return size == 4 ? (int32_t)value : value;
}

void patch_jump_labels(struct patching *p) {
    static const uint8_t nop2[] = {0x66, 0x90}, nop5[] = {0x0f, 0x1f, 0x44, 0x00, 0x00};
    struct image_table table =
        image_table(p->image, "__jump_table", "__start___jump_table", "__stop___jump_table");
    for (size_t i = 0; i + JUMP_ENTRY <= table.size; i += JUMP_ENTRY) {
        uint64_t entry = table.address + i, enabled;
        uint64_t code = entry + (uint64_t)table_read(table.data + i, 4);
        uint64_t target = entry + 4 + (uint64_t)table_read(table.data + i + 4, 4);
        uint64_t key = entry + 8 + (uint64_t)table_read(table.data + i + 8, 8);
        const uint8_t *now = patched_at(p->patched, STAGE_EARLY, code, 5);
        if (!now)
            now = patched_at(p->patched, STAGE_EARLY, code, 2);
        p->patched->sites[PATCH_JUMP_LABEL]++;
        bool narrow = now && (now[0] == 0xeb || (now[0] == 0x66 && now[1] == 0x90));
        bool wide = now && !narrow && (now[0] == OPCODE_JMP || now[0] == 0x0f) &&
                    patched_at(p->patched, STAGE_EARLY, code, 5);
        if (!narrow && !wide) {
            patch_skip(p, PATCH_JUMP_LABEL);
            continue;
        }
        uint8_t jump[5] = {0xeb, (uint8_t)(target - (code + 2))};
        if (wide)
            patch_branch(jump, OPCODE_JMP, code, target);
        const uint8_t *nop = narrow ? nop2 : nop5;
        size_t length = narrow ? 2 : 5;
        /* A key that another image owns: its state is not known, off is the usual one. */
        if (!image_read(p->image, key & ~3ull, 4, &enabled))
            enabled = 0;
        bool jumps = ((int32_t)enabled > 0) != (key & 1);
        if (patch_write(p, PATCH_JUMP_LABEL, STAGE_EARLY, STAGE_READY_ONE, code, jumps ? jump : nop, length))
            patch_offer(p, PATCH_JUMP_LABEL, STAGE_EARLY, code, jumps ? nop : jump, length);
    }
}

/* What certain static calls of a guest of Nestor (a KVM guest with x2APIC, voluntary preemption) end up as;
 * NULL: nothing. */
static const struct {
    const char *key, *function;
} settled_calls[] = {
    {"__SCK__pv_sched_clock", "kvm_sched_clock_read"},
    {"__SCK__pv_steal_clock", "kvm_steal_clock"},
    {"__SCK__cond_resched", "__cond_resched"},
    {"__SCK__might_resched", "__cond_resched"},
    {"__SCK__preempt_schedule", NULL},
    {"__SCK__preempt_schedule_notrace", NULL},
    {"__SCK__irqentry_exit_cond_resched", NULL},
    {"__SCK__apic_call_read", "native_apic_msr_read"},
    {"__SCK__apic_call_write", "native_apic_msr_write"},
    {"__SCK__apic_call_eoi", "native_apic_msr_eoi"},
    {"__SCK__apic_call_native_eoi", "native_apic_msr_eoi"},
    {"__SCK__apic_call_icr_read", "native_x2apic_icr_read"},
    {"__SCK__apic_call_icr_write", "native_x2apic_icr_write"},
};
#define KEY_PREFIX 7 /* of "__SCK__", as long as "__SCT__" of a call's trampoline */

/* The name of the symbol that stands exactly at the address; several may, the wanted one wins. */
static const char *settled_name(const struct image *image, uint64_t address, size_t *which) {
    const struct image_symbol *symbol = image_symbol_at(image, address);
    for (; symbol && symbol->address == address; symbol--) {
        for (*which = 0; *which < ARRAY_SIZE(settled_calls); ++*which)
            if (!strcmp(symbol->name, settled_calls[*which].key))
                return symbol->name;
        if (symbol == image->symbol)
            break;
    }
    return NULL;
}

/* The bytes of a static call site for a function (0: none). */
static void static_call_bytes(const struct patching *p, uint64_t site, uint64_t function, bool tail,
                              uint64_t returns_zero, uint8_t bytes[5]) {
    static const uint8_t ret[] = {0xc3, 0xcc, 0xcc, 0xcc, 0xcc}, nop[] = {0x0f, 0x1f, 0x44, 0x00, 0x00};
    if (!function)
        memcpy(bytes, tail ? ret : nop, 5);
    else if (!tail && function == returns_zero)
        memcpy(bytes, p->return_zero, 5);
    else
        patch_branch(bytes, tail ? OPCODE_JMP : OPCODE_CALL, site, function);
}

/* An updated call's trampoline follows: JMP of the function, or RET. */
static void settle_trampolines(struct patching *p) {
    for (size_t i = 0; i < ARRAY_SIZE(settled_calls); i++) {
        char name[64];
        snprintf(name, sizeof name, "__SCT__%s", settled_calls[i].key + KEY_PREFIX);
        const struct image_symbol *trampoline = image_symbol_named(p->image, name);
        const struct image_symbol *function =
            settled_calls[i].function ? image_symbol_named(p->image, settled_calls[i].function) : NULL;
        uint8_t bytes[5];
        if (!trampoline || trampoline->type == 'U' || (settled_calls[i].function && !function))
            continue;
        static_call_bytes(p, trampoline->address, function ? function->address : 0, true, 0, bytes);
        patch_write(p, PATCH_STATIC_CALL, STAGE_READY, STAGE_READY_ONE, trampoline->address, bytes, 5);
    }
}

static bool is_trampoline(const struct image_symbol *symbol) {
    return (symbol->type | 32) == 't' && !strncmp(symbol->name, "__SCT__", KEY_PREFIX);
}

/* Each trampoline is a JMP of wherever the call leads by now. */
static void free_trampolines(struct patching *p) {
    static const uint8_t ret[] = {0xc3, 0xcc, 0xcc, 0xcc, 0xcc};
    for (size_t i = 0; i < p->image->symbols; i++) {
        const struct image_symbol *symbol = &p->image->symbol[i];
        const uint8_t *now =
            is_trampoline(symbol) ? patched_at(p->patched, STAGE_EARLY, symbol->address, 5) : NULL;
        if (!now || now[0] != OPCODE_JMP)
            continue;
        uint8_t jump[5];
        memcpy(jump, now, 5);
        p->patched->call[p->patched->calls++] = symbol->address;
        patch_offer(p, PATCH_STATIC_CALL, STAGE_EARLY, symbol->address, ret, 5);
        patch_offer(p, PATCH_STATIC_CALL, STAGE_READY, symbol->address, jump, 5);
    }
}

void patch_static_calls(struct patching *p) {
    struct image_table table =
        image_table(p->image, ".static_call_sites", "__start_static_call_sites", "__stop_static_call_sites");
    const struct image_symbol *zero = image_symbol_named(p->image, "__static_call_return0");
    uint64_t returns_zero = zero ? zero->address : 0;
    size_t room = table.size / STATIC_CALL_SITE;
    for (size_t i = 0; i < p->image->symbols; i++)
        room += is_trampoline(&p->image->symbol[i]);
    p->patched->call = calloc(room + 1, sizeof *p->patched->call);
    if (!p->patched->call) {
        p->patched->out_of_memory = true;
        return;
    }
    free_trampolines(p);
    settle_trampolines(p);
    for (size_t i = 0; i + STATIC_CALL_SITE <= table.size; i += STATIC_CALL_SITE) {
        uint64_t entry = table.address + i, function;
        uint64_t site = entry + (uint64_t)table_read(table.data + i, 4);
        uint64_t key = entry + 4 + (uint64_t)table_read(table.data + i + 4, 4);
        bool tail = key & 1, settled = false;
        key &= ~3ull;
        p->patched->sites[PATCH_STATIC_CALL]++;
        const uint8_t *raw = patched_at(p->patched, STAGE_EARLY, site, 5);
        if (!raw || (raw[0] != OPCODE_CALL && raw[0] != OPCODE_JMP)) {
            patch_skip(p, PATCH_STATIC_CALL);
            continue;
        }
        uint8_t before[5], option[5], likely[5];
        memcpy(before, raw, 5);
        if (!image_read(p->image, key, 8, &function)) {
            /* A key that another image owns. */
            p->patched->call[p->patched->calls++] = site;
            static_call_bytes(p, site, 0, tail, returns_zero, option);
            patch_offer(p, PATCH_STATIC_CALL, STAGE_EARLY, site, option, 5);
            continue;
        }
        size_t which;
        static_call_bytes(p, site, function, tail, returns_zero, likely);
        memcpy(option, likely, 5);
        if (settled_name(p->image, key, &which)) {
            const struct image_symbol *symbol =
                settled_calls[which].function ? image_symbol_named(p->image, settled_calls[which].function)
                                              : NULL;
            settled = symbol || !settled_calls[which].function;
            static_call_bytes(p, site, symbol ? symbol->address : 0, tail, returns_zero, option);
        }
        patch_write(p, PATCH_STATIC_CALL, STAGE_EARLY, STAGE_TRACED, site, likely, 5);
        patch_write(p, PATCH_STATIC_CALL, STAGE_READY, STAGE_READY_ONE, site, settled ? option : likely, 5);
        p->patched->call[p->patched->calls++] = site;
        /* Also as a call that leads somewhere, and as an empty one. */
        patch_offer(p, PATCH_STATIC_CALL, STAGE_EARLY, site, before, 5);
        static_call_bytes(p, site, 0, tail, returns_zero, option);
        patch_offer(p, PATCH_STATIC_CALL, STAGE_EARLY, site, option, 5);
    }
}

void patch_tracing(struct patching *p) {
    static const uint8_t nop[] = {0x0f, 0x1f, 0x44, 0x00, 0x00};
    struct image_table table =
        image_table(p->image, "__mcount_loc", "__start_mcount_loc", "__stop_mcount_loc");
    for (size_t i = 0; i + 8 <= table.size; i += 8) {
        uint64_t site = (uint64_t)table_read(table.data + i, 8);
        const uint8_t *now = patched_at(p->patched, STAGE_TRACED, site, 5);
        p->patched->sites[PATCH_TRACE]++;
        if (!now || (now[0] != OPCODE_CALL && memcmp(now, nop, 5) != 0))
            patch_skip(p, PATCH_TRACE);
        else
            patch_write(p, PATCH_TRACE, STAGE_TRACED, STAGE_READY_ONE, site, nop, 5);
    }
}
