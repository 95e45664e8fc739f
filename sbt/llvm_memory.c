/* Guest memory inside a region: the check against the software TLB, and how checks are shared.
 *
 *   first = root + lo;  last = root + hi - 1
 *   entry = view + (first >> 12 & mask) * 32
 *   if (entry.tag != (last & -4096)) leave for the template translation of this instruction
 *   host address = guest address + entry.addend
 *
 * A check covers a range off one root and holds for the rest of every path that it dominates, until the view
 * changes: nothing else that happens inside a region can take an entry away. (Another vCPU that shuts a page
 * waits until this one has left for C, and a region is not come back to from there; cpu/vtlb.h.) Later
 * accesses widen the range of an earlier check by changing its constants. Whatever the range, a check only
 * reads: where it cannot be met, the template does the instruction with checks of its own.
 */
#include "sbt/llvm_private.h"

#define RANGE_MAX 256
#define ENTRY_SHIFT 5

_Static_assert(sizeof(struct vtlb_entry) == 1 << ENTRY_SHIFT, "the index is scaled by a shift");

void lift_forget_view(struct lifter *l) {
    l->state.facts = NULL;
}

static LLVMValueRef pointer_to(struct lifter *l, LLVMValueRef address) {
    return LLVMBuildIntToPtr(l->builder, address, l->pointer, "");
}

static LLVMValueRef entry_of(struct lifter *l, LLVMValueRef address) {
    LLVMBuilderRef b = l->builder;
    LLVMValueRef shifted = LLVMBuildLShr(b, address, lift_constant(l, PAGE_SHIFT - ENTRY_SHIFT), "");
    uint64_t mask = vtlb_mask(l->request->mode & MODE_CPL3);
    LLVMValueRef index = LLVMBuildAnd(b, shifted, lift_constant(l, mask << ENTRY_SHIFT), "");
    LLVMValueRef view = pointer_to(l, lift_load_area(l, AREA_VCPU(view), l->i64, false));
    return LLVMBuildGEP2(b, l->i8, view, &index, 1, "");
}

static LLVMValueRef load_entry(struct lifter *l, LLVMValueRef entry, size_t field, LLVMValueRef *place) {
    LLVMValueRef offset = lift_constant(l, field);
    *place = LLVMBuildGEP2(l->builder, l->i8, entry, &offset, 1, "");
    LLVMValueRef load = LLVMBuildLoad2(l->builder, l->i64, *place, "");
    LLVMSetMetadata(load, l->alias_kind, l->alias[LIFT_TLB]);
    return load;
}

static size_t tag_of(bool write) {
    return (size_t)(write ? TLB_ENTRY(tag_write) : TLB_ENTRY(tag_read));
}

/* The addend of the page that first and last are on, or the side exit. The tag of an invalid entry must be no
 * page's address: a match would fault on the host. */
static LLVMValueRef probe(struct lifter *l, LLVMValueRef first, LLVMValueRef last, bool write,
                          LLVMValueRef *tag_place) {
    LLVMValueRef entry = entry_of(l, first), unused;
    LLVMValueRef page = LLVMBuildAnd(l->builder, last, lift_constant(l, PAGE_MASK), "");
    LLVMValueRef tag = load_entry(l, entry, tag_of(write), tag_place);
    lift_require(l, LLVMBuildICmp(l->builder, LLVMIntEQ, tag, page, ""));
    if (!(VTLB_INVALID & (PAGE_SIZE - 1)))
        lift_require(l, LLVMBuildICmp(l->builder, LLVMIntNE, page, lift_constant(l, VTLB_INVALID), ""));
    return load_entry(l, entry, (size_t)TLB_ENTRY(addend), &unused);
}

LLVMValueRef lift_probe(struct lifter *l, LLVMValueRef first, LLVMValueRef last, bool write) {
    LLVMValueRef unused;
    return probe(l, first, last, write, &unused);
}

static void widen(struct lifter *l, struct lift_fact *fact, int64_t lo, int64_t hi, bool write) {
    if (lo < fact->lo) {
        fact->lo = lo;
        LLVMSetOperand(fact->first, 1, lift_constant(l, (uint64_t)lo));
    }
    if (hi > fact->hi) {
        fact->hi = hi;
        LLVMSetOperand(fact->last, 1, lift_constant(l, (uint64_t)(hi - 1)));
    }
    if (write && !fact->write) {
        fact->write = true;
        LLVMSetOperand(fact->tag, 1, lift_constant(l, tag_of(true)));
    }
}

/* A check that covers the range, or that may be widened to it: by reading further in any block that follows,
 * but made one for writing only in its own, where the write happens whenever the check was made. */
static struct lift_fact *find_fact(struct lifter *l, LLVMValueRef root, int64_t lo, int64_t hi, bool write) {
    for (struct lift_fact *fact = l->state.facts; fact; fact = fact->next)
        if (fact->root == root && fact->addend && fact->lo <= lo && hi <= fact->hi && (fact->write || !write))
            return fact;
    for (struct lift_fact *fact = l->state.facts; fact; fact = fact->next) {
        if (fact->root != root || !fact->addend || !fact->first ||
            (write && !fact->write && fact->block != l->current))
            continue;
        int64_t low = lo < fact->lo ? lo : fact->lo, high = hi > fact->hi ? hi : fact->hi;
        if (high - low > RANGE_MAX)
            continue;
        widen(l, fact, low, high, write);
        return fact;
    }
    return NULL;
}

static struct lift_fact *add_fact(struct lifter *l) {
    struct lift_fact *fact = lift_allocate(l, sizeof *fact);
    fact->next = l->state.facts;
    fact->block = l->current;
    l->state.facts = fact;
    return fact;
}

