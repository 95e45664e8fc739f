/* gzip, xz, lzma and zstd streams of unknown size, into a buffer that doubles up to a limit. */
#define _GNU_SOURCE
#include "sbt/unpack.h"

#include <errno.h>
#include <lzma.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#include "base/diag.h"

#define FIRST_SIZE (256 * KIB)
#define LZMA_MEMORY_LIMIT (512 * MIB)

struct unpacking {
    const uint8_t *in;
    size_t in_size, in_used;
    uint8_t *out;
    size_t size, room, limit;
};

enum step { STEP_MORE, STEP_DONE, STEP_DAMAGED, STEP_TRUNCATED, STEP_TOO_LARGE, STEP_NO_MEMORY };

static const char *const problems[] = {[STEP_DAMAGED] = "is damaged; get a complete copy",
                                       [STEP_TRUNCATED] = "is truncated; get a complete copy",
                                       [STEP_TOO_LARGE] = "unpacks to more than is sensible; it is not what "
                                                          "it is taken for",
                                       [STEP_NO_MEMORY] = "needs more memory to unpack than there is"};

static enum step make_room(struct unpacking *u) {
    if (u->size < u->room)
        return STEP_MORE;
    if (u->room >= u->limit)
        return STEP_TOO_LARGE;
    size_t room = u->room ? u->room * 2 : FIRST_SIZE;
    if (room > u->limit)
        room = u->limit;
    uint8_t *grown = realloc(u->out, room);
    if (!grown)
        return STEP_NO_MEMORY;
    u->out = grown;
    u->room = room;
    return STEP_MORE;
}

static enum step run_gzip(struct unpacking *u) {
    z_stream stream = {.next_in = (Bytef *)u->in, .avail_in = (uInt)u->in_size};
    if (inflateInit2(&stream, 16 + MAX_WBITS) != Z_OK)
        return STEP_NO_MEMORY;
    enum step step;
    while ((step = make_room(u)) == STEP_MORE) {
        stream.next_out = u->out + u->size;
        stream.avail_out = (uInt)(u->room - u->size);
        int result = inflate(&stream, Z_NO_FLUSH);
        u->size = u->room - stream.avail_out;
        if (result == Z_STREAM_END)
            step = STEP_DONE;
        else if (result == Z_MEM_ERROR)
            step = STEP_NO_MEMORY;
        else if (result != Z_OK && result != Z_BUF_ERROR)
            step = STEP_DAMAGED;
        else if (!stream.avail_in && stream.avail_out)
            step = STEP_TRUNCATED;
        if (step != STEP_MORE)
            break;
    }
    u->in_used = u->in_size - stream.avail_in;
    inflateEnd(&stream);
    return step;
}

static enum step run_lzma(struct unpacking *u, bool xz) {
    lzma_stream stream = LZMA_STREAM_INIT;
    lzma_ret result = xz ? lzma_stream_decoder(&stream, LZMA_MEMORY_LIMIT, 0)
                         : lzma_alone_decoder(&stream, LZMA_MEMORY_LIMIT);
    if (result != LZMA_OK)
        return STEP_NO_MEMORY;
    stream.next_in = u->in;
    stream.avail_in = u->in_size;
    enum step step;
    while ((step = make_room(u)) == STEP_MORE) {
        stream.next_out = u->out + u->size;
        stream.avail_out = u->room - u->size;
        result = lzma_code(&stream, LZMA_RUN);
        u->size = u->room - stream.avail_out;
        if (result == LZMA_STREAM_END)
            step = STEP_DONE;
        else if (result == LZMA_MEM_ERROR || result == LZMA_MEMLIMIT_ERROR)
            step = STEP_NO_MEMORY;
        else if (result != LZMA_OK && result != LZMA_BUF_ERROR)
            step = STEP_DAMAGED;
        else if (!stream.avail_in && stream.avail_out)
            step = STEP_TRUNCATED;
        if (step != STEP_MORE)
            break;
    }
    u->in_used = u->in_size - stream.avail_in;
    lzma_end(&stream);
    return step;
}

static enum step run_zstd(struct unpacking *u) {
    ZSTD_DStream *stream = ZSTD_createDStream();
    if (!stream)
        return STEP_NO_MEMORY;
    ZSTD_inBuffer in = {u->in, u->in_size, 0};
    enum step step;
    while ((step = make_room(u)) == STEP_MORE) {
        ZSTD_outBuffer out = {u->out, u->room, u->size};
        size_t result = ZSTD_decompressStream(stream, &out, &in);
        u->size = out.pos;
        if (ZSTD_isError(result))
            step = STEP_DAMAGED;
        else if (!result)
            step = STEP_DONE;
        else if (in.pos == in.size && out.pos < out.size)
            step = STEP_TRUNCATED;
        if (step != STEP_MORE)
            break;
    }
    u->in_used = in.pos;
    ZSTD_freeDStream(stream);
    return step;
}

static const uint8_t gzip_magic[] = {0x1f, 0x8b, 8}, xz_magic[] = {0xfd, '7', 'z', 'X', 'Z', 0},
                     zstd_magic[] = {0x28, 0xb5, 0x2f, 0xfd}, lzma_magic[] = {0x5d, 0, 0};

static bool starts(const uint8_t *data, size_t size, const uint8_t *magic, size_t length) {
    return size >= length && !memcmp(data, magic, length);
}

bool unpack_is_packed(const uint8_t *data, size_t size) {
    return starts(data, size, gzip_magic, sizeof gzip_magic) ||
           starts(data, size, xz_magic, sizeof xz_magic) ||
           starts(data, size, zstd_magic, sizeof zstd_magic) ||
           starts(data, size, lzma_magic, sizeof lzma_magic);
}

int unpack_stream(const char *path, const uint8_t *data, size_t size, size_t limit, uint8_t **unpacked,
                  size_t *unpacked_size, size_t *used) {
    struct unpacking u = {.in = data, .in_size = size < GIB ? size : GIB, .limit = limit < GIB ? limit : GIB};
    enum step step = STEP_DAMAGED;
    if (starts(data, size, gzip_magic, sizeof gzip_magic))
        step = run_gzip(&u);
    else if (starts(data, size, zstd_magic, sizeof zstd_magic))
        step = run_zstd(&u);
    else if (unpack_is_packed(data, size))
        step = run_lzma(&u, starts(data, size, xz_magic, sizeof xz_magic));
    if (step != STEP_DONE) {
        diag_error("file '%s' %s", path, problems[step]);
        free(u.out);
        return step == STEP_NO_MEMORY ? -ENOMEM : -EINVAL;
    }
    *unpacked = u.out;
    *unpacked_size = u.size;
    *used = u.in_used;
    return 0;
}
