/* The C side of every exit from translated code: find out why, do it, and find the host code to go on with.
 *
 * Compiled without vector code: the guest's extended state stays live through the common exits (linking,
 * jump-cache misses, TLB fills, system instructions, exceptions) and is parked only for translation,
 * interpretation and devices.
 */
#include "base/light.h"
#include "cpu/fpu.h"
#include "cpu/pending.h"
#include "cpu/system.h"
#include "dbt/dump.h"
#include "dbt/host_gs.h"
#include "dbt/percpu.h"
#include "dbt/private.h"
#include "dbt/rewrite.h"
#include "interp/interp.h"
#include "mem/guest_mem.h"

/* rflags whole again: the arithmetic flags, and IF and AC from their hot bytes. */
static void merge_flags(struct vcpu *vcpu, uint64_t arithmetic) {
    const struct dbt_hot *hot = &area_of(vcpu)->hot;
    vcpu->rflags = (vcpu->rflags & ~(uint64_t)(FLAGS_ARITHMETIC | FLAG_IF | FLAG_AC)) |
                   (arithmetic & FLAGS_ARITHMETIC) | (uint64_t)hot->iflag << 8 | (uint64_t)hot->acflag << 16;
}

/* The guest's state at an instruction of a block, from the host registers in hot.save. */
static void reconstruct(struct vcpu *vcpu, const struct block *block, const struct guest_place *place) {
    const struct dbt_hot *hot = &area_of(vcpu)->hot;
    for (unsigned reg = 0; reg < 16; reg++) {
        if (place->state && place->state->where[reg] < 16)
            vcpu->gpr[reg] = hot->save[place->state->where[reg]];
        else if (!place->state && !(block->spilled >> reg & 1))
            vcpu->gpr[reg] = hot->save[reg];
    }
    vcpu->gpr[GPR_RSP] += (uint64_t)(int64_t)place->rsp_lag;
    merge_flags(vcpu, place->flags_saved ? lahf_to_flags(hot->flags) : hot->save_flags);
    vcpu->rip = block->rip + place->guest;
    if (!(block->mode & MODE_CODE_64))
        vcpu->rip = (uint32_t)vcpu->rip;
}

static void interpret(struct vcpu *vcpu) {
    vcpu->dbt->stats.interpreted++;
    vcpu_fpu_park(vcpu);
    (void)interp_step(vcpu);
}

static void forget_cpuid(struct vcpu *vcpu) {
    for (unsigned i = 0; i < CPUID_MEMO_SIZE; i++)
        area_of(vcpu)->cpuid[i].key = CPUID_MEMO_NONE;
    vcpu->cpuid_changed = 0;
}

static void memo_forget_page(struct memo *memo, uint64_t page) {
    if (UNLIKELY(memo->page == page))
        memo_forget(memo);
}

/* The TLB has lost one page of the current space, and nothing else. */
static void forget_page(struct vcpu *vcpu, uint64_t page) {
    struct dbt_area *area = area_of(vcpu);
    for (unsigned i = 0; i < MEMO_SLOTS; i++) {
        memo_forget_page(&area->memo[VMEM_READ][i], page);
        memo_forget_page(&area->memo[VMEM_WRITE][i], page);
    }
    memo_forget_page(&area->hot.stack, page);
    memo_forget_page(&area->hot.user_stack, page);
    crossing_forget_page(vcpu->dbt, page);
    percpu_forget_page(vcpu->dbt, page);
}

/* Drop the memos (emit_memo.c) that may not hold any more. */
static void refresh_memos(struct vcpu *vcpu) {
    struct dbt_area *area = area_of(vcpu);
    bool lost = __atomic_load_n(&vcpu->tlb_lost, __ATOMIC_RELAXED);
    if (UNLIKELY(lost)) {
        __atomic_store_n(&vcpu->tlb_lost, 0, __ATOMIC_SEQ_CST);
        for (unsigned i = 0; i < MEMO_SLOTS; i++) {
            memo_forget(&area->memo[VMEM_READ][i]);
            memo_forget(&area->memo[VMEM_WRITE][i]);
        }
        area->hot.crossing.iret_descriptor[0] = NULL;
        percpu_forget(area);
    } else {
        for (unsigned i = 0; i < vcpu->lost_pages.pages; i++)
            forget_page(vcpu, vcpu->lost_pages.page[i]);
    }
    vcpu->lost_pages.pages = 0;
    bool user = vcpu->mode & MODE_CPL3;
    if (lost || (!user && area->hot.stack_view != vcpu->view)) {
        area->hot.stack_view = user ? NULL : vcpu->view;
        memo_forget(&area->hot.stack);
    }
    if (lost || (user && area->hot.user_stack_view != vcpu->view)) {
        area->hot.user_stack_view = user ? vcpu->view : NULL;
        memo_forget(&area->hot.user_stack);
    }
}

