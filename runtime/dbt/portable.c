/* Making portable units: the template emitter with every tie to this process written as a slot, a constant or
 * a relocation (emit_portable.c), and its tables in the words of the cache format.
 */
#include "dbt/portable_private.h"

#include "cache-format/map.h"
#include "cpu/model.h"
#include "dbt/portable_site.h"
#include "interp/interp.h"
#include "mem/guest_mem.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SCRATCH_CODE (1 * MIB)
#define PORTABLE_STATES_MAX 1024u
#define PORTABLE_SITES_MAX 16384u
#define PORTABLE_FIELDS_MAX 4096u
/* What follows the number of CPUs: EDX of leaf 1, ECX of leaf 80000001H. */
#define HTT (1u << 28)
#define CMP_LEGACY (1u << 1)

/* What dbt_portable_translate() hands out, kept with the translator. */
struct translator {
    struct portable portable;
    struct ntc_site site[PORTABLE_SITES_MAX];
    struct ntc_unit_entry entry[FUNCTION_GUEST_MAX];
    struct function *function;
    struct ntc_field field[PORTABLE_FIELDS_MAX];
    bool field_stuck[PORTABLE_FIELDS_MAX];
    uint16_t pc_spilled[SCRATCH_CODE / 20 + 1]; /* as many as dbt->pc */
    struct ntc_map_builder map;
    struct ntc_state state[PORTABLE_STATES_MAX];
    unsigned states;
};

bool dbt_portable_mode(uint32_t mode) {
    return (mode & MODE_CODE_MASK) == MODE_CODE_64 && mode & MODE_CPL0 && !(mode & MODE_UNGROUPED);
}

#define DEPENDED_SCALAR (MODE_TSC_OFFSET | MODE_FSGSBASE)
#define DEPENDED_ON                                                                                          \
    (MODE_NO_X87 | MODE_NO_WAIT | MODE_SSE_NM | MODE_SSE_UD | MODE_AVX_UD | MODE_AVX512_UD | DEPENDED_SCALAR)

uint32_t dbt_portable_key(uint32_t mode, enum portable_dependence dependence) {
    uint32_t key = mode & (MODE_CODE_MASK | MODE_CPL0 | MODE_CPL3);
    switch (dependence) { /* bits that all this code has tell the kinds of keys apart */
    case PORTABLE_VECTOR:
        return key | MODE_PROTECTED | (mode & DEPENDED_ON);
    case PORTABLE_SCALAR:
        return key | MODE_LONG | (mode & DEPENDED_SCALAR);
    default:
        return key;
    }
}

uint32_t dbt_portable_mode_like(uint32_t mode, uint32_t key) {
    return (mode & ~DEPENDED_ON) | (key & DEPENDED_ON);
}

struct digest {
    uint64_t value;
};

static void digest_add(struct digest *digest, uint64_t word) {
    for (unsigned i = 0; i < 8; i++)
        digest->value = (digest->value ^ (word >> 8 * i & 0xff)) * 0x100000001b3ull;
}

