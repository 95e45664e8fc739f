/* Kernels: a bzImage's payload or an ELF vmlinux. Behind the ELF file a bzImage's payload carries the list of
 * places that depend on where the kernel is loaded (KASLR); its format is read from the end:
 *   u32 0, u32 64-bit places..., u32 0, u32 inverse places..., u32 0, u32 32-bit places...
 * each the low half of a link address (sign-extended).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/diag.h"
#include "boot/bzimage.h"
#include "boot/payload.h"
#include "sbt/image_private.h"

#define LOADER_ENTRY_64 0x200u /* boot.rst, "64-bit Boot Protocol" */

static int no_memory(const char *path) {
    diag_error("image '%s': out of memory", path);
    return -ENOMEM;
}

static int read_whole(struct image *image, const struct boot_file *file) {
    if (file->size > IMAGE_LIMIT) {
        diag_error("image '%s' is %llu bytes, larger than any kernel; give a kernel", file->path,
                   (unsigned long long)file->size);
        return -EFBIG;
    }
    image->bytes = malloc(file->size ? file->size : 1);
    if (!image->bytes)
        return no_memory(file->path);
    image->size = file->size;
    return boot_file_read(file, 0, image->bytes, image->size);
}

static int unpack_payload(struct image *image, const struct boot_file *file) {
    struct bzimage bzimage;
    int result = bzimage_parse(&bzimage, file);
    if (result)
        return result;
    if (!bzimage.payload_size) {
        diag_error("kernel '%s' is a bzImage without a payload, so no Linux kernel; give one", file->path);
        return -ENOTSUP;
    }
    memcpy(image->release, bzimage.release, sizeof image->release);
    struct payload *payload;
    result = payload_open(&payload, file, bzimage.payload_offset, bzimage.payload_size, IMAGE_LIMIT);
    if (result)
        return result;
    image->size = payload_size(payload);
    image->bytes = malloc(image->size);
    result = image->bytes ? payload_read(payload, 0, image->bytes, image->size) : no_memory(file->path);
    payload_close(payload);
    return result;
}

static bool is_init(const char *name) {
    return !strncmp(name, ".init", 5) || !strncmp(name, ".exit", 5) || !strcmp(name, ".altinstr_aux");
}

static int load_sections(struct image *image, Elf *elf) {
    size_t count;
    if (elf_getshdrnum(elf, &count))
        return -EINVAL;
    image->section = calloc(count, sizeof *image->section);
    if (!image->section)
        return no_memory(image->path);
    for (unsigned i = 1; i < count; i++) {
        Elf64_Shdr header;
        const char *name;
        uint8_t *data;
        if (!image_elf_section(elf, image, i, &header, &name, &data) || !(header.sh_flags & SHF_ALLOC) ||
            !header.sh_size || header.sh_size > IMAGE_LIMIT)
            continue;
        if (!data && header.sh_type != SHT_NOBITS) {
            diag_error("kernel '%s' is truncated: its section %s ends beyond the end of the file; get a "
                       "complete copy",
                       image->path, name);
            return -EINVAL;
        }
        /* The kernel's mark of a writable .rodata is the linker's; what runs is what is executable. */
        bool exec = header.sh_flags & SHF_EXECINSTR && data && strcmp(name, ".altinstr_replacement") != 0;
        image->section[image->sections++] = (struct image_section){.name = name,
                                                                   .address = header.sh_addr,
                                                                   .size = header.sh_size,
                                                                   .data = data,
                                                                   .exec = exec,
                                                                   .write = header.sh_flags & SHF_WRITE,
                                                                   .init = is_init(name)};
    }
    return 0;
}

/* Section names point into the file, whose string table is NUL-terminated or not: keep copies. */
static int keep_names(struct image *image) {
    size_t total = 0;
    for (unsigned i = 0; i < image->sections; i++)
        total += strlen(image->section[i].name) + 1;
    image->extra = malloc(total ? total : 1);
    if (!image->extra)
        return no_memory(image->path);
    char *at = (char *)image->extra;
    for (unsigned i = 0; i < image->sections; i++) {
        size_t length = strlen(image->section[i].name) + 1;
        memcpy(at, image->section[i].name, length);
        image->section[i].name = at;
        at += length;
    }
    return 0;
}

/* The end of the ELF file proper: of the section table or of the last section, whichever comes later. */
static uint64_t elf_end_offset(Elf *elf, const struct image *image) {
    const Elf64_Ehdr *header = elf64_getehdr(elf);
    uint64_t end = header->e_shoff + (uint64_t)header->e_shnum * header->e_shentsize;
    for (unsigned i = 1;; i++) {
        Elf64_Shdr section;
        const char *name;
        uint8_t *data;
        if (!image_elf_section(elf, image, i, &section, &name, &data))
            break;
        uint64_t section_end = data ? section.sh_offset + section.sh_size : 0;
        if (section_end > end)
            end = section_end;
    }
    return end < image->size ? end : image->size;
}

