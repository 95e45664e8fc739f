/* The translator's own structures. A vCPU has a code cache of its own: no locks, no cross-thread patching; an
 * invalidation by another thread is handed over as a request (invalidate.c). All host positions are offsets
 * into the code region. */
#ifndef NESTOR_DBT_PRIVATE_H
#define NESTOR_DBT_PRIVATE_H

#include "base/trace.h"
#include "cpu/fpu.h"
#include "cpu/mode.h"
#include "cpu/vmem.h"
#include "dbt/area.h"
#include "dbt/dbt.h"
#include "isa/insn.h"

#define BLOCK_INSNS 48     /* that a block has as a rule */
#define BLOCK_MAX_INSNS 80 /* of a loop */
#define BLOCK_MAX_EXITS 3
#define BLOCK_MAX_REPEATS 8  /* REP MOVS and STOS, which take much host code */
#define BLOCK_MAX_HOST 20480 /* bytes kept free before a translation starts */
#define NO_INDEX UINT32_MAX
/* In struct block.mode only: translated without shared checks (emit_group.c). */
#define MODE_UNGROUPED (1u << 31)

enum site_kind {
    SITE_LINK,      /* direct exit: guest state in place, target is a constant; patched into a jump */
    SITE_JUMP_MISS, /* indirect exit that the jump cache does not know; hot.target is the guest's target */
    SITE_HELPER,    /* a system instruction with a C helper; the block goes on behind it if it may */
    SITE_INTERPRET, /* an instruction for the interpreter */
    SITE_DEAD,      /* entry of an invalidated block */
    SITE_MEMORY,    /* an inline TLB check missed: raw state */
    SITE_MEMO,      /* no site of its own: the page is not the one remembered (emit_memo.c) */
    SITE_PERCPU,    /* nor here: the page is not known (emit_percpu.c) */
    SITE_UNGROUPED, /* as LINK, to the translation without groups of what follows */
};

enum helper {
    HELPER_NONE,
    HELPER_SYSCALL,
    HELPER_SYSRET,
    HELPER_IRET,
    HELPER_POPF,
    HELPER_RDMSR,
    HELPER_WRMSR,
    HELPER_READ_CR,
    HELPER_WRITE_CR,
    HELPER_CPUID,
    HELPER_STRING,
    HELPER_INVLPG,     /* the address is in hot.value */
    HELPER_WRITE_BASE, /* WRFSBASE, WRGSBASE */
    HELPER_XSTATE,     /* XSAVE and its kin: the address is in hot.value */
};

struct site {
    uint32_t block;
    uint32_t host;  /* LINK: the jump to patch (a rel32's place, or a slot); MEMORY: retry; HELPER: resume */
    uint32_t cold;  /* LINK: what the jump leads to while not linked; MEMORY of a group: a jump as in LINK */
    int32_t target; /* LINK: target rip - block rip; MEMORY of a group: what `cold` is patched to */
    union {
        uint32_t next_incoming; /* LINK, while it is linked: list of the links into one block */
        uint32_t back;          /* MEMORY of the stack's memo: where the block goes on (stack.c) */
        uint16_t state; /* MEMORY of a cached unit: where the registers are, a number in the file; LINK of a
                           unit that is made: 1 + number of the field that the target is, 0: none */
    };
    uint32_t linked_to; /* LINK: block, or NO_INDEX */
    uint16_t guest;     /* rip of the instruction - block rip */
    uint16_t size;      /* MEMORY: bytes; HELPER: operand size in bits */
    uint8_t length : 4; /* of the instruction */
    uint8_t kind : 4;
    uint8_t reg;             /* MEMORY: host register with the linear address; HELPER: operand */
    uint8_t access;          /* MEMORY: enum vmem_access; HELPER: enum helper */
    uint8_t flags_saved : 1; /* where the guest's flags are when the site is left: hot.flags, or the host's */
    uint8_t plain : 1;       /* MEMORY: a fault of this access is the instruction's fault */
    uint8_t ready : 1;       /* filled in; a cached unit's is when it is first asked for */
    uint8_t group : 1; /* MEMORY: a check for several accesses; when it cannot be met, go on without groups */
    uint8_t retpoline : 1; /* JUMP_MISS: see emit_retpoline.c */
};
_Static_assert(sizeof(struct site) == 32, "there are half a million in a full code cache");

/* Where a host PC is in the guest's code. */
struct guest_place {
    uint32_t guest; /* rip - block rip */
    bool flags_saved;
    int rsp_lag;                   /* what the guest's RSP is beyond the host's */
    const struct ntc_state *state; /* where the registers are; NULL: as the block says */
};

