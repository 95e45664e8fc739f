/* Unpacking a bzImage's payload.
 *
 * Every format is unpacked into one buffer whose size the payload itself states: the kernel's build appends
 * the unpacked size to the compressed stream (gzip's own trailer holds the same number at the same place).
 * The number is bounded by the caller's limit before anything is allocated, and the stream must yield exactly
 * that many bytes: a truncated or damaged payload is always noticed.
 */
#define _GNU_SOURCE
#include "boot/payload.h"

#include <errno.h>
#include <lz4.h>
#include <lzma.h>
#include <string.h>
#include <sys/mman.h>
#include <zlib.h>
#include <zstd.h>
#ifdef NESTOR_HAVE_BZIP2
#include <bzlib.h>
#endif

#include "base/diag.h"
#include "base/pages.h"

#define LZ4_LEGACY_MAGIC 0x184c2102u
#define LZ4_LEGACY_BLOCK (8u << 20) /* what a block of a legacy frame unpacks to at most */
#define SIZE_TRAILER 4u

static uint32_t read_le32(const uint8_t *data) {
    return data[0] | (uint32_t)data[1] << 8 | (uint32_t)data[2] << 16 | (uint32_t)data[3] << 24;
}

/* Each unpacker fills out[0..out_size) exactly and returns NULL, or says what is wrong. */
typedef const char *(*unpacker)(const uint8_t *in, size_t in_size, uint8_t *out, size_t out_size);

static const char damaged[] = "is damaged";
static const char truncated[] = "is truncated";
static const char wrong_size[] = "does not unpack to the size that it states";
static const char no_memory[] = "needs more memory to unpack than there is";

static const char *unpack_gzip(const uint8_t *in, size_t in_size, uint8_t *out, size_t out_size) {
    z_stream stream = {
        .next_in = (Bytef *)in, .avail_in = (uInt)in_size, .next_out = out, .avail_out = (uInt)out_size};
    if (inflateInit2(&stream, 16 + MAX_WBITS) != Z_OK)
        return no_memory;
    int result = inflate(&stream, Z_FINISH);
    bool whole = stream.total_out == out_size;
    bool starved = !stream.avail_in;
    inflateEnd(&stream);
    if (result == Z_STREAM_END)
        return whole ? NULL : wrong_size;
    if (result == Z_BUF_ERROR)
        return starved ? truncated : wrong_size;
    return result == Z_MEM_ERROR ? no_memory : damaged;
}

static const char *unpack_lzma_stream(lzma_stream *stream, const uint8_t *in, size_t in_size, uint8_t *out,
                                      size_t out_size) {
    stream->next_in = in;
    stream->avail_in = in_size;
    stream->next_out = out;
    stream->avail_out = out_size;
    lzma_ret result = lzma_code(stream, LZMA_RUN);
    /* With the output full, the end marker and the checksum may still have to be read. */
    if (result == LZMA_OK && !stream->avail_out)
        result = lzma_code(stream, LZMA_RUN);
    bool whole = stream->total_out == out_size;
    bool starved = !stream->avail_in;
    lzma_end(stream);
    if (result == LZMA_STREAM_END)
        return whole ? NULL : wrong_size;
    if (result == LZMA_OK || result == LZMA_BUF_ERROR)
        return starved ? truncated : wrong_size;
    return result == LZMA_MEM_ERROR || result == LZMA_MEMLIMIT_ERROR ? no_memory : damaged;
}

/* Dictionaries of kernels are 32 to 128 MiB at most; a header that asks for more is hostile or damaged. */
#define LZMA_MEMORY_LIMIT (512 * MIB)

static const char *unpack_xz(const uint8_t *in, size_t in_size, uint8_t *out, size_t out_size) {
    lzma_stream stream = LZMA_STREAM_INIT;
    if (lzma_stream_decoder(&stream, LZMA_MEMORY_LIMIT, 0) != LZMA_OK)
        return no_memory;
    return unpack_lzma_stream(&stream, in, in_size, out, out_size);
}

static const char *unpack_lzma(const uint8_t *in, size_t in_size, uint8_t *out, size_t out_size) {
    lzma_stream stream = LZMA_STREAM_INIT;
    if (lzma_alone_decoder(&stream, LZMA_MEMORY_LIMIT) != LZMA_OK)
        return no_memory;
    return unpack_lzma_stream(&stream, in, in_size, out, out_size);
}

static const char *unpack_zstd(const uint8_t *in, size_t in_size, uint8_t *out, size_t out_size) {
    size_t frame = ZSTD_findFrameCompressedSize(in, in_size);
    if (ZSTD_isError(frame))
        return truncated;
    size_t result = ZSTD_decompress(out, out_size, in, frame);
    if (ZSTD_isError(result))
        return damaged;
    return result == out_size ? NULL : wrong_size;
}

/* The legacy frame: a magic number, then blocks of a 32-bit compressed size and that many bytes, each
 * unpacked on its own to at most 8 MiB, to the end of the data. */