/* An addition whose constant may change later: none that the builder folds. */
static LLVMValueRef adjustable(struct lifter *l, LLVMValueRef root, int64_t offset) {
    return LLVMBuildAdd(l->builder, root, lift_constant(l, (uint64_t)offset), "");
}

LLVMValueRef lift_check(struct lifter *l, const struct lift_address *address, unsigned size,
                        enum vmem_access access) {
    int64_t lo = address->offset, hi = lo + size;
    bool write = access == VMEM_WRITE;
    struct lift_fact *fact = find_fact(l, address->root, lo, hi, write);
    if (!fact) {
        LLVMValueRef first = adjustable(l, address->root, lo), last = adjustable(l, address->root, hi - 1);
        LLVMValueRef tag, addend;
        addend = probe(l, first, last, write, &tag);
        fact = add_fact(l);
        fact->root = address->root;
        fact->write = write;
        fact->lo = lo;
        fact->hi = hi;
        fact->first = LLVMIsAInstruction(first) ? first : NULL; /* a constant stays as it is */
        fact->last = last;
        fact->tag = tag;
        fact->addend = addend;
    }
    LLVMValueRef offset = lift_constant(l, (uint64_t)address->offset);
    LLVMValueRef base = pointer_to(l, LLVMBuildAdd(l->builder, address->root, fact->addend, ""));
    return LLVMBuildGEP2(l->builder, l->i8, base, &offset, 1, "");
}

struct lift_address lift_register_address(struct lifter *l, unsigned reg, int64_t offset) {
    (void)lift_get(l, &l->state, reg);
    const struct lift_register *r = &l->state.reg[reg];
    return (struct lift_address){.root = r->root,
                                 .offset = (int64_t)((uint64_t)r->offset + (uint64_t)offset)};
}

/* base + index << scale as a root, the same one each time on a path. */
static LLVMValueRef sum_root(struct lifter *l, LLVMValueRef base, LLVMValueRef index, unsigned scale) {
    for (const struct lift_fact *fact = l->state.facts; fact; fact = fact->next)
        if (!fact->addend && fact->sum_base == base && fact->sum_index == index && fact->scale == scale)
            return fact->root;
    LLVMValueRef scaled = scale ? LLVMBuildShl(l->builder, index, lift_constant(l, scale), "") : index;
    struct lift_fact *fact = add_fact(l);
    fact->sum_base = base;
    fact->sum_index = index;
    fact->scale = scale;
    fact->root = base ? LLVMBuildAdd(l->builder, base, scaled, "") : scaled;
    return fact->root;
}

static LLVMValueRef segment_base(struct lifter *l, unsigned segment) {
    LLVMValueRef *base = &l->state.segment_base[segment == SEG_GS];
    if (!*base)
        *base = lift_load_area(
            l, segment == SEG_FS ? AREA_VCPU(segment[SEG_FS].base) : AREA_VCPU(segment[SEG_GS].base), l->i64,
            false);
    return *base;
}

struct lift_address lift_operand_address(struct lifter *l, const ZydisDecodedOperand *op) {
    struct lift_address address = {.offset = op->mem.disp.has_displacement ? op->mem.disp.value : 0};
    int base = insn_gpr(op->mem.base), index = insn_gpr(op->mem.index);
    unsigned scale = op->mem.scale == 8 ? 3 : op->mem.scale == 4 ? 2 : op->mem.scale == 2 ? 1 : 0;
    bool wide = l->insn->insn.z.address_width == 64;
    if (op->mem.base == ZYDIS_REGISTER_RIP || op->mem.base == ZYDIS_REGISTER_EIP) {
        address.root = lift_guest_address(l);
        address.offset += (int64_t)l->insn->guest + l->insn->insn.length;
    } else if (base >= 0) {
        struct lift_address from = lift_register_address(l, (unsigned)base, address.offset);
        address = from;
    }
    if (index >= 0) {
        struct lift_address at = lift_register_address(l, (unsigned)index, 0);
        address.offset = (int64_t)((uint64_t)address.offset + ((uint64_t)at.offset << scale));
        address.root = sum_root(l, address.root, at.root, scale);
    }
    if (!wide) {
        /* The sum is cut to 32 bits. */
        LLVMValueRef sum = lift_constant(l, (uint64_t)address.offset);
        if (address.root)
            sum = LLVMBuildAdd(l->builder, address.root, sum, "");
        address = (struct lift_address){.root = lift_resize(l, lift_resize(l, sum, 32), 64)};
    }
    unsigned segment = insn_segment(&l->insn->insn, op);
    if (segment == SEG_FS || segment == SEG_GS) {
        LLVMValueRef from = segment_base(l, segment);
        address.root = address.root ? sum_root(l, from, address.root, 0) : from;
    } else if (!address.root) {
        /* A number: its checks need an addition that stays one. */
        address.root = LLVMBuildFreeze(l->builder, lift_constant(l, 0), "");
    }
    return address;
}

LLVMValueRef lift_load(struct lifter *l, LLVMValueRef host, unsigned bits) {
    LLVMValueRef load = LLVMBuildLoad2(l->builder, lift_int(l, bits), host, "");
    LLVMSetAlignment(load, 1);
    LLVMSetVolatile(load, true);
    LLVMSetMetadata(load, l->alias_kind, l->alias[LIFT_GUEST]);
    return load;
}

void lift_store(struct lifter *l, LLVMValueRef host, LLVMValueRef value) {
    LLVMValueRef store = LLVMBuildStore(l->builder, value, host);
    LLVMSetAlignment(store, 1);
    LLVMSetVolatile(store, true);
    LLVMSetMetadata(store, l->alias_kind, l->alias[LIFT_GUEST]);
}
