/* Code that is rewritten again and again: what a JIT or an inline cache patches, and a kernel's switches.
 *
 * A block that a store has hit is out of use at once, and most often the next one for its place differs from
 * it in the value of an immediate, or in nothing. So a place whose block was hit is remembered, and the next
 * block made for it is kept when it is hit again: its guest bytes, and where in its host code immediates
 * stand that were copied as they are. When the place is next asked for, and every other byte is as it was,
 * those immediates are put in and the block is in use again, as if it had never been hit.
 *
 * Exactness: the bytes kept are those that were translated (a copy, made after the page was known to hold
 * code). An immediate may change only if it stands in a listed instruction, whose translation depends on it
 * in nothing but the copies that were noted, all of them. A block's translation depends on its bytes and its
 * key alone; what else it relied on, links and landings, was taken from it when it was hit. Stale jump-cache
 * entries that lead to it are good again, since they are for the same place and key.
 *
 * Blocks over two pages are not kept, nor what is longer than REWRITE_BYTES, nor anything once code was
 * evicted.
 */
#define _GNU_SOURCE
#include "dbt/rewrite.h"
#include "base/light.h"
#include "dbt/emit.h"
#include "mem/guest_mem.h"

static struct rewrite *slot_of(const struct dbt_vcpu *dbt, uint64_t ram_offset, uint64_t rip, uint32_t mode) {
    uint64_t mixed = (ram_offset ^ rip << 20 ^ mode) * 0x9e3779b97f4a7c15ull;
    return &dbt->rewrite[mixed >> 32 & (REWRITES - 1)];
}

static bool is_for(const struct rewrite *rewrite, uint64_t ram_offset, uint64_t rip, uint32_t mode) {
    return rewrite->ram_offset == ram_offset && rewrite->rip == rip && rewrite->mode == mode;
}

/* A few bytes, for which light_copy() takes too long to begin. */
static void copy_bytes(uint8_t *target, const uint8_t *source, unsigned count) {
    for (unsigned i = 0; i < count; i++)
        target[i] = source[i];
}

/* Changes whenever a block's number may have come to mean another one. */
static uint64_t epoch_of(const struct dbt_vcpu *dbt) {
    return dbt->stats.flushes + dbt->stats.evictions;
}

struct rewrite *rewrite_begin(struct dbt_vcpu *dbt, const struct block *block, const uint8_t *bytes,
                              uint64_t room) {
    struct rewrite *rewrite = slot_of(dbt, block->ram_offset, block->rip, block->mode);
    if (!is_for(rewrite, block->ram_offset, block->rip, block->mode) || dbt->log)
        return NULL;
    rewrite->block = NO_INDEX;
    rewrite->places = 0;
    rewrite->changeable[0] = rewrite->changeable[1] = 0;
    rewrite->length = (uint16_t)(room < REWRITE_BYTES ? room : REWRITE_BYTES);
    light_copy(rewrite->bytes, bytes, rewrite->length);
    return rewrite;
}

/* Does the translation take the immediate as it is? */
static bool is_copied(const struct insn *insn) {
    unsigned size = insn->z.raw.imm[0].size / 8u;
    if (insn->z.encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY ||
        insn->op[1].type != ZYDIS_OPERAND_TYPE_IMMEDIATE || insn->z.raw.imm[1].size || !size ||
        insn->z.raw.imm[0].offset + size != insn->length)
        return false;
    switch (insn->z.mnemonic) {
    case ZYDIS_MNEMONIC_MOV:
    case ZYDIS_MNEMONIC_CMP:
    case ZYDIS_MNEMONIC_TEST:
    case ZYDIS_MNEMONIC_AND:
    case ZYDIS_MNEMONIC_OR:
    case ZYDIS_MNEMONIC_XOR:
        return true;
    default: /* ADD and SUB move bases of shared checks */
        return false;
    }
}

