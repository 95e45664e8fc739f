/* The vCPU's state in a stub's registers.
 *
 * A stub has the host's descriptors: the flat segments at Linux's selectors, and three entries for
 * thread-local storage that are kept equal to the guest's (tls.c). A guest whose ring 3 has others, or
 * selectors that its own tables define, runs in the other tiers. What comes back is the host kernel's account
 * of ring 3, so it is true; a selector that ring 3 loaded by itself is still loaded again from the guest's
 * own tables.
 */
#include "cpu/system.h"
#include "direct/private.h"

#define SELECTOR_CODE_64 0x33
#define SELECTOR_CODE_32 0x23
#define SELECTOR_DATA 0x2b

/* What ring 3 can change. */
#define FLAGS_USER (FLAGS_ARITHMETIC | FLAG_DF | FLAG_TF | FLAG_NT | FLAG_AC | FLAG_ID)
#define SEG_DATA_MASK (SEG_UNUSABLE | SEG_P | SEG_S | SEG_DB | 0xeu) /* but for the accessed bit */
#define SEG_DATA_FLAT (SEG_P | SEG_S | SEG_DB | 0x2u)
#define USER_BASE_END 0x7ffffffff000ull

/* The mode word of ring 3 under a 64-bit Linux: all of these set, ... */
#define MODE_NEEDED (MODE_CPL3 | MODE_PROTECTED | MODE_LONG | MODE_FLAT | MODE_PAGING)
/* ... and none of those: what they stand for traps or means something else here. */
#define MODE_REFUSED                                                                                         \
    (MODE_VM86 | MODE_NO_X87 | MODE_NO_WAIT | MODE_SSE_NM | MODE_SSE_UD | MODE_TSD | MODE_TSC_OFFSET |       \
     MODE_IO_FREE | MODE_STEP)

static bool is_plain_data(const struct segment *segment) {
    return segment->selector == 0 || segment->selector == SELECTOR_DATA;
}

/* FS or GS: its base goes beside the selector, and what a selector names is in the stub as it is in the
 * guest. */
static bool is_plain_wide(const struct direct_vcpu *direct, const struct segment *segment) {
    if (segment->base >= USER_BASE_END)
        return false;
    if (segment->selector == 0)
        return true;
    if (segment->selector == SELECTOR_DATA)
        return direct->host_fsgsbase || segment->base == 0;
    bool is_tls = direct->family.loads_tls && (segment->selector & 7) == 3 &&
                  segment->selector >> 3 >= TLS_FIRST && segment->selector >> 3 < TLS_FIRST + TLS_ENTRIES;
    return is_tls && segment->limit == UINT32_MAX && (segment->attributes & SEG_DATA_MASK) == SEG_DATA_FLAT;
}

bool state_fits(const struct vcpu *vcpu) {
    const struct direct_vcpu *direct = vcpu->direct;
    const struct segment *segment = vcpu->segment;
    uint32_t mode = vcpu->mode;
    if ((mode & (MODE_NEEDED | MODE_REFUSED)) != MODE_NEEDED)
        return false;
    bool code64 = (mode & MODE_CODE_MASK) == MODE_CODE_64;
    if (!code64 && !direct->family.runs_32bit)
        return false;
    if (segment[SEG_CS].selector != (code64 ? SELECTOR_CODE_64 : SELECTOR_CODE_32) ||
        segment[SEG_SS].selector != SELECTOR_DATA || !is_plain_data(&segment[SEG_DS]) ||
        !is_plain_data(&segment[SEG_ES]) || !is_plain_wide(direct, &segment[SEG_FS]) ||
        !is_plain_wide(direct, &segment[SEG_GS]))
        return false;
    /* Where the host has no FSGSBASE, code that would use it is kept out of the stub. */
    bool fsgsbase_differs = direct->host_fsgsbase && !(mode & MODE_FSGSBASE);
    if (vcpu->rflags & FLAG_NT && !direct->family.keeps_nt)
        return false;
    bool alignment_differs = vcpu->rflags & FLAG_AC && !(vcpu->cr0 & CR0_AM);
    return vcpu->rflags & FLAG_IF && !vcpu->irq_shadow && !vcpu->a20_masked && vcpu->xcr0 == direct->xcr0 &&
           vcpu->cr4 & CR4_OSXSAVE && !fsgsbase_differs && !alignment_differs;
}