/* Shut the ways between the rings that may lead elsewhere now (crossing.c). */
static void refresh_crossing(struct vcpu *vcpu) {
    struct dbt_vcpu *dbt = vcpu->dbt;
    struct crossing *crossing = &dbt->area->hot.crossing;
    if (UNLIKELY(vcpu->crossing_changed)) {
        vcpu->crossing_changed = 0;
        crossing->key[0] = crossing->key[1] = 0;
    }
    if (vcpu->space->generation != dbt->crossing_generation)
        crossing->key[1] = 0;
    crossing->user_view = vcpu->space->view[VIEW_USER];
}

/* Last steps before translated code at host runs. False: something came up, look again. */
static bool arm(struct vcpu *vcpu, uint64_t host) {
    struct dbt_vcpu *dbt = vcpu->dbt;
    struct dbt_hot *hot = &dbt->area->hot;
    hot->resume = host;
    refresh_memos(vcpu);
    if (UNLIKELY(vcpu->cpuid_changed))
        forget_cpuid(vcpu);
    hot->iflag = (uint8_t)(vcpu->rflags >> 8 & 2);
    hot->acflag = (uint8_t)(vcpu->rflags >> 16 & 4);
    hot->flags = flags_to_lahf(vcpu->rflags);
    hot->view_kernel = vcpu->space->view[VIEW_KERNEL];
    hot->view_kernel_ac = vcpu->space->view[vcpu->cr4 & CR4_SMAP ? VIEW_KERNEL_AC : VIEW_KERNEL];
    refresh_crossing(vcpu);
    percpu_refresh(vcpu);
    vcpu_fpu_unpark(vcpu);
    uint32_t requests = __atomic_load_n(&vcpu->requests, __ATOMIC_ACQUIRE);
    enum area_alias want = requests ? AREA_MASKED : AREA_RUN;
    if (UNLIKELY(dbt->current_alias != want)) {
        dbt->current_alias = want;
        hot->alias = (uint8_t)want;
        host_gs_set(dbt->fsgsbase, dbt->alias[want]);
        /* A kick that came in between has set its bit before its signal: it is seen here. */
        __atomic_signal_fence(__ATOMIC_SEQ_CST);
        requests = __atomic_load_n(&vcpu->requests, __ATOMIC_ACQUIRE);
        /* With a request that waits for IF, the alias must be the one whose STI poll is shut: no second kick
         * comes. */
        if (dbt->current_alias != want || (requests && want == AREA_RUN))
            return false;
    }
    return !vcpu_must_serve(vcpu, requests);
}

int code_page(struct vcpu *vcpu, uint64_t linear, uint64_t *ram_offset, bool *told) {
    const struct vtlb_entry *entry = &vcpu->view->entry[vtlb_index(vcpu->view, linear)];
    for (unsigned pass = 0;; pass++) {
        if (entry->tag_read == (linear & PAGE_MASK) && entry->info & VTLB_INFO_EXECUTABLE) {
            *ram_offset = (entry->info & PAGE_MASK) + (linear & (PAGE_SIZE - 1));
            *told = code_is_told(vcpu, entry->info & VTLB_INFO_GLOBAL);
            return CPU_OK;
        }
        void *host;
        int result = vmem_host(vcpu, linear, 1, VMEM_FETCH, AS_CURRENT, &host);
        if (result)
            return result;
        if (pass || !host) {
            *ram_offset = host ? (uint64_t)((uint8_t *)host - vcpu->mem->base) : GUEST_NO_RAM;
            *told = false;
            return CPU_OK;
        }
    }
}

