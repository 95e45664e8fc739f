/* Units of the LLVM generator as an engine under test: a 64-bit stream is lifted whole, compiled, and put
 * into the vCPU's own code cache, with the translator for what the generator leaves to it. Streams that may
 * write their own code, and those that it refuses, are the translator's.
 *
 * In the code cache a unit's links are patched jumps, as the template's are there, not words beside it.
 */
#include "engine.h"

#include "dbt/dbt.h"
#include "dbt/portable_site.h"
#include "dbt/private.h"
#include "dbt/unit.h"
#include "engine_dbt.h"
#include "layout.h"
#include "mem/guest_mem.h"
#include "sbt/llvm.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct llvm_engine {
    void *dbt; /* the translator's engine */
    void *generator;
    uint64_t lifted, refused;
};

static void llvm_engine_destroy(void *context) {
    struct llvm_engine *engine = context;
    if (getenv("NESTOR_DIFF_VERBOSE"))
        fprintf(stderr, "llvm: %llu streams lifted, %llu left to the translator\n",
                (unsigned long long)engine->lifted, (unsigned long long)engine->refused);
    codegen_llvm.destroy(engine->generator);
    dbt_engine.destroy(engine->dbt);
    free(engine);
}

static int llvm_engine_create(void **context) {
    struct llvm_engine *engine = calloc(1, sizeof *engine);
    if (!engine)
        return -ENOMEM;
    int error = dbt_engine.create(&engine->dbt);
    if (error) {
        free(engine);
        return error;
    }
    engine->generator = codegen_llvm.create(dbt_engine_vcpu(engine->dbt)->model);
    if (!engine->generator) {
        llvm_engine_destroy(engine);
        return -ENOMEM;
    }
    *context = engine;
    return 0;
}

static bool fetch_page(struct vcpu *vcpu, uint64_t linear, uint64_t *ram_offset) {
    void *host;
    if (vmem_host(vcpu, linear, 1, VMEM_FETCH, AS_CURRENT, &host) || !host)
        return false;
    *ram_offset = (uint64_t)((uint8_t *)host - vcpu->mem->base);
    return true;
}

/* A block for the guest bytes [rip, end). */
static struct block *new_block(struct vcpu *vcpu, uint64_t rip, uint64_t end) {
    struct dbt_vcpu *dbt = vcpu->dbt;
    struct block *block = &dbt->block[dbt->blocks];
    *block = (struct block){.rip = rip,
                            .ram_page2 = GUEST_NO_RAM,
                            .mode = vcpu->mode,
                            .incoming = NO_INDEX,
                            .first_site = dbt->sites,
                            .first_pc = dbt->pcs,
                            .guest_length = (uint16_t)(end - rip),
                            .spilled = HOMED};
    if (!fetch_page(vcpu, rip, &block->ram_offset))
        return NULL;
    uint64_t second;
    if ((rip ^ (end - 1)) & PAGE_MASK) {
        if (!fetch_page(vcpu, (rip & PAGE_MASK) + PAGE_SIZE, &second))
            return NULL;
        block->ram_page2 = second & PAGE_MASK;
    }
    return block;
}

static uint32_t add_point(struct dbt_vcpu *dbt, struct block *block) {
    dbt->pc[dbt->pcs++] = (struct pc_entry){.host = 0, .guest = 0, .flags_saved = true};
    block->pcs = 1;
    return dbt->blocks++;
}

/* Links become patchable jumps, the constant and the run time's slot words behind the code. */
static void relocate(struct dbt_vcpu *dbt, const struct ntc_unit *unit, uint64_t rip, uint32_t *jumps) {
    uint8_t *code = dbt->rw + dbt->used;
    uint64_t *words = (uint64_t *)(code + align_up(unit->code_length, 8));
    words[0] = rip;
    words[1] = dbt->sites;
    for (unsigned i = 0; i < unit->reloc_count; i++) {
        const struct ntc_reloc *reloc = &unit->relocs[i];
        uint8_t *place = code + reloc->place;
        if (reloc->kind == NTC_RELOC_CONST) {
            asm_patch_rel32(place, (uint8_t *)&words[reloc->index] - reloc->addend);
        } else if (reloc->kind == NTC_RELOC_SLOT && reloc->index == PORTABLE_SITE_SLOT) {
            asm_patch_rel32(place, (uint8_t *)&words[1] - reloc->addend);
        } else if (reloc->kind == NTC_RELOC_SLOT) {
            place[-2] = 0xe9;
            place[3] = 0x90;
            asm_patch_rel32(place - 1, code + unit->slots[reloc->index]);
            jumps[reloc->index] = (uint32_t)(place - 1 - dbt->rw);
        } else if (reloc->kind == NTC_RELOC_RUNTIME) {
            place[-2] = 0xe9;
            place[3] = 0x90;
            asm_patch_rel32(place - 1, dbt->rw + (dbt_stub(dbt, (enum runtime_slot)reloc->index) - dbt->rx));
        }
    }
}

