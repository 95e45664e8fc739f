/* Units through LLVM: the code that stands between the template's conventions and LLVM's, and what a unit
 * needs beside its code.
 *
 *   live:  save flags
 *   saved: mov byte gs:[poll], 0             an entry: the state is where it is between blocks, so that a
 * poll mov r8, rbx; mov r9, rbp          can be met here mov r11, rsp; mov rsp, gs:[host_rsp] jmp region
 *
 *   exit:  mov rbx, r8; mov rbp, r9; mov rsp, r11
 *          jmp [link slot]                   (or the jump cache, or nothing)
 *          mov dword gs:[site], number; jmp tail
 *   tail:  as emit_portable.c has it
 */
#include "sbt/llvm_private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cache-format/map.h"
#include "dbt/portable.h"
#include "dbt/portable_site.h"
#include "sbt/llvm_compile.h"

#define CODE_MAX (512 * KIB)
#define RELOCS_MAX 8192u
#define CONST_ADDRESS 0u

struct llvm_state {
    struct vcpu *vcpu; /* a translator, for what it knows of instructions */
    struct unit *unit; /* as unit_classify() wants it */
    struct block block;
    LLVMTargetMachineRef target;
    struct lifter lifter;
    bool keep_ir;
    char *ir;
    const char *refusal;

    struct code_buffer code;
    uint8_t *bytes; /* CODE_MAX */
    struct ntc_reloc reloc[RELOCS_MAX];
    struct ntc_site site[LIFT_EXITS_MAX + 1]; /* the first is SITE_DEAD, as in every unit */
    struct ntc_unit_entry entry[LIFT_BLOCKS_MAX];
    uint64_t slot[LIFT_EXITS_MAX + 1], constant[1];
    uint32_t exit_at[LIFT_EXITS_MAX], entry_at[LIFT_BLOCKS_MAX];
    unsigned relocs, slots, entries;
    struct ntc_map_builder map;
};

/* State 0 of every file, and the one that every entry's poll is met in: R8 to R11 in the vCPU, the flags
 * saved. */
static const struct ntc_state states[2] = {
    {.where = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}},
    {.where = {0, 1, 2, 3, 4, 5, 6, 7, NTC_WHERE_VCPU, NTC_WHERE_VCPU, NTC_WHERE_VCPU, NTC_WHERE_VCPU, 12, 13,
               14, 15},
     .flags = NTC_STATE_FLAGS_SAVED},
};

static uint32_t here(const struct llvm_state *s) {
    return (uint32_t)(s->code.at - s->code.start);
}

static void add_reloc(struct llvm_state *s, uint32_t place, enum ntc_reloc_kind kind, unsigned index,
                      int64_t addend) {
    if (s->relocs == RELOCS_MAX) {
        s->code.overflow = true;
        return;
    }
    s->reloc[s->relocs++] = (struct ntc_reloc){.place = place,
                                               .kind = (uint8_t)kind,
                                               .where = NTC_PLACE_CODE,
                                               .width = 4,
                                               .index = (uint16_t)index,
                                               .addend = addend};
}

static void emit_field(struct llvm_state *s, enum ntc_reloc_kind kind, unsigned index) {
    add_reloc(s, here(s), kind, index, 0);
    code_u32(&s->code, 0);
}

static void emit_jmp_slot(struct llvm_state *s, enum ntc_reloc_kind kind, unsigned index) {
    code_u8(&s->code, 0xff);
    code_u8(&s->code, 0x25);
    emit_field(s, kind, index);
}

/* Returns the place of the rel32 that shall lead to the region. */
static uint8_t *emit_entry_shim(struct llvm_state *s, uint32_t *live, uint32_t *saved) {
    static const uint8_t take[] = {0x9f, 0x0f, 0x90, 0xc0}; /* lahf; seto al */
    struct code_buffer *c = &s->code;
    *live = here(s);
    asm_mov(c, BOUNDARY_SCRATCH, GPR_RAX);
    code_bytes(c, take, sizeof take);
    asm_store32_gs(c, AREA_HOT(flags), GPR_RAX);
    asm_mov(c, GPR_RAX, BOUNDARY_SCRATCH);
    *saved = here(s);
    asm_store8_imm_gs(c, offsetof(struct dbt_area, poll), 0);
    asm_mov(c, GPR_R8, GPR_RBX);
    asm_mov(c, GPR_R9, GPR_RBP);
    asm_mov(c, GPR_R11, GPR_RSP);
    asm_load_gs(c, GPR_RSP, AREA_HOT(host_rsp));
    return asm_jmp(c);
}

