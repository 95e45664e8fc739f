/* The software TLB's bookkeeping: which views exist, how entries come and move, and what flushes take from
 * them. The walks are vmem.c's. */
#define _GNU_SOURCE
#include "cpu/vtlb.h"
#include "base/pages.h"
#include "cpu/mode.h"
#include "mem/guest_mem.h"

#include <errno.h>
#include <sys/mman.h>

/* Tell whoever keeps copies (vcpu->tlb_lost): after the loss, so that no copy is made once this is seen. */
static void tell_lost(struct vcpu *vcpu) {
    __atomic_store_n(&vcpu->tlb_lost, 1, __ATOMIC_SEQ_CST);
}

static bool may_be_of_large(const struct vtlb_space *space, uint64_t linear);

/* The current space has lost a page; all of a large one, if it is that. */
static void tell_lost_page(struct vcpu *vcpu, uint64_t linear) {
    struct lost_pages *lost = &vcpu->lost_pages;
    if (may_be_of_large(vcpu->space, linear) || lost->pages == LOST_PAGES)
        tell_lost(vcpu);
    else
        lost->page[lost->pages++] = linear & PAGE_MASK;
}

static struct vtlb_entry *chunk_of(struct vtlb_view *view, unsigned word, uint64_t used) {
    return view->entry + (word * 64 + (unsigned)__builtin_ctzll(used)) * VTLB_CHUNK;
}

static void entry_drop(struct vtlb_entry *entry) {
    entry->tag_read = entry->tag_write = VTLB_INVALID;
}

static void chunk_drop(struct vtlb_entry *entry) {
    for (unsigned i = 0; i < VTLB_CHUNK; i++)
        entry_drop(&entry[i]);
}

static void view_clear(struct vtlb_view *view) {
    for (unsigned word = 0; word < view->words; word++) {
        for (uint64_t used = view->used[word]; used; used &= used - 1)
            chunk_drop(chunk_of(view, word, used));
        view->used[word] = 0;
    }
}

static void space_clear(struct vcpu *vcpu, struct vtlb_space *space) {
    for (unsigned i = 0; i < VIEW_KINDS; i++)
        view_clear(space->view[i]);
    for (unsigned i = 0; i < VTLB_LARGE_WORDS; i++)
        space->large[0][i] = space->large[1][i] = 0;
    space->generation = ++vcpu->generation_counter;
    tell_lost(vcpu);
}

/* How many entries of a chunk stay: what the kernel half's bloom filter of large pages stands for, nothing
 * else. */
static unsigned chunk_keep_global(struct vtlb_entry *entry) {
    unsigned kept = 0;
    for (unsigned i = 0; i < VTLB_CHUNK; i++) {
        if (entry[i].info & VTLB_INFO_GLOBAL && entry[i].tag_read >> 63)
            kept++;
        else
            entry_drop(&entry[i]);
    }
    return kept;
}

static void view_keep_global(struct vtlb_view *view) {
    for (unsigned word = 0; word < view->words; word++)
        for (uint64_t used = view->used[word]; used; used &= used - 1)
            if (!chunk_keep_global(chunk_of(view, word, used)))
                view->used[word] &= ~(used & -used);
}

/* Everything but global pages (SDM vol. 3, 4.10.4.1): refilling the kernel's at each switch of processes
 * costs more than all else that a switch does here. */
static void space_clear_local(struct vcpu *vcpu, struct vtlb_space *space) {
    if (!(vcpu->cr4 & CR4_PGE)) {
        space_clear(vcpu, space);
        return;
    }
    view_clear(space->view[VIEW_USER]);
    view_keep_global(space->view[VIEW_KERNEL]);
    view_keep_global(space->view[VIEW_KERNEL_AC]);
    for (unsigned i = 0; i < VTLB_LARGE_WORDS; i++)
        space->large[0][i] = 0;
    space->generation = ++vcpu->generation_counter;
    tell_lost(vcpu);
}

static uint64_t hints_bytes(const struct vcpu *vcpu) {
    return (vcpu->mem->size >> PAGE_SHIFT) * sizeof *vcpu->write_hint;
}

/* Two mappings: the spaces and the kernel's views, which fill up, in large pages; ring 3's, of which a
 * process touches a few pages, in small ones. */
#define SECOND_ENTRIES (VTLB_SETS * VTLB_WAYS)

