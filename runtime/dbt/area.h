/* What translated code addresses through GS: the vCPU, the translator's hot words, the jump cache, the poll
 * pages.
 *
 * The area is one memfd mapped three times, so that the GS base decides what a poll does, without a flag, a
 * register or a cross-processor TLB flush (wrgsbase by the vCPU thread itself, in its kick handler): AREA_RUN
 * both poll pages writable; AREA_MASKED the STI poll faults: an interrupt waits, IF is clear; AREA_STOP  both
 * fault: leave at the next block boundary.
 */
#ifndef NESTOR_DBT_AREA_H
#define NESTOR_DBT_AREA_H

#include "cpu/vcpu.h"

#define JUMP_CACHE_BITS 14
#define JUMP_CACHE_SIZE (1u << JUMP_CACHE_BITS)

/* The entry for a key: the top bits of the product of its low half. */
#define JUMP_CACHE_MULTIPLIER 0x9e3779b1u

static inline unsigned jump_cache_index(uint64_t key) {
    return (uint32_t)key * JUMP_CACHE_MULTIPLIER >> (32 - JUMP_CACHE_BITS);
}

/* A hit when key == (rip ^ dbt_hot.jump_key). Two arrays, so that the index is scaled by the address. */
struct jump_cache {
    uint64_t key[JUMP_CACHE_SIZE];
    uint64_t host[JUMP_CACHE_SIZE];
};

/* What misses there is looked up once more, under another index: two hot targets that share an entry of the
 * first table (hundreds of targets of one system call make several such pairs) rarely share one of this. */
#define JUMP_SECOND_BITS 15
#define JUMP_SECOND_SIZE (1u << JUMP_SECOND_BITS)
#define JUMP_SECOND_MULTIPLIER 0x85ebca6bu

static inline unsigned jump_second_index(uint64_t key) {
    return (uint32_t)key * JUMP_SECOND_MULTIPLIER >> (32 - JUMP_SECOND_BITS);
}

struct jump_second {
    uint64_t key[JUMP_SECOND_SIZE];
    uint64_t host[JUMP_SECOND_SIZE];
};

/* Where returns of 64-bit code go, by the low byte of the return address: see emit_return.c. */
#define RETURN_SLOTS 256u

/* Answers of CPUID to 64-bit code, direct-mapped by leaf and subleaf: see cpuid_memo_index(). */
#define CPUID_MEMO_SIZE 32u
#define CPUID_MEMO_NONE UINT64_MAX
struct cpuid_memo {
    uint64_t key; /* ECX:EAX as asked, or CPUID_MEMO_NONE */
    uint32_t answer[4];
    uint64_t unused;
};

static inline unsigned cpuid_memo_index(uint64_t rax, uint64_t rcx) {
    return (rax + 2 * rcx) % CPUID_MEMO_SIZE;
}

/* A page that accesses keep to: see emit_memo.c. */
struct memo {
    uint64_t page, addend;
};
#define MEMO_SLOTS 32u

/* Pages that ring 0 reaches through GS at constant offsets, as kernels reach the data of a processor: the
 * host's addresses, by slot; 0: not known. See emit_percpu.c. */
#define PERCPU_SLOTS 64u
struct percpu_table {
    uint64_t page[2][PERCPU_SLOTS]; /* by access: reads, writes */
};

/* What rings 0 and 3 of 64-bit code change places by without C: see crossing.c. Indexed by "is ring 3". */
struct crossing {
    uint64_t key[2];  /* the jump keys; 0: C has to see to it */
    uint64_t mode[2]; /* of vcpu->mode */
    struct vtlb_view *user_view;
    uint64_t kept_flags;   /* by SYSCALL */
    uint64_t cs[2], ss[2]; /* what SYSCALL and SYSRET load: see crossing_segment() */
    /* Of the last IRET to ring 3. */
    uint64_t iret_selector[2];    /* CS, SS */
    uint64_t iret_raw[2];         /* their descriptors */
    uint64_t iret_segment[2];     /* what they mean */
    uint64_t *iret_descriptor[2]; /* where they are in the host's memory; NULL: not known any more */
};

