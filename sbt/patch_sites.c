/* Places that the kernel patches once, late in its start, each listed in a table of its own.
 *
 * Tables of places are s32, each relative to itself, but for .parainstructions (u64 address, u8 index into
 * pv_ops, u8 length, padded to 16 bytes).
 */
#include <string.h>

#include "sbt/patch_private.h"

#define PARAVIRT_ENTRY 16u
#define THUNK_SIZE 32u
#define THUNKS 16u
#define INT3 0xcc
#define ENDBR_LENGTH 4u

/* What a KVM guest puts into pv_ops instead of what the kernel is linked with. */
static const struct {
    const char *linked, *guest;
} paravirt_guest[] = {
    {"native_io_delay", "kvm_io_delay"},
    {"__raw_callee_save___native_vcpu_is_preempted", "__raw_callee_save___kvm_vcpu_is_preempted"},
};

uint64_t patch_paravirt_target(const struct patching *p, uint64_t entry) {
    uint64_t target;
    if (!image_read(p->image, entry, 8, &target))
        return 0;
    for (unsigned i = 0; i < ARRAY_SIZE(paravirt_guest); i++) {
        const struct image_symbol *linked = image_symbol_named(p->image, paravirt_guest[i].linked);
        const struct image_symbol *guest = image_symbol_named(p->image, paravirt_guest[i].guest);
        if (linked && guest && linked->address == target)
            return guest->address;
    }
    return target;
}

void patch_paravirt(struct patching *p) {
    struct image_table table =
        image_table(p->image, ".parainstructions", "__parainstructions", "__parainstructions_end");
    const struct image_symbol *ops = image_symbol_named(p->image, "pv_ops");
    const struct image_symbol *nothing = image_symbol_named(p->image, "_paravirt_nop");
    for (size_t i = 0; i + PARAVIRT_ENTRY <= table.size; i += PARAVIRT_ENTRY) {
        uint64_t site;
        memcpy(&site, table.data + i, 8);
        unsigned type = table.data[i + 8], length = table.data[i + 9];
        uint8_t bytes[PATCH_LENGTH_MAX];
        p->patched->sites[PATCH_PARAVIRT]++;
        uint64_t target = ops ? patch_paravirt_target(p, ops->address + 8ull * type) : 0;
        if (!target || length < 5) {
            patch_skip(p, PATCH_PARAVIRT);
            continue;
        }
        size_t used = 0;
        if (!nothing || target != nothing->address) {
            patch_branch(bytes, 0xe8, site, target);
            used = 5;
        }
        patch_nops(p, bytes + used, length - used);
        patch_write(p, PATCH_PARAVIRT, STAGE_READY, STAGE_READY_ONE, site, bytes, length);
    }
}

/* Constants of the running kernel that stand in its code (from 6.12 on): tables of places, one for each
 * constant, of which the end of user addresses is known. */
void patch_runtime_constants(struct patching *p) {
    static const uint64_t user_end = 0x00007ffffffff000ull;
    struct image_table table = image_table(p->image, "runtime_ptr_USER_PTR_MAX", NULL, NULL);
    for (size_t i = 0; i + 4 <= table.size; i += 4) {
        uint64_t site = table.address + i + (uint64_t)(int64_t)patch_read32(table.data + i);
        p->patched->sites[PATCH_CONSTANT]++;
        patch_write(p, PATCH_CONSTANT, STAGE_READY, STAGE_READY_ONE, site, (const uint8_t *)&user_end, 8);
    }
}

/* The register of the thunk that a retpoline site leads to, or -1. */
static int thunk_register(const struct image *image, uint64_t target) {
    static const char *const names[] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                        "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};
    static const char prefix[] = "__x86_indirect_thunk_";
    const struct image_symbol *array = image_symbol_named(image, "__x86_indirect_thunk_array");
    if (array && target >= array->address && target - array->address < (uint64_t)THUNKS * THUNK_SIZE &&
        (target - array->address) % THUNK_SIZE == 0)
        return (int)((target - array->address) / THUNK_SIZE);
    const struct image_symbol *symbol = image_symbol_at(image, target);
    if (!symbol || symbol->address != target || strncmp(symbol->name, prefix, sizeof prefix - 1) != 0)
        return -1;
    for (int reg = 0; reg < (int)THUNKS; reg++)
        if (!strcmp(symbol->name + sizeof prefix - 1, names[reg]))
            return reg;
    return -1;
}

