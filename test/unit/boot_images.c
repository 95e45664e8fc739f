#define _GNU_SOURCE
#include "boot_images.h"

#include <elf.h>
#include <lz4.h>
#include <lzma.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#define TEXT_OFFSET 0x1000u
#define NOTE_OFFSET 0x800u
#define MULTIBOOT_MAGIC 0x1badb002u
#define SETUP_SECTS 3u
#define LZ4_PIECE 1500u

uint8_t boot_image_text(size_t offset) {
    return (uint8_t)(offset * 7 + offset / 256);
}

static struct boot_image new_image(size_t size) {
    struct boot_image image = {calloc(1, size), size};
    if (!image.data)
        abort();
    return image;
}

void boot_image_free(struct boot_image *image) {
    free(image->data);
    *image = (struct boot_image){0};
}

static void put(struct boot_image *image, size_t offset, uint64_t value, size_t size) {
    if (offset + size > image->size)
        abort();
    memcpy(image->data + offset, &value, size);
}

static void put_text(struct boot_image *image, size_t offset) {
    for (size_t i = 0; i < BOOT_IMAGE_TEXT; i++)
        image->data[offset + i] = boot_image_text(i);
}

static void put_header64(struct boot_image *image, uint64_t delta, unsigned headers) {
    Elf64_Ehdr header = {.e_type = ET_EXEC,
                         .e_machine = EM_X86_64,
                         .e_version = 1,
                         .e_entry = BOOT_IMAGE_ENTRY,
                         .e_phoff = sizeof header,
                         .e_ehsize = sizeof header,
                         .e_phentsize = sizeof(Elf64_Phdr),
                         .e_phnum = (Elf64_Half)headers};
    const Elf64_Phdr segments[] = {
        {.p_type = PT_LOAD,
         .p_offset = TEXT_OFFSET,
         .p_vaddr = BOOT_IMAGE_BASE + delta,
         .p_paddr = BOOT_IMAGE_BASE,
         .p_filesz = BOOT_IMAGE_TEXT,
         .p_memsz = BOOT_IMAGE_MEMORY},
        {.p_type = PT_NOTE, .p_offset = NOTE_OFFSET, .p_filesz = 64, .p_memsz = 64}};
    memcpy(header.e_ident, ELFMAG "\2\1\1", 7);
    memcpy(image->data, &header, sizeof header);
    memcpy(image->data + sizeof header, segments, sizeof segments);
}

static void put_header32(struct boot_image *image, uint32_t delta, unsigned headers) {
    Elf32_Ehdr header = {.e_type = ET_EXEC,
                         .e_machine = EM_386,
                         .e_version = 1,
                         .e_entry = BOOT_IMAGE_ENTRY,
                         .e_phoff = sizeof header,
                         .e_ehsize = sizeof header,
                         .e_phentsize = sizeof(Elf32_Phdr),
                         .e_phnum = (Elf32_Half)headers};
    const Elf32_Phdr segments[] = {
        {.p_type = PT_LOAD,
         .p_offset = TEXT_OFFSET,
         .p_vaddr = BOOT_IMAGE_BASE + delta,
         .p_paddr = BOOT_IMAGE_BASE,
         .p_filesz = BOOT_IMAGE_TEXT,
         .p_memsz = BOOT_IMAGE_MEMORY},
        {.p_type = PT_NOTE, .p_offset = NOTE_OFFSET, .p_filesz = 64, .p_memsz = 64}};
    memcpy(header.e_ident, ELFMAG "\1\1\1", 7);
    memcpy(image->data, &header, sizeof header);
    memcpy(image->data + sizeof header, segments, sizeof segments);
}

