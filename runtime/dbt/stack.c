/* What a stack access leads to whose page is not the one that the stack's memo knows (emit_memo.c).
 *
 * There is such a way out behind nearly every block, so it is a few bytes there and the rest here: a stub for
 * each ring, access and register, which the access wants the addend in.
 *
 *   miss:   the register is the address less the memo's page, as the check left it
 *   again:  the register is the address: ask the TLB, let the memo know the page, and on to where the site
 * says
 *
 * What the TLB lacks, C gets by the site (stub_memory) and comes back to `again`. A page that may not be
 * written is no memo's, but its addend serves the one read. Two registers are borrowed meanwhile; the flags
 * are saved.
 */
#include "dbt/emit.h"

_Static_assert(sizeof(struct site) == 1u << 5, "indexed by a shift");
#define SITE_SHIFT 5

struct way {
    bool user;
    enum vmem_access access;
    int reg;      /* address, then addend */
    int one, two; /* borrowed */
};

/* w->one = the site's place. */
static void emit_find_site(const struct dbt_vcpu *dbt, struct code_buffer *c, const struct way *w) {
    asm_load32_gs(c, w->one, AREA_HOT(site));
    asm_shl(c, w->one, SITE_SHIFT);
    asm_mov_imm(c, w->two, (uint64_t)dbt->site);
    asm_alu(c, ASM_ADD, w->one, w->two);
}

static void emit_give_back(struct code_buffer *c, const struct way *w) {
    asm_load_gs(c, w->one, AREA_HOT(borrowed[0]));
    asm_load_gs(c, w->two, AREA_HOT(borrowed[1]));
}

/* w->two = the page of the last byte, w->one = the TLB's entry for the first. */
static void emit_find_entry(const struct dbt_vcpu *dbt, struct code_buffer *c, const struct way *w) {
    emit_find_site(dbt, c, w);
    asm_movzx16(c, w->two, w->one, offsetof(struct site, size));
    asm_lea(c, true, w->two, w->reg, w->two, 0, -1);
    asm_and_imm(c, w->two, (int32_t)PAGE_MASK);
    emit_entry(c, w->one, w->reg, vtlb_mask(w->user));
}

static void emit_way(struct dbt_vcpu *dbt, struct code_buffer *c, const struct way *w) {
    struct stack_stub *stub = &dbt->stub_stack[w->user][w->access][w->reg];
    uint32_t memo = w->user ? AREA_HOT(user_stack) : AREA_HOT(stack);
    uint32_t page = memo + (uint32_t)offsetof(struct memo, page);
    uint8_t *read_only = NULL;
    stub->miss = (uint32_t)(c->at - dbt->rw);
    asm_alu_gs(c, ASM_ADD, w->reg, page);
    stub->again = (uint32_t)(c->at - dbt->rw);
    asm_store_gs(c, AREA_HOT(borrowed[0]), w->one);
    asm_store_gs(c, AREA_HOT(borrowed[1]), w->two);
    emit_find_entry(dbt, c, w);
    asm_alu_mem(c, ASM_CMP, w->two, w->one,
                w->access == VMEM_WRITE ? TLB_ENTRY(tag_write) : TLB_ENTRY(tag_read));
    uint8_t *unknown = asm_jcc(c, COND_NE);
    asm_load(c, w->reg, w->one, TLB_ENTRY(addend));
    if (w->access != VMEM_WRITE) {
        asm_alu_mem(c, ASM_CMP, w->two, w->one, TLB_ENTRY(tag_write));
        read_only = asm_jcc(c, COND_NE);
    }
    asm_store_gs(c, page, w->two);
    asm_store_gs(c, memo + (uint32_t)offsetof(struct memo, addend), w->reg);
    if (read_only)
        asm_patch_rel32(read_only, c->at);
    emit_find_site(dbt, c, w);
    asm_mem(c, false, 0x8b, w->one, w->one, -1, 0, offsetof(struct site, back));
    asm_mov_imm(c, w->two, (uint64_t)dbt->rx);
    asm_alu(c, ASM_ADD, w->one, w->two);
    asm_store_gs(c, AREA_HOT(resume), w->one);
    emit_give_back(c, w);
    asm_jmp_gs(c, AREA_HOT(resume));
    asm_patch_rel32(unknown, c->at);
    emit_give_back(c, w);
    asm_jmp_to(c, dbt->rw + (dbt->stub_memory - dbt->rx));
}

void stack_emit_stubs(struct dbt_vcpu *dbt, struct code_buffer *c) {
    for (int reg = GPR_RCX; reg <= GPR_R15; reg++) { /* never RAX: see translate.c */
        struct way way = {.reg = reg};
        if (reg == GPR_RSP)
            continue;
        way.one = reg == GPR_RCX ? GPR_RBX : GPR_RCX;
        way.two = reg == GPR_RDX ? GPR_RBX : GPR_RDX;
        for (unsigned user = 0; user < 2; user++)
            for (unsigned access = 0; access < 2; access++) {
                way.user = user;
                way.access = access ? VMEM_WRITE : VMEM_READ;
                emit_way(dbt, c, &way);
            }
    }
}