void state_to_stub(const struct vcpu *vcpu, struct user_regs_struct *regs) {
    const uint64_t *gpr = vcpu->gpr;
    *regs = (struct user_regs_struct){
        .rax = gpr[GPR_RAX],
        .rcx = gpr[GPR_RCX],
        .rdx = gpr[GPR_RDX],
        .rbx = gpr[GPR_RBX],
        .rsp = gpr[GPR_RSP],
        .rbp = gpr[GPR_RBP],
        .rsi = gpr[GPR_RSI],
        .rdi = gpr[GPR_RDI],
        .r8 = gpr[GPR_R8],
        .r9 = gpr[GPR_R9],
        .r10 = gpr[GPR_R10],
        .r11 = gpr[GPR_R11],
        .r12 = gpr[GPR_R12],
        .r13 = gpr[GPR_R13],
        .r14 = gpr[GPR_R14],
        .r15 = gpr[GPR_R15],
        .orig_rax = UINT64_MAX, /* no system call to restart */
        .rip = vcpu->rip,
        .eflags = (vcpu->rflags & FLAGS_USER) | FLAG_IF | FLAG_FIXED,
        .cs = vcpu->segment[SEG_CS].selector,
        .ss = vcpu->segment[SEG_SS].selector,
        .ds = vcpu->segment[SEG_DS].selector,
        .es = vcpu->segment[SEG_ES].selector,
        .fs = vcpu->segment[SEG_FS].selector,
        .gs = vcpu->segment[SEG_GS].selector,
        .fs_base = vcpu->segment[SEG_FS].base,
        .gs_base = vcpu->segment[SEG_GS].base,
    };
}

static bool reload(struct vcpu *vcpu, enum segment_index index, uint16_t selector) {
    return vcpu->segment[index].selector == selector || cpu_load_segment(vcpu, index, selector) == CPU_OK;
}

bool state_from_stub(struct vcpu *vcpu, const struct user_regs_struct *regs) {
    uint64_t *gpr = vcpu->gpr;
    gpr[GPR_RAX] = regs->rax;
    gpr[GPR_RCX] = regs->rcx;
    gpr[GPR_RDX] = regs->rdx;
    gpr[GPR_RBX] = regs->rbx;
    gpr[GPR_RSP] = regs->rsp;
    gpr[GPR_RBP] = regs->rbp;
    gpr[GPR_RSI] = regs->rsi;
    gpr[GPR_RDI] = regs->rdi;
    gpr[GPR_R8] = regs->r8;
    gpr[GPR_R9] = regs->r9;
    gpr[GPR_R10] = regs->r10;
    gpr[GPR_R11] = regs->r11;
    gpr[GPR_R12] = regs->r12;
    gpr[GPR_R13] = regs->r13;
    gpr[GPR_R14] = regs->r14;
    gpr[GPR_R15] = regs->r15;
    vcpu->rip = regs->rip;
    vcpu->rflags = (vcpu->rflags & ~(uint64_t)(FLAGS_USER | FLAG_RF)) | (regs->eflags & FLAGS_USER);
    bool good = reload(vcpu, SEG_DS, (uint16_t)regs->ds) && reload(vcpu, SEG_ES, (uint16_t)regs->es) &&
                reload(vcpu, SEG_FS, (uint16_t)regs->fs) && reload(vcpu, SEG_GS, (uint16_t)regs->gs) &&
                reload(vcpu, SEG_SS, (uint16_t)regs->ss);
    vcpu->segment[SEG_FS].base = regs->fs_base;
    vcpu->segment[SEG_GS].base = regs->gs_base;
    cpu_mode_changed(vcpu);
    /* A far transfer to the other width of code. */
    if (good && (uint16_t)regs->cs != vcpu->segment[SEG_CS].selector)
        good = cpu_far_jump(vcpu, (uint16_t)regs->cs, regs->rip, 8, regs->rip) == CPU_OK;
    return good;
}