static const char *unpack_lz4(const uint8_t *in, size_t in_size, uint8_t *out, size_t out_size) {
    size_t at = 4, done = 0;
    while (done < out_size) {
        if (in_size - at < 4)
            return truncated;
        uint32_t block = read_le32(in + at);
        at += 4;
        if (block == LZ4_LEGACY_MAGIC)
            continue; /* the frame of a concatenated file */
        if (block > in_size - at || block > (uint32_t)LZ4_COMPRESSBOUND(LZ4_LEGACY_BLOCK))
            return truncated;
        size_t room = out_size - done < LZ4_LEGACY_BLOCK ? out_size - done : LZ4_LEGACY_BLOCK;
        int count = LZ4_decompress_safe((const char *)in + at, (char *)out + done, (int)block, (int)room);
        if (count <= 0)
            return damaged;
        at += block;
        done += (size_t)count;
    }
    return NULL;
}

#ifdef NESTOR_HAVE_BZIP2
static const char *unpack_bzip2(const uint8_t *in, size_t in_size, uint8_t *out, size_t out_size) {
    unsigned int length = (unsigned int)out_size;
    int result = BZ2_bzBuffToBuffDecompress((char *)out, &length, (char *)in, (unsigned int)in_size, 0, 0);
    switch (result) {
    case BZ_OK:
        return length == out_size ? NULL : wrong_size;
    case BZ_OUTBUFF_FULL:
        return wrong_size;
    case BZ_UNEXPECTED_EOF:
        return truncated;
    case BZ_MEM_ERROR:
        return no_memory;
    default:
        return damaged;
    }
}
#endif

static const struct format {
    const char *name;
    uint8_t magic[8];
    size_t magic_length;
    bool keeps_trailer; /* the size at the end is part of the format */
    unpacker unpack;    /* NULL: known but not supported */
} formats[] = {
    {"gzip", {0x1f, 0x8b, 8}, 3, true, unpack_gzip},
    {"xz", {0xfd, '7', 'z', 'X', 'Z', 0}, 6, false, unpack_xz},
    {"lzma", {0x5d, 0, 0}, 3, false, unpack_lzma},
    {"zstd", {0x28, 0xb5, 0x2f, 0xfd}, 4, false, unpack_zstd},
    {"lz4", {0x02, 0x21, 0x4c, 0x18}, 4, false, unpack_lz4},
#ifdef NESTOR_HAVE_BZIP2
    {"bzip2", {'B', 'Z', 'h'}, 3, false, unpack_bzip2},
#else
    {"bzip2", {'B', 'Z', 'h'}, 3, false, NULL},
#endif
    {"lzo", {0x89, 'L', 'Z', 'O', 0}, 5, false, NULL},
    {"ELF", {0x7f, 'E', 'L', 'F'}, 4, false, NULL},
};

static const struct format *find_format(const uint8_t *data, size_t size) {
    for (size_t i = 0; i < ARRAY_SIZE(formats); i++)
        if (size >= formats[i].magic_length && !memcmp(data, formats[i].magic, formats[i].magic_length))
            return &formats[i];
    return NULL;
}

const char *payload_format(const uint8_t *data, size_t size) {
    const struct format *format = find_format(data, size);
    return format ? format->name : NULL;
}

bool payload_can_unpack(const char *name) {
    for (size_t i = 0; i < ARRAY_SIZE(formats); i++)
        if (!strcmp(formats[i].name, name))
            return formats[i].unpack;
    return false;
}

uint8_t *payload_allocate(size_t size) {
    return pages_map_large(size);
}

void payload_free(uint8_t *memory, size_t size) {
    if (memory)
        munmap(memory, size);
}

int payload_unpack(const char *path, const uint8_t *data, size_t size, size_t limit, uint8_t **unpacked,
                   size_t *unpacked_size) {
    const struct format *format = find_format(data, size);
    if (!format || !format->unpack || size < 16) {
        diag_error("kernel '%s': its payload is %s; rebuild it with gzip, xz, zstd, lz4 or lzma, or use "
                   "--boot setup",
                   path, format ? format->name : "in no known compression format");
        return -ENOTSUP;
    }
    /* Kernels are far smaller than 1 GiB; that also keeps every length inside the libraries' int. */
    uint64_t out_size = read_le32(data + size - SIZE_TRAILER);
    if (limit > GIB)
        limit = GIB;
    if (!out_size || out_size > limit) {
        diag_error("kernel '%s': its %s payload states an unpacked size of %llu bytes, which is %s", path,
                   format->name, (unsigned long long)out_size,
                   out_size > GIB ? "impossible: the file is truncated or damaged"
                   : out_size     ? "more than the guest's memory: raise --memory"
                                  : "impossible: the file is truncated or damaged");
        return -EINVAL;
    }
    uint8_t *out = payload_allocate(out_size);
    if (!out) {
        diag_error("kernel '%s': no memory for the %llu bytes that it unpacks to", path,
                   (unsigned long long)out_size);
        return -ENOMEM;
    }
    size_t in_size = format->keeps_trailer ? size : size - SIZE_TRAILER;
    const char *problem = format->unpack(data, in_size, out, out_size);
    if (problem) {
        diag_error("kernel '%s': its %s payload %s; get a complete copy of the file", path, format->name,
                   problem);
        payload_free(out, out_size);
        return -EINVAL;
    }
    *unpacked = out;
    *unpacked_size = out_size;
    return 0;
}
