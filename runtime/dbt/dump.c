/* --dump: what the translator read, what it made of it, and how its code is left; and the time it takes.
 *
 * Runs with the extended state parked. A new block is told as a whole, in up to three parts:
 *
 *   cpu0 block 12 at 0xffffffff81000000 mode 0x31 ram 0x1000000: 3 instructions, 14 bytes -> 61 bytes
 *     guest    0  48 89 e5              mov rbp, rsp
 *     decoded  0  copy      writes rbp
 *     emitted +0  [guest 0]  65 c6 04 ...  mov byte ptr gs:[...], 0x00
 */
#include "dbt/dump.h"
#include "dbt/unit.h"
#include "mem/guest_mem.h"

#include <Zydis/Zydis.h>
#include <inttypes.h>
#include <stdio.h>
#include <time.h>

#define NS_PER_SECOND 1000000000ull
#define FLAGS_SHOWN (FLAG_OF | FLAG_SF | FLAG_ZF | FLAG_AF | FLAG_PF | FLAG_CF)

static const char *const kind_names[] = {
    [KIND_COPY] = "copy",
    [KIND_NOP] = "nop",
    [KIND_LEA] = "lea",
    [KIND_MEMORY] = "memory",
    [KIND_BIT_MEMORY] = "bit-memory",
    [KIND_PUSH] = "push",
    [KIND_POP] = "pop",
    [KIND_LEAVE] = "leave",
    [KIND_RDTSC] = "rdtsc",
    [KIND_RDTSCP] = "rdtscp",
    [KIND_CLI] = "cli",
    [KIND_STI] = "sti",
    [KIND_STAC] = "stac",
    [KIND_CLAC] = "clac",
    [KIND_SWAPGS] = "swapgs",
    [KIND_CPUID] = "cpuid",
    [KIND_PUSHF] = "pushf",
    [KIND_REP] = "rep",
    [KIND_READ_BASE] = "read-base",
    [KIND_READ_CR] = "read-cr",
    [KIND_READ_SELECTOR] = "read-selector",
    [KIND_JCC] = "jcc",
    [KIND_JCXZ] = "jcxz",
    [KIND_HELPER] = "helper",
    [KIND_JMP] = "jmp",
    [KIND_CALL] = "call",
    [KIND_JMP_INDIRECT] = "jmp-indirect",
    [KIND_CALL_INDIRECT] = "call-indirect",
    [KIND_RET] = "ret",
    [KIND_RETPOLINE] = "retpoline",
    [KIND_INTERPRET] = "interpret",
    [KIND_HELPER_END] = "helper-end",
};

static const char *const site_names[] = {
    [SITE_LINK] = "link",           [SITE_JUMP_MISS] = "jump-miss", [SITE_HELPER] = "helper",
    [SITE_INTERPRET] = "interpret", [SITE_DEAD] = "dead",           [SITE_MEMORY] = "memory",
    [SITE_UNGROUPED] = "ungrouped", [SITE_MEMO] = "memo",
};

static const char *const helper_names[] = {
    [HELPER_NONE] = "none",
    [HELPER_SYSCALL] = "syscall",
    [HELPER_SYSRET] = "sysret",
    [HELPER_IRET] = "iret",
    [HELPER_POPF] = "popf",
    [HELPER_RDMSR] = "rdmsr",
    [HELPER_WRMSR] = "wrmsr",
    [HELPER_READ_CR] = "read-cr",
    [HELPER_WRITE_CR] = "write-cr",
    [HELPER_CPUID] = "cpuid",
    [HELPER_STRING] = "string",
    [HELPER_INVLPG] = "invlpg",
    [HELPER_WRITE_BASE] = "write-base",
    [HELPER_XSTATE] = "xstate",
};

static const char *const gpr_names[16] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                          "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};

static const char *name_at(const char *const *names, size_t count, unsigned index) {
    return index < count && names[index] ? names[index] : "?";
}

static const char *kind_name(unsigned kind) {
    return name_at(kind_names, ARRAY_SIZE(kind_names), kind);
}

static const char *site_name(unsigned kind) {
    return name_at(site_names, ARRAY_SIZE(site_names), kind);
}

static const char *helper_name(unsigned helper) {
    return name_at(helper_names, ARRAY_SIZE(helper_names), helper);
}

static void add_bytes(struct trace_text *text, const uint8_t *bytes, size_t count) {
    char hex[3 * 16 + 1];
    size_t at = 0;
    for (size_t i = 0; i < count && i < 16; i++)
        at += (size_t)snprintf(hex + at, sizeof hex - at, "%02x ", bytes[i]);
    hex[at] = 0;
    trace_text_add(text, "%-36s", hex);
}

static void format_insn(const ZydisDecodedInstruction *z, const ZydisDecodedOperand *op, uint64_t address,
                        char *out, size_t size) {
    ZydisFormatter formatter;
    ZydisFormatterInit(&formatter, ZYDIS_FORMATTER_STYLE_INTEL);
    if (!ZYAN_SUCCESS(ZydisFormatterFormatInstruction(&formatter, z, op, z->operand_count_visible, out, size,
                                                      address, NULL)))
        snprintf(out, size, "?");
}