/* A block over two pages stands only while its second page is where it was. */
static bool second_page_holds(struct vcpu *vcpu, const struct block *block, bool *told) {
    uint64_t ram;
    bool second_told;
    uint64_t second = (block->rip & PAGE_MASK) + PAGE_SIZE;
    if (code_page(vcpu, cpu_is_code64(vcpu) ? second : (uint32_t)second, &ram, &second_told))
        return false;
    *told &= second_told;
    return ram == block->ram_page2;
}

static uint32_t find_or_translate(struct vcpu *vcpu, uint64_t ram_offset, uint32_t mode, bool *told) {
    struct dbt_vcpu *dbt = vcpu->dbt;
    uint32_t index = block_find(dbt, ram_offset, vcpu->rip, mode);
    if (index != NO_INDEX && dbt->block[index].ram_page2 != GUEST_NO_RAM &&
        !second_page_holds(vcpu, &dbt->block[index], told)) {
        block_kill(dbt, index);
        index = NO_INDEX;
    }
    if (index == NO_INDEX && dbt->cached)
        index = cached_find(vcpu, ram_offset, mode, told);
    if (index == NO_INDEX)
        index = rewrite_revive(vcpu, ram_offset, mode);
    if (index == NO_INDEX) {
        vcpu_fpu_park(vcpu);
        index = dbt_translate_watched(vcpu, ram_offset, mode);
        if (index != NO_INDEX && dbt->block[index].ram_page2 != GUEST_NO_RAM)
            (void)second_page_holds(vcpu, &dbt->block[index], told);
    }
    return index;
}

/* Where a direct exit came from, to be linked once the target is known. */
struct origin {
    uint32_t site;
    uint64_t epoch;     /* dbt->host_writes when the site was left */
    uint32_t ungrouped; /* MODE_UNGROUPED: one block without shared checks, which nothing shall lead to by
                           itself */
};

static const struct origin no_origin = {.site = NO_INDEX};

/* Remember the pages of a kernel block that may be relied on. False: they cannot be, so nothing may lead to
 * it from elsewhere. */
static bool rely_on(struct vcpu *vcpu, const struct block *block) {
    uint64_t second = block->rip + PAGE_SIZE;
    return jump_rely(vcpu->dbt, block->rip, block->ram_offset) &&
           (block->ram_page2 == GUEST_NO_RAM ||
            jump_rely(vcpu->dbt, cpu_is_code64(vcpu) ? second : (uint32_t)second, block->ram_page2));
}

static void connect(struct vcpu *vcpu, const struct origin *origin, uint32_t index, bool told) {
    struct dbt_vcpu *dbt = vcpu->dbt;
    struct block *block = &dbt->block[index];
    bool kernel = !(block->mode & MODE_CPL3), two_pages = block->ram_page2 != GUEST_NO_RAM;
    if (two_pages && !(kernel && told))
        return;
    if (origin->site != NO_INDEX && origin->epoch == dbt->host_writes) {
        const struct site *site = block_site(dbt, origin->site);
        bool same_page = !((dbt->block[site->block].rip ^ block->rip) & PAGE_MASK) && !two_pages &&
                         dbt->block[site->block].ram_page2 == GUEST_NO_RAM;
        if (!((dbt->block[site->block].mode ^ block->mode) & ~MODE_UNGROUPED) &&
            (same_page || (kernel && told && rely_on(vcpu, block)))) {
            block_link(dbt, origin->site, index, vcpu->rip);
            return;
        }
    }
    if (block->mode & MODE_UNGROUPED)
        return;
    if (two_pages && !rely_on(vcpu, block))
        return;
    jump_insert(vcpu, vcpu->rip, index, block_entry(dbt, block, vcpu->rip, true), told);
}