void rewrite_note(struct unit *unit, const struct item *item) {
    struct rewrite *rewrite = unit->rewrite;
    const struct insn *insn = &item->insn;
    if (!rewrite || !is_copied(insn) || unit->code.overflow)
        return;
    unsigned size = insn->z.raw.imm[0].size / 8u, guest = item->guest + insn->length - size;
    if (rewrite->places == REWRITE_PLACES) { /* not all of them would be known */
        unit->rewrite = NULL;
        return;
    }
    rewrite->place[rewrite->places++] =
        (struct rewrite_place){.host = (uint16_t)(unit->code.at - unit->code.start - size),
                               .guest = (uint8_t)guest,
                               .size = (uint8_t)size};
    for (unsigned i = guest; i < guest + size; i++)
        rewrite->changeable[i / 64] |= 1ull << i % 64;
}

void rewrite_keep(const struct unit *unit) {
    struct rewrite *rewrite = unit->rewrite;
    if (!rewrite || unit->block->ram_page2 != GUEST_NO_RAM)
        return;
    rewrite->length = unit->block->guest_length;
    rewrite->block = unit->index;
    rewrite->epoch = epoch_of(unit->dbt);
}

struct rewrite *rewrite_hit(struct dbt_vcpu *dbt, uint32_t index) {
    const struct block *block = &dbt->block[index];
    if (block->cache || block->ram_page2 != GUEST_NO_RAM)
        return NULL;
    struct rewrite *rewrite = slot_of(dbt, block->ram_offset, block->rip, block->mode);
    if (!is_for(rewrite, block->ram_offset, block->rip, block->mode)) {
        *rewrite = (struct rewrite){
            .ram_offset = block->ram_offset, .rip = block->rip, .mode = block->mode, .block = NO_INDEX};
        return NULL;
    }
    return rewrite->block == index && rewrite->epoch == epoch_of(dbt) ? rewrite : NULL;
}

void rewrite_keep_entry(const struct dbt_vcpu *dbt, const struct block *block, struct rewrite *rewrite) {
    uint32_t room = block->host + block->host_size - block->entry[true];
    rewrite->entry_size = (uint8_t)(room < sizeof rewrite->entry ? room : sizeof rewrite->entry);
    copy_bytes(rewrite->entry, dbt->rw + block->entry[true], rewrite->entry_size);
}

static bool differs_in_immediates_alone(const struct rewrite *rewrite, const uint8_t *now) {
    for (unsigned i = 0; i < rewrite->length; i++)
        if (now[i] != rewrite->bytes[i] && !(rewrite->changeable[i / 64] >> i % 64 & 1))
            return false;
    return true;
}

uint32_t rewrite_revive(struct vcpu *vcpu, uint64_t ram_offset, uint32_t mode) {
    struct dbt_vcpu *dbt = vcpu->dbt;
    struct rewrite *rewrite = slot_of(dbt, ram_offset, vcpu->rip, mode);
    if (!is_for(rewrite, ram_offset, vcpu->rip, mode) || rewrite->block == NO_INDEX)
        return NO_INDEX;
    /* First the page, then its bytes, as for a translation; requests that are served meanwhile may take
     * anything away. */
    block_hold_page(vcpu, ram_offset & PAGE_MASK);
    if (!is_for(rewrite, ram_offset, vcpu->rip, mode) || rewrite->block == NO_INDEX ||
        rewrite->epoch != epoch_of(dbt) || !dbt->block[rewrite->block].dead)
        return NO_INDEX;
    uint32_t index = rewrite->block;
    struct block *block = &dbt->block[index];
    uint8_t now[REWRITE_BYTES], *host = dbt->rw + block->host;
    copy_bytes(now, vcpu->mem->base + ram_offset, rewrite->length);
    if (!differs_in_immediates_alone(rewrite, now))
        return NO_INDEX;
    copy_bytes(dbt->rw + block->entry[true], rewrite->entry, rewrite->entry_size);
    for (unsigned i = 0; i < rewrite->places; i++) {
        const struct rewrite_place *place = &rewrite->place[i];
        copy_bytes(host + place->host, now + place->guest, place->size);
    }
    copy_bytes(rewrite->bytes, now, rewrite->length);
    block->dead = false;
    block_publish(vcpu, index);
    dbt->stats.revived++;
    return index;
}
