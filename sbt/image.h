/* A kernel or a module as the offline translator sees it: sections at their link addresses, symbols, and the
 * fields of its code whose value depends on where it is loaded.
 *
 * Everything in an image file is foreign: what these functions hand out has been checked against the file,
 * and every lookup by address is bounded. Sources: the ELF gABI and the x86-64 psABI (relocations); Linux
 * Documentation/arch/x86/boot.rst (the payload of a bzImage), arch/x86/tools/relocs.c's output format
 * (relocations behind the payload), scripts/kallsyms.c's output format (kallsyms.c).
 */
#ifndef NESTOR_SBT_IMAGE_H
#define NESTOR_SBT_IMAGE_H

#include "base/types.h"

/* Images larger than this are refused: no kernel or module comes near. */
#define IMAGE_LIMIT (1 * GIB)
/* Where modules are laid out for analysis: the start of Linux's module area. */
#define IMAGE_MODULE_BASE 0xffffffffc0000000ull
/* Symbols that a module imports stand here for analysis, IMAGE_EXTERNAL_STEP bytes apart, with type U. */
#define IMAGE_EXTERNAL_BASE 0xffffffffb0000000ull
#define IMAGE_EXTERNAL_STEP 16ull

struct image_section {
    const char *name;
    uint64_t address;
    uint64_t size;
    uint8_t *data; /* size bytes; NULL: zeros that the file does not hold */
    bool exec, write;
    bool init; /* given back after the start: .init.text and its like */
};

struct image_symbol {
    const char *name;
    uint64_t address;
    char type; /* as nm(1) prints it; 't' or 'T': code */
};

/* How the value of a field of guest code follows from the place that the image is loaded to. */
enum image_field_kind {
    IMAGE_FIELD_ABS32, /* moves with the image: link value + slide, the low 32 bits */
    IMAGE_FIELD_ABS64,
    IMAGE_FIELD_REL32_INVERSE, /* relative to the instruction, of a place that does not move: - slide */
    IMAGE_FIELD_FREE32,        /* known when the module is loaded: any value */
    IMAGE_FIELD_FREE64,
};

struct image_field {
    uint64_t address;
    uint8_t kind; /* enum image_field_kind */
};

struct image {
    char *path;
    bool module;
    bool loader;      /* what a bzImage runs before the kernel: it unpacks it; no symbols, links at 0 */
    char release[64]; /* "6.1.0-56-cloud-amd64"; of a module, its name */
    uint64_t entry;   /* a kernel's ELF entry point, as the address it is linked to */
    struct image_section *section; /* those that are loaded, sorted by address */
    unsigned sections;
    struct image_symbol *symbol; /* sorted by address; may be none */
    size_t symbols;
    uint32_t *by_name;         /* indices into symbol, sorted by name */
    struct image_field *field; /* in executable sections, sorted by address */
    size_t fields;
    bool fields_known; /* false: the file does not say where its code depends on its place */
    /* Storage. */
    uint8_t *bytes;
    size_t size;
    char *strings;
    uint8_t *extra;
};

/* A table that the kernel's linker script brackets by symbols, or a module's section. data points to size
 * bytes at address. */
struct image_table {
    uint64_t address;
    size_t size;
    const uint8_t *data;
};

/* Open a kernel: a bzImage with a payload, or an ELF vmlinux with or without symbols. 0, or -errno after one
 * diag_error() line. image_close() takes either back. */
MUST_CHECK int image_open_kernel(struct image *image, const char *path);
/* The loader of a bzImage: the code around its payload. -ENOENT: the file is no bzImage, or has none of 64
 * bits. */
MUST_CHECK int image_open_loader(struct image *image, const char *path);
/* Open a relocatable module from its file's bytes, packed or not; path names it in messages, and its last
 * component gives the module's name. The bytes stay the caller's. */
MUST_CHECK int image_open_module(struct image *image, const char *path, const uint8_t *bytes, size_t size);
void image_close(struct image *image);

/* The loaded section that holds the address, or NULL. */
const struct image_section *image_section_at(const struct image *image, uint64_t address);
const struct image_section *image_section_named(const struct image *image, const char *name);
/* Room bytes of the image at the address if it has them, else NULL. */
const uint8_t *image_at(const struct image *image, uint64_t address, size_t room);
/* Read a little-endian number of 1, 2, 4 or 8 bytes; false when the image has none there. Zeros of a section
 * without data read as such. */
MUST_CHECK bool image_read(const struct image *image, uint64_t address, unsigned size, uint64_t *value);
/* The symbol of that name, of several the lowest; NULL: none. */
const struct image_symbol *image_symbol_named(const struct image *image, const char *name);
/* The last symbol at or below the address, NULL: none. */
const struct image_symbol *image_symbol_at(const struct image *image, uint64_t address);
/* By section name; else, when start is not NULL, from that symbol to stop's. Empty when there is neither. */
struct image_table image_table(const struct image *image, const char *section, const char *start,
                               const char *stop);
/* The index of the first field at or above the address. */
size_t image_field_from(const struct image *image, uint64_t address);

#endif
