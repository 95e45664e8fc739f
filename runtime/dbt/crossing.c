/* SYSCALL, SYSRET and IRET between rings 3 and 0 of 64-bit code, without C.
 *
 * The stubs here do what cpu_syscall(), cpu_sysret() and cpu_iret() do, for the case that every system call
 * is: both rings 64-bit, both jump keys known, the target in the jump cache, no request, and flags of which
 * none but the arithmetic ones and IF is set in ring 3 (and RF by IRET), and none at all behind SYSCALL. They
 * change nothing before all of that is seen; otherwise they go the way to C that the site asks for.
 *
 * What they copy (struct crossing) C has left there when it made the same change itself: a ring that is
 * entered in C opens the way back to it (crossing_open()), with its key and mode. A key is taken away (0)
 *   - with the returns of its ring (jump.c), and when it stands for nothing any more;
 *   - ring 3's, when the address space or its generation is another one, and when ring 3 shall run elsewhere;
 *   - both, when control registers, STAR, SFMASK or the GDT's place change (vcpu->crossing_changed).
 * IRET reads the two descriptors where they lie, each time, and compares them with those that it knows the
 * meaning of; like the memos, where they lie is forgotten when the TLB has lost something that may be their
 * page (of CS's, which is asked for first).
 */
#include "cpu/descriptor.h"
#include "cpu/mode.h"
#include "cpu/system.h"
#include "dbt/emit.h"

#define A GPR_R8
#define KEY GPR_R9
#define B GPR_R10
#define C GPR_R11
_Static_assert((HOMED >> A & HOMED >> KEY & HOMED >> B & HOMED >> C & 1) == 1, "free between blocks");

#define FLAGS_OF_LAHF (FLAG_SF | FLAG_ZF | FLAG_AF | FLAG_PF | FLAG_CF)
#define IRET_FRAME 40
#define CROSSING(field) AREA_HOT(crossing.field)

_Static_assert(offsetof(struct segment, selector) == 0 && offsetof(struct segment, attributes) == 4,
               "both are one word");

static uint64_t crossing_segment(const struct segment *segment) {
    return segment->selector | (uint64_t)segment->attributes << 32;
}

static bool is_flat(const struct segment *segment) {
    return segment->base == 0 && segment->limit == UINT32_MAX;
}

/* -- what C leaves -- */

static void note_segments(struct vcpu *vcpu, bool user) {
    struct crossing *crossing = &area_of(vcpu)->hot.crossing;
    struct segment cs, ss;
    cpu_syscall_segments(vcpu, user, &cs, &ss);
    crossing->cs[user] = crossing_segment(&cs);
    crossing->ss[user] = crossing_segment(&ss);
}

void crossing_open(struct vcpu *vcpu) {
    struct dbt_vcpu *dbt = vcpu->dbt;
    struct dbt_hot *hot = &dbt->area->hot;
    struct crossing *crossing = &hot->crossing;
    uint32_t mode = vcpu->mode;
    bool user = mode & MODE_CPL3;
    if (!(mode & (MODE_CPL3 | MODE_CPL0)) || !cpu_is_code64(vcpu) || !(vcpu->efer & EFER_SCE) ||
        (user && (mode & MODE_IO_FREE || (vcpu->tier_up && !vcpu->tier_settled))))
        return;
    note_segments(vcpu, user);
    crossing->mode[user] = mode;
    crossing->key[user] = hot->jump_key;
    crossing->kept_flags = ~(vcpu->sfmask | FLAG_RF) | FLAG_FIXED;
    if (user)
        dbt->crossing_generation = vcpu->space->generation;
}

/* The host's address of a descriptor in the GDT; NULL: there is none to keep. *page: the guest's page. */
static uint64_t *descriptor_host(struct vcpu *vcpu, uint16_t selector, uint64_t *page) {
    void *host;
    uint64_t offset = selector & ~7u, linear = vcpu->gdtr.base + offset;
    *page = linear & PAGE_MASK;
    if (selector & SELECTOR_TI || offset + 7 > vcpu->gdtr.limit || linear % 8 ||
        vmem_host(vcpu, linear, 8, VMEM_READ, AS_SYSTEM, &host))
        return NULL;
    return host;
}