struct boot_image boot_image_elf(bool is_64, bool has_pvh) {
    struct boot_image image = new_image(TEXT_OFFSET + BOOT_IMAGE_TEXT);
    if (is_64)
        put_header64(&image, BOOT_IMAGE_KERNEL_VIRTUAL, has_pvh ? 2 : 1);
    else
        put_header32(&image, (uint32_t)BOOT_IMAGE_KERNEL_VIRTUAL, has_pvh ? 2 : 1);
    put_text(&image, TEXT_OFFSET);
    /* A foreign note first, with odd lengths; then Xen's. */
    const Elf64_Nhdr other = {.n_namesz = 5, .n_descsz = 3, .n_type = 18};
    const Elf64_Nhdr pvh = {.n_namesz = 4, .n_descsz = is_64 ? 8 : 4, .n_type = 18};
    memcpy(image.data + NOTE_OFFSET, &other, sizeof other);
    memcpy(image.data + NOTE_OFFSET + 12, "Else", 5);
    memcpy(image.data + NOTE_OFFSET + 24, &pvh, sizeof pvh);
    memcpy(image.data + NOTE_OFFSET + 36, "Xen", 4);
    put(&image, NOTE_OFFSET + 40, BOOT_IMAGE_PVH_ENTRY, is_64 ? 8 : 4);
    return image;
}

struct boot_image boot_image_multiboot_elf(void) {
    struct boot_image image = new_image(TEXT_OFFSET + BOOT_IMAGE_TEXT);
    put_header32(&image, 0, 1);
    put_text(&image, TEXT_OFFSET);
    put(&image, TEXT_OFFSET, MULTIBOOT_MAGIC, 4);
    put(&image, TEXT_OFFSET + 4, 3, 4);
    put(&image, TEXT_OFFSET + 8, -(MULTIBOOT_MAGIC + 3), 4);
    return image;
}

struct boot_image boot_image_multiboot_flat(void) {
    const uint32_t flags = 1u << 16, header = 64;
    const uint32_t words[] = {MULTIBOOT_MAGIC,
                              flags,
                              -(MULTIBOOT_MAGIC + flags),
                              BOOT_IMAGE_BASE + header,
                              BOOT_IMAGE_BASE,
                              BOOT_IMAGE_BASE + BOOT_IMAGE_TEXT,
                              BOOT_IMAGE_BASE + BOOT_IMAGE_MEMORY,
                              BOOT_IMAGE_ENTRY};
    struct boot_image image = new_image(BOOT_IMAGE_TEXT);
    put_text(&image, 0);
    memcpy(image.data + header, words, sizeof words);
    return image;
}

static size_t pack_gzip(struct boot_image in, uint8_t *out, size_t room) {
    z_stream stream = {
        .next_in = in.data, .avail_in = (uInt)in.size, .next_out = out, .avail_out = (uInt)room};
    if (deflateInit2(&stream, 9, Z_DEFLATED, 16 + MAX_WBITS, 8, Z_DEFAULT_STRATEGY) != Z_OK ||
        deflate(&stream, Z_FINISH) != Z_STREAM_END)
        abort();
    deflateEnd(&stream);
    return stream.total_out;
}

static size_t pack_lzma_stream(lzma_stream *stream, struct boot_image in, uint8_t *out, size_t room) {
    stream->next_in = in.data;
    stream->avail_in = in.size;
    stream->next_out = out;
    stream->avail_out = room;
    if (lzma_code(stream, LZMA_FINISH) != LZMA_STREAM_END)
        abort();
    size_t size = stream->total_out;
    lzma_end(stream);
    return size;
}

/* As Linux's build does it: the x86 branch filter, then LZMA2, with a CRC-32. */
static size_t pack_xz(struct boot_image in, uint8_t *out, size_t room) {
    lzma_stream stream = LZMA_STREAM_INIT;
    lzma_options_lzma options;
    lzma_lzma_preset(&options, 6);
    options.dict_size = 1 << 20;
    lzma_filter filters[] = {
        {LZMA_FILTER_X86, NULL}, {LZMA_FILTER_LZMA2, &options}, {LZMA_VLI_UNKNOWN, NULL}};
    if (lzma_stream_encoder(&stream, filters, LZMA_CHECK_CRC32) != LZMA_OK)
        abort();
    return pack_lzma_stream(&stream, in, out, room);
}