/* From host PC to guest PC, one per instruction, ascending. */
struct pc_entry {
    uint16_t host;                                     /* from the block's start */
    uint16_t guest : 14, flags_saved : 1, remakes : 1; /* remakes: here the flags are made again for others */
    uint16_t remake; /* not 0: where code begins, from the block's start, that makes the flags and faults
                        again (while the block is emitted: 1 + number of the item that made them) */
    int16_t rsp_lag; /* see struct unit */
};

/* Translated code with one entry; or a cached unit in use, with as many as it has (cached.c). */
struct block {
    uint64_t rip;
    uint64_t ram_offset;
    uint64_t ram_page2; /* of the second page, or GUEST_NO_RAM */
    uint32_t mode;
    uint32_t host, host_size;
    uint32_t entry[2]; /* where to enter with the flags live, with the flags saved in hot.flags; of a cached
                          one where its code begins: ask block_entry() */
    uint32_t hash_next;
    uint32_t page_next[2]; /* lists of the blocks on a page */
    uint32_t incoming;     /* first site linked to this block */
    uint32_t first_site, first_pc;
    uint16_t sites, pcs;
    uint16_t guest_length;
    uint16_t spilled; /* mask of the registers that live in vcpu->gpr alone behind the entry */
    bool dead;
    uint8_t cache;        /* 1 + number of the cache that the code is in, 0: the vCPU's own */
    uint32_t cached_unit; /* its number there */
};

#define HASH_BITS 17
#define PAGE_HASH_BITS 13

/* Jump-cache contexts: what a key stands for. */
struct jump_context {
    uint64_t generation;
    uint64_t key;
    uint32_t mode;
    bool kernel;
};
#define JUMP_CONTEXTS 32

/* A page of kernel addresses that links or jump-cache entries rely on. */
struct relied_page {
    uint64_t linear; /* 0: empty */
    uint64_t ram_page;
};
#define RELIED_BITS 13
#define USER_BLOOM_WORDS 16

/* The largest XSAVE area of the components that a guest may have (interp/xstate.h) is under 2.7 KiB. */
#define XSTATE_AREA_MAX 4096u

/* The stubs that code jumps to; a cache's first link slots lead to them (docs/cache-format.md, run-time
 * slots). */
enum runtime_slot {
    RUNTIME_EXIT,
    RUNTIME_EXIT_LIVE,
    RUNTIME_MEMORY,
    RUNTIME_LOOK_UP, /* a target that the jump cache does not know */
    RUNTIME_SYSRET,  /* to ring 3 without C, or else to C as RUNTIME_EXIT does */
    RUNTIME_IRET,    /* the same */
    RUNTIME_SYSCALL, /* from ring 3, which no portable unit is of; R8: what RCX gets */
    RUNTIME_SLOTS_USED
};

/* A part of what is translated, evicted at once: evict.c. */
#define CODE_PARTS_MAX (16u * DBT_CODE_CACHE_GROWTH)
struct code_part {
    uint64_t code, code_end;  /* in the code region */
    uint32_t block, site, pc; /* where it begins in the tables */
    /* Where what is in use ends; of the part that is being filled, struct dbt_vcpu has it. */
    uint64_t used;
    uint32_t blocks, sites, pcs;
    uint32_t made; /* blocks translated into it; of these, those that had been evicted shortly before: */
    uint32_t again, again_user; /* all, and ring 3's */
};

/* What a check of the stack's page leads to, as offsets in the code region: see stack.c. */
struct stack_stub {
    uint32_t miss, again;
};

/* Fingerprints of evicted blocks; newer ones take the places of older ones. */
#define EVICTED_BITS 17

struct code_buffer;
struct unit;
struct rewrite;
struct cached;
struct translator;
struct portable_log;

struct dbt_vcpu {
    struct dbt_area *area;
    uint8_t *alias[AREA_ALIASES];
    enum area_alias current_alias; /* also written by the kick handler */
    bool fsgsbase;                 /* WRGSBASE is ours to use */
    bool xgetbv_in_use;            /* XGETBV with ECX = 1 is there: CPUID.(0DH, 1).EAX[2] */
    bool in_code;                  /* between dbt_run() and its return, on the vCPU thread */
    bool remakes;                  /* a fault on the way, which makes flags first: see emit_remake.c */

