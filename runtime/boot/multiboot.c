/* Multiboot 1 kernels (Multiboot Specification 0.6.96; section numbers below are its).
 *
 * The header lies in the file's first 8192 bytes, at a multiple of four (3.1). The kernel is loaded by its
 * ELF program headers or, with bit 16 of the flags, by the addresses in the header (the a.out kludge), and
 * entered in flat 32-bit protected mode with EAX the magic number and EBX the address of the information
 * structure (3.2, 3.3). The command line starts with the kernel's path, as kernels of this kind expect. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/diag.h"
#include "boot/boot_source.h"
#include "boot/entry_state.h"
#include "boot/guest_fill.h"

#define HEADER_MAGIC 0x1badb002u
#define LOADER_MAGIC 0x2badb002u
#define FLAG_ALIGN_MODULES (1u << 0)
#define FLAG_MEMORY_INFO (1u << 1)
#define FLAG_VIDEO (1u << 2)
#define FLAG_ADDRESSES (1u << 16)
/* Bits 0 to 15 that are not known must be refused (3.1.1). */
#define FLAGS_REFUSED (0xffffu & ~(FLAG_ALIGN_MODULES | FLAG_MEMORY_INFO | FLAG_VIDEO))

#define INFO_MEMORY (1u << 0)
#define INFO_COMMAND_LINE (1u << 2)
#define INFO_MODULES (1u << 3)
#define INFO_MEMORY_MAP (1u << 6)
#define INFO_LOADER_NAME (1u << 9)

#define STRINGS_LIMIT (64 * KIB) /* command lines of the kernel and all modules */

struct multiboot_header {
    uint32_t magic, flags, checksum;
    uint32_t header_addr, load_addr, load_end_addr, bss_end_addr, entry_addr; /* with FLAG_ADDRESSES */
};

struct multiboot_info {
    uint32_t flags;
    uint32_t mem_lower, mem_upper; /* KiB */
    uint32_t boot_device;
    uint32_t cmdline;
    uint32_t mods_count, mods_addr;
    uint32_t syms[4];
    uint32_t mmap_length, mmap_addr;
    uint32_t drives_length, drives_addr;
    uint32_t config_table;
    uint32_t boot_loader_name;
    uint32_t rest[12]; /* APM, VBE, framebuffer: not given */
};
_Static_assert(offsetof(struct multiboot_info, boot_loader_name) == 64, "Multiboot 3.3");

struct multiboot_module {
    uint32_t start, end, string, reserved;
};

struct multiboot_map_entry {
    uint32_t size; /* of the rest */
    uint32_t base[2], length[2];
    uint32_t type;
};
_Static_assert(sizeof(struct multiboot_map_entry) == 24, "Multiboot 3.3");

static const char loader_name[] = "Nestor";

static bool find_header(const uint8_t *head, size_t size, struct multiboot_header *header, uint64_t *offset) {
    if (size > MULTIBOOT_SEARCH)
        size = MULTIBOOT_SEARCH;
    for (size_t at = 0; at + 12 <= size; at += 4) {
        uint32_t words[3];
        memcpy(words, head + at, sizeof words);
        if (words[0] != HEADER_MAGIC || words[0] + words[1] + words[2])
            continue;
        *header = (struct multiboot_header){0};
        memcpy(header, head + at, size - at < sizeof *header ? size - at : sizeof *header);
        *offset = at;
        return true;
    }
    return false;
}

bool multiboot_probe(const uint8_t *head, size_t size) {
    struct multiboot_header header;
    uint64_t offset;
    return find_header(head, size, &header, &offset);
}

/* Load by the addresses in the header (3.1.3). */
static int load_by_addresses(const struct boot_source *source, const struct multiboot_header *header,
                             uint64_t header_offset, struct boot_layout *layout, struct boot_state *state) {
    const struct boot_bytes bytes = {.file = &source->kernel, .size = source->kernel.size};
    uint64_t before_header = (uint64_t)header->header_addr - header->load_addr;
    uint64_t start = header->load_addr, file_offset = header_offset - before_header;
    uint64_t length = header->load_end_addr ? (uint64_t)header->load_end_addr - header->load_addr
                                            : source->kernel.size - file_offset;
    uint64_t end = header->bss_end_addr ? header->bss_end_addr : start + length;

    if (header->load_addr > header->header_addr || before_header > header_offset ||
        (header->load_end_addr && header->load_end_addr < header->load_addr) || end < start + length ||
        header->entry_addr < start || header->entry_addr >= end) {
        diag_error("kernel '%s' has a Multiboot header whose addresses contradict each other; relink it",
                   source->kernel.path);
        return -EINVAL;
    }
    if (boot_layout_claim(layout, start, end - start)) {
        diag_error(
            "kernel '%s' wants to be loaded at 0x%llx to 0x%llx, which is not all memory; raise --memory",
            source->kernel.path, (unsigned long long)start, (unsigned long long)end);
        return -ENOMEM;
    }
    int result = guest_fill_from(layout->mem, start, &bytes, file_offset, length);
    if (result)
        return result;
    state->kernel_start = start;
    state->kernel_end = end;
    state->rip = header->entry_addr;
    return guest_fill_zero(layout->mem, start + length, end - start - length);
}

