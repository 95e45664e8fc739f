/* An ELF executable for x86 as boot loaders see it: program headers, notes, entry. Both classes. */
#ifndef NESTOR_BOOT_ELF_IMAGE_H
#define NESTOR_BOOT_ELF_IMAGE_H

#include "boot/boot_file.h"
#include "boot/layout.h"

#define ELF_IMAGE_SEGMENTS 32

struct elf_segment {
    uint32_t type; /* PT_LOAD or PT_NOTE */
    uint64_t offset, vaddr, paddr, file_size, memory_size;
};

struct elf_image {
    struct boot_bytes bytes;
    bool is_64;
    uint64_t entry;
    unsigned segment_count;
    struct elf_segment segment[ELF_IMAGE_SEGMENTS];
};

/* Parse the headers. bytes stays the caller's and must outlive the image. 0, or -errno after one line that
 * says what the file is not. */
MUST_CHECK int elf_image_parse(struct elf_image *image, const struct boot_bytes *bytes);

/* Find the note (owner, type) and copy its descriptor, zero-extended, to *value: at most 8 bytes.
 * 0; -ENOENT without a line when the file has no such note; another -errno after one line. */
MUST_CHECK int elf_image_find_note(const struct elf_image *image, const char *owner, uint32_t type,
                                   uint64_t *value);

/* Claim and fill every PT_LOAD segment at its physical address; what a segment has beyond its file bytes
 * reads as zeros. [*start, *end) spans them all. 0 or -errno after one line. */
MUST_CHECK int elf_image_load(const struct elf_image *image, struct boot_layout *layout, uint64_t *start,
                              uint64_t *end);

/* The physical address of a virtual one that lies in a segment; any other address as it is. */
uint64_t elf_image_physical(const struct elf_image *image, uint64_t address);

#endif
