/* Unpacking a bzImage's payload.
 *
 * The size that it unpacks to is stated by the payload itself: the kernel's build appends it to the
 * compressed stream (gzip's own trailer holds the same number at the same place). The number is bounded by
 * the caller's limit before anything is allocated, and the stream must yield exactly that many bytes: a
 * truncated or damaged payload is always noticed.
 *
 * LZ4's blocks stand for themselves, so one at a time is unpacked, into a window that holds nothing else:
 * fresh memory for all of a kernel costs more than unpacking it. Every other format is unpacked as a whole.
 *
 * Invariant: window[0..window_size) is what the payload unpacks to from window_start on; of LZ4, `at` is
 * where the block behind it begins.
 */
#define _GNU_SOURCE
#include "boot/payload.h"

#include <errno.h>
#include <lz4.h>
#include <lzma.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <zlib.h>
#include <zstd.h>
#ifdef NESTOR_HAVE_BZIP2
#include <bzlib.h>
#endif

#include "base/diag.h"
#include "base/pages.h"
#include "boot/boot_file.h"

#define LZ4_LEGACY_MAGIC 0x184c2102u
#define LZ4_MAGIC_BYTES 4u
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
    unpacker unpack;    /* NULL: known but not supported, or */
    bool in_blocks;     /* block by block */
} formats[] = {
    {"gzip", {0x1f, 0x8b, 8}, 3, true, unpack_gzip, false},
    {"xz", {0xfd, '7', 'z', 'X', 'Z', 0}, 6, false, unpack_xz, false},
    {"lzma", {0x5d, 0, 0}, 3, false, unpack_lzma, false},
    {"zstd", {0x28, 0xb5, 0x2f, 0xfd}, 4, false, unpack_zstd, false},
    {"lz4", {0x02, 0x21, 0x4c, 0x18}, LZ4_MAGIC_BYTES, false, NULL, true},
#ifdef NESTOR_HAVE_BZIP2
    {"bzip2", {'B', 'Z', 'h'}, 3, false, unpack_bzip2, false},
#else
    {"bzip2", {'B', 'Z', 'h'}, 3, false, NULL, false},
#endif
    {"lzo", {0x89, 'L', 'Z', 'O', 0}, 5, false, NULL, false},
    {"ELF", {0x7f, 'E', 'L', 'F'}, 4, false, NULL, false},
};

struct payload {
    const char *path; /* the file's, for messages */
    const struct format *format;
    uint8_t *packed, *window;
    size_t packed_size, in_size; /* in_size: without a trailer that is not the format's */
    size_t size;                 /* of all that it unpacks to */
    size_t window_room, window_start, window_size;
    size_t at;
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
            return formats[i].unpack || formats[i].in_blocks;
    return false;
}

static int refuse(const struct payload *payload, const char *problem) {
    diag_error("kernel '%s': its %s payload %s; get a complete copy of the file", payload->path,
               payload->format->name, problem);
    return -EINVAL;
}

/* The window moves on by a block of the legacy frame: a magic number, then blocks of a 32-bit compressed size
 * and that many bytes, each unpacked on its own to at most 8 MiB, to the end of the data. */
static const char *next_block(struct payload *payload) {
    const uint8_t *in = payload->packed;
    size_t done = payload->window_start + payload->window_size, at = payload->at;
    uint32_t block;
    do {
        if (payload->in_size - at < sizeof block)
            return truncated;
        block = read_le32(in + at);
        at += sizeof block;
    } while (block == LZ4_LEGACY_MAGIC); /* the frame of a concatenated file */
    if (block > payload->in_size - at || block > (uint32_t)LZ4_COMPRESSBOUND(LZ4_LEGACY_BLOCK))
        return truncated;
    size_t room = payload->size - done < LZ4_LEGACY_BLOCK ? payload->size - done : LZ4_LEGACY_BLOCK;
    int count = LZ4_decompress_safe((const char *)in + at, (char *)payload->window, (int)block, (int)room);
    if (count <= 0)
        return damaged;
    payload->at = at + block;
    payload->window_start = done;
    payload->window_size = (size_t)count;
    return NULL;
}