static unsigned view_entries(bool user) {
    return vtlb_mask(user) + 1 + SECOND_ENTRIES;
}

static unsigned view_words(bool user) {
    return (view_entries(user) / VTLB_CHUNK + 63) / 64;
}

static uint64_t view_bytes(bool user) {
    return align_up(sizeof(struct vtlb_view) + view_entries(user) * sizeof(struct vtlb_entry) +
                        2ull * view_words(user) * sizeof(uint64_t),
                    64);
}

static uint64_t user_bytes(void) {
    return VTLB_SPACES * view_bytes(true);
}

static uint64_t spaces_bytes(void) {
    return align_up(VTLB_SPACES * sizeof(struct vtlb_space), 64);
}

static uint64_t kernel_bytes(void) {
    return spaces_bytes() + VTLB_SPACES * (VIEW_KINDS - 1) * view_bytes(false);
}

static void chunk_make(struct vtlb_view *view, unsigned chunk) {
    chunk_drop(&view->entry[chunk * VTLB_CHUNK]);
    view->made[chunk / 64] |= 1ull << chunk % 64;
}

/* In memory that is zero. */
static struct vtlb_view *view_create(void *memory, bool user) {
    struct vtlb_view *view = memory;
    view->mask = vtlb_mask(user);
    view->words = view_words(user);
    view->used = (uint64_t *)&view->entry[view_entries(user)];
    view->made = view->used + view->words;
    chunk_make(view, 0);
    /* The last one of the first level, and the second. */
    for (unsigned chunk = view->mask / VTLB_CHUNK; chunk < view_entries(user) / VTLB_CHUNK; chunk++)
        chunk_make(view, chunk);
    return view;
}

