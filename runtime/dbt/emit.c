/* Pieces that every emitter uses: flags, spills, sites and the cold code behind a block. */
#include "dbt/emit.h"
#include "dbt/rewrite.h"

struct site *unit_site(struct unit *unit, enum site_kind kind, const struct item *item) {
    struct dbt_vcpu *dbt = unit->dbt;
    if (dbt->sites == dbt->sites_limit) {
        unit->code.overflow = true;
        dbt->sites--;
    }
    struct site *site = &dbt->site[dbt->sites++];
    *site = (struct site){.ready = true,
                          .block = unit->index,
                          .linked_to = NO_INDEX,
                          .kind = kind & 15,
                          .guest = item ? item->guest : 0,
                          .length = item ? item->insn.length & 15 : 0};
    unit->block->sites++;
    return site;
}

uint32_t unit_site_index(const struct unit *unit, const struct site *site) {
    return (uint32_t)(site - unit->dbt->site);
}

struct cold *unit_cold(struct unit *unit, uint8_t *place, enum site_kind kind, uint32_t site) {
    if (unit->colds == ARRAY_SIZE(unit->cold)) {
        unit->code.overflow = true;
        unit->colds--;
    }
    struct cold *cold = &unit->cold[unit->colds++];
    *cold = (struct cold){.place = place, .site = site, .kind = kind, .leader = -1, .remake = unit->remake};
    return cold;
}

static void emit_load(struct unit *unit, uint16_t registers) {
    for (int reg = 0; reg < 16; reg++)
        if (registers >> reg & 1)
            asm_load_gs(&unit->code, reg, AREA_GPR(reg));
}

void emit_reload(struct unit *unit) {
    emit_load(unit, unit_spilled_here(unit));
}

void emit_load_resident(struct unit *unit) {
    emit_load(unit, unit_resident(unit));
}

void emit_store_resident(struct unit *unit, const struct item *item) {
    uint16_t written = item->insn.gprs_written & HOMED;
    for (int reg = 0; reg < 16; reg++)
        if (written >> reg & 1)
            asm_store_gs(&unit->code, AREA_GPR(reg), reg);
}

/* lahf; seto al; mov gs:[flags], eax -- around a move of RAX */
void emit_save_flags(struct unit *unit, int keep) {
    static const uint8_t take[] = {0x9f, 0x0f, 0x90, 0xc0};
    struct code_buffer *c = &unit->code;
    asm_mov(c, keep, GPR_RAX);
    code_bytes(c, take, sizeof take);
    asm_store32_gs(c, AREA_HOT(flags), GPR_RAX);
    asm_mov(c, GPR_RAX, keep);
    unit->flags_saved = true;
}

/* mov eax, gs:[flags]; add al, 127 (OF); sahf (the rest) */
void emit_restore_flags(struct unit *unit, int keep) {
    static const uint8_t give[] = {0x04, 0x7f, 0x9e};
    struct code_buffer *c = &unit->code;
    asm_mov(c, keep, GPR_RAX);
    asm_load32_gs(c, GPR_RAX, AREA_HOT(flags));
    code_bytes(c, give, sizeof give);
    asm_mov(c, GPR_RAX, keep);
    unit->flags_saved = false;
}

/* Note where guest instruction `guest` (an offset) is in the host code from here on. */
void unit_note_pc(struct unit *unit, unsigned guest) {
    struct dbt_vcpu *dbt = unit->dbt;
    if (dbt->pcs == dbt->pcs_limit) {
        unit->code.overflow = true;
        return;
    }
    dbt->pc[dbt->pcs++] =
        (struct pc_entry){.host = (uint16_t)(unit->code.at - unit->code.start),
                          .guest = (uint16_t)guest,
                          .flags_saved = unit->flags_saved,
                          .remake = (uint16_t)(unit->remake ? unit->remake - unit->item + 1 : 0),
                          .rsp_lag = (int16_t)unit->rsp_lag};
    unit->block->pcs++;
}

void emit_native(struct unit *unit, const struct item *item, const struct host_memory *memory) {
    uint32_t read = item->insn.flags_read & FLAGS_ARITHMETIC;
    uint32_t written = item->insn.flags_written & FLAGS_ARITHMETIC;
    if (unit->flags_saved || unit->remake) {
        if (read || (written && written != FLAGS_ARITHMETIC))
            emit_flags_live(unit);
        /* Should the instruction fault, its flags are found where they are now. */
        unit_note_pc(unit, item->guest);
    }
    if (item->imm_field >= 0)
        emit_with_field(unit, item, memory);
    else
        insn_encode(&unit->code, &item->insn, memory);
    rewrite_note(unit, item);
    if (written) {
        unit->flags_saved = false;
        unit->remake = NULL;
    }
}