/* Where unpacking begins. */
static const char *rewind_payload(struct payload *payload) {
    payload->window_start = payload->window_size = 0;
    payload->at = LZ4_MAGIC_BYTES;
    if (payload->format->in_blocks)
        return NULL;
    payload->window_size = payload->size;
    return payload->format->unpack(payload->packed, payload->in_size, payload->window, payload->size);
}

int payload_read(struct payload *payload, uint64_t offset, void *buffer, uint64_t length) {
    uint8_t *target = buffer;
    if (offset < payload->window_start)
        (void)rewind_payload(payload);
    while (length) {
        uint64_t end = payload->window_start + payload->window_size;
        if (offset >= end) {
            const char *problem = next_block(payload);
            if (problem)
                return refuse(payload, problem);
            continue;
        }
        size_t piece = length < end - offset ? (size_t)length : (size_t)(end - offset);
        memcpy(target, payload->window + (offset - payload->window_start), piece);
        target += piece;
        offset += piece;
        length -= piece;
    }
    return 0;
}

int payload_check(struct payload *payload) {
    while (payload->window_start + payload->window_size < payload->size) {
        const char *problem = next_block(payload);
        if (problem)
            return refuse(payload, problem);
    }
    return 0;
}

size_t payload_size(const struct payload *payload) {
    return payload->size;
}

static void unmap(void *memory, size_t size) {
    if (memory)
        munmap(memory, size);
}

void payload_close(struct payload *payload) {
    if (!payload)
        return;
    unmap(payload->packed, payload->packed_size);
    unmap(payload->window, payload->window_room);
    free(payload);
}

/* What the packed bytes say of themselves. */
static int look(struct payload *payload, size_t limit) {
    const struct format *format = find_format(payload->packed, payload->packed_size);
    if (!format || (!format->unpack && !format->in_blocks) || payload->packed_size < 16) {
        diag_error("kernel '%s': its payload is %s; rebuild it with gzip, xz, zstd, lz4 or lzma, or use "
                   "--boot setup",
                   payload->path, format ? format->name : "in no known compression format");
        return -ENOTSUP;
    }
    /* Kernels are far smaller than 1 GiB; that also keeps every length inside the libraries' int. */
    uint64_t size = read_le32(payload->packed + payload->packed_size - SIZE_TRAILER);
    if (limit > GIB)
        limit = GIB;
    if (!size || size > limit) {
        diag_error("kernel '%s': its %s payload states an unpacked size of %llu bytes, which is %s",
                   payload->path, format->name, (unsigned long long)size,
                   size > GIB ? "impossible: the file is truncated or damaged"
                   : size     ? "more than the guest's memory: raise --memory"
                              : "impossible: the file is truncated or damaged");
        return -EINVAL;
    }
    payload->format = format;
    payload->size = size;
    payload->in_size = format->keeps_trailer ? payload->packed_size : payload->packed_size - SIZE_TRAILER;
    payload->window_room = format->in_blocks && size > LZ4_LEGACY_BLOCK ? LZ4_LEGACY_BLOCK : size;
    return 0;
}

int payload_open(struct payload **out, const struct boot_file *file, uint64_t offset, size_t size,
                 size_t limit) {
    struct payload *payload = calloc(1, sizeof *payload);
    if (payload)
        payload->packed = pages_map_large(size);
    if (!payload || !payload->packed) {
        diag_error("no memory to unpack kernel '%s'", file->path);
        free(payload);
        return -ENOMEM;
    }
    payload->path = file->path;
    payload->packed_size = size;
    int result = boot_file_read(file, offset, payload->packed, size);
    if (!result)
        result = look(payload, limit);
    if (!result && !(payload->window = pages_map_large(payload->window_room))) {
        diag_error("kernel '%s': no memory for the %llu bytes that it unpacks to", file->path,
                   (unsigned long long)payload->size);
        result = -ENOMEM;
    }
    if (!result) {
        const char *problem = rewind_payload(payload);
        if (problem)
            result = refuse(payload, problem);
    }
    if (result) {
        payload_close(payload);
        return result;
    }
    *out = payload;
    return 0;
}