    uint8_t *rx, *rw;         /* two mappings of the code region */
    const uint8_t *area_seen; /* as far from rw as the area is from rx; NULL: too far, or the code may move */
    uint64_t size, stubs_end;
    uint64_t reach, reached; /* address space from rx on: all of it, and what of it is in use */
    uint64_t used;           /* of the part that is being filled; so are blocks, sites and pcs */
    uint64_t populated;      /* up to here pages of rw were asked for */
    uint64_t released;       /* stats.host_bytes when pages of rw were last given back */
    int code_fd;
    uint8_t *stub_enter, *stub_exit, *stub_exit_live, *stub_memory, *stub_fault, *stub_look_up, *stub_return;
    uint8_t *stub_syscall, *stub_sysret, *stub_iret, *stub_memory_by[16]; /* the site in that register */
    uint8_t *stub_carry_on, *stub_carried;  /* its beginning, its last instruction */
    struct stack_stub stub_stack[2][2][16]; /* by "is ring 3", access, and register */

    struct block *block;
    uint32_t blocks, max_blocks;
    struct site *site;
    uint32_t sites, max_sites;
    struct pc_entry *pc;
    uint32_t pcs, max_pcs;
    struct code_part part[CODE_PARTS_MAX];
    uint64_t part_size;
    unsigned parts, parts_max; /* in use; it may grow to so many */
    struct code_part *filling;
    uint32_t blocks_limit, sites_limit, pcs_limit; /* up to here it may have the tables */
    struct rewrite *rewrite;                       /* REWRITES of them */
    uint32_t hash[1u << HASH_BITS];
    uint32_t page_hash[1u << PAGE_HASH_BITS];
    uint8_t *evicted; /* 1 << EVICTED_BITS of them; NULL: it cannot grow */

    struct jump_context context[JUMP_CONTEXTS];
    const struct jump_context *recent[2]; /* the last one of user and of kernel code */
    uint64_t next_key;
    unsigned next_context;
    uint64_t kernel_generation;
    struct relied_page relied[1u << RELIED_BITS];
    unsigned relied_count;
    uint64_t user_bloom[USER_BLOOM_WORDS];
    uint64_t crossing_generation; /* of the space that crossing.key[1] is of */
    uint64_t iret_page[2];        /* where the guest has what crossing.iret_descriptor[] leads to */
    uint64_t returns_key[2];      /* the jump key that each of area->returns is of; 0: it is empty */
    bool kernel_local;            /* see jump.c */
    uint64_t local_generation;    /* of the space, then */

    struct cached *cached;              /* the persistent caches; NULL: none */
    bool cached_any_ring;               /* the tester's: they have code of ring 3, too */
    struct portable_log *log;           /* what is to be recorded; NULL: nothing is */
    struct translator *translator;      /* of a vCPU that makes portable units */
    uint64_t percpu_page[PERCPU_SLOTS]; /* offsets from GS's base that have slots */
    unsigned percpu_pages;
    unsigned next_memo[2]; /* to be dealt out to reads, to writes */
    uint64_t host_writes;  /* bumped by invalidations: an in-block resume is off */
    struct unit *unit;     /* the translation in progress */
    enum dbt_exit exit;
    struct dbt_stats stats;
    uint8_t xstate_copy[XSTATE_AREA_MAX] __attribute__((aligned(64)));
};

/* -- stubs.c -- */
void dbt_emit_stubs(struct dbt_vcpu *dbt);
const uint8_t *dbt_stub(const struct dbt_vcpu *dbt, enum runtime_slot stub);

/* -- crossing.c -- */
/* The other ring may be entered without C from now on, as this one is now: by its jump key. */
void crossing_open(struct vcpu *vcpu);
/* C has done an IRET to ring 3: the next one like it may go without. */
void crossing_note_iret(struct vcpu *vcpu);
/* The TLB has lost a page. */
void crossing_forget_page(struct dbt_vcpu *dbt, uint64_t page);

/* -- translate.c -- */
/* Translate the block at vcpu->rip for mode (vcpu->mode, perhaps with MODE_UNGROUPED); the page is at
 * ram_offset. Index, or NO_INDEX when the interpreter must run one instruction first. May evict others.
 * The extended state is parked. */
uint32_t dbt_translate(struct vcpu *vcpu, uint64_t ram_offset, uint32_t mode);
/* Gather and emit the block that dbt->unit is set up for. */
MUST_CHECK bool unit_translate(struct unit *unit);