uint64_t dbt_portable_layout(const struct cpu_model *model) {
    const uint64_t words[] = {DBT_PORTABLE_ABI,
                              AREA_GPR(0),
                              AREA_VCPU(view),
                              AREA_VCPU(rflags),
                              AREA_VCPU(segment[SEG_FS].base),
                              AREA_VCPU(segment[SEG_GS].base),
                              AREA_HOT(percpu),
                              AREA_VCPU(kernel_gs_base),
                              AREA_VCPU(tsc_aux),
                              AREA_HOT(target),
                              AREA_HOT(value),
                              AREA_HOT(flags),
                              AREA_HOT(site),
                              AREA_HOT(jump_key),
                              AREA_VCPU(requests),
                              AREA_HOT(stack.page),
                              AREA_HOT(stack.addend),
                              AREA_HOT(stack_view),
                              AREA_HOT(view_kernel),
                              AREA_HOT(iflag),
                              AREA_HOT(acflag),
                              AREA_HOT(alias),
                              AREA_HOT(host_rsp),
                              AREA_HOT(view_kernel_ac),
                              offsetof(struct dbt_area, cpuid),
                              offsetof(struct dbt_area, jump.key),
                              offsetof(struct dbt_area, jump.host),
                              offsetof(struct dbt_area, poll),
                              offsetof(struct dbt_area, sti_poll),
                              sizeof(struct segment),
                              sizeof(struct vtlb_entry),
                              offsetof(struct vtlb_entry, tag_write),
                              offsetof(struct vtlb_entry, addend),
                              offsetof(struct vtlb_view, entry),
                              VTLB_USER_BITS,
                              VTLB_KERNEL_BITS,
                              JUMP_CACHE_BITS,
                              CPUID_MEMO_SIZE,
                              HOMED,
                              HELPER_XSTATE,
                              SITE_UNGROUPED,
                              RUNTIME_SLOTS_USED};
    struct digest digest = {0xcbf29ce484222325ull};
    for (unsigned i = 0; i < ARRAY_SIZE(words); i++)
        digest_add(&digest, words[i]);
    /* Which instructions are withheld from the guest decides what is copied and what is interpreted. */
    for (unsigned i = 0; i < model->count; i++) {
        const struct cpuid_entry *entry = &model->entry[i];
        if (entry->leaf != 1 && entry->leaf != 7 && entry->leaf != 0xd && entry->leaf != 0x80000001u)
            continue;
        digest_add(&digest, (uint64_t)entry->leaf << 32 | entry->subleaf);
        bool family = entry->leaf == 1, extended = entry->leaf == 0x80000001u;
        digest_add(&digest, family ? 0 : (uint64_t)entry->eax << 32 | entry->ebx);
        digest_add(&digest, (uint64_t)(extended ? entry->ecx & ~CMP_LEGACY : entry->ecx) << 32 |
                                (family ? entry->edx & ~HTT : entry->edx));
    }
    return digest.value;
}

struct vcpu *dbt_translator_create(const struct cpu_model *model) {
    const struct dbt_options options = {.code_cache_size = SCRATCH_CODE, .parts = 1};
    struct vcpu *vcpu = dbt_area_create();
    if (!vcpu)
        return NULL;
    vcpu->model = model;
    /* The interpreter's part knows which instructions the model withholds. */
    if (interp_vcpu_create(vcpu) || dbt_vcpu_create(vcpu, &options)) {
        dbt_translator_destroy(vcpu);
        return NULL;
    }
    vcpu->dbt->translator = calloc(1, sizeof *vcpu->dbt->translator);
    if (vcpu->dbt->translator)
        vcpu->dbt->translator->function = function_create();
    if (!vcpu->dbt->translator || !vcpu->dbt->translator->function) {
        dbt_translator_destroy(vcpu);
        return NULL;
    }
    return vcpu;
}

void dbt_translator_destroy(struct vcpu *vcpu) {
    if (!vcpu)
        return;
    if (vcpu->dbt && vcpu->dbt->translator) {
        ntc_map_builder_destroy(&vcpu->dbt->translator->map);
        function_destroy(vcpu->dbt->translator->function);
    }
    if (vcpu->dbt)
        free(vcpu->dbt->translator);
    dbt_vcpu_destroy(vcpu);
    if (vcpu->interp)
        interp_vcpu_destroy(vcpu);
    dbt_area_destroy(vcpu);
}

/* The number of the state with these registers in the vCPU's own words. -1: more states than are kept. */
static int state_number(struct translator *translator, uint16_t spilled, uint16_t flags) {
    struct ntc_state state = {.flags = flags};
    for (unsigned reg = 0; reg < 16; reg++)
        state.where[reg] = (uint8_t)(spilled >> reg & 1 ? NTC_WHERE_VCPU : reg);
    for (unsigned i = 0; i < translator->states; i++)
        if (!memcmp(&translator->state[i], &state, sizeof state))
            return (int)i;
    if (translator->states == ARRAY_SIZE(translator->state))
        return -1;
    translator->state[translator->states] = state;
    return (int)translator->states++;
}

