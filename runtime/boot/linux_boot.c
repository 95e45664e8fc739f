/* The 32-bit and 64-bit Linux boot protocols (Documentation/arch/x86/boot.rst and zero-page.rst).
 *
 * Both want the same: a zeroed struct boot_params with the image's setup header copied into it, the memory
 * map, command line and initrd in RAM, flat segments and RSI pointing at boot_params. They differ in the mode
 * and in the entry: an unpacked ELF kernel at its link address by e_entry (startup_64 or startup_32), or the
 * image as it is (its own decompressor) at its first byte in 32-bit and 0x200 bytes on in 64-bit mode. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/diag.h"
#include "boot/boot_source.h"
#include "boot/entry_state.h"
#include "boot/guest_fill.h"
#include "boot/payload.h"

/* struct boot_params, by zero-page.rst. */
enum boot_params_field {
    PARAMS_EXT_MEM_K = 0x002,
    PARAMS_ACPI_RSDP_ADDR = 0x070,
    PARAMS_EXT_RAMDISK_IMAGE = 0x0c0,
    PARAMS_EXT_RAMDISK_SIZE = 0x0c4,
    PARAMS_EXT_CMD_LINE_PTR = 0x0c8,
    PARAMS_ALT_MEM_K = 0x1e0,
    PARAMS_E820_ENTRIES = 0x1e8,
    PARAMS_VID_MODE = 0x1fa,
    PARAMS_BOOT_FLAG = 0x1fe,
    PARAMS_HEADER = 0x202,
    PARAMS_VERSION = 0x206,
    PARAMS_TYPE_OF_LOADER = 0x210,
    PARAMS_LOADFLAGS = 0x211,
    PARAMS_CODE32_START = 0x214,
    PARAMS_RAMDISK_IMAGE = 0x218,
    PARAMS_RAMDISK_SIZE = 0x21c,
    PARAMS_CMD_LINE_PTR = 0x228,
    PARAMS_KERNEL_ALIGNMENT = 0x230,
    PARAMS_CMDLINE_SIZE = 0x238,
    PARAMS_E820_TABLE = 0x2d0,
    PARAMS_SIZE = 0x1000,
};
#define E820_ENTRY_SIZE 20
_Static_assert(BOOT_MAP_ENTRIES <= 128, "boot_params holds 128 e820 entries");

#define LOADER_UNREGISTERED 0xff
#define LOADED_HIGH 1
#define VIDEO_NORMAL 0xffff
#define LINUX_COMMAND_LINE_MAX 2047 /* x86 COMMAND_LINE_SIZE since 2.6.23, without the NUL */
#define LINUX_INITRD_MAX 0x7fffffffull
#define ENTRY_64 0x200

static void put(uint8_t *params, enum boot_params_field field, uint64_t value, size_t size) {
    memcpy(params + field, &value, size);
}

int linux_place_command_line(const struct boot_source *source, struct boot_layout *layout,
                             uint64_t *address) {
    size_t length = strlen(source->command_line);
    size_t limit = source->kind == KERNEL_BZIMAGE && source->bzimage.command_line_max
                       ? source->bzimage.command_line_max
                       : LINUX_COMMAND_LINE_MAX;
    if (length > limit) {
        diag_error("--append is %zu bytes long, and kernel '%s' takes %zu at most; shorten it", length,
                   source->kernel.path, limit);
        return -E2BIG;
    }
    *address = boot_layout_place_low(layout, length + 1, 16, PAGE_SIZE, BOOT_LOW_END);
    if (!*address) {
        diag_error("no room below 640 KiB for the command line; raise --memory or shorten --append");
        return -ENOMEM;
    }
    return guest_mem_write(layout->mem, *address, source->command_line, length + 1);
}

int linux_place_initrd(const struct boot_source *source, struct boot_layout *layout, uint64_t highest,
                       uint64_t *address, uint64_t *size) {
    *address = *size = 0;
    for (size_t i = 0; i < source->initrd_count; i++) {
        if (source->initrds[i].arguments) {
            diag_error("initrd '%s' is given arguments ('%s'), which only a Multiboot kernel's modules take",
                       source->initrds[i].file.path, source->initrds[i].arguments);
            return -EINVAL;
        }
        *size = align_up(*size, 4) + source->initrds[i].file.size;
    }
    if (!*size)
        return 0;
    *address = boot_layout_place_high(layout, *size, PAGE_SIZE, BOOT_HOLE_END, highest + 1);
    if (!*address) {
        diag_error(
            "initrd '%s' of %llu MiB does not fit beside the kernel below %llu MiB; raise --memory",
            source->initrds[0].file.path, (unsigned long long)(*size / MIB),
            (unsigned long long)((highest + 1 < layout->low_end ? highest + 1 : layout->low_end) / MIB));
        return -ENOMEM;
    }
    uint64_t at = *address;
    for (size_t i = 0; i < source->initrd_count; i++) {
        const struct boot_bytes bytes = {.file = &source->initrds[i].file,
                                         .size = source->initrds[i].file.size};
        uint64_t padded = align_up(bytes.size, 4);
        int result = guest_fill_from(layout->mem, at, &bytes, 0, bytes.size);
        if (!result && i + 1 < source->initrd_count)
            result = guest_fill_zero(layout->mem, at + bytes.size, padded - bytes.size);
        if (result)
            return result;
        at += padded;
    }
    return 0;
}