/* Go on at vcpu->rip. */
static uint64_t go(struct vcpu *vcpu, struct origin origin) {
    struct dbt_vcpu *dbt = vcpu->dbt;
    for (;; origin.site = NO_INDEX) { /* a second look links nothing */
        if (UNLIKELY(vcpu->irq_shadow && dbt_can_run(vcpu) && vcpu->run_state == RUN_ACTIVE)) {
            interpret(vcpu);
            continue;
        }
        uint32_t requests = __atomic_load_n(&vcpu->requests, __ATOMIC_RELAXED);
        if (UNLIKELY(requests) && vcpu->run_state == RUN_ACTIVE) {
            if (requests & REQUESTS_OF_RUN_LOOP) {
                dbt->exit = DBT_EXIT_REQUEST;
                return RESUME_LEAVE;
            }
            uint64_t target = vcpu->rip;
            vcpu_deliver_pending(vcpu);
            if (vcpu->rip != target)
                origin = no_origin; /* the exit's target is not where this leads */
        }
        if (UNLIKELY(vcpu->run_state != RUN_ACTIVE)) {
            dbt->exit = DBT_EXIT_STATE;
            return RESUME_LEAVE;
        }
        if (vcpu->mode & MODE_CPL3 && vcpu->tier_up && vcpu->tier_up(vcpu)) {
            dbt->area->hot.crossing.key[1] = 0;
            dbt->exit = DBT_EXIT_TIER;
            return RESUME_LEAVE;
        }
        if (UNLIKELY(!dbt_can_run(vcpu))) {
            dbt->exit = DBT_EXIT_MODE;
            return RESUME_LEAVE;
        }
        if (vcpu->code_flush.pages || vcpu->code_flush.global) {
            jump_serve_flush(vcpu);
            origin = no_origin;
        }
        jump_refresh_key(vcpu);
        if (UNLIKELY(dbt->area->hot.crossing.key[!!(vcpu->mode & MODE_CPL3)] != dbt->area->hot.jump_key))
            crossing_open(vcpu);
        if (origin.site == NO_INDEX && !origin.ungrouped) {
            uint64_t host = jump_find(vcpu, vcpu->rip);
            if (host && arm(vcpu, host))
                return RESUME_LOAD;
            if (host)
                continue;
        }
        if (UNLIKELY(cpu_is_code64(vcpu) && !cpu_is_canonical(vcpu->rip))) {
            interpret(vcpu); /* raises the #GP of the fetch */
            continue;
        }
        uint64_t ram_offset;
        bool told;
        if (code_page(vcpu, vcpu->rip, &ram_offset, &told)) {
            dbt->stats.exceptions++;
            cpu_deliver_exception(vcpu);
            continue;
        }
        uint32_t index = ram_offset == GUEST_NO_RAM
                             ? NO_INDEX
                             : find_or_translate(vcpu, ram_offset, vcpu->mode | origin.ungrouped, &told);
        if (index == NO_INDEX) {
            interpret(vcpu);
            continue;
        }
        if (!(vcpu->mode & MODE_CPL3))
            jump_enter_kernel(vcpu, vcpu->rip, ram_offset, told);
        connect(vcpu, &origin, index, told);
        if (arm(vcpu, (uint64_t)dbt->rx + block_entry(dbt, &dbt->block[index], vcpu->rip, true)))
            return RESUME_LOAD;
    }
}

/* An indirect branch to a non-canonical address faults on the branch itself: undo its stack pointer and
 * interpret it. */
static uint64_t bad_target(struct vcpu *vcpu, const struct site *site, const struct block *block) {
    /* (a retpoline has not moved it: its call is made, and its return goes wrong) */
    vcpu->rip = block->rip + site->guest;
    uint8_t first = 0, second = 0;
    uint8_t bytes[INSN_MAX_LENGTH] = {0};
    if (vmem_fetch(vcpu, vcpu->rip, bytes, site->length) < site->length)
        return go(vcpu, no_origin); /* its page is gone: the fetch faults */
    for (unsigned i = 0; i < site->length; i++) {
        first = bytes[i];
        second = i + 1 < site->length ? bytes[i + 1] : 0;
        bool prefix = (first & 0xf0) == 0x40 || first == 0x66 || first == 0x67 || (first & 0xe7) == 0x26 ||
                      first == 0x64 || first == 0x65 || first == 0xf2 || first == 0xf3 || first == 0xf0;
        if (!prefix)
            break;
    }
    if (first == 0xc3)
        vcpu->gpr[GPR_RSP] -= 8;
    else if (first == 0xc2)
        vcpu->gpr[GPR_RSP] -= 8u + (uint64_t)(bytes[site->length - 2] | bytes[site->length - 1] << 8);
    else if ((first == 0xe8 && !site->retpoline) || (first == 0xff && (second >> 3 & 7) == 2))
        vcpu->gpr[GPR_RSP] += 8;
    interpret(vcpu);
    return go(vcpu, no_origin);
}

