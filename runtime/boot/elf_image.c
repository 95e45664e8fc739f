/* ELF files of x86 kernels. Every number in the file is foreign: each offset and size is checked before it is
 * used, against the file by boot_bytes_read() and against guest RAM by boot_layout_claim(). */
#define _GNU_SOURCE
#include "boot/elf_image.h"

#include <elf.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/diag.h"
#include "boot/guest_fill.h"

#define NOTES_LIMIT (64 * KIB)

static const char *image_path(const struct elf_image *image) {
    return image->bytes.file->path;
}

static int parse_program_header(struct elf_image *image, uint64_t offset) {
    struct elf_segment segment;
    int result;
    if (image->is_64) {
        Elf64_Phdr header;
        result = boot_bytes_read(&image->bytes, offset, &header, sizeof header);
        segment = (struct elf_segment){header.p_type,  header.p_offset, header.p_vaddr,
                                       header.p_paddr, header.p_filesz, header.p_memsz};
    } else {
        Elf32_Phdr header;
        result = boot_bytes_read(&image->bytes, offset, &header, sizeof header);
        segment = (struct elf_segment){header.p_type,  header.p_offset, header.p_vaddr,
                                       header.p_paddr, header.p_filesz, header.p_memsz};
    }
    if (result)
        return result;
    if ((segment.type != PT_LOAD && segment.type != PT_NOTE) || (!segment.memory_size && !segment.file_size))
        return 0;
    if (segment.offset > image->bytes.size || segment.file_size > image->bytes.size - segment.offset) {
        diag_error("kernel '%s' is truncated: a segment ends beyond the end of the file; get a complete copy",
                   image_path(image));
        return -EINVAL;
    }
    if (segment.type == PT_LOAD && segment.file_size > segment.memory_size) {
        diag_error("kernel '%s' is not a valid ELF file: a segment is larger in the file than in memory",
                   image_path(image));
        return -EINVAL;
    }
    if (image->segment_count == ELF_IMAGE_SEGMENTS) {
        diag_error("kernel '%s' has more than %d ELF segments, which no kernel needs", image_path(image),
                   ELF_IMAGE_SEGMENTS);
        return -EINVAL;
    }
    image->segment[image->segment_count++] = segment;
    return 0;
}

int elf_image_parse(struct elf_image *image, const struct boot_bytes *bytes) {
    union {
        unsigned char ident[EI_NIDENT];
        Elf32_Ehdr elf32;
        Elf64_Ehdr elf64;
    } header = {0};
    unsigned machine, type, count, entry_size;
    uint64_t table;

    *image = (struct elf_image){.bytes = *bytes};
    size_t head = bytes->size < sizeof header ? sizeof header.elf32 : sizeof header;
    int result = boot_bytes_read(bytes, 0, &header, head);
    if (result)
        return result;
    if (memcmp(header.ident, ELFMAG, SELFMAG)) {
        diag_error("kernel '%s': what it holds is not an ELF file; get a complete copy", image_path(image));
        return -EINVAL;
    }
    image->is_64 = header.ident[EI_CLASS] == ELFCLASS64;
    if (image->is_64) {
        machine = header.elf64.e_machine;
        type = header.elf64.e_type;
        image->entry = header.elf64.e_entry;
        table = header.elf64.e_phoff;
        count = header.elf64.e_phnum;
        entry_size = header.elf64.e_phentsize;
    } else {
        machine = header.elf32.e_machine;
        type = header.elf32.e_type;
        image->entry = header.elf32.e_entry;
        table = header.elf32.e_phoff;
        count = header.elf32.e_phnum;
        entry_size = header.elf32.e_phentsize;
    }
    if (header.ident[EI_DATA] != ELFDATA2LSB || machine != (image->is_64 ? EM_X86_64 : EM_386)) {
        diag_error("kernel '%s' is an ELF file for another processor (machine %u); give one for x86",
                   image_path(image), machine);
        return -EINVAL;
    }
    if (type != ET_EXEC && type != ET_DYN) {
        diag_error("kernel '%s' is an ELF file but not an executable (type %u); give a linked kernel",
                   image_path(image), type);
        return -EINVAL;
    }
    if (!count || count > 1024 || entry_size != (image->is_64 ? sizeof(Elf64_Phdr) : sizeof(Elf32_Phdr))) {
        diag_error("kernel '%s' is an ELF file without usable program headers; give a linked kernel",
                   image_path(image));
        return -EINVAL;
    }
    if (table > bytes->size)
        table = bytes->size; /* let the read below refuse it, without overflow */
    for (unsigned i = 0; i < count; i++) {
        result = parse_program_header(image, table + (uint64_t)i * entry_size);
        if (result)
            return result;
    }
    return 0;
}