static void put_memory_map(uint8_t *params, const struct boot_layout *layout) {
    struct boot_range map[BOOT_MAP_ENTRIES];
    size_t count = boot_layout_map(layout, map);
    for (size_t i = 0; i < count; i++) {
        uint8_t *entry = params + PARAMS_E820_TABLE + i * E820_ENTRY_SIZE;
        uint32_t type = map[i].type;
        memcpy(entry, &map[i].base, 8);
        memcpy(entry + 8, &map[i].length, 8);
        memcpy(entry + 16, &type, 4);
    }
    put(params, PARAMS_E820_ENTRIES, count, 1);
    /* What kernels without e820 support read: KiB above 1 MiB. */
    uint64_t extended = (layout->low_end - BOOT_HOLE_END) / KIB;
    put(params, PARAMS_ALT_MEM_K, extended, 4);
    put(params, PARAMS_EXT_MEM_K, extended < 0xfc00 ? extended : 0xfc00, 2);
}

/* A setup header for an ELF kernel that came without one. */
static void put_default_header(uint8_t *params) {
    put(params, PARAMS_BOOT_FLAG, 0xaa55, 2);
    memcpy(params + PARAMS_HEADER, "HdrS", 4);
    put(params, PARAMS_VERSION, 0x020f, 2);
    put(params, PARAMS_LOADFLAGS, LOADED_HIGH, 1);
    put(params, PARAMS_KERNEL_ALIGNMENT, 16 * MIB, 4);
    put(params, PARAMS_CMDLINE_SIZE, LINUX_COMMAND_LINE_MAX, 4);
}

/* Everything but the kernel itself; state->kernel_start is where that is. */
static int place_params(const struct boot_source *source, struct boot_layout *layout,
                        struct boot_state *state) {
    uint8_t params[PARAMS_SIZE] = {0};
    uint64_t address, command_line, initrd, initrd_size;
    bool has_header = source->kind == KERNEL_BZIMAGE;
    uint64_t initrd_max =
        has_header && source->bzimage.initrd_max ? source->bzimage.initrd_max : LINUX_INITRD_MAX;

    int result = linux_place_command_line(source, layout, &command_line);
    if (result)
        return result;
    result = linux_place_initrd(source, layout, initrd_max, &initrd, &initrd_size);
    if (result)
        return result;
    address = boot_layout_place_low(layout, PARAMS_SIZE, PAGE_SIZE, PAGE_SIZE, BOOT_LOW_END);
    if (!address) {
        diag_error("no room below 640 KiB for the boot parameters; raise --memory");
        return -ENOMEM;
    }
    if (has_header)
        memcpy(params + SETUP_HEADER, source->bzimage.header + SETUP_HEADER,
               source->bzimage.header_end - SETUP_HEADER);
    else
        put_default_header(params);
    put(params, PARAMS_VID_MODE, VIDEO_NORMAL, 2);
    put(params, PARAMS_TYPE_OF_LOADER, LOADER_UNREGISTERED, 1);
    put(params, PARAMS_CODE32_START, state->kernel_start, 4);
    put(params, PARAMS_RAMDISK_IMAGE, initrd, 4);
    put(params, PARAMS_RAMDISK_SIZE, initrd_size, 4);
    put(params, PARAMS_EXT_RAMDISK_IMAGE, initrd >> 32, 4);
    put(params, PARAMS_EXT_RAMDISK_SIZE, initrd_size >> 32, 4);
    put(params, PARAMS_CMD_LINE_PTR, command_line, 4);
    put(params, PARAMS_EXT_CMD_LINE_PTR, command_line >> 32, 4);
    put(params, PARAMS_ACPI_RSDP_ADDR, layout->acpi_rsdp, 8);
    put_memory_map(params, layout);
    state->gpr[GPR_RSI] = address;
    return guest_mem_write(layout->mem, address, params, sizeof params);
}

int linux_boot_elf(const struct boot_source *source, const struct elf_image *image,
                   struct boot_layout *layout, struct boot_state *state) {
    int result = elf_image_load(image, layout, &state->kernel_start, &state->kernel_end);
    if (result)
        return result;
    if (image->entry < state->kernel_start || image->entry >= state->kernel_end) {
        diag_error(
            "kernel '%s' enters at 0x%llx, which is no physical address inside it; give a Linux kernel",
            source->kernel.path, (unsigned long long)image->entry);
        return -EINVAL;
    }
    result = place_params(source, layout, state);
    if (result)
        return result;
    snprintf(state->summary, sizeof state->summary, "%s boot protocol at 0x%llx",
             image->is_64 ? "64-bit Linux" : "32-bit Linux", (unsigned long long)image->entry);
    return image->is_64 ? entry_state_long64(layout, image->entry, state)
                        : entry_state_flat32(layout, image->entry, state);
}

int linux_boot_setup(const struct boot_source *source, struct boot_layout *layout, struct boot_state *state) {
    const struct bzimage *image = &source->bzimage;
    const struct boot_bytes bytes = {.file = &source->kernel, .size = source->kernel.size};
    bool is_64 = source->protocol == BOOT_SETUP && image->has_entry_64;
    uint64_t base = image->preferred_address;

    int result = boot_layout_claim(layout, base, image->init_size);
    if (result) {
        diag_error("kernel '%s' needs %llu MiB of memory from %llu MiB on; raise --memory",
                   source->kernel.path, (unsigned long long)(image->init_size / MIB + 1),
                   (unsigned long long)(base / MIB));
        return -ENOMEM;
    }
    result = guest_fill_from(layout->mem, base, &bytes, image->kernel_offset, image->kernel_size);
    if (result)
        return result;
    state->kernel_start = base;
    state->kernel_end = base + image->init_size;
    result = place_params(source, layout, state);
    if (result)
        return result;
    uint64_t entry = is_64 ? base + ENTRY_64 : base;
    snprintf(state->summary, sizeof state->summary, "its own %s entry at 0x%llx", is_64 ? "64-bit" : "32-bit",
             (unsigned long long)entry);
    return is_64 ? entry_state_long64(layout, entry, state) : entry_state_flat32(layout, entry, state);
}