static int run_helper(struct vcpu *vcpu, const struct site *site, uint64_t next, bool *done) {
    uint64_t value;
    int result;
    *done = true;
    switch ((enum helper)site->access) {
    case HELPER_SYSCALL:
        return cpu_syscall(vcpu, next);
    case HELPER_SYSRET:
        return cpu_sysret(vcpu, site->size / 8);
    case HELPER_IRET:
        return cpu_iret(vcpu, 8);
    case HELPER_CPUID: {
        uint32_t out[4], leaf = (uint32_t)vcpu->gpr[GPR_RAX], subleaf = (uint32_t)vcpu->gpr[GPR_RCX];
        cpu_cpuid(vcpu, leaf, subleaf, out);
        if (cpu_is_code64(vcpu) && !vcpu->cpuid_changed)
            area_of(vcpu)->cpuid[cpuid_memo_index(leaf, subleaf)] = (struct cpuid_memo){
                .key = (uint64_t)subleaf << 32 | leaf, .answer = {out[0], out[1], out[2], out[3]}};
        vcpu->gpr[GPR_RAX] = out[0];
        vcpu->gpr[GPR_RBX] = out[1];
        vcpu->gpr[GPR_RCX] = out[2];
        vcpu->gpr[GPR_RDX] = out[3];
        return CPU_OK;
    }
    case HELPER_RDMSR:
        result = cpu_rdmsr(vcpu, (uint32_t)vcpu->gpr[GPR_RCX], &value);
        if (!result) {
            vcpu->gpr[GPR_RAX] = (uint32_t)value;
            vcpu->gpr[GPR_RDX] = value >> 32;
        }
        return result;
    case HELPER_WRMSR:
        return cpu_wrmsr(vcpu, (uint32_t)vcpu->gpr[GPR_RCX],
                         (uint32_t)vcpu->gpr[GPR_RAX] | vcpu->gpr[GPR_RDX] << 32);
    case HELPER_READ_CR:
        result = cpu_read_cr(vcpu, site->reg >> 4, &value);
        if (!result)
            vcpu->gpr[site->reg & 15] = value;
        return result;
    case HELPER_WRITE_CR:
        return cpu_write_cr(vcpu, site->reg >> 4, vcpu->gpr[site->reg & 15]);
    case HELPER_POPF:
        if (!cpu_is_canonical(vcpu->gpr[GPR_RSP])) {
            *done = false;
            return CPU_OK;
        }
        result = vmem_read_u64(vcpu, vcpu->gpr[GPR_RSP], &value, AS_CURRENT);
        if (!result)
            result = cpu_popf(vcpu, value, 8);
        if (!result)
            vcpu->gpr[GPR_RSP] += 8;
        return result;
    case HELPER_INVLPG:
        return cpu_invlpg(vcpu, area_of(vcpu)->hot.value);
    case HELPER_WRITE_BASE:
        value = vcpu->gpr[site->reg & 15];
        if (site->size == 4)
            value = (uint32_t)value;
        if (!cpu_is_canonical(value))
            return cpu_fault(vcpu, VECTOR_GP, 0);
        vcpu->segment[site->reg >> 4].base = value;
        return CPU_OK;
    case HELPER_XSTATE:
        *done = dbt_xstate(vcpu, (enum xstate_insn)site->reg, area_of(vcpu)->hot.value);
        return CPU_OK;
    case HELPER_STRING:
        return dbt_string(vcpu, site, vcpu->rip, done);
    default:
        *done = false;
        return CPU_OK;
    }
}

static bool transfers_control(enum helper helper) {
    return helper == HELPER_SYSCALL || helper == HELPER_SYSRET || helper == HELPER_IRET;
}

/* Is the page of linear among those that were just flushed? */
static bool flush_names(const struct vcpu *vcpu, uint64_t linear) {
    for (unsigned i = 0; i < vcpu->code_flush.pages; i++)
        if (vcpu->code_flush.page[i] == (linear & PAGE_MASK))
            return true;
    return false;
}