struct dbt_hot {
    uint64_t host_rsp;                              /* the C stack while translated code runs */
    uint64_t target;                                /* scratch: indirect target (guest, then host) */
    uint64_t value;                                 /* scratch */
    uint64_t borrowed[2];                           /* guest registers that a cold path borrows */
    uint32_t flags;                                 /* AH:AL = LAHF and SETO of saved guest flags */
    uint32_t site;                                  /* index of the site that leaves for C */
    uint64_t jump_key;                              /* see jump.c */
    struct memo stack;                              /* rings 0 to 2: the page of the last stack access */
    struct vtlb_view *stack_view;                   /* that it is of: see emit_memo.c */
    struct vtlb_view *view_kernel, *view_kernel_ac; /* what CLAC and STAC make current */
    uint8_t iflag;                                  /* RFLAGS bits 8-15, IF only: 0 or 2 */
    uint8_t acflag;                                 /* RFLAGS bits 16-23, AC only: 0 or 4 */
    uint8_t alias;          /* enum area_alias that GS shows, as it is set by and for this thread */
    uint64_t save[16];      /* host registers at a slow exit, as they stood */
    uint64_t save_flags;    /* RFLAGS at a fault, as PUSHF gives them */
    uint64_t fault_pc;      /* host PC of a fault in translated code; 0: none */
    bool fault_is_poll;     /* at a block's start */
    bool fault_is_sti_poll; /* behind an STI */
    uint64_t resume;        /* where a slow exit goes on */
    struct crossing crossing;
    struct percpu_table *percpu;         /* for GS's base: one of the next two */
    struct percpu_table *percpu_swapped; /* for the base that SWAPGS would bring */
    struct percpu_table *percpu_none;    /* always empty: GS has another base, */
    struct percpu_table *percpu_of_base; /* for this one */
    uint64_t percpu_base;                /* at a page's start */
    uint8_t percpu_filled;               /* the table may hold something */
    struct memo user_stack;              /* ring 3's */
    struct vtlb_view *user_stack_view;
    uint64_t kept_rsp, kept_pc; /* of a stub that the host would not return to: see dbt_handle_signal() */
};

/* General registers that are in vcpu->gpr, not in the host's, whenever one block ends and the next begins.
 * Their host registers are free at that point and inside every block that does not name them. */
#define HOMED ((uint16_t)(1u << GPR_R8 | 1u << GPR_R9 | 1u << GPR_R10 | 1u << GPR_R11))
/* The one that the code between two blocks may use. */
#define BOUNDARY_SCRATCH GPR_R11

/* No address is on this page but a non-canonical one, and that stays one under an addend of 0. */
#define MEMO_PAGE_NONE 0x8000000000000000ull

static inline void memo_forget(struct memo *memo) {
    *memo = (struct memo){.page = MEMO_PAGE_NONE};
}

enum area_alias { AREA_RUN, AREA_MASKED, AREA_STOP, AREA_ALIASES };

struct dbt_area {
    struct vcpu vcpu;
    int area_fd;
    uint64_t reserved; /* bytes of address space behind it that are kept for code; 0: none */
    struct dbt_hot hot __attribute__((aligned(64)));
    struct memo memo[2][MEMO_SLOTS] __attribute__((aligned(64))); /* by access: reads, writes */
    struct percpu_table percpu[2] __attribute__((aligned(64)));
    struct cpuid_memo cpuid[CPUID_MEMO_SIZE] __attribute__((aligned(64)));
    struct jump_cache jump __attribute__((aligned(64)));
    struct jump_second second;
    uint64_t returns[2][RETURN_SLOTS]; /* host addresses; of rings 0 to 2, of ring 3 */
    uint8_t poll[PAGE_SIZE] __attribute__((aligned(4096)));
    uint8_t sti_poll[PAGE_SIZE] __attribute__((aligned(4096)));
};

#define AREA_VCPU(field) ((uint32_t)offsetof(struct dbt_area, vcpu.field))
#define AREA_HOT(field) ((uint32_t)offsetof(struct dbt_area, hot.field))
#define AREA_MEMO(access, n)                                                                                 \
    ((uint32_t)(offsetof(struct dbt_area, memo) + ((access)*MEMO_SLOTS + (n)) * sizeof(struct memo)))
#define AREA_GPR(n) ((uint32_t)(offsetof(struct dbt_area, vcpu.gpr) + (size_t)(n)*8))

static inline uint32_t flags_to_lahf(uint64_t flags) {
    return (uint32_t)(flags & (FLAG_SF | FLAG_ZF | FLAG_AF | FLAG_PF | FLAG_CF)) << 8 |
           (flags & FLAG_OF ? 1 : 0);
}

static inline uint32_t lahf_to_flags(uint32_t lahf) {
    return (lahf >> 8 & (FLAG_SF | FLAG_ZF | FLAG_AF | FLAG_PF | FLAG_CF)) | (lahf & 1 ? FLAG_OF : 0);
}

static inline struct dbt_area *area_of(struct vcpu *vcpu) {
    return CONTAINER_OF(vcpu, struct dbt_area, vcpu);
}

#endif