static int load_by_segments(const struct boot_source *source, struct boot_layout *layout,
                            struct boot_state *state) {
    const struct boot_bytes bytes = {.file = &source->kernel, .size = source->kernel.size};
    struct elf_image image;
    int result = elf_image_parse(&image, &bytes);
    if (result)
        return result;
    result = elf_image_load(&image, layout, &state->kernel_start, &state->kernel_end);
    if (result)
        return result;
    state->rip = elf_image_physical(&image, image.entry);
    if (state->rip < state->kernel_start || state->rip >= state->kernel_end) {
        diag_error("kernel '%s' enters at 0x%llx, outside of itself; relink it", source->kernel.path,
                   (unsigned long long)state->rip);
        return -EINVAL;
    }
    return 0;
}

static int load_module(const struct boot_source_initrd *initrd, struct boot_layout *layout, uint64_t above,
                       struct multiboot_module *module) {
    const struct boot_bytes bytes = {.file = &initrd->file, .size = initrd->file.size};
    uint64_t base = boot_layout_place_low(layout, bytes.size, PAGE_SIZE, above, GUEST_LOW_RAM_END);
    if (!base) {
        diag_error("module '%s' of %llu MiB does not fit behind the kernel; raise --memory",
                   initrd->file.path, (unsigned long long)(bytes.size / MIB));
        return -ENOMEM;
    }
    module->start = (uint32_t)base;
    module->end = (uint32_t)(base + bytes.size);
    return guest_fill_from(layout->mem, base, &bytes, 0, bytes.size);
}

/* "PATH" or "PATH ARGUMENTS" with its NUL; returns the length with the NUL. */
static size_t format_string(char *buffer, size_t size, const char *path, const char *arguments) {
    bool more = arguments && *arguments;
    return (size_t)snprintf(buffer, size, "%s%s%s", path, more ? " " : "", more ? arguments : "") + 1;
}

/* The information structure and all that it points at go into one block, laid out in this order. */
struct info_block {
    size_t modules, map, strings, size; /* offsets */
};

static int measure_block(const struct boot_source *source, size_t map_count, struct info_block *block) {
    block->modules = sizeof(struct multiboot_info);
    block->map = block->modules + source->initrd_count * sizeof(struct multiboot_module);
    block->strings = block->map + map_count * sizeof(struct multiboot_map_entry);
    size_t strings = sizeof loader_name + format_string(NULL, 0, source->kernel.path, source->command_line);
    for (size_t i = 0; i < source->initrd_count; i++)
        strings += format_string(NULL, 0, source->initrds[i].file.path, source->initrds[i].arguments);
    if (strings > STRINGS_LIMIT) {
        diag_error("the command lines of kernel '%s' and its modules exceed %llu bytes; shorten --append",
                   source->kernel.path, STRINGS_LIMIT);
        return -E2BIG;
    }
    block->size = block->strings + strings;
    return 0;
}