static void emit_restore(struct code_buffer *c) {
    asm_mov(c, GPR_RBX, GPR_R8);
    asm_mov(c, GPR_RBP, GPR_R9);
    asm_mov(c, GPR_RSP, GPR_R11);
}

#define JUMP_KEY ((int32_t)offsetof(struct dbt_area, jump.key))
#define JUMP_HOST ((int32_t)offsetof(struct dbt_area, jump.host))

/* The guest's target is in hot.target: as emit_branch.c does it, with R8 to R11 at hand. */
static void emit_look_up(struct code_buffer *c) {
    asm_load_gs(c, GPR_R10, AREA_HOT(target));
    uint8_t *odd = asm_jump_not_canonical(c, GPR_R10, GPR_R11);
    asm_alu_gs(c, ASM_XOR, GPR_R10, AREA_HOT(jump_key));
    asm_hash(c, GPR_R11, GPR_R10, JUMP_CACHE_MULTIPLIER, JUMP_CACHE_BITS);
    code_u8(c, 0x65);
    asm_mem(c, true, ASM_CMP, GPR_R10, -1, GPR_R11, 3, JUMP_KEY);
    uint8_t *miss = asm_jcc(c, COND_NE);
    code_u8(c, 0x65); /* jmp gs:[r11 * 8 + host] */
    asm_mem(c, false, 0xff, 4, -1, GPR_R11, 3, JUMP_HOST);
    if (c->overflow)
        return;
    asm_patch_rel32(odd, c->at);
    asm_patch_rel32(miss, c->at);
}

static void emit_exit_shim(struct llvm_state *s, unsigned number, uint8_t **tail) {
    struct code_buffer *c = &s->code;
    struct site *site = &s->lifter.exit[number].site;
    s->exit_at[number] = here(s);
    emit_restore(c);
    if (site->kind == SITE_LINK || site->kind == SITE_UNGROUPED) {
        site->host = s->slots++;
        emit_jmp_slot(s, NTC_RELOC_SLOT, site->host);
        s->slot[site->host] = here(s);
    } else if (site->kind == SITE_JUMP_MISS) {
        emit_look_up(c);
    } else if (site->kind == SITE_HELPER && site->host != NO_INDEX) {
        site->host = s->entry_at[site->host];
    } else {
        site->host = 0;
    }
    portable_site_write(&s->site[number + 1], site, 0);
    asm_store32_imm_gs(c, AREA_HOT(site), number + 1);
    *tail = asm_jmp(c);
}

/* mov r10d, [rip + first site]; mov r11d, gs:[site]; lea r10, [r10 + r11]; mov gs:[site], r10d; jmp [rip +
 * exit] */
static void emit_tail(struct llvm_state *s) {
    static const uint8_t load[] = {0x44, 0x8b, 0x15};
    struct code_buffer *c = &s->code;
    code_bytes(c, load, sizeof load);
    emit_field(s, NTC_RELOC_SLOT, PORTABLE_SITE_SLOT);
    asm_load32_gs(c, GPR_R11, AREA_HOT(site));
    asm_lea(c, true, GPR_R10, GPR_R10, GPR_R11, 0, 0);
    asm_store32_gs(c, AREA_HOT(site), GPR_R10);
    emit_jmp_slot(s, NTC_RELOC_RUNTIME, RUNTIME_EXIT);
}

static void pad(struct code_buffer *c) {
    while ((c->at - c->start) % 16 && !c->overflow)
        code_u8(c, 0xcc);
}

