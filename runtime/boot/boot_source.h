/* What boot_source_open() found out, for the protocols to load from. Private to runtime/boot. */
#ifndef NESTOR_BOOT_BOOT_SOURCE_H
#define NESTOR_BOOT_BOOT_SOURCE_H

#include "boot/boot_file.h"
#include "boot/bzimage.h"
#include "boot/elf_image.h"
#include "boot/layout.h"

enum kernel_kind {
    KERNEL_BZIMAGE,
    KERNEL_ELF,
    KERNEL_MULTIBOOT,
};

struct boot_source_initrd {
    struct boot_file file;
    char *arguments; /* NULL: none */
};

struct boot_source {
    struct boot_file kernel;
    enum kernel_kind kind;
    enum boot_protocol protocol; /* never BOOT_AUTO */
    struct bzimage bzimage;      /* KERNEL_BZIMAGE */
    struct boot_source_initrd *initrds;
    size_t initrd_count;
    char *command_line;
    struct boot_range *reserved;
    size_t reserved_count;
};

/* The protocols. Each loads the kernel and all that goes with it and fills *state. 0 or -errno after a line.
 */
MUST_CHECK int linux_boot_elf(const struct boot_source *source, const struct elf_image *image,
                              struct boot_layout *layout, struct boot_state *state);
MUST_CHECK int linux_boot_setup(const struct boot_source *source, struct boot_layout *layout,
                                struct boot_state *state);
MUST_CHECK int pvh_boot(const struct boot_source *source, const struct elf_image *image,
                        struct boot_layout *layout, struct boot_state *state);
MUST_CHECK int multiboot_boot(const struct boot_source *source, struct boot_layout *layout,
                              struct boot_state *state);

/* Does head, the file's first size bytes (of which 8192 count), hold a Multiboot 1 header? */
bool multiboot_probe(const uint8_t *head, size_t size);
#define MULTIBOOT_SEARCH 8192

/* Does the ELF image have a PVH entry point? 0 and *entry, -ENOENT, or another -errno after a line. */
MUST_CHECK int pvh_find_entry(const struct elf_image *image, uint64_t *entry);

/* Shared by the protocols that boot Linux. */

/* Check the command line's length and put it below 640 KiB. */
MUST_CHECK int linux_place_command_line(const struct boot_source *source, struct boot_layout *layout,
                                        uint64_t *address);
/* Put all initrds, one after another, as high as highest (and the end of low RAM) allows. *size 0: none. */
MUST_CHECK int linux_place_initrd(const struct boot_source *source, struct boot_layout *layout,
                                  uint64_t highest, uint64_t *address, uint64_t *size);

#endif
