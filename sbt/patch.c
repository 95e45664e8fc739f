/* The stages of a kernel's text: storage, and the order in which Linux patches.
 *
 * Linux sets static calls first (setup_arch), then turns the calls for tracing into NOPs (ftrace_init), and
 * late in start_kernel rewrites paravirtual calls, retpolines, returns, alternatives, ENDBRs and, with one
 * processor, LOCK prefixes. A module gets all of it when it is loaded.
 */
#include "sbt/patch_private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/diag.h"

static const char *const kind_names[] = {
    [PATCH_JUMP_LABEL] = "jump labels",
    [PATCH_STATIC_CALL] = "static calls",
    [PATCH_TRACE] = "trace calls",
    [PATCH_ALTERNATIVE] = "alternatives",
    [PATCH_PARAVIRT] = "paravirtual calls",
    [PATCH_RETPOLINE] = "retpolines",
    [PATCH_RETURN] = "returns",
    [PATCH_ENDBR] = "ENDBR seals",
    [PATCH_LOCK] = "LOCK prefixes",
    [PATCH_CONSTANT] = "constants",
};
_Static_assert(ARRAY_SIZE(kind_names) == PATCH_KINDS, "each kind has a name");

const char *patch_kind_name(enum patch_kind kind) {
    return kind_names[kind];
}

static struct patched_section *section_at(const struct patched *patched, uint64_t address, size_t length) {
    unsigned low = 0, high = patched->sections;
    while (low < high) {
        unsigned middle = low + (high - low) / 2;
        struct patched_section *section = &patched->section[middle];
        if (address < section->address)
            high = middle;
        else if (address - section->address >= section->size)
            low = middle + 1;
        else
            return section->size - (address - section->address) >= length ? section : NULL;
    }
    return NULL;
}

uint8_t *patched_at(const struct patched *patched, enum stage stage, uint64_t address, size_t length) {
    struct patched_section *section = section_at(patched, address, length);
    return section ? section->bytes[stage] + (address - section->address) : NULL;
}

