/* Relocatable modules. Sections are laid out one behind another from IMAGE_MODULE_BASE on, imported symbols
 * get places of their own, and all relocations are applied as the module loader would. What depends on where
 * the loader puts things is remembered as fields: every relocation in code but for distances inside one
 * section.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/diag.h"
#include "sbt/image_private.h"

#define MODULE_LIMIT (256 * MIB)

struct layout {
    Elf *elf;
    struct image *image;
    unsigned count;
    uint64_t *address; /* by section number; 0: not loaded */
    uint8_t **data;
};

static int damaged(const struct image *image, const char *what) {
    diag_error("module '%s' is damaged: %s; get a complete copy", image->path, what);
    return -EINVAL;
}

/* Sections that are loaded, code first: their addresses follow from their order alone. */
static int place_sections(struct layout *layout) {
    struct image *image = layout->image;
    uint64_t at = IMAGE_MODULE_BASE;
    for (unsigned pass = 0; pass < 2; pass++)
        for (unsigned i = 1; i < layout->count; i++) {
            Elf64_Shdr header;
            const char *name;
            uint8_t *data;
            if (!image_elf_section(layout->elf, image, i, &header, &name, &data) ||
                !(header.sh_flags & SHF_ALLOC) || !header.sh_size)
                continue;
            bool exec = header.sh_flags & SHF_EXECINSTR;
            if (exec != !pass)
                continue;
            if (!data && header.sh_type != SHT_NOBITS)
                return damaged(image, "a section ends beyond the end of the file");
            uint64_t align = header.sh_addralign ? header.sh_addralign : 1;
            if (align & (align - 1) || align > MIB || header.sh_size > MODULE_LIMIT)
                return damaged(image, "a section has an impossible size or alignment");
            at = align_up(at, align > 64 ? align : 64);
            if (at + header.sh_size > IMAGE_MODULE_BASE + MODULE_LIMIT)
                return damaged(image, "its sections are larger than Linux's module area");
            layout->address[i] = at;
            layout->data[i] = data;
            bool init = !strncmp(name, ".init", 5) || !strncmp(name, ".exit", 5);
            image->section[image->sections++] =
                (struct image_section){.name = name,
                                       .address = at,
                                       .size = header.sh_size,
                                       .data = data,
                                       .exec = exec && data && strcmp(name, ".altinstr_replacement") != 0,
                                       .write = header.sh_flags & SHF_WRITE,
                                       .init = init};
            at += header.sh_size;
        }
    return 0;
}

/* Give every imported symbol a place, in the order of the symbol table. */
static int place_imports(struct layout *layout, const uint8_t *symbols, size_t count, const char *strings,
                         size_t strings_size) {
    struct image *image = layout->image;
    struct image_symbol *grown =
        realloc(image->symbol, (image->symbols + count ? image->symbols + count : 1) * sizeof *grown);
    if (!grown)
        return -ENOMEM;
    image->symbol = grown;
    for (size_t i = 1; i < count; i++) {
        Elf64_Sym symbol;
        memcpy(&symbol, symbols + i * sizeof symbol, sizeof symbol);
        if (symbol.st_shndx != SHN_UNDEF || symbol.st_name >= strings_size)
            continue;
        image->symbol[image->symbols++] =
            (struct image_symbol){.name = strings + symbol.st_name,
                                  .address = IMAGE_EXTERNAL_BASE + i * IMAGE_EXTERNAL_STEP,
                                  .type = 'U'};
    }
    return 0;
}

/* Where a symbol is; false when it is in no loaded section. */
static bool symbol_place(const struct layout *layout, const Elf64_Sym *symbol, size_t index,
                         uint64_t *place) {
    *place = symbol->st_value;
    if (symbol->st_shndx == SHN_ABS)
        return true;
    if (symbol->st_shndx == SHN_UNDEF) {
        *place = IMAGE_EXTERNAL_BASE + index * IMAGE_EXTERNAL_STEP;
        return true;
    }
    if (symbol->st_shndx >= layout->count || !layout->address[symbol->st_shndx])
        return false;
    *place += layout->address[symbol->st_shndx];
    return true;
}

static int add_field(struct image *image, size_t *capacity, uint64_t address, enum image_field_kind kind) {
    if (image->fields == *capacity) {
        *capacity = *capacity ? *capacity * 2 : 256;
        struct image_field *grown = realloc(image->field, *capacity * sizeof *grown);
        if (!grown)
            return -ENOMEM;
        image->field = grown;
    }
    image->field[image->fields++] = (struct image_field){.address = address, .kind = (uint8_t)kind};
    return 0;
}