void crossing_note_iret(struct vcpu *vcpu) {
    static const uint8_t segments[2] = {SEG_CS, SEG_SS};
    struct crossing *crossing = &area_of(vcpu)->hot.crossing;
    if (!cpu_is_code64(vcpu) || vcpu->cpl != 3)
        return;
    for (unsigned i = 0; i < ARRAY_SIZE(segments); i++) {
        const struct segment *segment = &vcpu->segment[segments[i]];
        uint64_t *host =
            is_flat(segment) ? descriptor_host(vcpu, segment->selector, &vcpu->dbt->iret_page[i]) : NULL;
        crossing->iret_descriptor[i] = host;
        if (!host)
            continue;
        crossing->iret_selector[i] = segment->selector;
        crossing->iret_raw[i] = *host;
        crossing->iret_segment[i] = crossing_segment(segment);
    }
}

void crossing_forget_page(struct dbt_vcpu *dbt, uint64_t page) {
    if (dbt->iret_page[0] == page || dbt->iret_page[1] == page)
        dbt->area->hot.crossing.iret_descriptor[0] = NULL;
}

/* -- the stubs -- */

/* A stub under way: where it leaves for C. */
struct crossing_code {
    struct code_buffer *c;
    uint8_t *to_c[24];
    unsigned places;
};

static void unless(struct crossing_code *code, enum asm_cond cond) {
    code->to_c[code->places++] = asm_jcc(code->c, (enum asm_cond)(cond ^ 1));
}

static void compare_imm32_gs(struct code_buffer *c, uint32_t offset, uint8_t value) {
    asm_gs_imm(c, false, 0x83, 7, offset, 1); /* cmp dword gs:[offset], value */
    code_u8(c, value);
}

/* KEY = the other ring's jump key; no request waits. */
static void begin(struct crossing_code *code, bool user) {
    struct code_buffer *c = code->c;
    compare_imm32_gs(c, AREA_VCPU(requests), 0);
    unless(code, COND_E);
    asm_load_gs(c, KEY, CROSSING(key[user]));
    asm_cmp_imm(c, KEY, 0);
    unless(code, COND_NE);
}

/* hot.value = the host's code for A, which is canonical. Clobbers B and C. */
static void find(struct crossing_code *code) {
    struct code_buffer *c = code->c;
    asm_mov(c, C, A);
    asm_alu(c, ASM_XOR, C, KEY);
    asm_hash(c, B, C, JUMP_CACHE_MULTIPLIER, JUMP_CACHE_BITS);
    code_u8(c, 0x65);
    asm_mem(c, true, ASM_CMP, C, -1, B, 3, (int32_t)offsetof(struct dbt_area, jump.key));
    unless(code, COND_E);
    code_u8(c, 0x65);
    asm_mem(c, true, 0x8b, B, -1, B, 3, (int32_t)offsetof(struct dbt_area, jump.host));
    asm_store_gs(c, AREA_HOT(value), B);
}

static void check_canonical(struct crossing_code *code) {
    code->to_c[code->places++] = asm_jump_not_canonical(code->c, A, B);
}

/* An image in B must be one of ring 3's as a rule: IF and arithmetic flags, and others that may be there. */
static void check_user_flags(struct crossing_code *code, uint32_t others) {
    struct code_buffer *c = code->c;
    asm_mov32(c, C, B);
    asm_and32_imm(c, C, ~(uint32_t)(FLAGS_ARITHMETIC | FLAG_FIXED | others));
    asm_cmp_imm(c, C, FLAG_IF);
    unless(code, COND_E);
}

/* The flags of ring 3 from that image. Clobbers A and B. */
static void set_user_flags(struct code_buffer *c) {
    asm_rex(c, false, 0, 0, B); /* or b, FLAG_FIXED */
    code_u8(c, 0x83);
    code_u8(c, (uint8_t)(0xc8 | (B & 7)));
    code_u8(c, FLAG_FIXED);
    asm_store_gs(c, AREA_VCPU(rflags), B);
    asm_mov32(c, A, B);
    asm_and32_imm(c, A, FLAGS_OF_LAHF);
    asm_shl(c, A, 8);
    asm_shr32(c, B, 11); /* OF */
    asm_and32_imm(c, B, 1);
    asm_alu(c, ASM_OR, A, B);
    asm_store32_gs(c, AREA_HOT(flags), A);
    asm_store8_imm_gs(c, AREA_HOT(iflag), FLAG_IF >> 8);
    asm_store8_imm_gs(c, AREA_HOT(acflag), 0);
}