/* -- portable.c -- */
/* Remember a fresh block for dbt_portable_record(), with its bytes: they may be rewritten. Parked. */
void portable_log_add(struct vcpu *vcpu, const struct block *block);
/* Ring 0 was interrupted at rip. */
void portable_log_sample(struct dbt_vcpu *dbt, uint64_t rip);
void portable_log_destroy(struct dbt_vcpu *dbt);

/* -- cached.c -- */
/* The cached unit for the code at ram_offset, to be entered at vcpu->rip: in use already, or now. Its block's
 * index, or NO_INDEX. *told: cleared when not all of its pages may be relied on. */
uint32_t cached_find(struct vcpu *vcpu, uint64_t ram_offset, uint32_t mode, bool *told);
/* Where the block is entered at rip; NO_INDEX: nowhere. */
uint32_t cached_entry(const struct dbt_vcpu *dbt, const struct block *block, uint64_t rip, bool flags_saved);
/* Fill in a site of a cached unit that was not asked for before. */
struct site *cached_site(struct dbt_vcpu *dbt, uint32_t index);
/* Where the registers are at a site of a cached unit. */
const struct ntc_state *cached_state(const struct dbt_vcpu *dbt, const struct site *site);
/* Drop every jump-cache entry that leads into the block. */
void cached_forget_jumps(struct dbt_vcpu *dbt, const struct block *block);
/* The word that a slot of a block's cache is. */
uint64_t *cached_slot(const struct dbt_vcpu *dbt, const struct block *block, uint32_t slot);
/* Turn the switch of a group's check (portable_switch()). */
void cached_skip_group(const struct dbt_vcpu *dbt, const struct block *block, const struct site *site);
/* The block whose code in a cache host_pc lies in, and the guest's place there; NO_INDEX: none. */
uint32_t cached_block_at(const struct dbt_vcpu *dbt, uint64_t host_pc, struct guest_place *place);
bool cached_holds(const struct dbt_vcpu *dbt, uint64_t host_pc);
/* block_remake() for code in a cache. */
uint64_t cached_remake(const struct dbt_vcpu *dbt, uint64_t host_pc);
void cached_destroy(struct dbt_vcpu *dbt);
struct portable_seen;
/* Every entry that was asked for. */
void cached_profile(const struct dbt_vcpu *dbt, void (*add)(void *context, const struct portable_seen *seen),
                    void *context);
/* Make an address the link address in the cached image that it lies in as that stands; its name, or NULL. */
const char *cached_image(const struct dbt_vcpu *dbt, uint64_t *address);

/* -- evict.c -- */
/* Divide the region behind the stubs: so many parts in the first `size` bytes, 0: as many as are good; more
 * are for growing. */
MUST_CHECK int code_divide(struct dbt_vcpu *dbt, uint64_t size, unsigned parts);
/* A block was translated. */
void code_note_made(struct dbt_vcpu *dbt, const struct block *block);
/* Nothing is translated, the first part is to be filled. */
void code_empty(struct dbt_vcpu *dbt);
/* Evict what stands against so many more bytes of code and entries of the tables. False: there is not so
 * much. */
MUST_CHECK bool code_make_room(struct dbt_vcpu *dbt, uint64_t code, uint32_t blocks, uint32_t sites,
                               uint32_t pcs);
/* Bring in pages of rw for what is written next; give back those of what was written. */
void code_populate_ahead(struct dbt_vcpu *dbt);
void code_release_written(struct dbt_vcpu *dbt);
/* The part with translated code at that offset in the region, block of that number, or site; NULL: none. */
const struct code_part *code_part_at(const struct dbt_vcpu *dbt, uint64_t offset);
const struct code_part *code_part_of_block(const struct dbt_vcpu *dbt, uint32_t index);
const struct code_part *code_part_of_site(const struct dbt_vcpu *dbt, uint32_t index);
static inline uint32_t code_blocks_end(const struct dbt_vcpu *dbt, const struct code_part *part) {
    return part == dbt->filling ? dbt->blocks : part->blocks;
}
uint64_t code_in_use(const struct dbt_vcpu *dbt);

