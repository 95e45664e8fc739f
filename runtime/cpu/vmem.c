/* Guest memory by linear address: TLB probe, fill, and the split of accesses that cross pages or reach MMIO.
 */
#include "cpu/vmem.h"
#include "base/light.h"
#include "cpu/fpu.h"
#include "cpu/mode.h"
#include "cpu/paging.h"
#include "mem/guest_mem.h"

#define NO_HOST NULL

/* One access each, at any alignment. */
typedef uint16_t __attribute__((aligned(1), may_alias)) unaligned_u16;
typedef uint32_t __attribute__((aligned(1), may_alias)) unaligned_u32;
typedef uint64_t __attribute__((aligned(1), may_alias)) unaligned_u64;

static void copy_small(void *target, const void *source, unsigned size) {
    switch (size) {
    case 1:
        *(uint8_t *)target = *(const volatile uint8_t *)source;
        break;
    case 2:
        *(unaligned_u16 *)target = *(const volatile unaligned_u16 *)source;
        break;
    case 4:
        *(unaligned_u32 *)target = *(const volatile unaligned_u32 *)source;
        break;
    case 8:
        *(unaligned_u64 *)target = *(const volatile unaligned_u64 *)source;
        break;
    default:
        light_copy(target, source, size);
    }
}

/* What one page of an access turned out to be. */
struct piece {
    void *host;   /* RAM, or NULL: */
    uint64_t gpa; /* MMIO at this address */
};

static struct vtlb_view *view_of(struct vcpu *vcpu, enum vmem_as as) {
    if (as == AS_CURRENT)
        return vcpu->view;
    return vcpu->space->view[as == AS_USER ? VIEW_USER : VIEW_KERNEL];
}

static void fill(struct vcpu *vcpu, struct vtlb_view *view, uint64_t linear, uint64_t ram_offset,
                 const struct translation *translation) {
    uint64_t page = linear & PAGE_MASK, ram_page = ram_offset & PAGE_MASK;
    if (UNLIKELY(!guest_mem_is_touched(vcpu->mem, ram_page)))
        guest_mem_touch(vcpu->mem, ram_page, PAGE_SIZE);
    if (translation->size > PAGE_SIZE) {
        unsigned bit = vtlb_large_bit(linear, (unsigned)__builtin_ctzll(translation->size));
        vcpu->space->large[linear >> 63][bit / 64] |= 1ull << bit % 64;
    }
    vcpu->global_user |= translation->global && !(linear >> 63);
    const struct vtlb_entry entry = {.tag_read = page,
                                     .tag_write = translation->writable ? page : VTLB_INVALID,
                                     .addend = (uint64_t)vcpu->mem->base + ram_page - page,
                                     .info = ram_page | (translation->executable ? VTLB_INFO_EXECUTABLE : 0) |
                                             (translation->writable ? VTLB_INFO_WRITABLE : 0) |
                                             (translation->global ? VTLB_INFO_GLOBAL : 0) |
                                             (translation->size > PAGE_SIZE ? VTLB_INFO_LARGE : 0)};
    vtlb_fill(vcpu, view, &entry);
}

/* Behind a page that follows one known already: fill the pages that come next, as a processor may (SDM vol.
 * 3, 4.10.2.3), where that costs no walk: 4K pages whose entries lie in the same cache line and differ in
 * nothing but the address (so A is set, and D where it is here), and further parts of a large page. */
#define AHEAD 8
static void fill_ahead(struct vcpu *vcpu, struct vtlb_view *view, uint64_t linear,
                       const struct translation *translation) {
    uint64_t page = linear & PAGE_MASK, before = page - PAGE_SIZE;
    bool large = translation->size > PAGE_SIZE;
    uint64_t end = large ? (page | (translation->size - 1)) : (page | (AHEAD * PAGE_SIZE - 1));
    if (view->entry[vtlb_index(view, before)].tag_read != before || vcpu->a20_masked ||
        (!large && !translation->entry))
        return;
    for (unsigned i = 1; i < AHEAD && page + i * PAGE_SIZE <= end; i++) {
        uint64_t next = page + i * PAGE_SIZE, offset;
        const struct vtlb_entry *entry = &view->entry[vtlb_index(view, next)];
        if (large) {
            offset = guest_mem_offset(vcpu->mem, (translation->gpa & PAGE_MASK) + i * PAGE_SIZE);
        } else {
            uint64_t value = __atomic_load_n(translation->entry + i, __ATOMIC_RELAXED);
            if ((value ^ translation->entry_value) & ~PAGING_ADDRESS_MASK)
                return;
            offset = guest_mem_offset(vcpu->mem, value & PAGING_ADDRESS_MASK);
        }
        if (offset == GUEST_NO_RAM)
            return;
        if (entry->tag_read != next || (translation->writable && entry->tag_write != next))
            fill(vcpu, view, next, offset, translation);
    }
}

