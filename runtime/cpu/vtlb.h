/* The software TLB: what all tiers reach guest memory through.
 *
 * A view is a direct-mapped table for one (address space, privilege) pair. Translated code checks it inline:
 *   index = (address >> 12) & view.mask; hit when the page of the LAST byte equals entry.tag_read or
 *   tag_write; host address = address + entry.addend. An access that crosses a page therefore always misses.
 * The mask is a constant there: ring 3 has more entries than the rings that share the kernel's views.
 * tag_write is valid only when a store needs no bookkeeping: PTE.D is set and the page's state is 0.
 * Pages that are not RAM never enter a view. An entry may vanish at any time; only its own vCPU thread adds.
 * What a fill throws out of the table goes to its second level, behind it: sets of VTLB_WAYS entries that
 * several indices share. Who misses asks there before he walks (vtlb_recall()), and what is found changes
 * places with what was in the way. So hot pages that share an index do not throw each other out. A page is in
 * one of the two levels at most. Other threads leave the second level alone: write tags there hold only once
 * they have come back. Another thread may only set tag_write to VTLB_INVALID (when a page starts to hold
 * code). Translated code keeps copies of entries (dbt/emit_memo.c): vcpu->tlb_lost says
 * when they are void, vcpu->lost_pages when those of some pages are.
 */
#ifndef NESTOR_CPU_VTLB_H
#define NESTOR_CPU_VTLB_H

#include "base/types.h"

#define VTLB_USER_BITS 14
#define VTLB_KERNEL_BITS 12
#define VTLB_SET_BITS 6
#define VTLB_SETS (1u << VTLB_SET_BITS) /* of the second level */
#define VTLB_WAYS 4u
#define VTLB_CHUNK 16 /* entries that one bit of vtlb_view.used stands for */
/* Never equal to the page of any address. */
#define VTLB_INVALID 1ull

#define VTLB_INFO_EXECUTABLE 1u /* fetch is permitted in this view */
#define VTLB_INFO_GLOBAL 2u
#define VTLB_INFO_WRITABLE                                                                                   \
    8u                     /* nothing but the page's state may stand against a write in this view: D is set */
#define VTLB_INFO_LARGE 4u /* filled from a 2M/4M/1G mapping */

struct vtlb_entry {
    uint64_t tag_read;  /* linear page, or VTLB_INVALID */
    uint64_t tag_write; /* linear page, or VTLB_INVALID */
    uint64_t addend;    /* host address - linear address */
    uint64_t info;      /* RAM offset of the page | VTLB_INFO_* */
};

/* vcpu->write_hint: where a page of RAM may have write tags in the first levels of this vCPU's views. Each
 * half is 0 or 1 + an index there. */
#define WRITE_HINT_NONE 0
#define WRITE_HINT_SEVERAL UINT32_MAX

/* Entries are zero, in memory that nobody has touched, until something is put into their chunk. That is as
 * good as invalid for every page but the first and what leads to it from the last: those chunks are made at
 * once. */
struct vtlb_view {
    uint32_t mask;     /* entries of the first level - 1 */
    uint32_t words;    /* of used and of made, which have one bit per chunk: */
    uint64_t *used;    /* it may hold a valid entry */
    uint64_t *made;    /* its entries were written once */
    unsigned next_way; /* of a set that is full, to be used again */
    /* What translated code probes, then the second level. */
    struct vtlb_entry entry[] __attribute__((aligned(64)));
};

static inline uint32_t vtlb_mask(bool user) {
    return (1u << (user ? VTLB_USER_BITS : VTLB_KERNEL_BITS)) - 1;
}

static inline unsigned vtlb_index(const struct vtlb_view *view, uint64_t linear) {
    return (unsigned)(linear >> PAGE_SHIFT) & view->mask;
}

/* The views of one address space. */
enum vtlb_view_kind {
    VIEW_USER,      /* CPL 3 */
    VIEW_KERNEL,    /* CPL < 3, and implicit supervisor accesses; user pages shut when SMAP is on */
    VIEW_KERNEL_AC, /* CPL < 3 with EFLAGS.AC set under SMAP: user pages open */
    VIEW_KINDS,
};