static void add_registers(struct trace_text *text, const char *what, uint16_t mask) {
    if (!mask)
        return;
    trace_text_add(text, " %s", what);
    for (unsigned i = 0; i < 16; i++)
        if (mask >> i & 1)
            trace_text_add(text, " %s", gpr_names[i]);
}

static void add_flags(struct trace_text *text, const char *what, uint32_t mask) {
    static const struct {
        uint32_t bit;
        char letter;
    } flag[] = {{FLAG_OF, 'O'}, {FLAG_SF, 'S'}, {FLAG_ZF, 'Z'},
                {FLAG_AF, 'A'}, {FLAG_PF, 'P'}, {FLAG_CF, 'C'}};
    char letters[ARRAY_SIZE(flag) + 1];
    unsigned count = 0;
    for (unsigned i = 0; i < ARRAY_SIZE(flag); i++)
        if (mask & flag[i].bit)
            letters[count++] = flag[i].letter;
    letters[count] = 0;
    if (count)
        trace_text_add(text, " %s %s", what, letters);
}

static void add_guest(struct trace_text *text, const struct unit *unit) {
    char line[160];
    for (unsigned i = 0; i < unit->items; i++) {
        const struct item *item = &unit->item[i];
        const struct insn *insn = &item->insn;
        format_insn(&insn->z, insn->op, unit->block->rip + item->guest, line, sizeof line);
        trace_text_add(text, "  guest %5u  ", item->guest);
        add_bytes(text, insn->bytes, insn->length);
        trace_text_add(text, "%s\n", line);
    }
}

static void add_decoded(struct trace_text *text, const struct unit *unit) {
    trace_text_add(text, "  decoded scratches");
    if (unit->spilled)
        trace_text_add(text, " %s %s %s;", gpr_names[unit->t0 & 15], gpr_names[unit->t1 & 15],
                       gpr_names[unit->t2 & 15]);
    else
        trace_text_add(text, " none;");
    add_registers(text, "in memory:", unit->spilled);
    trace_text_add(text, "\n");
    for (unsigned i = 0; i < unit->items; i++) {
        const struct item *item = &unit->item[i];
        const struct insn *insn = &item->insn;
        trace_text_add(text, "  decoded %3u  %-13s %s", item->guest, kind_name(item->kind),
                       ZydisMnemonicGetString(insn->z.mnemonic));
        if (item->kind == KIND_HELPER || item->kind == KIND_HELPER_END)
            trace_text_add(text, " (%s)", helper_name(item->helper));
        add_registers(text, "reads", insn->gprs_read);
        add_registers(text, "writes", insn->gprs_written);
        add_flags(text, "tests", insn->flags_read & FLAGS_SHOWN);
        add_flags(text, "sets", insn->flags_written & FLAGS_SHOWN);
        trace_text_add(text, "\n");
    }
}

static void add_place(struct trace_text *text, const struct pc_entry *entry) {
    char lag[16] = "";
    if (entry->rsp_lag)
        snprintf(lag, sizeof lag, ", rsp %+d", entry->rsp_lag);
    trace_text_add(text, "  emitted        guest %u%s%s:\n", entry->guest, lag,
                   entry->flags_saved ? ", flags in memory"
                   : entry->remake    ? ", flags made again"
                                      : "");
}

/* A word of the area that is named relative to RIP is shown as gs:[offset], as all are thought of. */
static void name_area(const struct dbt_vcpu *dbt, const ZydisDecodedInstruction *z, ZydisDecodedOperand *op,
                      uint64_t address) {
    for (unsigned i = 0; i < z->operand_count_visible; i++) {
        if (op[i].type != ZYDIS_OPERAND_TYPE_MEMORY || op[i].mem.base != ZYDIS_REGISTER_RIP)
            continue;
        uint64_t offset = address + z->length + (uint64_t)op[i].mem.disp.value - (uint64_t)dbt->area;
        if (offset >= sizeof *dbt->area)
            continue;
        op[i].mem.base = ZYDIS_REGISTER_NONE;
        op[i].mem.segment = ZYDIS_REGISTER_GS;
        op[i].mem.disp.value = (int64_t)offset;
    }
}

static void add_code(struct trace_text *text, const struct unit *unit) {
    const struct dbt_vcpu *dbt = unit->dbt;
    const struct block *block = unit->block;
    const uint8_t *code = dbt->rw + block->host;
    ZydisDecoder decoder;
    ZydisDecodedInstruction z;
    ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
    char line[160];
    ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    unsigned pc = 0;
    for (uint32_t at = 0; at < block->host_size;) {
        while (pc < block->pcs && dbt->pc[block->first_pc + pc].host <= at) {
            const struct pc_entry *entry = &dbt->pc[block->first_pc + pc++];
            if (entry->host == at)
                add_place(text, entry);
        }
        if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, code + at, block->host_size - at, &z, op))) {
            trace_text_add(text, "  emitted +%-4u  ", at);
            add_bytes(text, code + at, 1);
            trace_text_add(text, "(no instruction)\n");
            at++;
            continue;
        }
        name_area(dbt, &z, op, (uint64_t)dbt->rx + block->host + at);
        format_insn(&z, op, (uint64_t)dbt->rx + block->host + at, line, sizeof line);
        trace_text_add(text, "  emitted +%-4u  ", at);
        add_bytes(text, code + at, z.length);
        trace_text_add(text, "%s\n", line);
        at += z.length;
    }
}