static bool grants(const struct vtlb_entry *entry, uint64_t page, enum vmem_access access) {
    return access == VMEM_WRITE   ? entry->tag_write == page
           : access == VMEM_FETCH ? entry->tag_read == page && entry->info & VTLB_INFO_EXECUTABLE
                                  : entry->tag_read == page;
}

/* Resolve an access inside one page. */
static int resolve(struct vcpu *vcpu, uint64_t linear, enum vmem_access access, enum vmem_as as,
                   struct piece *piece) {
    struct vtlb_view *view = view_of(vcpu, as);
    const struct vtlb_entry *entry = &view->entry[vtlb_index(view, linear)];
    uint64_t page = linear & PAGE_MASK;
    if (LIKELY(grants(entry, page, access)) ||
        (entry->tag_read != page && vtlb_recall(vcpu, view, linear) && grants(entry, page, access))) {
        piece->host = (void *)(linear + entry->addend);
        return CPU_OK;
    }
    if (access == VMEM_WRITE && entry->tag_read == page && entry->info & VTLB_INFO_WRITABLE) {
        vtlb_regain_write(vcpu, view, linear);
        piece->host = (void *)(linear + entry->addend);
        return CPU_OK;
    }
    bool user = as == AS_USER || (as == AS_CURRENT && vcpu->cpl == 3);
    bool ac = as == AS_CURRENT && vcpu->rflags & FLAG_AC;
    struct translation translation;
    int result = paging_walk(vcpu, linear, access, user, ac, &translation);
    if (result)
        return result;
    uint64_t offset = guest_mem_offset(vcpu->mem, translation.gpa);
    if (offset == GUEST_NO_RAM) {
        *piece = (struct piece){.host = NO_HOST, .gpa = translation.gpa};
        return CPU_OK;
    }
    /* A fetch fills the read tag, too: where code may be fetched the same accessor may read, but for SMAP. */
    if (access != VMEM_FETCH || user || ac || !translation.user || !(vcpu->cr4 & CR4_SMAP))
        fill(vcpu, view, linear, offset, &translation);
    if (access != VMEM_FETCH)
        fill_ahead(vcpu, view, linear, &translation);
    *piece = (struct piece){.host = vcpu->mem->base + offset, .gpa = translation.gpa};
    return CPU_OK;
}

static uint64_t mmio_load(struct vcpu *vcpu, uint64_t gpa, unsigned size) {
    vcpu_fpu_park(vcpu);
    return vcpu->env->mmio_read(vcpu->env->context, gpa, size);
}

static void mmio_store(struct vcpu *vcpu, uint64_t gpa, unsigned size, uint64_t value) {
    vcpu_fpu_park(vcpu);
    vcpu->env->mmio_write(vcpu->env->context, gpa, size, value);
}

/* The largest naturally sized piece of a longer MMIO access. */
static unsigned mmio_step(uint64_t gpa, unsigned size) {
    unsigned step = size >= 8 ? 8 : size >= 4 ? 4 : size >= 2 ? 2 : 1;
    if (size != step || step == 0)
        while (gpa & (step - 1))
            step >>= 1;
    return step;
}

static void piece_read(struct vcpu *vcpu, const struct piece *piece, uint8_t *buffer, unsigned size) {
    if (piece->host) {
        copy_small(buffer, piece->host, size);
        return;
    }
    for (unsigned done = 0; done < size;) {
        unsigned step = mmio_step(piece->gpa + done, size - done);
        uint64_t value = mmio_load(vcpu, piece->gpa + done, step);
        copy_small(buffer + done, &value, step);
        done += step;
    }
}