/* Settle what the regions refer to. */
static void link_text(struct llvm_state *s, const struct text *text, uint32_t base) {
    for (size_t i = 0; i < text->relocs && !s->code.overflow; i++) {
        const struct text_reloc *reloc = &text->reloc[i];
        uint32_t place = base + reloc->place;
        if (reloc->symbol == TEXT_ADDRESS) {
            add_reloc(s, place, NTC_RELOC_CONST, CONST_ADDRESS, reloc->distance);
            continue;
        }
        uint32_t target =
            reloc->symbol == TEXT_EXIT ? s->exit_at[reloc->number] : base + text->region[reloc->number];
        int32_t delta = (int32_t)(target - (place + 4 + (uint32_t)reloc->distance));
        memcpy(s->code.start + place, &delta, sizeof delta);
    }
}

static const char *assemble(struct llvm_state *s, const struct text *text) {
    struct lifter *l = &s->lifter;
    struct code_buffer *c = &s->code;
    uint8_t *to_region[LIFT_BLOCKS_MAX], *to_tail[LIFT_EXITS_MAX];
    s->code = (struct code_buffer){.start = s->bytes, .at = s->bytes, .end = s->bytes + CODE_MAX};
    s->relocs = s->entries = 0;
    s->slots = PORTABLE_SITE_SLOT + 1;
    s->slot[PORTABLE_SITE_SLOT] = 0;
    portable_site_write(&s->site[0], &(struct site){.kind = SITE_DEAD, .flags_saved = true}, 0);
    ntc_map_builder_reset(&s->map);
    for (uint32_t i = 0; i < l->blocks; i++) {
        uint32_t live, saved;
        if (!l->block[i].head)
            continue;
        if (text->region[i] == UINT32_MAX)
            return "a region is missing";
        to_region[i] = emit_entry_shim(s, &live, &saved);
        s->entry_at[i] = saved;
        if (ntc_map_add(&s->map, &(struct ntc_point){.host = live, .guest = l->block[i].offset, .state = 1}))
            return "no memory";
        s->entry[s->entries++] = (struct ntc_unit_entry){
            .guest = (uint16_t)l->block[i].offset, .host = saved, .abi_data = (uint16_t)(live - saved)};
        pad(c);
    }
    uint32_t base = here(s);
    code_bytes(c, text->bytes, text->size);
    pad(c);
    for (unsigned i = 0; i < l->exits; i++)
        emit_exit_shim(s, i, &to_tail[i]);
    if (c->overflow)
        return "too much code";
    for (unsigned i = 0; i < l->exits; i++)
        asm_patch_rel32(to_tail[i], c->at);
    for (uint32_t i = 0; i < l->blocks; i++)
        if (l->block[i].head)
            asm_patch_rel32(to_region[i], c->start + base + text->region[i]);
    emit_tail(s);
    link_text(s, text, base);
    if (s->relocs < RELOCS_MAX)
        s->reloc[s->relocs++] = (struct ntc_reloc){
            .place = CONST_ADDRESS, .kind = NTC_RELOC_ADDRESS, .where = NTC_PLACE_CONST, .width = 8};
    return c->overflow ? "too much code" : NULL;
}

static void describe(const struct llvm_state *s, const struct codegen_request *request,
                     struct ntc_unit *unit) {
    const struct lifter *l = &s->lifter;
    uint32_t end = 0;
    for (uint32_t i = 0; i < l->items; i++)
        if (l->item[i].guest + l->item[i].insn.length > end)
            end = l->item[i].guest + l->item[i].insn.length;
    *unit = (struct ntc_unit){.link_address = request->address,
                              .guest_length = end,
                              .mode = request->mode,
                              .generator = NTC_GENERATOR_LLVM,
                              .bytes = request->bytes,
                              .code = s->bytes,
                              .code_length = here(s),
                              .slots = s->slot,
                              .consts = s->constant,
                              .sites = s->site,
                              .relocs = s->reloc,
                              .map = s->map.bytes,
                              .map_length = s->map.length,
                              .states = states,
                              .state_count = ARRAY_SIZE(states),
                              .slot_count = (uint16_t)s->slots,
                              .const_count = ARRAY_SIZE(s->constant),
                              .site_count = (uint16_t)(l->exits + 1),
                              .reloc_count = (uint16_t)s->relocs,
                              .entries = s->entry,
                              .entry_count = (uint16_t)s->entries,
                              .ir = s->ir,
                              .ir_length = s->ir ? (uint32_t)strlen(s->ir) : 0};
    ((struct llvm_state *)s)->constant[CONST_ADDRESS] = request->address;
}