#define VTLB_LARGE_WORDS 16

/* One address space as the TLB knows it: CR3's PCID. */
struct vtlb_space {
    struct vtlb_view *view[VIEW_KINDS];
    /* Hash sets of the large pages that entries came from, for the user and the kernel half: see
     * vtlb_invlpg(). */
    uint64_t large[2][VTLB_LARGE_WORDS];
    uint64_t generation; /* renewed when the space is flushed: what was cached under it by virtual address is
                            void */
    uint16_t pcid;
    bool live;
    uint64_t last_used;
};

#define VTLB_SPACES 8

/* Bit of the large page of 1 << shift bytes around linear, in vtlb_space.large[]. */
static inline unsigned vtlb_large_bit(uint64_t linear, unsigned shift) {
    return (unsigned)(((linear >> shift) + shift) * 0x9e3779b97f4a7c15ull >> 54) % (VTLB_LARGE_WORDS * 64);
}

/* Invalidations that whoever caches code by virtual address must act on before it runs more of it. */
#define CODE_FLUSH_PAGES 8
struct code_flush {
    uint64_t page[CODE_FLUSH_PAGES]; /* linear pages hit by INVLPG and the like */
    unsigned pages;
    bool global; /* all kernel (global) mappings may have changed */
};

/* Pages that the current space's views have lost one by one, by INVLPG and the like: whoever keeps copies
 * (vcpu->tlb_lost) drops those of these pages alone. */
#define LOST_PAGES 4
struct lost_pages {
    uint64_t page[LOST_PAGES];
    unsigned pages;
};

struct vcpu;

/* Index in vtlb_view.entry of the set where entries of that index in the first level go. */
static inline unsigned vtlb_set(const struct vtlb_view *view, unsigned index) {
    return view->mask + 1 + index % VTLB_SETS * VTLB_WAYS;
}

/* Allocate and free the spaces of a vCPU, whose mem is set: 0 or -ENOMEM. */
MUST_CHECK int vtlb_create(struct vcpu *vcpu);
void vtlb_destroy(struct vcpu *vcpu);

/* Drop everything / everything of the current space but global pages (global ones may go, too). */
void vtlb_flush_all(struct vcpu *vcpu);
void vtlb_flush_space(struct vcpu *vcpu, uint16_t pcid);
/* Everything that INVLPG drops: the page in this space, global or not, with all of its large page. */
void vtlb_invlpg(struct vcpu *vcpu, uint64_t linear);
/* INVPCID type 0. */
void vtlb_invpcid_page(struct vcpu *vcpu, uint16_t pcid, uint64_t linear);
/* CR3 was written: make the space of its PCID the current one, flushed unless keep. */
void vtlb_switch_space(struct vcpu *vcpu, uint16_t pcid, bool keep);
/* CPL, AC, SMAP or CR0.PG changed: point vcpu->view at the right view. */
void vtlb_select_view(struct vcpu *vcpu);
/* Enter a page into the view, whose tag_write says whether it may be written. The second level gets what was
 * there. */
void vtlb_fill(struct vcpu *vcpu, struct vtlb_view *view, const struct vtlb_entry *entry);
/* Bring a page that the first level does not have back from the second, with the rights that it has. False:
 * it is not there. */
bool vtlb_recall(struct vcpu *vcpu, struct vtlb_view *view, uint64_t linear);
/* Give the page its write tag back if it may be written but for the page's state, and that is 0 again. */
void vtlb_regain_write(struct vcpu *vcpu, struct vtlb_view *view, uint64_t linear);
/* A page of RAM starts to hold code or to be logged: take away its write tags in this vCPU's views. Any
 * thread. */
void vtlb_write_protect(struct vcpu *vcpu, uint64_t ram_page_offset);
/* The vCPU's own thread, when the write tags of a page are known to be gone and it cannot gain one: it holds
 * code. */
void vtlb_forget_write_hint(struct vcpu *vcpu, uint64_t ram_page_offset);

#endif