static void piece_write(struct vcpu *vcpu, const struct piece *piece, const uint8_t *buffer, unsigned size) {
    if (piece->host) {
        copy_small(piece->host, buffer, size);
        vmem_written(vcpu, piece->host, size);
        return;
    }
    for (unsigned done = 0; done < size;) {
        unsigned step = mmio_step(piece->gpa + done, size - done);
        uint64_t value = 0;
        copy_small(&value, buffer + done, step);
        mmio_store(vcpu, piece->gpa + done, step, value);
        done += step;
    }
}

static unsigned first_part(uint64_t linear, unsigned size) {
    unsigned room = (unsigned)(PAGE_SIZE - (linear & (PAGE_SIZE - 1)));
    return size < room ? size : room;
}

/* The linear address after a page crossing: outside 64-bit code it wraps at 4 GiB. */
static uint64_t next_page(const struct vcpu *vcpu, uint64_t linear, unsigned part) {
    uint64_t next = linear + part;
    return vcpu->efer & EFER_LMA ? next : (uint32_t)next;
}

int vmem_read(struct vcpu *vcpu, uint64_t linear, void *buffer, unsigned size, enum vmem_as as) {
    struct piece first, second;
    unsigned part = first_part(linear, size);
    int result = resolve(vcpu, linear, VMEM_READ, as, &first);
    if (result)
        return result;
    if (UNLIKELY(part < size)) {
        result = resolve(vcpu, next_page(vcpu, linear, part), VMEM_READ, as, &second);
        if (result)
            return result;
        piece_read(vcpu, &second, (uint8_t *)buffer + part, size - part);
    }
    piece_read(vcpu, &first, buffer, part);
    return CPU_OK;
}

int vmem_write(struct vcpu *vcpu, uint64_t linear, const void *buffer, unsigned size, enum vmem_as as) {
    struct piece first, second;
    unsigned part = first_part(linear, size);
    int result = resolve(vcpu, linear, VMEM_WRITE, as, &first);
    if (result)
        return result;
    if (UNLIKELY(part < size)) {
        result = resolve(vcpu, next_page(vcpu, linear, part), VMEM_WRITE, as, &second);
        if (result)
            return result;
        piece_write(vcpu, &second, (const uint8_t *)buffer + part, size - part);
    }
    piece_write(vcpu, &first, buffer, part);
    return CPU_OK;
}

int vmem_probe(struct vcpu *vcpu, uint64_t linear, unsigned size, enum vmem_access access, enum vmem_as as) {
    struct piece piece;
    unsigned part = first_part(linear, size);
    int result = resolve(vcpu, linear, access, as, &piece);
    if (!result && part < size)
        result = resolve(vcpu, next_page(vcpu, linear, part), access, as, &piece);
    return result;
}

int vmem_host(struct vcpu *vcpu, uint64_t linear, unsigned size, enum vmem_access access, enum vmem_as as,
              void **host) {
    struct piece piece;
    *host = NULL;
    if (first_part(linear, size) < size)
        return CPU_OK;
    int result = resolve(vcpu, linear, access, as, &piece);
    if (!result)
        *host = piece.host;
    return result;
}

void vmem_written(struct vcpu *vcpu, void *host, unsigned size) {
    struct guest_mem *mem = vcpu->mem;
    uint64_t offset = (uint64_t)((uint8_t *)host - mem->base);
    if (UNLIKELY(__atomic_load_n(&mem->state[offset >> PAGE_SHIFT], __ATOMIC_RELAXED) & PAGE_HOLDS_CODE) &&
        mem->on_code_written)
        mem->on_code_written(mem->on_code_written_context, offset, size);
}

unsigned vmem_fetch(struct vcpu *vcpu, uint64_t linear, uint8_t *buffer, unsigned size) {
    unsigned done = 0;
    while (done < size) {
        uint64_t at = linear + done;
        if (!cpu_is_code64(vcpu))
            at = (uint32_t)at;
        struct piece piece;
        unsigned part = first_part(at, size - done);
        if (resolve(vcpu, at, VMEM_FETCH, AS_CURRENT, &piece))
            break;
        piece_read(vcpu, &piece, buffer + done, part);
        done += part;
    }
    return done;
}
