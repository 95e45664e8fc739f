/* The PVH entry point: Xen's boot ABI for x86/HVM guests, which Linux offers to every hypervisor
 * (Xen docs/misc/pvh.pandoc and xen/include/public/arch-x86/hvm/start_info.h, version 1).
 * 32-bit protected mode, EBX points at struct hvm_start_info. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/diag.h"
#include "boot/boot_source.h"
#include "boot/entry_state.h"
#include "mem/guest_mem.h"

#define XEN_ELFNOTE_PHYS32_ENTRY 18
#define START_INFO_MAGIC 0x336ec578u
#define PVH_INITRD_MAX 0x7fffffffull

struct hvm_start_info {
    uint32_t magic;
    uint32_t version;
    uint32_t flags;
    uint32_t module_count;
    uint64_t module_list;
    uint64_t command_line;
    uint64_t rsdp;
    uint64_t memory_map;
    uint32_t memory_map_entries;
    uint32_t reserved;
};
_Static_assert(sizeof(struct hvm_start_info) == 56, "hvm_start_info version 1");

struct hvm_module {
    uint64_t address;
    uint64_t size;
    uint64_t command_line;
    uint64_t reserved;
};
_Static_assert(sizeof(struct hvm_module) == 32, "hvm_modlist_entry");

struct hvm_map_entry {
    uint64_t base;
    uint64_t length;
    uint32_t type;
    uint32_t reserved;
};
_Static_assert(sizeof(struct hvm_map_entry) == 24, "hvm_memmap_table_entry");

/* All that EBX leads to, in one piece of low memory. */
struct pvh_data {
    struct hvm_start_info info;
    struct hvm_module module;
    struct hvm_map_entry map[BOOT_MAP_ENTRIES];
};

int pvh_find_entry(const struct elf_image *image, uint64_t *entry) {
    return elf_image_find_note(image, "Xen", XEN_ELFNOTE_PHYS32_ENTRY, entry);
}

int pvh_boot(const struct boot_source *source, const struct elf_image *image, struct boot_layout *layout,
             struct boot_state *state) {
    struct pvh_data data = {.info = {.magic = START_INFO_MAGIC, .version = 1, .rsdp = layout->acpi_rsdp}};
    struct boot_range map[BOOT_MAP_ENTRIES];
    uint64_t entry, address, initrd, initrd_size;

    int result = pvh_find_entry(image, &entry);
    if (result == -ENOENT)
        diag_error("kernel '%s' has no PVH entry point (built without CONFIG_PVH); use another --boot",
                   source->kernel.path);
    if (result)
        return result;
    result = elf_image_load(image, layout, &state->kernel_start, &state->kernel_end);
    if (result)
        return result;
    if (entry < state->kernel_start || entry >= state->kernel_end) {
        diag_error("kernel '%s' has a PVH entry point at 0x%llx, outside of itself; get a complete copy",
                   source->kernel.path, (unsigned long long)entry);
        return -EINVAL;
    }
    result = linux_place_command_line(source, layout, &data.info.command_line);
    if (result)
        return result;
    uint64_t highest = source->kind == KERNEL_BZIMAGE && source->bzimage.initrd_max
                           ? source->bzimage.initrd_max
                           : PVH_INITRD_MAX;
    result = linux_place_initrd(source, layout, highest, &initrd, &initrd_size);
    if (result)
        return result;
    address = boot_layout_place_low(layout, sizeof data, PAGE_SIZE, PAGE_SIZE, BOOT_LOW_END);
    if (!address) {
        diag_error("no room below 640 KiB for the boot parameters; raise --memory");
        return -ENOMEM;
    }
    if (initrd_size) {
        data.module = (struct hvm_module){.address = initrd, .size = initrd_size};
        data.info.module_count = 1;
        data.info.module_list = address + offsetof(struct pvh_data, module);
    }
    data.info.memory_map_entries = (uint32_t)boot_layout_map(layout, map);
    data.info.memory_map = address + offsetof(struct pvh_data, map);
    for (uint32_t i = 0; i < data.info.memory_map_entries; i++)
        data.map[i] = (struct hvm_map_entry){map[i].base, map[i].length, map[i].type, 0};
    result = guest_mem_write(layout->mem, address, &data, sizeof data);
    if (result)
        return result;
    state->gpr[GPR_RBX] = address;
    snprintf(state->summary, sizeof state->summary, "PVH entry at 0x%llx", (unsigned long long)entry);
    return entry_state_flat32(layout, entry, state);
}