/* CALL, JMP or Jcc of a thunk becomes the indirect branch itself. The length, or 0: not of this form. */
static size_t retpoline_bytes(const struct patching *p, uint64_t site, const uint8_t *now, uint8_t *bytes) {
    struct insn insn;
    size_t used = 0;
    if (insn_decode(&insn, now, INSN_MAX_LENGTH, 64) != INSN_OK || insn.z.operand_count == 0 ||
        insn.op[0].type != ZYDIS_OPERAND_TYPE_IMMEDIATE || !insn.op[0].imm.is_relative)
        return 0;
    int reg = thunk_register(p->image, site + insn.length + (uint64_t)insn.op[0].imm.value.s);
    bool conditional = insn.z.opcode_map == ZYDIS_OPCODE_MAP_0F && (insn.z.opcode & 0xf0) == 0x80;
    bool call = insn.z.opcode == 0xe8 && insn.z.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT;
    if (reg < 0 || (!conditional && !call && insn.z.opcode != 0xe9))
        return 0;
    if (conditional) {
        bytes[used++] = (uint8_t)(0x70 | ((insn.z.opcode & 15) ^ 1));
        bytes[used++] = (uint8_t)(insn.length - 2);
    }
    if (reg >= 8)
        bytes[used++] = 0x41;
    bytes[used++] = 0xff;
    bytes[used++] = (uint8_t)((call ? 0xd0 : 0xe0) | (reg & 7));
    if (!call && used < insn.length)
        bytes[used++] = INT3;
    while (used < insn.length)
        bytes[used++] = 0x90;
    patch_optimize_nops(p, bytes, insn.length);
    return insn.length;
}

void patch_retpolines(struct patching *p) {
    struct image_table table =
        image_table(p->image, ".retpoline_sites", "__retpoline_sites", "__retpoline_sites_end");
    for (size_t i = 0; i + 4 <= table.size; i += 4) {
        uint64_t site = table.address + i + (uint64_t)(int64_t)patch_read32(table.data + i);
        const uint8_t *now = patched_at(p->patched, STAGE_READY, site, INSN_MAX_LENGTH);
        uint8_t bytes[INSN_MAX_LENGTH + 4];
        p->patched->sites[PATCH_RETPOLINE]++;
        size_t length = now ? retpoline_bytes(p, site, now, bytes) : 0;
        if (length)
            patch_write(p, PATCH_RETPOLINE, STAGE_READY, STAGE_READY_ONE, site, bytes, length);
        else
            patch_skip(p, PATCH_RETPOLINE);
    }
}

/* JMP of the return thunk becomes RET, and what is left of the five bytes, INT3. */
void patch_returns(struct patching *p) {
    static const uint8_t ret[] = {0xc3, INT3, INT3, INT3, INT3};
    struct image_table table = image_table(p->image, ".return_sites", "__return_sites", "__return_sites_end");
    for (size_t i = 0; i + 4 <= table.size; i += 4) {
        uint64_t site = table.address + i + (uint64_t)(int64_t)patch_read32(table.data + i);
        const uint8_t *now = patched_at(p->patched, STAGE_READY, site, 5);
        p->patched->sites[PATCH_RETURN]++;
        if (now && now[0] == 0xe9)
            patch_write(p, PATCH_RETURN, STAGE_READY, STAGE_READY_ONE, site, ret, 5);
        else
            patch_skip(p, PATCH_RETURN);
    }
}

/* ENDBR64 of functions whose address is never taken becomes a NOP that faults nowhere and is no target. */
void patch_endbrs(struct patching *p) {
    static const uint8_t endbr[] = {0xf3, 0x0f, 0x1e, 0xfa}, poison[] = {0x66, 0x0f, 0x1f, 0x00};
    struct image_table table =
        image_table(p->image, ".ibt_endbr_seal", "__ibt_endbr_seal", "__ibt_endbr_seal_end");
    for (size_t i = 0; i + 4 <= table.size; i += 4) {
        uint64_t site = table.address + i + (uint64_t)(int64_t)patch_read32(table.data + i);
        const uint8_t *now = patched_at(p->patched, STAGE_READY, site, ENDBR_LENGTH);
        p->patched->sites[PATCH_ENDBR]++;
        if (now && !memcmp(now, endbr, ENDBR_LENGTH))
            patch_write(p, PATCH_ENDBR, STAGE_READY, STAGE_READY_ONE, site, poison, ENDBR_LENGTH);
        else
            patch_skip(p, PATCH_ENDBR);
    }
}

/* With one processor LOCK becomes a DS prefix. */
void patch_locks(struct patching *p) {
    static const uint8_t prefix = 0x3e;
    struct image_table table = image_table(p->image, ".smp_locks", "__smp_locks", "__smp_locks_end");
    const struct image_section *text = image_section_named(p->image, ".text");
    for (size_t i = 0; i + 4 <= table.size; i += 4) {
        uint64_t site = table.address + i + (uint64_t)(int64_t)patch_read32(table.data + i);
        const uint8_t *now = patched_at(p->patched, STAGE_READY_ONE, site, 1);
        p->patched->sites[PATCH_LOCK]++;
        if (!now)
            patch_skip(p, PATCH_LOCK);
        else if (text && site >= text->address && site - text->address < text->size && *now == 0xf0)
            patch_write(p, PATCH_LOCK, STAGE_READY_ONE, STAGE_READY_ONE, site, &prefix, 1);
    }
}