static size_t pack_lzma(struct boot_image in, uint8_t *out, size_t room) {
    lzma_stream stream = LZMA_STREAM_INIT;
    lzma_options_lzma options;
    lzma_lzma_preset(&options, 6);
    options.dict_size = 1 << 20;
    if (lzma_alone_encoder(&stream, &options) != LZMA_OK)
        abort();
    return pack_lzma_stream(&stream, in, out, room);
}

static size_t pack_zstd(struct boot_image in, uint8_t *out, size_t room) {
    size_t size = ZSTD_compress(out, room, in.data, in.size, 19);
    if (ZSTD_isError(size))
        abort();
    return size;
}

/* Several blocks, and in their middle the magic number of a second frame, as of a file that was appended to
 * another. What is read out of order (headers, then notes, then segments) lies in different ones. */
static size_t pack_lz4(struct boot_image in, uint8_t *out, size_t room) {
    const uint32_t magic = 0x184c2102;
    size_t done = 0;
    for (size_t at = 0; at < in.size; at += LZ4_PIECE) {
        size_t piece = in.size - at < LZ4_PIECE ? in.size - at : LZ4_PIECE;
        if (at % (2 * LZ4_PIECE) == 0) {
            memcpy(out + done, &magic, 4);
            done += 4;
        }
        int size = LZ4_compress_default((const char *)in.data + at, (char *)out + done + 4, (int)piece,
                                        (int)(room - done) - 4);
        if (size <= 0)
            abort();
        memcpy(out + done, &size, 4);
        done += (size_t)size + 4;
    }
    return done;
}

static const struct {
    const char *name;
    size_t (*pack)(struct boot_image in, uint8_t *out, size_t room);
    bool needs_size; /* gzip ends with it by itself */
} codecs[BOOT_IMAGE_CODECS] = {{"gzip", pack_gzip, false},
                               {"xz", pack_xz, true},
                               {"lzma", pack_lzma, true},
                               {"zstd", pack_zstd, true},
                               {"lz4", pack_lz4, true}};

const char *boot_image_codec_name(unsigned codec) {
    return codecs[codec].name;
}

struct boot_image boot_image_bzimage(struct boot_image kernel, int codec) {
    const size_t setup = (SETUP_SECTS + 1) * 512, code = 0x400;
    struct boot_image image = new_image(setup + code + 2 * kernel.size + 4096);
    size_t packed = 0;
    if (codec >= 0) {
        uint8_t *out = image.data + setup + code;
        packed = codecs[codec].pack(kernel, out, image.size - setup - code - 4);
        if (codecs[codec].needs_size) {
            const uint32_t size = (uint32_t)kernel.size;
            memcpy(out + packed, &size, 4);
            packed += 4;
        }
    }
    image.size = setup + align_up(code + packed, 16);
    put(&image, 0x1f1, SETUP_SECTS, 1);
    put(&image, 0x1f4, (image.size - setup) / 16, 4);
    put(&image, 0x1fe, 0xaa55, 2);
    put(&image, 0x200, 0x6aeb, 2);
    memcpy(image.data + 0x202, "HdrS", 4);
    put(&image, 0x206, 0x020f, 2);
    put(&image, 0x20e, 0x300, 2);
    memcpy(image.data + 0x500, "1.2.3-test (a build) #1", 24);
    put(&image, 0x211, 1, 1);
    put(&image, 0x214, 0x100000, 4);
    put(&image, 0x22c, 0x7fffffff, 4);
    put(&image, 0x230, 0x200000, 4);
    put(&image, 0x234, 1, 1);
    put(&image, 0x236, 1, 2);
    put(&image, 0x238, 255, 4);
    if (codec >= 0) {
        put(&image, 0x248, code, 4);
        put(&image, 0x24c, packed, 4);
    }
    put(&image, 0x258, BOOT_IMAGE_BASE, 8);
    put(&image, 0x260, 0x100000, 4);
    return image;
}