static int read_fields(struct image *image, uint64_t begin) {
    static const enum image_field_kind kinds[] = {IMAGE_FIELD_ABS32, IMAGE_FIELD_REL32_INVERSE,
                                                  IMAGE_FIELD_ABS64};
    size_t words = (image->size - begin) / 4, capacity = 0;
    unsigned kind = 0;
    while (words && kind < ARRAY_SIZE(kinds)) {
        uint32_t word;
        words--;
        memcpy(&word, image->bytes + image->size - 4 * (image->size - begin) / 4 + words * 4, 4);
        if (!word) {
            kind++;
            continue;
        }
        uint64_t address = (uint64_t)(int64_t)(int32_t)word;
        const struct image_section *section = image_section_at(image, address);
        if (!section || !section->exec)
            continue;
        if (image->fields == capacity) {
            capacity = capacity ? capacity * 2 : 4096;
            struct image_field *grown = realloc(image->field, capacity * sizeof *grown);
            if (!grown)
                return no_memory(image->path);
            image->field = grown;
        }
        image->field[image->fields++] =
            (struct image_field){.address = address, .kind = (uint8_t)kinds[kind]};
    }
    image->fields_known = kind == ARRAY_SIZE(kinds);
    return 0;
}

/* The ELF entry point is a physical address. */
static uint64_t entry_address(Elf *elf) {
    const Elf64_Ehdr *header = elf64_getehdr(elf);
    const Elf64_Phdr *segments = elf64_getphdr(elf);
    size_t count;
    if (!segments || elf_getphdrnum(elf, &count))
        return header->e_entry;
    for (size_t i = 0; i < count; i++)
        if (segments[i].p_type == PT_LOAD && header->e_entry >= segments[i].p_paddr &&
            header->e_entry - segments[i].p_paddr < segments[i].p_memsz)
            return header->e_entry - segments[i].p_paddr + segments[i].p_vaddr;
    return header->e_entry;
}

static int load_elf(struct image *image, bool packed) {
    Elf *elf = image_elf_open(image->path, image->bytes, image->size, ET_EXEC);
    if (!elf)
        return -EINVAL;
    int result = load_sections(image, elf);
    if (!result)
        result = keep_names(image);
    if (!result) {
        image->entry = entry_address(elf);
        result = image_sort(image);
    }
    if (!result)
        result = image_elf_symbols(image, elf, NULL, 0);
    if (!result && packed)
        result = read_fields(image, elf_end_offset(elf, image));
    elf_end(elf);
    if (!result && !image->symbols)
        result = kallsyms_read(image);
    if (!result)
        result = image_sort(image);
    return result == -ENOMEM ? no_memory(image->path) : result;
}

int image_open_kernel(struct image *image, const char *path) {
    struct boot_file file;
    *image = (struct image){0};
    int result = boot_file_open(&file, path, "kernel");
    if (result)
        return result;
    uint8_t head[0x290] = {0};
    size_t room = file.size < sizeof head ? file.size : sizeof head;
    image->path = strdup(path);
    result = image->path ? boot_file_read(&file, 0, head, room) : no_memory(path);
    bool packed = bzimage_probe(head, room);
    if (!result)
        result = packed ? unpack_payload(image, &file) : read_whole(image, &file);
    boot_file_close(&file);
    if (!result)
        result = load_elf(image, packed);
    if (result)
        image_close(image);
    return result;
}

/* The linker puts the loader's head in front of the payload and all else behind it. It is one image: it
 * copies itself as a whole. Where its code ends and its data begins is not known. */
static int load_loader(struct image *image, const struct bzimage *bzimage, const struct boot_file *file) {
    uint64_t head = bzimage->payload_offset - bzimage->kernel_offset;
    uint64_t rest = head + bzimage->payload_size;
    image->size = bzimage->kernel_size;
    image->bytes = malloc(image->size);
    image->section = calloc(2, sizeof *image->section);
    if (!image->bytes || !image->section)
        return no_memory(image->path);
    int result = boot_file_read(file, bzimage->kernel_offset, image->bytes, image->size);
    if (result)
        return result;
    image->section[image->sections++] = (struct image_section){
        .name = ".head.text", .address = 0, .size = head, .data = image->bytes, .exec = true, .init = true};
    if (rest < image->size)
        image->section[image->sections++] = (struct image_section){.name = ".text",
                                                                   .address = rest,
                                                                   .size = image->size - rest,
                                                                   .data = image->bytes + rest,
                                                                   .exec = true,
                                                                   .init = true};
    image->entry = LOADER_ENTRY_64;
    image->loader = image->fields_known = true; /* it finds out by itself where it is */
    return 0;
}

int image_open_loader(struct image *image, const char *path) {
    struct boot_file file;
    struct bzimage bzimage = {0};
    uint8_t head[0x290] = {0};
    *image = (struct image){0};
    int result = boot_file_open(&file, path, "kernel");
    if (result)
        return result;
    size_t room = file.size < sizeof head ? file.size : sizeof head;
    result = boot_file_read(&file, 0, head, room);
    if (!result)
        result = bzimage_probe(head, room) ? bzimage_parse(&bzimage, &file) : -ENOENT;
    if (!result && (!bzimage.payload_size || !bzimage.has_entry_64 ||
                    bzimage.payload_offset - bzimage.kernel_offset <= LOADER_ENTRY_64))
        result = -ENOENT;
    if (!result) {
        memcpy(image->release, bzimage.release, sizeof image->release);
        image->path = strdup(path);
        result = image->path ? load_loader(image, &bzimage, &file) : no_memory(path);
    }
    boot_file_close(&file);
    if (result)
        image_close(image);
    return result;
}