static void fill_block(const struct boot_source *source, const struct info_block *block,
                       const struct boot_range *map, size_t map_count, uint32_t address,
                       struct multiboot_module *modules, uint8_t *data) {
    struct multiboot_info info = {
        .flags = INFO_MEMORY | INFO_COMMAND_LINE | INFO_MODULES | INFO_MEMORY_MAP | INFO_LOADER_NAME,
        .mem_lower = (uint32_t)(BOOT_LOW_END / KIB),
        .mods_count = (uint32_t)source->initrd_count,
        .mods_addr = address + (uint32_t)block->modules,
        .mmap_length = (uint32_t)(map_count * sizeof(struct multiboot_map_entry)),
        .mmap_addr = address + (uint32_t)block->map,
    };
    /* mem_upper: KiB from 1 MiB to the first hole (3.3). */
    for (size_t i = 0; i < map_count; i++)
        if (map[i].base == BOOT_HOLE_END && map[i].type == BOOT_RANGE_RAM)
            info.mem_upper = (uint32_t)(map[i].length / KIB);

    size_t at = block->strings;
    info.boot_loader_name = address + (uint32_t)at;
    memcpy(data + at, loader_name, sizeof loader_name);
    at += sizeof loader_name;
    info.cmdline = address + (uint32_t)at;
    at += format_string((char *)data + at, block->size - at, source->kernel.path, source->command_line);
    for (size_t i = 0; i < source->initrd_count; i++) {
        modules[i].string = address + (uint32_t)at;
        at += format_string((char *)data + at, block->size - at, source->initrds[i].file.path,
                            source->initrds[i].arguments);
    }
    for (size_t i = 0; i < map_count; i++) {
        struct multiboot_map_entry entry = {.size = sizeof entry - sizeof entry.size, .type = map[i].type};
        memcpy(entry.base, &map[i].base, 8);
        memcpy(entry.length, &map[i].length, 8);
        memcpy(data + block->map + i * sizeof entry, &entry, sizeof entry);
    }
    if (source->initrd_count)
        memcpy(data + block->modules, modules, source->initrd_count * sizeof *modules);
    memcpy(data, &info, sizeof info);
}

static int place_info(const struct boot_source *source, struct boot_layout *layout,
                      struct boot_state *state) {
    struct boot_range map[BOOT_MAP_ENTRIES];
    size_t map_count = boot_layout_map(layout, map);
    struct info_block block;
    int result = measure_block(source, map_count, &block);
    if (result)
        return result;
    struct multiboot_module *modules = calloc(source->initrd_count + 1, sizeof *modules);
    uint8_t *data = calloc(1, block.size);
    uint64_t address = boot_layout_place_low(layout, block.size, PAGE_SIZE, PAGE_SIZE, BOOT_LOW_END);
    uint64_t above =
        state->kernel_end > BOOT_HOLE_END ? align_up(state->kernel_end, PAGE_SIZE) : BOOT_HOLE_END;
    if (!modules || !data || !address) {
        diag_error("no room for the boot information of kernel '%s'; raise --memory", source->kernel.path);
        result = -ENOMEM;
    }
    for (size_t i = 0; !result && i < source->initrd_count; i++) {
        result = load_module(&source->initrds[i], layout, above, &modules[i]);
        above = align_up(modules[i].end, PAGE_SIZE);
    }
    if (!result) {
        fill_block(source, &block, map, map_count, (uint32_t)address, modules, data);
        result = guest_mem_write(layout->mem, address, data, block.size);
        state->gpr[GPR_RAX] = LOADER_MAGIC;
        state->gpr[GPR_RBX] = address;
    }
    free(data);
    free(modules);
    return result;
}

int multiboot_boot(const struct boot_source *source, struct boot_layout *layout, struct boot_state *state) {
    struct multiboot_header header;
    uint64_t offset;
    uint8_t head[MULTIBOOT_SEARCH];
    size_t size = source->kernel.size < sizeof head ? (size_t)source->kernel.size : sizeof head;

    int result = boot_file_read(&source->kernel, 0, head, size);
    if (result)
        return result;
    if (!find_header(head, size, &header, &offset)) {
        diag_error("kernel '%s' lost its Multiboot header while it was in use; start again",
                   source->kernel.path);
        return -EINVAL;
    }
    if (header.flags & FLAGS_REFUSED) {
        diag_error(
            "kernel '%s' demands Multiboot features (flags 0x%x) that are not defined in version 0.6.96",
            source->kernel.path, header.flags & FLAGS_REFUSED);
        return -ENOTSUP;
    }
    if (header.flags & FLAG_ADDRESSES && size - offset < sizeof header) {
        diag_error("kernel '%s' is truncated inside its Multiboot header; get a complete copy",
                   source->kernel.path);
        return -EINVAL;
    }
    result = header.flags & FLAG_ADDRESSES ? load_by_addresses(source, &header, offset, layout, state)
                                           : load_by_segments(source, layout, state);
    if (result)
        return result;
    result = place_info(source, layout, state);
    if (result)
        return result;
    /* "The boot loader must leave the PIC programmed with the normal BIOS/DOS values" (3.2), and the rest of
     * the machine in working order. */
    state->bios_clock = true;
    snprintf(state->summary, sizeof state->summary, "Multiboot entry at 0x%llx",
             (unsigned long long)state->rip);
    return entry_state_flat32(layout, state->rip, state);
}