void emit_flags_clobber(struct unit *unit) {
    const struct dbt_vcpu *dbt = unit->dbt;
    if (unit->flags_saved)
        return;
    emit_flags_live(unit);
    emit_save_flags(unit, unit->t1);
    /* The access that follows may fault on the host: the instruction's flags are here from now on. */
    if (unit->block->pcs)
        unit_note_pc(unit, dbt->pc[dbt->pcs - 1].guest);
}

void emit_flags_live(struct unit *unit) {
    if (unit->remake)
        emit_remake(unit, unit->remake);
    else if (unit->flags_saved)
        emit_restore_flags(unit, unit->t1);
    unit->remake = NULL;
}

void emit_exit_to_c(struct unit *unit, const struct site *site) {
    emit_leave_to(unit, site, site->flags_saved ? RUNTIME_EXIT : RUNTIME_EXIT_LIVE);
}

void emit_unlinked(struct unit *unit, struct site *site) {
    if (portable_shared_exit(unit, site))
        return;
    site->host = emit_patchable_jump(unit, &site->cold);
    emit_exit_to_c(unit, site);
    portable_share_exit(unit, site);
}

/* A group's check that can never be met here is turned (block_skip_group()) into a jump to the same
 * instructions without groups:
 *          jmp raw                     <- site.cold: patched to `plain`; a portable unit asks a switch
 *   raw:   mov site; jmp stub
 *   plain: (spilled registers); jmp translation without groups
 */
void emit_leave_memory(struct unit *unit, struct site *site, uint32_t plain, const uint8_t *stub) {
    struct code_buffer *c = &unit->code;
    uint8_t *turned = NULL;
    uint32_t raw;
    if (site->group && unit->portable)
        turned = portable_switch(unit, site);
    else if (site->group)
        site->cold = emit_patchable_jump(unit, &raw);
    if (stub) {
        asm_store32_imm_gs(c, AREA_HOT(site), unit_site_index(unit, site));
        asm_jmp_to(c, stub);
    } else {
        emit_leave_to(unit, site, RUNTIME_MEMORY);
    }
    if (!site->group)
        return;
    if (turned && !c->overflow)
        asm_patch_rel32(turned, c->at);
    if (!unit->portable)
        site->target = (int32_t)(c->at - unit->dbt->rw);
    emit_reload(unit);
    emit_unlinked(unit, &unit->dbt->site[plain]);
}

/* A side exit that is not linked yet, or that cannot be linked directly. */
static void emit_cold_link(struct unit *unit, struct site *site) {
    struct code_buffer *c = &unit->code;
    if (unit_spilled_here(unit) || unit->portable) {
        emit_reload(unit);
        emit_unlinked(unit, site);
    } else {
        site->cold = (uint32_t)(c->at - unit->dbt->rw);
        emit_exit_to_c(unit, site);
    }
}

void emit_colds(struct unit *unit) {
    struct code_buffer *c = &unit->code;
    uint8_t *start = NULL;
    unit->remake = NULL;
    for (unsigned i = 0; i < unit->colds; i++) {
        const struct cold *cold = &unit->cold[i];
        struct site *site = cold->site == NO_INDEX ? NULL : &unit->dbt->site[cold->site];
        if (c->overflow)
            return;
        if (i && site && cold->site == cold[-1].site) { /* several branches to one exit */
            asm_patch_rel32(cold->place, start);
            continue;
        }
        start = c->at;
        asm_patch_rel32(cold->place, start);
        switch (cold->kind) {
        case SITE_MEMORY:
            if (cold->remake) {
                emit_remake(unit, cold->remake);
                emit_save_flags(unit, unit->t1);
            }
            if (cold->borrowed[0] != cold->borrowed[1]) {
                asm_load_gs(c, cold->borrowed[0], AREA_HOT(borrowed[0]));
                asm_load_gs(c, cold->borrowed[1], AREA_HOT(borrowed[1]));
            }
            emit_leave_memory(unit, site, cold->ungrouped, NULL);
            break;
        case SITE_MEMO:
            emit_cold_memo(unit, cold);
            break;
        case SITE_PERCPU:
            emit_cold_percpu(unit, cold);
            break;
        case SITE_LINK:
            if (cold->leader >= 0)
                function_cold_jump(unit, cold->leader);
            else
                emit_cold_link(unit, site);
            break;
        case SITE_HELPER:
            emit_reload(unit);
            emit_exit_to_c(unit, site);
            site->host = (uint32_t)(c->at - unit->dbt->rw);
            emit_load_resident(unit);
            asm_jmp_to(c, cold->back);
            break;
        case SITE_JUMP_MISS:
            if (cold->look_up)
                emit_cold_lookup(unit, site);
            asm_alu_gs(c, ASM_XOR, unit->t0, AREA_HOT(jump_key));
            asm_store_gs(c, AREA_HOT(target), unit->t0);
            emit_reload(unit);
            emit_leave_to(unit, site, RUNTIME_LOOK_UP);
            break;
        default:
            break;
        }
    }
}