/* A flat segment register, of which the word at `from` is the rest. */
static void set_segment(struct code_buffer *c, unsigned segment, uint32_t from) {
    uint32_t to = AREA_VCPU(segment) + (uint32_t)(segment * sizeof(struct segment));
    asm_load_gs(c, B, from);
    asm_store_gs(c, to, B);
    asm_store32_imm_gs(c, to + (uint32_t)offsetof(struct segment, limit), UINT32_MAX);
    asm_store64_imm_gs(c, to + (uint32_t)offsetof(struct segment, base), 0);
}

/* The memo of the ring's stack holds on if it is of the view in B. */
static void keep_stack(struct code_buffer *c, uint32_t view, uint32_t memo) {
    asm_alu_gs(c, ASM_CMP, B, view);
    uint8_t *holds = asm_jcc(c, COND_E);
    asm_store_gs(c, view, B);
    emit_forget(c, memo, B);
    asm_patch_rel32(holds, c->at);
}

/* What goes with the ring, and on into its code. */
static void enter(struct code_buffer *c, bool user, uint32_t cs, uint32_t ss) {
    set_segment(c, SEG_CS, cs);
    set_segment(c, SEG_SS, ss);
    asm_store8_imm_gs(c, AREA_VCPU(cpl), user ? 3 : 0);
    asm_load32_gs(c, B, CROSSING(mode[user]));
    asm_store32_gs(c, AREA_VCPU(mode), B);
    asm_load_gs(c, B, user ? CROSSING(user_view) : AREA_HOT(view_kernel));
    asm_store_gs(c, AREA_VCPU(view), B);
    keep_stack(c, user ? AREA_HOT(user_stack_view) : AREA_HOT(stack_view),
               user ? AREA_HOT(user_stack) : AREA_HOT(stack));
    asm_store_gs(c, AREA_HOT(jump_key), KEY);
    if (user)
        asm_gs(c, true, 0xff, 0, AREA_VCPU(user_entries)); /* inc */
    asm_jmp_gs(c, AREA_HOT(value));
}

static void finish(const struct crossing_code *code, const uint8_t *to_c) {
    for (unsigned i = 0; i < code->places && !code->c->overflow; i++)
        asm_patch_rel32(code->to_c[i], to_c);
}

/* In: R8 = the address of the next instruction. */
static void emit_syscall(struct code_buffer *c, const uint8_t *to_c) {
    struct crossing_code code = {.c = c};
    begin(&code, false);
    asm_store_gs(c, AREA_HOT(target), A);
    asm_load_gs(c, A, AREA_VCPU(lstar));
    find(&code);
    emit_flags_image(c, B, C, UINT32_MAX);
    asm_load_gs(c, C, CROSSING(kept_flags));
    asm_alu(c, ASM_AND, C, B);
    asm_cmp_imm(c, C, FLAG_FIXED);
    unless(&code, COND_E);
    asm_and32_imm(c, B, ~(uint32_t)FLAG_RF);
    asm_store_gs(c, AREA_GPR(GPR_R11), B);
    asm_load_gs(c, GPR_RCX, AREA_HOT(target));
    asm_store64_imm_gs(c, AREA_VCPU(rflags), FLAG_FIXED);
    asm_store32_imm_gs(c, AREA_HOT(flags), 0);
    asm_store8_imm_gs(c, AREA_HOT(iflag), 0);
    asm_store8_imm_gs(c, AREA_HOT(acflag), 0);
    enter(c, false, CROSSING(cs[0]), CROSSING(ss[0]));
    finish(&code, to_c);
}

static void emit_sysret(struct code_buffer *c, const uint8_t *to_c) {
    struct crossing_code code = {.c = c};
    begin(&code, true);
    asm_load32_gs(c, B, AREA_GPR(GPR_R11));
    check_user_flags(&code, 0);
    asm_mov(c, A, GPR_RCX);
    check_canonical(&code);
    find(&code);
    asm_load32_gs(c, B, AREA_GPR(GPR_R11));
    set_user_flags(c);
    enter(c, true, CROSSING(cs[1]), CROSSING(ss[1]));
    finish(&code, to_c);
}

