/* The software TLB's bookkeeping: which views exist, and what flushes take from them. Filling is vmem.c's. */
#define _GNU_SOURCE
#include "cpu/vtlb.h"
#include "cpu/mode.h"

#include <errno.h>
#include <sys/mman.h>

#define SPACES_BYTES (VTLB_SPACES * sizeof(struct vtlb_space))

static void view_clear(struct vtlb_view *view) {
    for (uint64_t used = view->used; used; used &= used - 1) {
        struct vtlb_entry *entry = view->entry + (unsigned)__builtin_ctzll(used) * VTLB_CHUNK;
        for (unsigned i = 0; i < VTLB_CHUNK; i++)
            entry[i].tag_read = entry[i].tag_write = VTLB_INVALID;
    }
    view->used = 0;
}

static void space_clear(struct vcpu *vcpu, struct vtlb_space *space) {
    for (unsigned i = 0; i < VIEW_KINDS; i++)
        view_clear(&space->view[i]);
    space->large_regions = 0;
    space->generation = ++vcpu->generation_counter;
}

int vtlb_create(struct vcpu *vcpu) {
    vcpu->spaces = mmap(NULL, SPACES_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (vcpu->spaces == MAP_FAILED)
        return -ENOMEM;
    for (unsigned i = 0; i < VTLB_SPACES; i++) {
        for (unsigned kind = 0; kind < VIEW_KINDS; kind++)
            vcpu->spaces[i].view[kind].used = ~0ull;
        space_clear(vcpu, &vcpu->spaces[i]);
    }
    vcpu->space = &vcpu->spaces[0];
    vcpu->space->live = true;
    vcpu->view = &vcpu->space->view[VIEW_KERNEL];
    return 0;
}

void vtlb_destroy(struct vcpu *vcpu) {
    munmap(vcpu->spaces, SPACES_BYTES);
}

void vtlb_flush_all(struct vcpu *vcpu) {
    for (unsigned i = 0; i < VTLB_SPACES; i++)
        if (vcpu->spaces[i].live)
            space_clear(vcpu, &vcpu->spaces[i]);
    vcpu->code_flush.global = true;
}

static struct vtlb_space *find_space(struct vcpu *vcpu, uint16_t pcid) {
    for (unsigned i = 0; i < VTLB_SPACES; i++)
        if (vcpu->spaces[i].live && vcpu->spaces[i].pcid == pcid)
            return &vcpu->spaces[i];
    return NULL;
}

void vtlb_flush_space(struct vcpu *vcpu, uint16_t pcid) {
    struct vtlb_space *space = find_space(vcpu, pcid);
    if (space)
        space_clear(vcpu, space);
    if (!(vcpu->cr4 & CR4_PGE))
        vcpu->code_flush.global = true;
}

static struct vtlb_entry *entry_of(struct vtlb_view *view, uint64_t linear) {
    return &view->entry[linear >> PAGE_SHIFT & (VTLB_ENTRIES - 1)];
}

static void drop_page(struct vtlb_space *space, uint64_t page) {
    for (unsigned kind = 0; kind < VIEW_KINDS; kind++) {
        struct vtlb_entry *entry = entry_of(&space->view[kind], page);
        if (entry->tag_read == page || entry->tag_write == page)
            entry->tag_read = entry->tag_write = VTLB_INVALID;
    }
}

static uint64_t region_bit(uint64_t linear) {
    return 1ull << ((linear >> 21) * 0x9e3779b97f4a7c15ull >> 58);
}

/* Drop all that came from the large page around linear. Its size is not known: take 1 GiB (4 MiB without long
 * mode). */
static void drop_large(struct vcpu *vcpu, struct vtlb_space *space, uint64_t linear) {
    unsigned shift = vcpu->efer & EFER_LMA ? 30 : 22;
    for (unsigned kind = 0; kind < VIEW_KINDS; kind++) {
        struct vtlb_view *view = &space->view[kind];
        for (unsigned i = 0; i < VTLB_ENTRIES; i++) {
            struct vtlb_entry *entry = &view->entry[i];
            if (entry->info & VTLB_INFO_LARGE &&
                (entry->tag_read >> shift == linear >> shift || entry->tag_write >> shift == linear >> shift))
                entry->tag_read = entry->tag_write = VTLB_INVALID;
        }
    }
}

static void note_page(struct vcpu *vcpu, uint64_t page) {
    if (vcpu->code_flush.pages < CODE_FLUSH_PAGES)
        vcpu->code_flush.page[vcpu->code_flush.pages++] = page;
    else
        vcpu->code_flush.global = true;
}

static void drop_in_space(struct vcpu *vcpu, struct vtlb_space *space, uint64_t linear) {
    drop_page(space, linear & PAGE_MASK);
    if (space->large_regions & region_bit(linear))
        drop_large(vcpu, space, linear);
}

void vtlb_invlpg(struct vcpu *vcpu, uint64_t linear) {
    for (unsigned i = 0; i < VTLB_SPACES; i++) /* the others for the sake of global pages */
        if (vcpu->spaces[i].live)
            drop_in_space(vcpu, &vcpu->spaces[i], linear);
    note_page(vcpu, linear & PAGE_MASK);
}

void vtlb_invpcid_page(struct vcpu *vcpu, uint16_t pcid, uint64_t linear) {
    struct vtlb_space *space = find_space(vcpu, pcid);
    if (!space)
        return;
    drop_in_space(vcpu, space, linear);
    if (space == vcpu->space)
        note_page(vcpu, linear & PAGE_MASK);
    else
        space->generation = ++vcpu->generation_counter;
}

void vtlb_switch_space(struct vcpu *vcpu, uint16_t pcid, bool keep) {
    struct vtlb_space *space = find_space(vcpu, pcid);
    bool fresh = !space;
    if (fresh) {
        space = &vcpu->spaces[0];
        for (unsigned i = 0; i < VTLB_SPACES; i++) {
            struct vtlb_space *candidate = &vcpu->spaces[i];
            if (!candidate->live) {
                space = candidate;
                break;
            }
            if (candidate != vcpu->space && (space == vcpu->space || candidate->last_used < space->last_used))
                space = candidate;
        }
    }
    if (fresh || !keep)
        space_clear(vcpu, space);
    space->pcid = pcid;
    space->live = true;
    space->last_used = ++vcpu->space_clock;
    vcpu->space = space;
    if (!(vcpu->cr4 & CR4_PGE))
        vcpu->code_flush.global = true;
    vtlb_select_view(vcpu);
}

void vtlb_select_view(struct vcpu *vcpu) {
    enum vtlb_view_kind kind = VIEW_KERNEL;
    if (vcpu->cpl == 3)
        kind = VIEW_USER;
    else if (vcpu->rflags & FLAG_AC && vcpu->cr4 & CR4_SMAP)
        kind = VIEW_KERNEL_AC;
    vcpu->view = &vcpu->space->view[kind];
}

void vtlb_write_protect(struct vcpu *vcpu, uint64_t ram_page_offset) {
    for (unsigned i = 0; i < VTLB_SPACES; i++) {
        struct vtlb_space *space = &vcpu->spaces[i];
        for (unsigned kind = 0; kind < VIEW_KINDS; kind++) {
            struct vtlb_view *view = &space->view[kind];
            for (uint64_t used = view->used; used; used &= used - 1) {
                struct vtlb_entry *entry = view->entry + (unsigned)__builtin_ctzll(used) * VTLB_CHUNK;
                for (unsigned j = 0; j < VTLB_CHUNK; j++)
                    if ((entry[j].info & PAGE_MASK) == ram_page_offset)
                        __atomic_store_n(&entry[j].tag_write, VTLB_INVALID, __ATOMIC_RELAXED);
            }
        }
    }
}