static bool describe_sites(const struct unit *unit, struct translator *translator) {
    const struct block *block = unit->block;
    if (block->sites > ARRAY_SIZE(translator->site))
        return false;
    for (unsigned i = 0; i < block->sites; i++)
        portable_site_write(&translator->site[i], &unit->dbt->site[block->first_site + i], block->host);
    return true;
}

static uint16_t state_flags(const struct pc_entry *pc) {
    return (uint16_t)((pc->flags_saved ? NTC_STATE_FLAGS_SAVED : 0) |
                      (pc->remake ? PORTABLE_STATE_REMADE : 0) | (pc->remakes ? PORTABLE_STATE_REMAKES : 0));
}

static int describe_map(const struct unit *unit, struct translator *translator) {
    const struct block *block = unit->block;
    ntc_map_builder_reset(&translator->map);
    translator->states = 0;
    (void)state_number(translator, 0, 0); /* the file's first */
    for (unsigned i = 0; i < block->pcs; i++) {
        const struct pc_entry *pc = &unit->dbt->pc[block->first_pc + i];
        int state = state_number(translator, translator->pc_spilled[i], state_flags(pc));
        if (state < 0)
            return -E2BIG;
        int result =
            ntc_map_add(&translator->map,
                        &(struct ntc_point){.host = pc->host, .guest = pc->guest, .state = (uint32_t)state});
        if (result)
            return result;
    }
    return 0;
}

/* Set the translator up for guest code. */
static struct unit *prepare(struct vcpu *vcpu, const struct portable_request *request) {
    struct dbt_vcpu *dbt = vcpu->dbt;
    struct unit *work = dbt->unit;
    struct block *block = &dbt->block[0];
    dbt->sites = dbt->pcs = 0;
    dbt->used = dbt->stubs_end;
    *block = (struct block){.rip = request->rip,
                            .ram_page2 = GUEST_NO_RAM,
                            .mode = request->mode,
                            .host = (uint32_t)dbt->used,
                            .incoming = NO_INDEX};
    unit_begin(work, vcpu, block, request->bytes, request->length);
    work->portable = &dbt->translator->portable;
    work->code64 = true;
    return work;
}

static int describe(struct vcpu *vcpu, const struct portable_request *request, uint32_t guest_length,
                    unsigned entries, struct ntc_unit *unit) {
    struct translator *translator = vcpu->dbt->translator;
    const struct unit *work = vcpu->dbt->unit;
    const struct block *block = work->block;
    const struct portable *portable = &translator->portable;
    if (!describe_sites(work, translator))
        return -E2BIG;
    int result = describe_map(work, translator);
    if (result)
        return result;
    *unit = (struct ntc_unit){.link_address = request->rip,
                              .guest_length = guest_length,
                              .mode = dbt_portable_key(request->mode, work->dependence),
                              .generator = NTC_GENERATOR_TEMPLATE,
                              .bytes = request->bytes,
                              .code = vcpu->dbt->rw + block->host,
                              .code_length = (uint32_t)(work->code.at - work->code.start),
                              .slots = portable->slot,
                              .consts = portable->constant,
                              .sites = translator->site,
                              .relocs = portable->reloc,
                              .map = translator->map.bytes,
                              .map_length = translator->map.length,
                              .states = translator->state,
                              .state_count = translator->states,
                              .slot_count = (uint16_t)portable->slots,
                              .const_count = (uint16_t)portable->consts,
                              .site_count = block->sites,
                              .reloc_count = (uint16_t)portable->relocs,
                              .entries = translator->entry,
                              .entry_count = (uint16_t)entries};
    return 0;
}

