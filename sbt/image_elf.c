/* ELF through libelf, and the checks it leaves to its callers. */
#define _GNU_SOURCE
#include "sbt/image_private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/diag.h"

Elf *image_elf_open(const char *path, uint8_t *bytes, size_t size, unsigned type) {
    if (elf_version(EV_CURRENT) == EV_NONE) {
        diag_error("image '%s': libelf does not work: %s; install it again", path, elf_errmsg(-1));
        return NULL;
    }
    if (size < sizeof(Elf64_Ehdr) || memcmp(bytes, ELFMAG, SELFMAG)) {
        diag_error("image '%s' is no ELF file; give a Linux kernel or module", path);
        return NULL;
    }
    Elf *elf = elf_memory((char *)bytes, size);
    const Elf64_Ehdr *header = elf ? elf64_getehdr(elf) : NULL;
    if (!header || header->e_machine != EM_X86_64) {
        diag_error("image '%s' is not a 64-bit ELF file for x86; only those are translated ahead", path);
        elf_end(elf);
        return NULL;
    }
    if (header->e_type != type) {
        diag_error("image '%s' is an ELF file of type %u where %u is needed; give a %s", path, header->e_type,
                   type, type == ET_REL ? "relocatable module (.ko)" : "linked kernel (vmlinux)");
        elf_end(elf);
        return NULL;
    }
    size_t count;
    if (elf_getshdrnum(elf, &count) || !count || count > IMAGE_SECTIONS_MAX) {
        diag_error("image '%s' has no usable section table, so its code cannot be told from its data; give "
                   "an image that was not stripped of it",
                   path);
        elf_end(elf);
        return NULL;
    }
    return elf;
}

bool image_elf_section(Elf *elf, const struct image *image, unsigned index, Elf64_Shdr *header,
                       const char **name, uint8_t **data) {
    size_t names;
    Elf_Scn *section = elf_getscn(elf, index);
    const Elf64_Shdr *found = section ? elf64_getshdr(section) : NULL;
    if (!found || elf_getshdrstrndx(elf, &names))
        return false;
    *header = *found;
    *name = elf_strptr(elf, names, found->sh_name);
    if (!*name)
        *name = "";
    *data = NULL;
    if (found->sh_type != SHT_NOBITS && found->sh_offset <= image->size &&
        found->sh_size <= image->size - found->sh_offset)
        *data = image->bytes + found->sh_offset;
    return true;
}

static int compare_sections(const void *left, const void *right) {
    const struct image_section *a = left, *b = right;
    return a->address < b->address ? -1 : a->address > b->address;
}

/* Of several symbols at one address, code ones come first, then by name: the order is the same on every run.
 */
static int compare_symbols(const void *left, const void *right) {
    const struct image_symbol *a = left, *b = right;
    if (a->address != b->address)
        return a->address < b->address ? -1 : 1;
    return strcmp(a->name, b->name);
}

static int compare_fields(const void *left, const void *right) {
    const struct image_field *a = left, *b = right;
    if (a->address != b->address)
        return a->address < b->address ? -1 : 1;
    return (int)a->kind - (int)b->kind;
}

static int compare_names(const void *left, const void *right, void *context) {
    const struct image_symbol *symbol = context;
    uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;
    int order = strcmp(symbol[a].name, symbol[b].name);
    return order ? order : a < b ? -1 : a > b;
}

static int index_names(struct image *image) {
    free(image->by_name);
    image->by_name = NULL;
    if (!image->symbols || image->symbols > UINT32_MAX)
        return 0;
    image->by_name = malloc(image->symbols * sizeof *image->by_name);
    if (!image->by_name)
        return -ENOMEM;
    for (size_t i = 0; i < image->symbols; i++)
        image->by_name[i] = (uint32_t)i;
    qsort_r(image->by_name, image->symbols, sizeof *image->by_name, compare_names, image->symbol);
    return 0;
}

int image_sort(struct image *image) {
    unsigned kept = 0;
    if (image->sections)
        qsort(image->section, image->sections, sizeof *image->section, compare_sections);
    for (unsigned i = 0; i < image->sections; i++) {
        const struct image_section *section = &image->section[i];
        const struct image_section *before = kept ? &image->section[kept - 1] : NULL;
        if (section->address + section->size < section->address)
            continue;
        if (before && section->address - before->address < before->size)
            continue;
        image->section[kept++] = *section;
    }
    image->sections = kept;
    if (image->symbols)
        qsort(image->symbol, image->symbols, sizeof *image->symbol, compare_symbols);
    if (image->fields)
        qsort(image->field, image->fields, sizeof *image->field, compare_fields);
    return index_names(image);
}

static char symbol_type(const Elf64_Sym *symbol) {
    bool global = ELF64_ST_BIND(symbol->st_info) != STB_LOCAL;
    bool code = ELF64_ST_TYPE(symbol->st_info) == STT_FUNC;
    return code ? (global ? 'T' : 't') : (global ? 'D' : 'd');
}

static bool symbol_wanted(const Elf64_Sym *symbol) {
    unsigned type = ELF64_ST_TYPE(symbol->st_info);
    return symbol->st_shndx != SHN_UNDEF && symbol->st_shndx < SHN_LORESERVE &&
           (type == STT_FUNC || type == STT_OBJECT || type == STT_NOTYPE);
}

int image_elf_symbols(struct image *image, Elf *elf, const uint64_t *addresses, unsigned count) {
    for (unsigned i = 1;; i++) {
        Elf64_Shdr header, strings;
        const char *name;
        uint8_t *data, *text;
        if (!image_elf_section(elf, image, i, &header, &name, &data))
            return 0;
        if (header.sh_type != SHT_SYMTAB || !data ||
            !image_elf_section(elf, image, header.sh_link, &strings, &name, &text) || !text ||
            !strings.sh_size || text[strings.sh_size - 1])
            continue;
        size_t symbols = header.sh_size / sizeof(Elf64_Sym);
        if (!symbols)
            continue;
        image->symbol = calloc(symbols, sizeof *image->symbol);
        if (!image->symbol)
            return -ENOMEM;
        for (size_t k = 0; k < symbols; k++) {
            Elf64_Sym symbol;
            memcpy(&symbol, data + k * sizeof symbol, sizeof symbol);
            if (!symbol_wanted(&symbol) || symbol.st_name >= strings.sh_size || !text[symbol.st_name])
                continue;
            if (addresses && symbol.st_shndx >= count)
                continue;
            image->symbol[image->symbols++] = (struct image_symbol){
                .name = (const char *)text + symbol.st_name,
                .address = symbol.st_value + (addresses ? addresses[symbol.st_shndx] : 0),
                .type = symbol_type(&symbol)};
        }
        return 0;
    }
}