static uint64_t serve_helper(struct vcpu *vcpu, const struct site *site, const struct block *block) {
    struct dbt_vcpu *dbt = vcpu->dbt;
    uint64_t epoch = dbt->host_writes, generation = dbt->kernel_generation,
             next = block->rip + site->guest + site->length;
    if (!(block->mode & MODE_CODE_64))
        next = (uint32_t)next;
    uint32_t host = site->host, mode = block->mode;
    enum helper helper = (enum helper)site->access;
    /* Where kernel code is not relied on, C has to see after a flush where it stands now. */
    bool done, two_pages = block->ram_page2 != GUEST_NO_RAM, local = dbt->kernel_local;
    vcpu->rip = block->rip + site->guest;
    if (run_helper(vcpu, site, next, &done)) {
        dbt->stats.exceptions++;
        cpu_deliver_exception(vcpu);
        return go(vcpu, no_origin);
    }
    if (!done) {
        interpret(vcpu);
        return go(vcpu, no_origin);
    }
    if (helper == HELPER_IRET)
        crossing_note_iret(vcpu);
    if (transfers_control(helper))
        return go(vcpu, no_origin);
    vcpu->rip = next;
    if (!local && !vcpu->code_flush.global && vcpu->code_flush.pages && !flush_names(vcpu, block->rip) &&
        !(two_pages && flush_names(vcpu, block->rip + PAGE_SIZE))) {
        /* INVLPG of some other page: what was cached by address is settled here, the block itself still
         * stands. */
        jump_serve_flush(vcpu);
        jump_refresh_key(vcpu);
    }
    bool stay = host != NO_INDEX && vcpu->mode == (mode & ~MODE_UNGROUPED) && epoch == dbt->host_writes &&
                generation == dbt->kernel_generation && !vcpu->code_flush.pages && !vcpu->code_flush.global &&
                vcpu->run_state == RUN_ACTIVE && !vcpu->irq_shadow && !(vcpu->rflags & FLAG_DF) &&
                !vcpu_must_serve(vcpu, __atomic_load_n(&vcpu->requests, __ATOMIC_RELAXED)) &&
                /* Its other page may be another one under the new tables. */
                !((two_pages || local) && helper == HELPER_WRITE_CR);
    if (stay && arm(vcpu, (uint64_t)dbt->rx + host))
        return RESUME_LOAD;
    return go(vcpu, no_origin);
}

uint64_t dbt_exit_guest(struct vcpu *vcpu) {
    struct dbt_vcpu *dbt = vcpu->dbt;
    struct dbt_hot *hot = &dbt->area->hot;
    const struct site *site = block_site(dbt, hot->site);
    const struct block *block = &dbt->block[site->block];
    merge_flags(vcpu, lahf_to_flags(hot->flags));
    dbt->stats.exits++;
    dump_exit(vcpu, DUMP_EXIT_GUEST);
    switch ((enum site_kind)site->kind) {
    case SITE_LINK:
        vcpu->rip = block->rip + (uint64_t)(int64_t)site->target;
        if (!(block->mode & MODE_CODE_64))
            vcpu->rip = (uint32_t)vcpu->rip;
        return go(vcpu, (struct origin){.site = hot->site, .epoch = dbt->host_writes});
    case SITE_UNGROUPED:
        vcpu->rip = block->rip + site->guest;
        return go(vcpu,
                  (struct origin){.site = hot->site, .epoch = dbt->host_writes, .ungrouped = MODE_UNGROUPED});
    case SITE_JUMP_MISS:
        dbt->stats.jump_misses++;
        if (UNLIKELY(!cpu_is_canonical(hot->target)))
            return bad_target(vcpu, site, block);
        vcpu->rip = hot->target;
        return go(vcpu, no_origin);
    case SITE_HELPER:
        return serve_helper(vcpu, site, block);
    case SITE_INTERPRET:
        vcpu->rip = block->rip + site->guest;
        interpret(vcpu);
        return go(vcpu, no_origin);
    case SITE_DEAD:
    case SITE_MEMORY:
    case SITE_MEMO:
    case SITE_PERCPU:
        break;
    }
    vcpu->rip = block->rip;
    jump_forget(vcpu, vcpu->rip);
    return go(vcpu, no_origin);
}