static void add_site(struct trace_text *text, const struct dbt_vcpu *dbt, uint32_t index) {
    const struct site *site = &dbt->site[index];
    const struct block *block = &dbt->block[site->block];
    trace_text_add(text, "  site %u %s guest %u", index, site_name(site->kind), site->guest);
    if (site->host)
        trace_text_add(text, " host +%u", site->host - block->host);
    switch ((enum site_kind)site->kind) {
    case SITE_LINK:
        trace_text_add(text, " to %#" PRIx64, block->rip + (uint64_t)(int64_t)site->target);
        break;
    case SITE_MEMORY:
        trace_text_add(text, " %s of %u bytes at [%s]%s", site->access == VMEM_WRITE ? "write" : "read",
                       site->size, gpr_names[site->reg & 15], site->group ? ", shared check" : "");
        break;
    case SITE_HELPER:
        trace_text_add(text, " (%s)", helper_name(site->access));
        break;
    default:
        break;
    }
    trace_text_add(text, "\n");
}

static void dump_block(struct vcpu *vcpu, uint32_t index) {
    const struct dbt_vcpu *dbt = vcpu->dbt;
    const struct unit *unit = dbt->unit;
    const struct block *block = &dbt->block[index];
    struct trace_text text;
    trace_text_begin(&text, vcpu->trace);
    trace_text_add(&text,
                   "cpu%u block %u at %#" PRIx64 " mode %#x ram %#" PRIx64
                   ": %u instructions, %u bytes -> %u bytes at +%#x\n",
                   vcpu->index, index, block->rip, block->mode, block->ram_offset, unit->items,
                   block->guest_length, block->host_size, block->host);
    if (vcpu->trace_subjects & DUMP_GUEST)
        add_guest(&text, unit);
    if (vcpu->trace_subjects & DUMP_DECODED)
        add_decoded(&text, unit);
    if (vcpu->trace_subjects & DUMP_EMITTED) {
        add_code(&text, unit);
        for (uint32_t i = 0; i < block->sites; i++)
            add_site(&text, dbt, block->first_site + i);
    }
    trace_text_end(&text);
}

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_SECOND + (uint64_t)now.tv_nsec;
}

uint32_t dbt_translate_watched(struct vcpu *vcpu, uint64_t ram_offset, uint32_t mode) {
    uint64_t start = now_ns();
    uint32_t index = dbt_translate(vcpu, ram_offset, mode);
    uint64_t spent = now_ns() - start;
    vcpu->dbt->stats.translate_ns += spent;
    if (mode & MODE_CPL0)
        vcpu->dbt->stats.translate_ring0_ns += spent;
    if (UNLIKELY(vcpu->trace_subjects & DUMP_BLOCKS) && index != NO_INDEX)
        dump_block(vcpu, index);
    return index;
}

void dump_exit_write(struct vcpu *vcpu, enum dump_exit what) {
    struct dbt_vcpu *dbt = vcpu->dbt;
    const struct dbt_hot *hot = &dbt->area->hot;
    if (what == DUMP_EXIT_FAULT) {
        struct guest_place pc = {0};
        const struct block *block = block_at(dbt, hot->fault_pc, &pc);
        trace_line(vcpu->trace, "cpu%u exit %s block %" PRIu32 " at %#" PRIx64 "+%u host pc %#" PRIx64,
                   vcpu->index, hot->fault_is_poll ? "poll" : "fault",
                   block ? (uint32_t)(block - dbt->block) : NO_INDEX, block ? block->rip : 0,
                   block ? pc.guest : 0u, hot->fault_pc);
        return;
    }
    const struct site *site = block_site(dbt, hot->site);
    const struct block *block = &dbt->block[site->block];
    char detail[64] = "";
    if (what == DUMP_EXIT_RAW)
        snprintf(detail, sizeof detail, " %s of %u bytes at %#" PRIx64,
                 site->access == VMEM_WRITE ? "write" : "read", site->size, hot->save[site->reg & 15]);
    else if (site->kind == SITE_LINK)
        snprintf(detail, sizeof detail, " to %#" PRIx64, block->rip + (uint64_t)(int64_t)site->target);
    else if (site->kind == SITE_JUMP_MISS)
        snprintf(detail, sizeof detail, " to %#" PRIx64, hot->target);
    trace_line(vcpu->trace, "cpu%u exit %s block %" PRIu32 " at %#" PRIx64 "+%u%s", vcpu->index,
               site_name(site->kind), site->block, block->rip, site->guest, detail);
}