/* DS, ES, FS and GS hold nothing that a return to ring 3 would have to take away. */
static void check_data_segments(struct crossing_code *code) {
    static const uint8_t segments[] = {SEG_ES, SEG_DS, SEG_FS, SEG_GS};
    asm_mov_imm(code->c, A, (uint64_t)SEG_UNUSABLE << 32);
    for (unsigned i = 0; i < ARRAY_SIZE(segments); i++) {
        asm_alu_gs(code->c, ASM_CMP, A,
                   AREA_VCPU(segment) + (uint32_t)(segments[i] * sizeof(struct segment)));
        unless(code, COND_E);
    }
}

/* C = the frame that RSP points to, if that is on the page that the stack's memo knows. */
static void find_frame(struct crossing_code *code) {
    struct code_buffer *c = code->c;
    asm_mov(c, C, GPR_RSP);
    asm_alu_gs(c, ASM_SUB, C, AREA_HOT(stack.page));
    asm_cmp_imm(c, C, PAGE_SIZE - IRET_FRAME);
    unless(code, COND_BE);
    asm_load_gs(c, C, AREA_HOT(stack.addend));
    asm_cmp_imm(c, C, 0); /* a memo of nothing */
    unless(code, COND_NE);
    asm_alu(c, ASM_ADD, C, GPR_RSP);
}

/* The selector in the frame is the one that is known, and its descriptor the same as then. */
static void check_selector(struct crossing_code *code, unsigned which, int32_t frame) {
    struct code_buffer *c = code->c;
    asm_load(c, B, C, frame);
    asm_alu_gs(c, ASM_CMP, B, CROSSING(iret_selector[which]));
    unless(code, COND_E);
    asm_load_gs(c, B, CROSSING(iret_descriptor[which]));
    asm_cmp_imm(c, B, 0);
    unless(code, COND_NE);
    asm_load(c, B, B, 0);
    asm_alu_gs(c, ASM_CMP, B, CROSSING(iret_raw[which]));
    unless(code, COND_E);
}

static void emit_iret(struct code_buffer *c, const uint8_t *to_c) {
    struct crossing_code code = {.c = c};
    begin(&code, true);
    asm_gs_imm(c, false, 0x80, 7, AREA_VCPU(nmi_blocked), 1); /* cmp byte gs:[nmi_blocked], 0 */
    code_u8(c, 0);
    unless(&code, COND_E);
    asm_gs_imm(c, false, 0xf7, 0, AREA_VCPU(rflags), 4); /* test dword gs:[rflags], NT */
    code_u32(c, FLAG_NT);
    unless(&code, COND_E);
    check_data_segments(&code);
    find_frame(&code);
    check_selector(&code, 0, 8);
    check_selector(&code, 1, 32);
    asm_store_gs(c, AREA_HOT(target), C);
    asm_mem(c, false, 0x8b, B, C, -1, 0, 16);
    asm_load(c, A, C, 0);
    check_user_flags(&code, FLAG_RF); /* so it is behind a fault */
    check_canonical(&code);
    find(&code);
    asm_load_gs(c, C, AREA_HOT(target));
    asm_mem(c, false, 0x8b, B, C, -1, 0, 16);
    asm_load(c, GPR_RSP, C, 24);
    set_user_flags(c);
    enter(c, true, CROSSING(iret_segment[0]), CROSSING(iret_segment[1]));
    finish(&code, to_c);
}

void dbt_emit_crossings(struct dbt_vcpu *dbt, struct code_buffer *c) {
    const uint8_t *to_c = dbt->rw + (dbt->stub_exit - dbt->rx);
    stub_take_site(c);
    dbt->stub_syscall = dbt->rx + (c->at - dbt->rw);
    emit_syscall(c, to_c);
    stub_take_site(c);
    dbt->stub_sysret = dbt->rx + (c->at - dbt->rw);
    emit_sysret(c, to_c);
    stub_take_site(c);
    dbt->stub_iret = dbt->rx + (c->at - dbt->rw);
    emit_iret(c, to_c);
}