/* A fault signal in translated code: a poll, or the guest's own instruction. */
uint64_t dbt_exit_fault(struct vcpu *vcpu) {
    struct dbt_vcpu *dbt = vcpu->dbt;
    struct dbt_hot *hot = &dbt->area->hot;
    struct guest_place place;
    dump_exit(vcpu, DUMP_EXIT_FAULT);
    const struct block *block = block_at(dbt, hot->fault_pc, &place);
    bool poll = hot->fault_is_poll || hot->fault_is_sti_poll;
    hot->fault_pc = 0;
    reconstruct(vcpu, block, &place);
    vcpu->irq_shadow |= hot->fault_is_sti_poll;
    if (poll) {
        dbt->stats.polls++;
        if (UNLIKELY(dbt->log) && vcpu->mode & MODE_CPL0)
            portable_log_sample(dbt, vcpu->rip);
    } else
        interpret(vcpu);
    return go(vcpu, no_origin);
}

/* Try to make an inline check succeed. CPU_OK with *filled, or what stands against it. */
static int fill_for(struct vcpu *vcpu, const struct site *site, uint64_t linear, bool *filled) {
    *filled = false;
    bool one_page = (linear & (PAGE_SIZE - 1)) + site->size <= PAGE_SIZE;
    if (!one_page || (cpu_is_code64(vcpu) ? !cpu_is_canonical(linear) : linear > UINT32_MAX))
        return CPU_OK;
    void *host;
    int result = vmem_host(vcpu, linear, site->size, (enum vmem_access)site->access, AS_CURRENT, &host);
    if (result)
        return site->plain ? result : CPU_OK;
    const struct vtlb_entry *entry = &vcpu->view->entry[vtlb_index(vcpu->view, linear)];
    *filled =
        host && (site->access == VMEM_WRITE ? entry->tag_write : entry->tag_read) == (linear & PAGE_MASK);
    return CPU_OK;
}

/* What a MOV to memory stores, read off its bytes: enough of a decoder for a store whose address and size are
 * known. False: something else. */
static bool stored_value(const struct vcpu *vcpu, const uint8_t *code, const struct site *site,
                         uint64_t *value) {
    unsigned i = 0, rex = 0, length = site->length;
    while (i + 2 < length && (code[i] == 0x66 || (code[i] & 0xe7) == 0x26 || (code[i] & 0xfe) == 0x64))
        i++;
    if (cpu_is_code64(vcpu) && (code[i] & 0xf0) == 0x40)
        rex = code[i++];
    if (i + 2 > length || (code[i] & 0xfe) != 0x88 + (code[i] & 0x40 ? 0x3e : 0) ||
        (code[i] & 1 ? site->size == 1 || site->size > 8 : site->size != 1))
        return false;
    unsigned reg = (code[i + 1] >> 3 & 7) | (rex & 4) << 1;
    if (code[i] & 0x40) { /* C6, C7: an immediate */
        unsigned size = site->size < 4 ? site->size : 4;
        int32_t immediate = 0;
        if (reg & 7 || i + 2 + size > length)
            return false;
        light_copy(&immediate, code + length - size, size);
        *value = (uint64_t)(int64_t)immediate;
    } else if (site->size == 1 && !rex && reg >= 4) { /* AH, CH, DH, BH */
        *value = vcpu->gpr[reg - 4] >> 8;
    } else {
        *value = vcpu->gpr[reg];
    }
    return true;
}

/* Most instructions that the interpreter would have to execute for their access are stores to pages of code,
 * or to devices. CPU_OK with *done, or the store's fault. The registers are in vcpu->gpr. */
static int store_by_hand(struct vcpu *vcpu, const struct block *block, const struct site *site,
                         uint64_t linear, bool *done) {
    uint64_t value, next = vcpu->rip + site->length;
    bool one_page = (linear & (PAGE_SIZE - 1)) + site->size <= PAGE_SIZE;
    *done = false;
    if (site->access != VMEM_WRITE || !site->plain || !one_page || block->ram_page2 != GUEST_NO_RAM ||
        (cpu_is_code64(vcpu) ? !cpu_is_canonical(linear) : linear > UINT32_MAX) ||
        !stored_value(vcpu, vcpu->mem->base + block->ram_offset + site->guest, site, &value))
        return CPU_OK;
    int result = vmem_write(vcpu, linear, &value, site->size, AS_CURRENT);
    if (!result) {
        vtlb_regain_write(vcpu, vcpu->view, linear); /* the next store may pass, if no code is left there */
        vcpu->rip = cpu_is_code64(vcpu) ? next : (uint32_t)next;
        *done = true;
    }
    return result;
}