/* -- block.c -- */
uint32_t block_find(struct dbt_vcpu *dbt, uint64_t ram_offset, uint64_t rip, uint32_t mode);
/* Mark a page of RAM as holding code, for every tier and device to see. */
void block_hold_page(struct vcpu *vcpu, uint64_t ram_page);
void block_publish(struct vcpu *vcpu, uint32_t index);
void block_kill(struct dbt_vcpu *dbt, uint32_t index);
/* Make a direct exit lead to the target block's entry at rip. */
void block_link(struct dbt_vcpu *dbt, uint32_t site, uint32_t target, uint64_t rip);
static inline uint32_t block_entry(const struct dbt_vcpu *dbt, const struct block *block, uint64_t rip,
                                   bool flags_saved) {
    return block->cache ? cached_entry(dbt, block, rip, flags_saved) : block->entry[flags_saved];
}
static inline struct site *block_site(struct dbt_vcpu *dbt, uint32_t index) {
    struct site *site = &dbt->site[index];
    return LIKELY(site->ready) ? site : cached_site(dbt, index);
}
/* Make it lead to C again; the list that it is in is the caller's. */
void block_unlink(struct dbt_vcpu *dbt, uint32_t site);
/* A group's check cannot be met at this place: from now on go to the translation without groups. */
void block_skip_group(struct dbt_vcpu *dbt, uint32_t site);
void block_unlink_cross_page(struct dbt_vcpu *dbt);
void block_flush_all(struct vcpu *vcpu);
/* Where flags are made that are nowhere at host PC (emit_remake.c); 0: they are somewhere. */
uint64_t block_remake(struct dbt_vcpu *dbt, uint64_t host_pc);
/* The block whose code holds host PC, or NULL. */
struct block *block_at(struct dbt_vcpu *dbt, uint64_t host_pc, struct guest_place *place);

/* -- jump.c -- */
void jump_refresh_key(struct vcpu *vcpu);
/* host: the entry for saved flags. */
void jump_insert(struct vcpu *vcpu, uint64_t rip, uint32_t block, uint32_t host, bool told);
/* Host code for rip in the present context, or 0. */
uint64_t jump_find(const struct vcpu *vcpu, uint64_t rip);
void jump_forget(struct vcpu *vcpu, uint64_t rip);
void jump_clear(struct dbt_vcpu *dbt);
/* Drop what leads to host code at [from, to) of the code region. */
void jump_forget_code(struct dbt_vcpu *dbt, uint64_t from, uint64_t to);
/* Drop what leads to rip in any context. */
void jump_forget_everywhere(struct dbt_vcpu *dbt, uint64_t rip);
/* Is every change to the mapping of a kernel page told, if it is global or not (jump.c)? */
static inline bool code_is_told(const struct vcpu *vcpu, bool global) {
    return global || !(vcpu->cr4 & CR4_PGE);
}
/* A kernel mapping is to be relied on: remember it so that flushes can check it. False: it cannot be noted,
 * do not rely on it. */
MUST_CHECK bool jump_rely(struct dbt_vcpu *dbt, uint64_t linear, uint64_t ram_offset);
/* Code of rings 0 to 2 is entered at linear, by nothing that relied on its page. */
void jump_enter_kernel(struct vcpu *vcpu, uint64_t linear, uint64_t ram_offset, bool told);
/* A block is dropped: no return lands in it any more. */
void jump_forget_landing(struct dbt_vcpu *dbt, const struct block *block);
/* Act on vcpu->code_flush. */
void jump_serve_flush(struct vcpu *vcpu);

/* -- exit.c: called from the stubs -- */
/* RAM offset of what code at linear is fetched from. CPU_FAULT: the fetch faults; GUEST_NO_RAM: MMIO.
 * told: the page may be relied on (code_is_told()). */
MUST_CHECK int code_page(struct vcpu *vcpu, uint64_t linear, uint64_t *ram_offset, bool *told);
enum resume { RESUME_RAW = 0, RESUME_LOAD = 1, RESUME_LEAVE = 2 };
uint64_t dbt_exit_guest(struct vcpu *vcpu);  /* guest state saved in vcpu->gpr, flags in hot.flags */
uint64_t dbt_exit_memory(struct vcpu *vcpu); /* host registers in hot.save, flags in hot.flags */
uint64_t dbt_exit_fault(struct vcpu *vcpu);  /* host registers in hot.save and hot.save_flags */

/* -- extended.c -- */
enum xstate_insn { XSTATE_SAVE, XSTATE_SAVE_OPTIMISED, XSTATE_SAVE_COMPACTED, XSTATE_RESTORE };
/* True when done; false: nothing has happened, the interpreter shall do it. */
bool dbt_xstate(struct vcpu *vcpu, enum xstate_insn insn, uint64_t linear);

/* -- string.c -- */
/* REP MOVS/STOS in whole pages; true when it made progress or finished (rip updated when finished). */
int dbt_string(struct vcpu *vcpu, const struct site *site, uint64_t rip, bool *done);

#endif