static const char *make(struct llvm_state *s, const struct codegen_request *request, struct ntc_unit *unit) {
    struct lifter *l = &s->lifter;
    struct text text = {0};
    l->request = request;
    l->refusal = NULL;
    l->context = LLVMContextCreate();
    l->module = LLVMModuleCreateWithNameInContext("unit", l->context);
    l->builder = LLVMCreateBuilderInContext(l->context);
    const char *why = lift_function(l) ? NULL : l->refusal;
    if (!why)
        why = compile_module(l->module, s->target, l->blocks, &text, s->keep_ir ? &s->ir : NULL);
    if (!why)
        why = assemble(s, &text);
    if (!why)
        describe(s, request, unit);
    text_destroy(&text);
    lift_release(l);
    LLVMDisposeBuilder(l->builder);
    LLVMDisposeModule(l->module);
    LLVMContextDispose(l->context);
    return why;
}

static int llvm_translate(void *state, const struct codegen_request *request, struct ntc_unit *unit) {
    struct llvm_state *s = state;
    if (s->ir)
        LLVMDisposeMessage(s->ir);
    s->ir = NULL;
    if ((request->mode & MODE_CODE_MASK) != MODE_CODE_64 || !request->length ||
        request->length > LLVM_GUEST_MAX) {
        s->refusal = request->length > LLVM_GUEST_MAX ? "too long" : "not 64-bit code";
        return -ENOENT;
    }
    s->block = (struct block){.rip = request->address, .mode = request->mode, .ram_page2 = UINT64_MAX};
    *s->unit = (struct unit){.vcpu = s->vcpu, .dbt = s->vcpu->dbt, .block = &s->block, .code64 = true};
    s->refusal = make(s, request, unit);
    return s->refusal ? -ENOENT : 0;
}

static void llvm_destroy(void *state) {
    struct llvm_state *s = state;
    if (!s)
        return;
    if (s->ir)
        LLVMDisposeMessage(s->ir);
    if (s->target)
        LLVMDisposeTargetMachine(s->target);
    dbt_translator_destroy(s->vcpu);
    ntc_map_builder_destroy(&s->map);
    free(s->lifter.item);
    free(s->lifter.at);
    free(s->lifter.leader);
    free(s->unit);
    free(s->bytes);
    free(s);
}

static void *llvm_create(const struct cpu_model *model) {
    struct llvm_state *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->vcpu = dbt_translator_create(model);
    s->target = compile_target_create();
    s->unit = s->lifter.unit = calloc(1, sizeof *s->unit);
    s->bytes = malloc(CODE_MAX);
    s->lifter.item = calloc(LIFT_INSNS_MAX, sizeof *s->lifter.item);
    s->lifter.at = calloc(LLVM_GUEST_MAX, sizeof *s->lifter.at);
    s->lifter.leader = calloc(LLVM_GUEST_MAX, 1);
    if (s->vcpu && s->target && s->unit && s->bytes && s->lifter.item && s->lifter.at && s->lifter.leader)
        return s;
    llvm_destroy(s);
    return NULL;
}

static uint32_t llvm_abi(void) {
    return DBT_PORTABLE_ABI;
}

static const char *llvm_refusal(const void *state) {
    return ((const struct llvm_state *)state)->refusal;
}

static void llvm_keep_ir(void *state, bool keep) {
    ((struct llvm_state *)state)->keep_ir = keep;
}

const struct codegen codegen_llvm = {.name = "llvm",
                                     .create = llvm_create,
                                     .destroy = llvm_destroy,
                                     .translate = llvm_translate,
                                     .abi = llvm_abi,
                                     .layout = dbt_portable_layout,
                                     .refusal = llvm_refusal,
                                     .keep_ir = llvm_keep_ir};