size_t patched_choice_from(const struct patched *patched, uint64_t address) {
    size_t low = 0, high = patched->choices;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (patched->choice[middle].address < address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

size_t patched_call_from(const struct patched *patched, uint64_t address) {
    size_t low = 0, high = patched->calls;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (patched->call[middle] < address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

void patch_skip(struct patching *p, enum patch_kind kind) {
    p->patched->skipped[kind]++;
}

bool patch_write(struct patching *p, enum patch_kind kind, enum stage first, enum stage last,
                 uint64_t address, const uint8_t *bytes, size_t length) {
    struct patched_section *section = section_at(p->patched, address, length);
    if (!section) {
        patch_skip(p, kind);
        return false;
    }
    for (unsigned stage = first; stage <= last; stage++)
        memcpy(section->bytes[stage] + (address - section->address), bytes, length);
    return true;
}

static bool grow(struct patched *patched, size_t length) {
    if (patched->choices == patched->choice_room) {
        size_t room = patched->choice_room ? patched->choice_room * 2 : 1024;
        struct patch_choice *grown = realloc(patched->choice, room * sizeof *grown);
        if (!grown)
            return false;
        patched->choice = grown;
        patched->choice_room = room;
    }
    if (patched->option_room - patched->option_used < length) {
        size_t room = patched->option_room ? patched->option_room * 2 : 16384;
        uint8_t *grown = realloc(patched->option_bytes, room);
        if (!grown)
            return false;
        patched->option_bytes = grown;
        patched->option_room = room;
    }
    return true;
}

void patch_offer(struct patching *p, enum patch_kind kind, enum stage first, uint64_t address,
                 const uint8_t *bytes, size_t length) {
    struct patched *patched = p->patched;
    const uint8_t *now = patched_at(patched, first, address, length);
    if (!now || !length || length > PATCH_LENGTH_MAX || !memcmp(now, bytes, length))
        return;
    if (!grow(patched, length)) {
        patched->out_of_memory = true;
        return;
    }
    struct patch_choice *before = patched->choices ? &patched->choice[patched->choices - 1] : NULL;
    if (before && before->address == address && before->length == length && before->kind == kind &&
        before->options < UINT8_MAX) {
        for (unsigned i = 0; i < before->options; i++)
            if (!memcmp(patched->option_bytes + before->bytes + i * length, bytes, length))
                return;
        before->options++;
    } else {
        patched->choice[patched->choices++] = (struct patch_choice){.address = address,
                                                                    .bytes = (uint32_t)patched->option_used,
                                                                    .length = (uint8_t)length,
                                                                    .options = 1,
                                                                    .kind = (uint8_t)kind,
                                                                    .first_stage = (uint8_t)first};
    }
    memcpy(patched->option_bytes + patched->option_used, bytes, length);
    patched->option_used += length;
}

static int compare_choices(const void *left, const void *right) {
    const struct patch_choice *a = left, *b = right;
    if (a->address != b->address)
        return a->address < b->address ? -1 : 1;
    return a->bytes < b->bytes ? -1 : a->bytes > b->bytes;
}

static int compare_calls(const void *left, const void *right) {
    uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
    return a < b ? -1 : a > b;
}

static int copy_text(struct patched *patched, const struct image *image) {
    patched->section = calloc(image->sections ? image->sections : 1, sizeof *patched->section);
    if (!patched->section)
        return -ENOMEM;
    for (unsigned i = 0; i < image->sections; i++) {
        const struct image_section *from = &image->section[i];
        bool replacement = !strcmp(from->name, ".altinstr_replacement");
        if ((!from->exec && !replacement) || !from->data)
            continue;
        struct patched_section *section = &patched->section[patched->sections++];
        *section = (struct patched_section){.address = from->address,
                                            .size = from->size,
                                            .init = from->init,
                                            .code = !replacement,
                                            .name = from->name};
        for (unsigned stage = 0; stage < STAGES; stage++) {
            section->bytes[stage] = malloc(from->size);
            if (!section->bytes[stage])
                return -ENOMEM;
            memcpy(section->bytes[stage], from->data, from->size);
        }
    }
    return 0;
}

/* The multi-byte NOPs of SDM vol. 2, NOP, of which the kernel makes longer ones with prefixes. */
static const uint8_t usual_nops[12][11] = {
    {0},
    {0x90},
    {0x66, 0x90},
    {0x0f, 0x1f, 0x00},
    {0x0f, 0x1f, 0x40, 0x00},
    {0x0f, 0x1f, 0x44, 0x00, 0x00},
    {0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00},
    {0x0f, 0x1f, 0x80, 0x00, 0x00, 0x00, 0x00},
    {0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00},
    {0x2e, 0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00},
    {0x66, 0x2e, 0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00},
    {0x66, 0x66, 0x2e, 0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00},
};

/* x86_nops[] holds a pointer to each NOP that the kernel uses, by length from 1 on; as long as those lie in a
 * row they are that table. */
static void find_nops(struct patching *p) {
    const struct image_symbol *table = image_symbol_named(p->image, "x86_nops");
    unsigned longest = 0;
    uint64_t place, before = 0;
    memcpy(p->nop, usual_nops, sizeof p->nop);
    for (unsigned i = 1; table && i < ARRAY_SIZE(p->nop); i++) {
        const uint8_t *bytes = NULL;
        if (image_read(p->image, table->address + 8ull * i, 8, &place) && (i == 1 || place == before + i - 1))
            bytes = image_at(p->image, place, i);
        if (!bytes)
            break;
        memcpy(p->nop[i], bytes, i);
        before = place;
        longest = i;
    }
    p->longest_nop = longest >= 8 ? longest : p->modern ? 11 : 8;
}

static void find_return_zero(struct patching *p) {
    static const uint8_t usual[5] = {0x2e, 0x2e, 0x2e, 0x31, 0xc0};
    const struct image_symbol *symbol = image_symbol_named(p->image, "xor5rax");
    const uint8_t *bytes = symbol ? image_at(p->image, symbol->address, 5) : NULL;
    memcpy(p->return_zero, bytes ? bytes : usual, 5);
}

int patched_create(struct patched *patched, const struct image *image, const struct features *features) {
    struct patching p = {.patched = patched, .image = image, .features = features};
    *patched = (struct patched){.image = image};
    int result = copy_text(patched, image);
    if (!result) {
        p.modern =
            !image_section_named(image, ".parainstructions") &&
            (image->module || image_symbol_named(image, "apply_relocation") ||
             image_section_named(image, ".call_sites") || !image_symbol_named(image, "apply_paravirt"));
        find_nops(&p);
        find_return_zero(&p);
        patch_jump_labels(&p);
        patch_static_calls(&p);
        patch_tracing(&p);
        patch_paravirt(&p);
        patch_retpolines(&p);
        patch_returns(&p);
        patch_alternatives(&p);
        patch_endbrs(&p);
        patch_locks(&p);
        patch_runtime_constants(&p);
        if (patched->choices)
            qsort(patched->choice, patched->choices, sizeof *patched->choice, compare_choices);
        if (patched->calls)
            qsort(patched->call, patched->calls, sizeof *patched->call, compare_calls);
        if (patched->out_of_memory)
            result = -ENOMEM;
    }
    if (result) {
        diag_error("image '%s': out of memory", image->path);
        patched_destroy(patched);
    }
    return result;
}

void patched_destroy(struct patched *patched) {
    for (unsigned i = 0; i < patched->sections; i++)
        for (unsigned stage = 0; stage < STAGES; stage++)
            free(patched->section[i].bytes[stage]);
    free(patched->section);
    free(patched->choice);
    free(patched->call);
    free(patched->option_bytes);
    *patched = (struct patched){0};
}