int dbt_portable_translate(struct vcpu *vcpu, const struct portable_request *request, struct ntc_unit *unit) {
    struct translator *translator = vcpu->dbt->translator;
    if (!dbt_portable_mode(request->mode) || !request->length)
        return -ENOENT;
    struct unit *work = prepare(vcpu, request);
    const struct block *block = work->block;
    if (!unit_translate(work))
        return -ENOENT;
    for (unsigned i = 0; i < block->pcs; i++)
        translator->pc_spilled[i] = block->spilled;
    translator->entry[0] =
        (struct ntc_unit_entry){.host = block->entry[true] - block->host,
                                .abi_data = (uint16_t)(block->entry[false] - block->entry[true])};
    return describe(vcpu, request, block->guest_length, 1, unit);
}

/* The fields that are out of the code, and their numbers in what names them. */
static bool keep_fields(const struct unit *work, struct translator *translator, struct ntc_unit *unit) {
    uint16_t number[PORTABLE_FIELDS_MAX];
    unsigned count = 0;
    for (unsigned i = 0; i < work->fields; i++) {
        number[i] = (uint16_t)count;
        if (!work->field_stuck[i])
            translator->field[count++] = work->field[i];
    }
    for (unsigned i = 0; i < translator->portable.relocs; i++) {
        struct ntc_reloc *reloc = &translator->portable.reloc[i];
        if (reloc->kind != NTC_RELOC_FIELD && reloc->kind != NTC_RELOC_FIELD_PC)
            continue;
        if (work->field_stuck[reloc->index]) /* instructions overlap */
            return false;
        reloc->index = number[reloc->index];
    }
    for (unsigned i = 0; i < unit->site_count; i++)
        if (translator->site[i].flags & NTC_SITE_TARGET_FIELD)
            translator->site[i].target = number[translator->site[i].target];
    unit->fields = translator->field;
    unit->field_count = (uint16_t)count;
    return true;
}

int dbt_portable_function(struct vcpu *vcpu, const struct portable_function *request, struct ntc_unit *unit) {
    struct dbt_vcpu *dbt = vcpu->dbt;
    if (!dbt_portable_mode(request->code.mode | (dbt->cached_any_ring ? MODE_CPL0 : 0)) ||
        !request->code.length)
        return -ENOENT;
    if (request->code.length > FUNCTION_GUEST_MAX || request->fields > PORTABLE_FIELDS_MAX)
        return -E2BIG;
    struct unit *work = prepare(vcpu, &request->code);
    work->field = request->field;
    work->fields = request->fields;
    work->field_stuck = dbt->translator->field_stuck;
    memset(work->field_stuck, 0, request->fields * sizeof *work->field_stuck);
    work->function = dbt->translator->function;
    uint8_t *start = dbt->rw + dbt->used;
    /* A point of the map has 16 bits for its place. */
    work->code = (struct code_buffer){.start = start, .at = start, .end = start + UINT16_MAX};
    int result = function_translate(work, request, dbt->translator->pc_spilled);
    if (!result)
        result = function_entries(work, dbt->translator->entry, ARRAY_SIZE(dbt->translator->entry));
    if (result >= 0)
        result = describe(vcpu, &request->code, request->code.length, (unsigned)result, unit);
    if (!result && !keep_fields(work, dbt->translator, unit))
        result = -EINVAL;
    work->function = NULL;
    return result;
}

/* -- Recording -- */

struct logged {
    uint64_t rip;
    uint32_t mode;
    uint32_t bytes; /* offset */
    uint16_t length;
};

/* Interrupts that were taken at a place: a sample of where time goes. */
struct sampled {
    uint64_t rip, count;
};
#define SAMPLE_BITS 14

struct portable_log {
    struct sampled sample[1u << SAMPLE_BITS]; /* a hash table; what finds no room nearby is lost */
    struct logged *block;
    uint8_t *bytes;
    uint32_t blocks, max_blocks, used, size;
};