static bool install(struct vcpu *vcpu, const struct ntc_unit *unit, uint64_t rip) {
    struct dbt_vcpu *dbt = vcpu->dbt;
    uint64_t size = align_up(unit->code_length, 16) + 64, end = rip + unit->guest_length;
    static uint32_t jumps[65536];
    if (!code_make_room(dbt, size + BLOCK_MAX_HOST, unit->entry_count + 2u,
                        unit->site_count + unit->entry_count + 2u, unit->entry_count + 2u))
        return false;
    uint32_t base = (uint32_t)dbt->used, first = dbt->blocks;
    memcpy(dbt->rw + base, unit->code, unit->code_length);
    relocate(dbt, unit, rip, jumps);
    /* The unit's own sites belong to the block of its first entry; the others have one for their end. */
    struct block *block = NULL;
    uint32_t sites = dbt->sites;
    for (unsigned i = 0; i < unit->entry_count; i++) {
        const struct ntc_unit_entry *entry = &unit->entries[i];
        block = new_block(vcpu, rip + entry->guest, end);
        if (!block)
            return false;
        block->entry[0] = base + entry->host + (uint32_t)(int16_t)entry->abi_data;
        block->entry[1] = base + entry->host;
        block->host = block->entry[0];
        block->host_size = unit->code_length - (block->host - base);
        block->first_site = i ? dbt->sites : sites;
        if (!i) {
            for (unsigned k = 0; k < unit->site_count; k++) {
                struct site *site = &dbt->site[dbt->sites];
                if (!portable_site_read(site, &unit->sites[k], base, 0, unit->slots, 0))
                    return false;
                site->block = dbt->blocks;
                site->ready = true;
                if (site->kind == SITE_LINK || site->kind == SITE_UNGROUPED)
                    site->host = jumps[unit->sites[k].slot];
                dbt->sites++;
                block->sites++;
            }
        } else {
            dbt->site[dbt->sites++] = (struct site){.ready = true,
                                                    .block = dbt->blocks,
                                                    .kind = SITE_DEAD,
                                                    .linked_to = NO_INDEX,
                                                    .flags_saved = true};
            block->sites = 1;
        }
        (void)add_point(dbt, block);
    }
    for (uint32_t i = first; i + 1 < dbt->blocks; i++)
        dbt->block[i].host_size = dbt->block[i + 1].host - dbt->block[i].host;
    dbt->used += size;
    for (uint32_t i = first; i < dbt->blocks; i++)
        block_publish(vcpu, i);
    return true;
}

static bool lift(struct llvm_engine *engine, struct vcpu *vcpu, const struct diff_case *test) {
    struct ntc_unit unit;
    uint64_t rip = vcpu->rip;
    const struct codegen_request request = {
        .address = rip, .mode = vcpu->mode, .bytes = test->code + test->entry, .length = test->length};
    if (rip != layout_code_base(test) + test->entry || test->entry + test->length > DIFF_CODE_SIZE ||
        codegen_llvm.translate(engine->generator, &request, &unit))
        return false;
    return install(vcpu, &unit, rip);
}

static int llvm_engine_run(void *context, const struct diff_case *test, struct diff_state *result) {
    struct llvm_engine *engine = context;
    struct vcpu *vcpu = dbt_engine_vcpu(engine->dbt);
    if (dbt_engine_load(engine->dbt, test) && test->mode == 64 && !test->writable_code &&
        lift(engine, vcpu, test))
        engine->lifted++;
    else
        engine->refused++;
    dbt_engine_finish(engine->dbt, test, result);
    return 0;
}

const struct diff_engine llvm_engine = {
    .name = "llvm",
    .summary = "whole streams through LLVM, as in a cache made offline",
    .create = llvm_engine_create,
    .destroy = llvm_engine_destroy,
    .run = llvm_engine_run,
};