/* Does the TLB's second level have what a check missed? No request is served and nothing dropped meanwhile,
 * so the block may go on whatever else it holds. */
static bool recall_for(struct vcpu *vcpu, const struct site *site) {
    if (!site->ready) /* nothing in it counts yet */
        return false;
    uint64_t linear = area_of(vcpu)->hot.save[site->reg], page = linear & PAGE_MASK;
    const struct vtlb_entry *entry = &vcpu->view->entry[vtlb_index(vcpu->view, linear)];
    return ((linear + site->size - 1) & PAGE_MASK) == page && entry->tag_read != page &&
           vtlb_recall(vcpu, vcpu->view, linear) &&
           (site->access == VMEM_WRITE ? entry->tag_write : entry->tag_read) == page;
}

uint64_t dbt_exit_memory(struct vcpu *vcpu) {
    struct dbt_vcpu *dbt = vcpu->dbt;
    struct dbt_hot *hot = &dbt->area->hot;
    dump_exit(vcpu, DUMP_EXIT_RAW);
    const struct site *left_by = &dbt->site[hot->site];
    if (recall_for(vcpu, left_by)) {
        dbt->stats.tlb_recalls++;
        hot->resume = (uint64_t)dbt->rx + left_by->host;
        return RESUME_RAW;
    }
    /* Copies: while the fill waits for other vCPUs, one of them may have all translations dropped. */
    const struct site here = *block_site(dbt, hot->site), *site = &here;
    const struct block left = dbt->block[site->block], *block = &left;
    const struct guest_place place = {
        .guest = site->guest, .flags_saved = true, .state = block->cache ? cached_state(dbt, site) : NULL};
    uint64_t flushes = dbt->stats.flushes, epoch = dbt->host_writes;
    dbt->stats.tlb_slow++;
    merge_flags(vcpu, lahf_to_flags(hot->flags));
    bool filled;
    uint64_t linear = hot->save[site->reg];
    int result = fill_for(vcpu, site, linear, &filled);
    dbt->stats.tlb_fills += filled;
    /* The block holds addends in scratches. If the TLB has lost anything (the walker's A or D may have met a
     * page of code, and other vCPUs), or any code was dropped, the block is not resumed but left before this
     * instruction. */
    bool dropped = dbt->stats.flushes != flushes;
    bool lost = dbt->host_writes != epoch || __atomic_load_n(&vcpu->tlb_lost, __ATOMIC_RELAXED);
    if (filled && !lost) {
        hot->resume = (uint64_t)dbt->rx + site->host;
        vcpu_fpu_unpark(vcpu);
        return RESUME_RAW;
    }
    reconstruct(vcpu, block, &place);
    if (result) {
        dbt->stats.exceptions++;
        cpu_deliver_exception(vcpu);
    } else if (filled || dropped) {
        /* tried again, from the instruction's start */
    } else if (site->group) {
        block_skip_group(dbt, hot->site);
        return go(vcpu, (struct origin){.site = NO_INDEX, .ungrouped = MODE_UNGROUPED});
    } else {
        bool done;
        if (store_by_hand(vcpu, block, site, linear, &done)) {
            dbt->stats.exceptions++;
            cpu_deliver_exception(vcpu);
        } else if (!done) {
            interpret(vcpu);
        }
    }
    return go(vcpu, no_origin);
}

enum dbt_exit dbt_run(struct vcpu *vcpu) {
    struct dbt_vcpu *dbt = vcpu->dbt;
    dbt->in_code = true;
    if (go(vcpu, no_origin) == RESUME_LOAD)
        ((void (*)(void))dbt->stub_enter)();
    dbt->in_code = false;
    vcpu_fpu_park(vcpu);
    return dbt->exit;
}