int dbt_portable_log(struct vcpu *vcpu) {
    vcpu->dbt->log = calloc(1, sizeof *vcpu->dbt->log);
    return vcpu->dbt->log ? 0 : -ENOMEM;
}

/* Room for `needed` elements in all, doubling the array; false: without memory, or past what offsets can
 * name. */
static bool make_room(void **array, uint32_t *room, uint64_t needed, size_t element) {
    if (needed <= *room)
        return true;
    uint64_t wanted = needed * 2 < 4096 ? 4096 : needed * 2;
    void *bigger = wanted > UINT32_MAX ? NULL : realloc(*array, wanted * element);
    if (!bigger)
        return false;
    *array = bigger;
    *room = (uint32_t)wanted;
    return true;
}

void portable_log_add(struct vcpu *vcpu, const struct block *block) {
    struct portable_log *log = vcpu->dbt->log;
    if (!dbt_portable_mode(block->mode) || block->ram_page2 != GUEST_NO_RAM ||
        !make_room((void **)&log->block, &log->max_blocks, log->blocks + 1ull, sizeof *log->block) ||
        !make_room((void **)&log->bytes, &log->size, (uint64_t)log->used + block->guest_length, 1))
        return;
    memcpy(log->bytes + log->used, vcpu->mem->base + block->ram_offset, block->guest_length);
    log->block[log->blocks++] = (struct logged){
        .rip = block->rip, .mode = block->mode, .bytes = log->used, .length = block->guest_length};
    log->used += block->guest_length;
}

void portable_log_sample(struct dbt_vcpu *dbt, uint64_t rip) {
    uint64_t at = rip * 0x9e3779b97f4a7c15ull >> (64 - SAMPLE_BITS);
    for (unsigned i = 0; i < 8; i++) {
        struct sampled *sample = &dbt->log->sample[(at + i) & ((1u << SAMPLE_BITS) - 1)];
        if (sample->count && sample->rip != rip)
            continue;
        sample->rip = rip;
        sample->count++;
        return;
    }
}

void dbt_portable_profile(const struct vcpu *vcpu,
                          void (*add)(void *context, const struct portable_seen *seen), void *context) {
    const struct portable_log *log = vcpu->dbt->log;
    cached_profile(vcpu->dbt, add, context);
    for (uint32_t i = 0; log && i < log->blocks; i++) {
        struct portable_seen seen = {.address = log->block[i].rip,
                                     .count = 1,
                                     .mode = dbt_portable_key(log->block[i].mode, PORTABLE_ANYWHERE)};
        seen.image = cached_image(vcpu->dbt, &seen.address);
        add(context, &seen);
    }
    for (unsigned i = 0; log && i < ARRAY_SIZE(log->sample); i++) {
        struct portable_seen seen = {
            .address = log->sample[i].rip, .count = log->sample[i].count, .mode = MODE_CODE_64 | MODE_CPL0};
        if (!seen.count)
            continue;
        seen.image = cached_image(vcpu->dbt, &seen.address);
        add(context, &seen);
    }
}

void portable_log_destroy(struct dbt_vcpu *dbt) {
    if (!dbt->log)
        return;
    free(dbt->log->block);
    free(dbt->log->bytes);
    free(dbt->log);
    dbt->log = NULL;
}

void dbt_portable_record(struct vcpu *vcpu, struct vcpu *translator,
                         void (*add)(void *context, struct ntc_unit *unit), void *context) {
    const struct portable_log *log = vcpu->dbt->log;
    for (uint32_t i = 0; log && i < log->blocks; i++) {
        const struct logged *logged = &log->block[i];
        const struct portable_request request = {.rip = logged->rip,
                                                 .mode = logged->mode,
                                                 .bytes = log->bytes + logged->bytes,
                                                 .length = logged->length};
        struct ntc_unit unit;
        if (!dbt_portable_translate(translator, &request, &unit))
            add(context, &unit);
    }
}
