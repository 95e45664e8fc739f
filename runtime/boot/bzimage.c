/* The setup header, by Linux Documentation/arch/x86/boot.rst ("The Real-Mode Kernel Header"). Field offsets
 * are those of that document's table; multi-byte fields are little-endian and unaligned. */
#include "boot/bzimage.h"

#include <errno.h>
#include <string.h>

#include "base/diag.h"

enum header_field {
    FIELD_SETUP_SECTS = 0x1f1,
    FIELD_SYSSIZE = 0x1f4,
    FIELD_BOOT_FLAG = 0x1fe,
    FIELD_JUMP_LENGTH = 0x201,
    FIELD_MAGIC = 0x202,
    FIELD_VERSION = 0x206,
    FIELD_KERNEL_VERSION = 0x20e,
    FIELD_LOADFLAGS = 0x211,
    FIELD_CODE32_START = 0x214,
    FIELD_INITRD_ADDR_MAX = 0x22c,
    FIELD_RELOCATABLE = 0x234,
    FIELD_XLOADFLAGS = 0x236,
    FIELD_CMDLINE_SIZE = 0x238,
    FIELD_PAYLOAD_OFFSET = 0x248,
    FIELD_PAYLOAD_LENGTH = 0x24c,
    FIELD_PREF_ADDRESS = 0x258,
    FIELD_INIT_SIZE = 0x260,
};

#define LOADED_HIGH 1u
#define XLF_KERNEL_64 1u
#define SECTOR 512u
/* Version 2.06 (Linux 2.6.22) is the first whose command-line limit is stated; older kernels are history. */
#define OLDEST_VERSION 0x0206u

static uint32_t field(const struct bzimage *image, enum header_field offset, unsigned size) {
    uint32_t value = 0;
    memcpy(&value, image->header + offset, size);
    return value;
}

bool bzimage_probe(const uint8_t *head, size_t size) {
    return size >= 0x268 && head[FIELD_BOOT_FLAG] == 0x55 && head[FIELD_BOOT_FLAG + 1] == 0xaa &&
           !memcmp(head + FIELD_MAGIC, "HdrS", 4);
}

/* The version string is in the setup code, at the field's value + 0x200. */
static void read_release(struct bzimage *image, const struct boot_file *file) {
    char text[sizeof image->release] = "";
    uint64_t offset = field(image, FIELD_KERNEL_VERSION, 2) + 0x200u;
    size_t length = 0;
    if (offset > 0x200 && offset + sizeof text <= image->kernel_offset &&
        !boot_file_read(file, offset, text, sizeof text - 1))
        while (text[length] > ' ' && text[length] < 0x7f)
            length++;
    /* memtest86+ says "Memtest86+ v6.10": one word is enough there too. */
    memcpy(image->release, text, length);
    image->release[length] = 0;
}

static int locate_payload(struct bzimage *image, const struct boot_file *file) {
    uint64_t offset = field(image, FIELD_PAYLOAD_OFFSET, 4), length = field(image, FIELD_PAYLOAD_LENGTH, 4);
    if (!offset || !length)
        return 0;
    if (offset > image->kernel_size || length > image->kernel_size - offset) {
        diag_error("kernel '%s' is damaged: its header places the payload beyond the kernel; "
                   "get a complete copy",
                   file->path);
        return -EINVAL;
    }
    image->payload_offset = image->kernel_offset + offset;
    image->payload_size = length;
    return 0;
}

int bzimage_parse(struct bzimage *image, const struct boot_file *file) {
    *image = (struct bzimage){0};
    int result = boot_file_read(file, 0, image->header, sizeof image->header);
    if (result)
        return result;
    image->version = field(image, FIELD_VERSION, 2);
    if (image->version < OLDEST_VERSION || !(field(image, FIELD_LOADFLAGS, 1) & LOADED_HIGH)) {
        diag_error(
            "kernel '%s' is a Linux image of boot protocol %u.%02u loaded %s, older than Linux 2.6.22; "
            "give a newer bzImage",
            file->path, image->version >> 8, image->version & 0xff,
            field(image, FIELD_LOADFLAGS, 1) & LOADED_HIGH ? "high" : "low");
        return -ENOTSUP;
    }
    image->header_end = FIELD_MAGIC + field(image, FIELD_JUMP_LENGTH, 1);
    if (image->header_end > sizeof image->header)
        image->header_end = sizeof image->header;

    unsigned sectors = field(image, FIELD_SETUP_SECTS, 1);
    image->kernel_offset = (sectors ? sectors + 1 : 5) * SECTOR;
    /* The size is in paragraphs, and not every linker pads the file to a whole one. */
    uint64_t stated = (uint64_t)field(image, FIELD_SYSSIZE, 4) * 16;
    if (!stated || file->size + 15 < image->kernel_offset + stated) {
        diag_error("kernel '%s' is truncated: %llu bytes of %llu; get a complete copy", file->path,
                   (unsigned long long)file->size, (unsigned long long)(image->kernel_offset + stated));
        return -EINVAL;
    }
    image->kernel_size = file->size - image->kernel_offset;
    if (image->kernel_size > stated)
        image->kernel_size = stated; /* a signature may follow */
    read_release(image, file);

    image->initrd_max = field(image, FIELD_INITRD_ADDR_MAX, 4);
    image->command_line_max = field(image, FIELD_CMDLINE_SIZE, 4);
    image->preferred_address = field(image, FIELD_CODE32_START, 4);
    image->init_size = image->kernel_size;
    if (image->version >= 0x020a) {
        image->init_size = field(image, FIELD_INIT_SIZE, 4);
        if (field(image, FIELD_RELOCATABLE, 1))
            memcpy(&image->preferred_address, image->header + FIELD_PREF_ADDRESS, 8);
    }
    if (image->init_size < image->kernel_size)
        image->init_size = image->kernel_size;
    if (image->version >= 0x020c)
        image->has_entry_64 = field(image, FIELD_XLOADFLAGS, 2) & XLF_KERNEL_64;
    return image->version >= 0x0208 ? locate_payload(image, file) : 0;
}
