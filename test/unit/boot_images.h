/* Kernel files of every kind that the loaders take, made in memory: for tests and as seeds for the fuzzer. */
#ifndef NESTOR_TEST_BOOT_IMAGES_H
#define NESTOR_TEST_BOOT_IMAGES_H

#include "base/types.h"

struct boot_image {
    uint8_t *data;
    size_t size;
};

/* Compression formats of a payload, in the order of boot_image_codec_name(). */
#define BOOT_IMAGE_CODECS 5
const char *boot_image_codec_name(unsigned codec);

#define BOOT_IMAGE_BASE 0x200000u /* where all are linked */
#define BOOT_IMAGE_TEXT 6000u     /* bytes of the segment in the file: byte i is (uint8_t)(i * 7 + i / 256) */
#define BOOT_IMAGE_MEMORY 20000u  /* bytes of it in memory */
#define BOOT_IMAGE_PVH_ENTRY (BOOT_IMAGE_BASE + 0x40)
#define BOOT_IMAGE_ENTRY (BOOT_IMAGE_BASE + 0x20)
#define BOOT_IMAGE_KERNEL_VIRTUAL 0xffffffff80000000ull /* virtual less physical address of ELF images */

uint8_t boot_image_text(size_t offset);

/* An ELF executable with a PVH note if asked for. */
struct boot_image boot_image_elf(bool is_64, bool has_pvh);
/* The same with a Multiboot header at the start of its segment; virtual addresses equal physical ones. */
struct boot_image boot_image_multiboot_elf(void);
/* A flat binary loaded by the addresses in its Multiboot header. */
struct boot_image boot_image_multiboot_flat(void);
/* A bzImage; kernel is packed into it (codec -1: there is no payload). */
struct boot_image boot_image_bzimage(struct boot_image kernel, int codec);
void boot_image_free(struct boot_image *image);

#endif