/* Apply one relocation to section `target`. */
static int relocate(struct layout *layout, unsigned target, uint64_t target_size, bool exec,
                    const Elf64_Rela *rela, const Elf64_Sym *symbol, size_t *capacity) {
    uint64_t place, where = layout->address[target] + rela->r_offset;
    unsigned type = (unsigned)ELF64_R_TYPE(rela->r_info), size;
    bool relative = false;
    switch (type) {
    case R_X86_64_NONE:
        return 0;
    case R_X86_64_64:
        size = 8;
        break;
    case R_X86_64_PC64:
        size = 8;
        relative = true;
        break;
    case R_X86_64_32:
    case R_X86_64_32S:
        size = 4;
        break;
    case R_X86_64_PC32:
    case R_X86_64_PLT32:
        size = 4;
        relative = true;
        break;
    default:
        return damaged(layout->image, "it has a relocation of a kind that modules do not use");
    }
    if (rela->r_offset > target_size || target_size - rela->r_offset < size)
        return damaged(layout->image, "a relocation lies outside its section");
    if (!layout->data[target] || !symbol_place(layout, symbol, ELF64_R_SYM(rela->r_info), &place))
        return 0;
    uint64_t value = place + (uint64_t)rela->r_addend - (relative ? where : 0);
    memcpy(layout->data[target] + rela->r_offset, &value, size);
    bool inside = relative && symbol->st_shndx == target;
    if (!exec || inside)
        return 0;
    return add_field(layout->image, capacity, where, size == 4 ? IMAGE_FIELD_FREE32 : IMAGE_FIELD_FREE64);
}

static int relocate_section(struct layout *layout, const Elf64_Shdr *rela_header, const uint8_t *rela_data,
                            const uint8_t *symbols, size_t symbol_count, size_t *capacity) {
    unsigned target = rela_header->sh_info;
    if (target >= layout->count || !layout->address[target])
        return 0;
    Elf64_Shdr header;
    const char *name;
    uint8_t *data;
    if (!image_elf_section(layout->elf, layout->image, target, &header, &name, &data))
        return 0;
    size_t count = rela_header->sh_size / sizeof(Elf64_Rela);
    for (size_t i = 0; i < count; i++) {
        Elf64_Rela rela;
        Elf64_Sym symbol;
        memcpy(&rela, rela_data + i * sizeof rela, sizeof rela);
        if (ELF64_R_SYM(rela.r_info) >= symbol_count)
            return damaged(layout->image, "a relocation names a symbol that there is not");
        memcpy(&symbol, symbols + ELF64_R_SYM(rela.r_info) * sizeof symbol, sizeof symbol);
        int result = relocate(layout, target, header.sh_size, header.sh_flags & SHF_EXECINSTR, &rela, &symbol,
                              capacity);
        if (result)
            return result;
    }
    return 0;
}

static int apply_relocations(struct layout *layout) {
    struct image *image = layout->image;
    size_t capacity = 0;
    for (unsigned i = 1; i < layout->count; i++) {
        Elf64_Shdr header, table, strings;
        const char *name;
        uint8_t *data, *symbols, *text;
        if (!image_elf_section(layout->elf, image, i, &header, &name, &data) || header.sh_type != SHT_RELA ||
            !data)
            continue;
        if (!image_elf_section(layout->elf, image, header.sh_link, &table, &name, &symbols) || !symbols ||
            table.sh_type != SHT_SYMTAB ||
            !image_elf_section(layout->elf, image, table.sh_link, &strings, &name, &text) || !text ||
            !strings.sh_size || text[strings.sh_size - 1])
            return damaged(image, "its relocations have no symbol table");
        size_t count = table.sh_size / sizeof(Elf64_Sym);
        bool first = !image->symbols || image->symbol[image->symbols - 1].type != 'U';
        int result = first ? place_imports(layout, symbols, count, (const char *)text, strings.sh_size) : 0;
        if (!result)
            result = relocate_section(layout, &header, data, symbols, count, &capacity);
        if (result)
            return result;
    }
    image->fields_known = true;
    return 0;
}

/* "dir/virtio-net.ko.xz" names the module virtio_net. */
static void take_name(struct image *image, const char *path) {
    const char *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;
    size_t length = strcspn(name, ".");
    if (length >= sizeof image->release)
        length = sizeof image->release - 1;
    for (size_t i = 0; i < length; i++)
        image->release[i] = name[i] == '-' ? '_' : name[i];
}

static int load(struct image *image) {
    Elf *elf = image_elf_open(image->path, image->bytes, image->size, ET_REL);
    if (!elf)
        return -EINVAL;
    size_t count;
    int result = -ENOMEM;
    struct layout layout = {.elf = elf, .image = image};
    if (elf_getshdrnum(elf, &count))
        count = 0;
    layout.count = (unsigned)count;
    layout.address = calloc(count + 1, sizeof *layout.address);
    layout.data = calloc(count + 1, sizeof *layout.data);
    image->section = calloc(count + 1, sizeof *image->section);
    if (layout.address && layout.data && image->section)
        result = place_sections(&layout);
    if (!result)
        result = image_elf_symbols(image, elf, layout.address, layout.count);
    if (!result)
        result = apply_relocations(&layout);
    if (!result)
        result = image_sort(image);
    free(layout.address);
    free(layout.data);
    elf_end(elf);
    return result;
}

int image_open_module(struct image *image, const char *path, const uint8_t *bytes, size_t size) {
    *image = (struct image){.module = true, .path = strdup(path), .size = size};
    image->bytes = malloc(size ? size : 1);
    int result = -ENOMEM;
    if (image->path && image->bytes) {
        memcpy(image->bytes, bytes, size);
        take_name(image, path);
        result = load(image);
    }
    if (result == -ENOMEM)
        diag_error("module '%s': out of memory", path);
    if (result)
        image_close(image);
    return result;
}