/* Notes are {name size, descriptor size, type} and then both byte strings, each padded to four bytes. */
static bool find_in_notes(const uint8_t *notes, size_t size, const char *owner, uint32_t type,
                          uint64_t *value) {
    size_t at = 0, owner_size = strlen(owner) + 1;
    while (size - at >= sizeof(Elf64_Nhdr)) {
        Elf64_Nhdr note;
        memcpy(&note, notes + at, sizeof note);
        at += sizeof note;
        uint64_t name_space = align_up(note.n_namesz, 4), descriptor_space = align_up(note.n_descsz, 4);
        if (name_space > size - at || note.n_descsz > size - at - name_space)
            return false;
        const uint8_t *descriptor = notes + at + name_space;
        if (note.n_type == type && note.n_namesz == owner_size && !memcmp(notes + at, owner, owner_size)) {
            *value = 0;
            memcpy(value, descriptor, note.n_descsz < sizeof *value ? note.n_descsz : sizeof *value);
            return true;
        }
        if (descriptor_space > size - at - name_space)
            return false;
        at += name_space + descriptor_space;
    }
    return false;
}

int elf_image_find_note(const struct elf_image *image, const char *owner, uint32_t type, uint64_t *value) {
    for (unsigned i = 0; i < image->segment_count; i++) {
        const struct elf_segment *segment = &image->segment[i];
        if (segment->type != PT_NOTE)
            continue;
        size_t size = segment->file_size < NOTES_LIMIT ? (size_t)segment->file_size : NOTES_LIMIT;
        uint8_t *notes = malloc(size);
        if (!notes)
            return -ENOMEM;
        int result = boot_bytes_read(&image->bytes, segment->offset, notes, size);
        bool found = !result && find_in_notes(notes, size, owner, type, value);
        free(notes);
        if (result || found)
            return result;
    }
    return -ENOENT;
}

static int load_segment(const struct elf_image *image, const struct elf_segment *segment,
                        struct boot_layout *layout) {
    int result = boot_layout_claim(layout, segment->paddr, segment->memory_size);
    if (result) {
        const char *why = result == -EEXIST ? "overlaps another part of it"
                          : segment->paddr < BOOT_HOLE_END
                              ? "does not fit into the memory below 1 MiB; link it at 1 MiB or above"
                              : "does not fit into the guest's memory; raise --memory";
        diag_error("kernel '%s': its segment at 0x%llx of 0x%llx bytes %s", image_path(image),
                   (unsigned long long)segment->paddr, (unsigned long long)segment->memory_size, why);
        return -EINVAL;
    }
    result = guest_fill_from(layout->mem, segment->paddr, &image->bytes, segment->offset, segment->file_size);
    if (result)
        return result;
    return guest_fill_zero(layout->mem, segment->paddr + segment->file_size,
                           segment->memory_size - segment->file_size);
}

int elf_image_load(const struct elf_image *image, struct boot_layout *layout, uint64_t *start,
                   uint64_t *end) {
    *start = UINT64_MAX;
    *end = 0;
    for (unsigned i = 0; i < image->segment_count; i++) {
        const struct elf_segment *segment = &image->segment[i];
        if (segment->type != PT_LOAD || !segment->memory_size)
            continue;
        int result = load_segment(image, segment, layout);
        if (result)
            return result;
        if (segment->paddr < *start)
            *start = segment->paddr;
        if (segment->paddr + segment->memory_size > *end)
            *end = segment->paddr + segment->memory_size;
    }
    if (!*end) {
        diag_error("kernel '%s' is an ELF file with nothing to load; give a linked kernel",
                   image_path(image));
        return -EINVAL;
    }
    return 0;
}

uint64_t elf_image_physical(const struct elf_image *image, uint64_t address) {
    for (unsigned i = 0; i < image->segment_count; i++) {
        const struct elf_segment *segment = &image->segment[i];
        if (segment->type == PT_LOAD && address >= segment->vaddr &&
            address - segment->vaddr < segment->memory_size)
            return address - segment->vaddr + segment->paddr;
    }
    return address;
}
