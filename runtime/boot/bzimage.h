/* The bzImage file format: the setup header of the Linux boot protocol and what it locates. */
#ifndef NESTOR_BOOT_BZIMAGE_H
#define NESTOR_BOOT_BZIMAGE_H

#include "boot/boot_file.h"

/* Where the setup header lies, in the file and in struct boot_params alike (boot.rst). */
#define SETUP_HEADER 0x1f1
#define SETUP_HEADER_MAX 0x290 /* the EDD buffer follows in boot_params */

struct bzimage {
    uint8_t header[SETUP_HEADER_MAX]; /* the file's first bytes, from offset 0 */
    size_t header_end;                /* the setup header ends here */
    unsigned version;                 /* of the boot protocol: 0x020f is 2.15 */
    uint64_t kernel_offset;           /* of the protected-mode code, in the file */
    uint64_t kernel_size;
    uint64_t payload_offset, payload_size; /* in the file; size 0: no payload */
    uint64_t preferred_address;            /* where the protected-mode code should be loaded */
    uint64_t init_size;        /* bytes from there on that it uses before it reads the memory map */
    uint64_t initrd_max;       /* highest address that an initrd may occupy */
    uint32_t command_line_max; /* bytes without the final NUL */
    bool has_entry_64;         /* XLF_KERNEL_64: a 64-bit entry at kernel + 0x200 */
    char release[64];          /* first word of the version string: "6.1.0-56-cloud-amd64" */
};

/* Does it start like a bzImage? head holds the file's first size bytes. */
bool bzimage_probe(const uint8_t *head, size_t size);
/* Parse and check; 0, or -errno after one line. */
MUST_CHECK int bzimage_parse(struct bzimage *image, const struct boot_file *file);

#endif