int vtlb_create(struct vcpu *vcpu) {
    vcpu->write_hint = mmap(NULL, hints_bytes(vcpu), PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (vcpu->write_hint == MAP_FAILED)
        return -ENOMEM;
    uint8_t *kernel = pages_map_large(kernel_bytes());
    if (!kernel)
        goto no_kernel;
    uint8_t *user =
        mmap(NULL, user_bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (user == MAP_FAILED)
        goto no_user;
    vcpu->spaces = (struct vtlb_space *)kernel;
    kernel += spaces_bytes();
    for (unsigned i = 0; i < VTLB_SPACES; i++) {
        struct vtlb_view **view = vcpu->spaces[i].view;
        view[VIEW_USER] = view_create(user + i * view_bytes(true), true);
        view[VIEW_KERNEL] = view_create(kernel + 2 * i * view_bytes(false), false);
        view[VIEW_KERNEL_AC] = view_create(kernel + (2 * i + 1) * view_bytes(false), false);
        space_clear(vcpu, &vcpu->spaces[i]);
    }
    vcpu->space = &vcpu->spaces[0];
    vcpu->space->live = true;
    vcpu->view = vcpu->space->view[VIEW_KERNEL];
    return 0;
no_user:
    munmap(kernel, kernel_bytes());
no_kernel:
    munmap(vcpu->write_hint, hints_bytes(vcpu));
    return -ENOMEM;
}

void vtlb_destroy(struct vcpu *vcpu) {
    munmap(vcpu->spaces[0].view[VIEW_USER], user_bytes());
    munmap(vcpu->spaces, kernel_bytes());
    munmap(vcpu->write_hint, hints_bytes(vcpu));
}

void vtlb_flush_all(struct vcpu *vcpu) {
    for (unsigned i = 0; i < VTLB_SPACES; i++)
        if (vcpu->spaces[i].live)
            space_clear(vcpu, &vcpu->spaces[i]);
    vcpu->global_user = false;
    vcpu->code_flush.global = true;
    vcpu->flushes++;
}

static struct vtlb_space *find_space(struct vcpu *vcpu, uint16_t pcid) {
    for (unsigned i = 0; i < VTLB_SPACES; i++)
        if (vcpu->spaces[i].live && vcpu->spaces[i].pcid == pcid)
            return &vcpu->spaces[i];
    return NULL;
}

void vtlb_flush_space(struct vcpu *vcpu, uint16_t pcid) {
    struct vtlb_space *space = find_space(vcpu, pcid);
    vcpu->flushes++;
    if (space)
        space_clear_local(vcpu, space);
    if (!(vcpu->cr4 & CR4_PGE))
        vcpu->code_flush.global = true;
}

static bool chunk_is_used(const struct vtlb_view *view, unsigned index) {
    return view->used[index / VTLB_CHUNK / 64] >> index / VTLB_CHUNK % 64 & 1;
}

static void drop_page(struct vtlb_space *space, uint64_t page) {
    for (unsigned kind = 0; kind < VIEW_KINDS; kind++) {
        struct vtlb_view *view = space->view[kind];
        unsigned index = vtlb_index(view, page), set = vtlb_set(view, index);
        if (view->entry[index].tag_read == page)
            entry_drop(&view->entry[index]);
        for (unsigned i = set; chunk_is_used(view, set) && i < set + VTLB_WAYS; i++)
            if (view->entry[i].tag_read == page)
                entry_drop(&view->entry[i]);
    }
}

static bool is_of_large(const struct vtlb_entry *entry, uint64_t linear, unsigned shift) {
    return entry->info & VTLB_INFO_LARGE &&
           (entry->tag_read >> shift == linear >> shift || entry->tag_write >> shift == linear >> shift);
}

static void drop_large_in(struct vtlb_view *view, unsigned index, unsigned count, uint64_t linear,
                          unsigned shift) {
    for (unsigned chunk = index; chunk < index + count; chunk += VTLB_CHUNK)
        for (unsigned i = chunk; chunk_is_used(view, chunk) && i < chunk + VTLB_CHUNK; i++)
            if (is_of_large(&view->entry[i], linear, shift))
                entry_drop(&view->entry[i]);
}

/* Drop every entry that came from the large page of 1 << shift bytes around linear. */
static void drop_large(struct vtlb_space *space, uint64_t linear, unsigned shift) {
    for (unsigned kind = 0; kind < VIEW_KINDS; kind++) {
        struct vtlb_view *view = space->view[kind];
        unsigned pages = 1u << (shift - PAGE_SHIFT), all = view->mask + 1;
        drop_large_in(view, vtlb_index(view, linear >> shift << shift), pages < all ? pages : all, linear,
                      shift);
        drop_large_in(view, all, SECOND_ENTRIES, linear, shift);
    }
}

static bool has_large(const struct vtlb_space *space, uint64_t linear, unsigned shift) {
    unsigned bit = vtlb_large_bit(linear, shift);
    return space->large[linear >> 63][bit / 64] >> bit % 64 & 1;
}

static void note_page(struct vcpu *vcpu, uint64_t page) {
    if (vcpu->code_flush.pages < CODE_FLUSH_PAGES)
        vcpu->code_flush.page[vcpu->code_flush.pages++] = page;
    else
        vcpu->code_flush.global = true;
}

static const uint8_t large_shifts[] = {21, 22, 30};

static bool may_be_of_large(const struct vtlb_space *space, uint64_t linear) {
    for (unsigned i = 0; i < ARRAY_SIZE(large_shifts); i++)
        if (has_large(space, linear, large_shifts[i]))
            return true;
    return false;
}

static void drop_in_space(struct vtlb_space *space, uint64_t linear) {
    drop_page(space, linear & PAGE_MASK);
    for (unsigned i = 0; i < ARRAY_SIZE(large_shifts); i++)
        if (has_large(space, linear, large_shifts[i]))
            drop_large(space, linear, large_shifts[i]);
}

void vtlb_invlpg(struct vcpu *vcpu, uint64_t linear) {
    drop_in_space(vcpu->space, linear);
    tell_lost_page(vcpu, linear);
    bool global = linear >> 63 || vcpu->global_user; /* other spaces may have it for the same page */
    for (unsigned i = 0; global && i < VTLB_SPACES; i++)
        if (vcpu->spaces[i].live && vcpu->space != &vcpu->spaces[i])
            drop_in_space(&vcpu->spaces[i], linear);
    vcpu->flushes += !(linear >> 63);
    note_page(vcpu, linear & PAGE_MASK);
}

void vtlb_invpcid_page(struct vcpu *vcpu, uint16_t pcid, uint64_t linear) {
    struct vtlb_space *space = find_space(vcpu, pcid);
    vcpu->flushes += !(linear >> 63);
    if (!space)
        return;
    drop_in_space(space, linear);
    if (space == vcpu->space) {
        tell_lost_page(vcpu, linear);
        note_page(vcpu, linear & PAGE_MASK);
    } else { /* of which nobody keeps copies */
        space->generation = ++vcpu->generation_counter;
    }
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
        space_clear_local(vcpu, space);
    vcpu->flushes += !keep;
    space->pcid = pcid;
    __atomic_store_n(&space->live, true, __ATOMIC_RELAXED);
    space->last_used = ++vcpu->space_clock;
    if (vcpu->space != space)
        tell_lost(vcpu); /* for this space */
    vcpu->space = space;
    if (!(vcpu->cr4 & CR4_PGE))
        vcpu->code_flush.global = true;
    vtlb_select_view(vcpu);
}

void vtlb_select_view(struct vcpu *vcpu) {
    enum vtlb_view_kind kind = VIEW_KERNEL;
    if (vcpu->cpl == 3) {
        kind = VIEW_USER;
        vcpu->user_entries += vcpu->view != vcpu->space->view[VIEW_USER];
    } else if (vcpu->rflags & FLAG_AC && vcpu->cr4 & CR4_SMAP) {
        kind = VIEW_KERNEL_AC;
    }
    vcpu->view = vcpu->space->view[kind];
}

static void mark_used(struct vtlb_view *view, unsigned index) {
    unsigned chunk = index / VTLB_CHUNK;
    uint64_t bit = 1ull << chunk % 64;
    if (LIKELY(view->used[chunk / 64] & bit))
        return;
    if (!(view->made[chunk / 64] & bit))
        chunk_make(view, chunk);
    view->used[chunk / 64] |= bit;
}

/* Remember that the page may have a write tag at index. Most pages are written at one or two addresses: as
 * the kernel maps all memory, and as a process or the kernel's own image has it. */
static void hint_add(uint32_t *hint, unsigned index) {
    uint32_t old = *hint, place = index + 1;
    if ((uint16_t)old == place || old >> 16 == place || old == WRITE_HINT_SEVERAL)
        return;
    uint32_t both = old >> 16 ? WRITE_HINT_SEVERAL : old | place << 16;
    __atomic_store_n(hint, old == WRITE_HINT_NONE ? place : both, __ATOMIC_SEQ_CST);
}

/* Write an entry of the first level, marked as used. */
static void enter(struct vcpu *vcpu, struct vtlb_view *view, unsigned index, const struct vtlb_entry *from) {
    struct vtlb_entry *entry = &view->entry[index];
    __atomic_store_n(&entry->tag_write, VTLB_INVALID, __ATOMIC_RELAXED);
    entry->info = from->info;
    entry->addend = from->addend;
    entry->tag_read = from->tag_read;
    if (from->tag_write == VTLB_INVALID)
        return;
    uint64_t ram_page = from->info >> PAGE_SHIFT;
    hint_add(&vcpu->write_hint[ram_page], index);
    /* Publish the tag, then look at the state: a page that starts to hold code does the reverse. */
    __atomic_store_n(&entry->tag_write, from->tag_write, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&vcpu->mem->state[ram_page], __ATOMIC_SEQ_CST))
        __atomic_store_n(&entry->tag_write, VTLB_INVALID, __ATOMIC_RELAXED);
}

/* Write an entry of the second level. Nobody takes its write tag away: enter() asks when it comes back. */
static void put_away(struct vtlb_view *view, unsigned way, const struct vtlb_entry *from) {
    mark_used(view, way);
    view->entry[way] = *from;
}

static struct vtlb_entry entry_read(const struct vtlb_entry *entry) {
    return (struct vtlb_entry){.tag_read = entry->tag_read,
                               .tag_write = __atomic_load_n(&entry->tag_write, __ATOMIC_RELAXED),
                               .addend = entry->addend,
                               .info = entry->info};
}

#define NOT_THERE UINT32_MAX

/* Where page is in a set, or NOT_THERE. */
static unsigned set_find(const struct vtlb_view *view, unsigned set, uint64_t page) {
    for (unsigned i = set; i < set + VTLB_WAYS; i++)
        if (view->entry[i].tag_read == page)
            return i;
    return NOT_THERE;
}

/* Where to put an entry while page leaves the set: in its place if it is there, in an empty one, or in turn.
 */
static unsigned set_room(struct vtlb_view *view, unsigned set, uint64_t page) {
    unsigned room = NOT_THERE;
    for (unsigned i = set; i < set + VTLB_WAYS; i++) {
        if (view->entry[i].tag_read == page)
            return i;
        if (view->entry[i].tag_read == VTLB_INVALID)
            room = i;
    }
    return room != NOT_THERE ? room : set + view->next_way++ % VTLB_WAYS;
}

void vtlb_fill(struct vcpu *vcpu, struct vtlb_view *view, const struct vtlb_entry *entry) {
    unsigned index = vtlb_index(view, entry->tag_read), set = vtlb_set(view, index);
    mark_used(view, index);
    const struct vtlb_entry old = entry_read(&view->entry[index]);
    if (old.tag_read == VTLB_INVALID) {
        unsigned way = set_find(view, set, entry->tag_read);
        if (way != NOT_THERE)
            entry_drop(&view->entry[way]);
    } else if (old.tag_read != entry->tag_read) {
        put_away(view, set_room(view, set, entry->tag_read), &old);
    }
    enter(vcpu, view, index, entry);
}

bool vtlb_recall(struct vcpu *vcpu, struct vtlb_view *view, uint64_t linear) {
    uint64_t page = linear & PAGE_MASK;
    unsigned index = vtlb_index(view, page), way = set_find(view, vtlb_set(view, index), page);
    if (way == NOT_THERE)
        return false;
    mark_used(view, index);
    const struct vtlb_entry found = view->entry[way], old = entry_read(&view->entry[index]);
    put_away(view, way, &old); /* which may be none */
    enter(vcpu, view, index, &found);
    return true;
}

void vtlb_regain_write(struct vcpu *vcpu, struct vtlb_view *view, uint64_t linear) {
    unsigned index = vtlb_index(view, linear);
    struct vtlb_entry entry = entry_read(&view->entry[index]);
    if (entry.tag_read != (linear & PAGE_MASK) || !(entry.info & VTLB_INFO_WRITABLE) ||
        __atomic_load_n(&vcpu->mem->state[entry.info >> PAGE_SHIFT], __ATOMIC_RELAXED))
        return;
    entry.tag_write = entry.tag_read;
    enter(vcpu, view, index, &entry);
}

static void protect_entry(struct vtlb_entry *entry, uint64_t ram_page_offset) {
    if ((entry->info & PAGE_MASK) == ram_page_offset)
        __atomic_store_n(&entry->tag_write, VTLB_INVALID, __ATOMIC_RELAXED);
}

static void protect_in_view(struct vtlb_view *view, uint64_t ram_page_offset) {
    for (unsigned word = 0; word <= view->mask / VTLB_CHUNK / 64; word++) { /* the first level */
        for (uint64_t used = view->used[word]; used; used &= used - 1) {
            struct vtlb_entry *entry = chunk_of(view, word, used);
            for (unsigned i = 0; i < VTLB_CHUNK; i++)
                protect_entry(&entry[i], ram_page_offset);
        }
    }
}

void vtlb_write_protect(struct vcpu *vcpu, uint64_t ram_page_offset) {
    uint32_t hint = __atomic_load_n(&vcpu->write_hint[ram_page_offset >> PAGE_SHIFT], __ATOMIC_SEQ_CST);
    if (vcpu->direct_write &&
        __atomic_load_n(&vcpu->direct_write[ram_page_offset >> PAGE_SHIFT], __ATOMIC_SEQ_CST))
        __atomic_fetch_add(&vcpu->direct_revocations, 1, __ATOMIC_SEQ_CST);
    if (hint == WRITE_HINT_NONE)
        return;
    for (unsigned i = 0; i < VTLB_SPACES; i++) {
        if (!__atomic_load_n(&vcpu->spaces[i].live,
                             __ATOMIC_RELAXED)) /* once its vCPU fills it, that sees state */
            continue;
        for (unsigned kind = 0; kind < VIEW_KINDS; kind++) {
            struct vtlb_view *view = vcpu->spaces[i].view[kind];
            if (hint == WRITE_HINT_SEVERAL) {
                protect_in_view(view, ram_page_offset);
                continue;
            }
            for (uint32_t rest = hint; rest; rest >>= 16)
                if ((rest & 0xffff) - 1 <= view->mask)
                    protect_entry(&view->entry[(rest & 0xffff) - 1], ram_page_offset);
        }
    }
    tell_lost(vcpu);
}

void vtlb_forget_write_hint(struct vcpu *vcpu, uint64_t ram_page_offset) {
    vcpu->write_hint[ram_page_offset >> PAGE_SHIFT] = WRITE_HINT_NONE;
}
