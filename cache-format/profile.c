#define _GNU_SOURCE
#include "cache-format/profile.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define LINES_MAX (1u << 24)
#define IMAGES_MAX 65536u
#define LINE_MAX_LENGTH 512u

static int compare_lines(const void *a, const void *b) {
    const struct ntc_profile_line *one = a, *other = b;
    if (one->image != other->image)
        return one->image < other->image ? -1 : 1;
    return (one->address > other->address) - (one->address < other->address);
}

/* The number of an image's name, which is added. UINT32_MAX: no room. */
static uint32_t image_number(struct ntc_profile *profile, const char *name) {
    for (uint32_t i = profile->images; i-- > 0;)
        if (!strcmp(profile->image[i], name))
            return i;
    char **images = profile->images == IMAGES_MAX
                        ? NULL
                        : realloc(profile->image, (profile->images + 1) * sizeof *images);
    if (!images)
        return UINT32_MAX;
    profile->image = images;
    images[profile->images] = strdup(name);
    return images[profile->images] ? profile->images++ : UINT32_MAX;
}

static bool parse_number(const char *text, int base, uint64_t *value) {
    char *end;
    errno = 0;
    *value = strtoull(text, &end, base);
    return *text != '-' && *text != '+' && end != text && !*end && !errno;
}

/* 0, -EINVAL, -ENOMEM, -E2BIG. */
static int add_line(struct ntc_profile *profile, char *text) {
    char *save = NULL, *word[6];
    unsigned words = 0;
    for (char *w = strtok_r(text, " \t\n", &save); w && words < 6; w = strtok_r(NULL, " \t\n", &save))
        word[words++] = w;
    if (!words || *word[0] == '#')
        return 0;
    struct ntc_profile_line line = {.hash = 0};
    uint64_t mode = NTC_PROFILE_ANY_MODE;
    if (words < 4 || words > 5 || (words == 5 && !parse_number(word[4], 16, &line.hash)) ||
        !parse_number(word[1], 16, &line.address) || !parse_number(word[3], 10, &line.count) ||
        (strcmp(word[2], "-") && (!parse_number(word[2], 16, &mode) || mode >= NTC_PROFILE_ANY_MODE)))
        return -EINVAL;
    line.mode = (uint32_t)mode;
    line.image = image_number(profile, word[0]);
    if (line.image == UINT32_MAX)
        return -ENOMEM;
    if (profile->lines == profile->room) {
        uint64_t room = profile->room ? profile->room * 2 : 4096;
        struct ntc_profile_line *lines =
            room > LINES_MAX ? NULL : realloc(profile->line, room * sizeof *lines);
        if (!lines)
            return room > LINES_MAX ? -E2BIG : -ENOMEM;
        profile->line = lines;
        profile->room = room;
    }
    profile->line[profile->lines++] = line;
    return 0;
}

static int read_lines(struct ntc_profile *profile, FILE *file, const char *path, struct ntc_error *error) {
    char text[LINE_MAX_LENGTH];
    int result = 0;
    for (unsigned long number = 1; !result && fgets(text, sizeof text, file); number++) {
        size_t length = strlen(text);
        bool whole = length && text[length - 1] == '\n';
        if (whole)
            text[length - 1] = 0;
        if (number == 1 && strcmp(text, NTC_PROFILE_TITLE))
            return ntc_fail(error, NTC_FAULT_MALFORMED, "'%s' is not a profile: its first line is not '%s'",
                            path, NTC_PROFILE_TITLE);
        if (number > 1)
            result = whole ? add_line(profile, text) : -EINVAL;
        if (result == -EINVAL)
            return ntc_fail(error, NTC_FAULT_MALFORMED,
                            "profile '%s', line %lu: not 'image link-address mode count [bytes-hash]'", path,
                            number);
    }
    if (ferror(file))
        return ntc_fail(error, NTC_FAULT_IO, "profile '%s' cannot be read: %s", path, strerror(errno));
    if (result)
        return ntc_fail(error, result == -E2BIG ? NTC_FAULT_LIMIT : NTC_FAULT_MEMORY,
                        "profile '%s' has too many lines", path);
    return 0;
}

int ntc_profile_read(struct ntc_profile *profile, const char *path, struct ntc_error *error) {
    struct stat info;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    FILE *file = fd >= 0 ? fdopen(fd, "r") : NULL;
    if (!file) {
        int saved = errno;
        if (fd >= 0)
            close(fd);
        return ntc_fail(error, NTC_FAULT_IO, "profile '%s' cannot be opened: %s", path, strerror(saved));
    }
    int result = !fstat(fd, &info) && S_ISREG(info.st_mode)
                     ? (info.st_size ? read_lines(profile, file, path, error)
                                     : ntc_fail(error, NTC_FAULT_MALFORMED, "profile '%s' is empty", path))
                     : ntc_fail(error, NTC_FAULT_IO, "profile '%s' is not a regular file", path);
    fclose(file);
    if (!result && profile->lines)
        qsort(profile->line, profile->lines, sizeof *profile->line, compare_lines);
    return result;
}

void ntc_profile_destroy(struct ntc_profile *profile) {
    for (uint32_t i = 0; i < profile->images; i++)
        free(profile->image[i]);
    free(profile->image);
    free(profile->line);
    *profile = (struct ntc_profile){0};
}

/* The first line of an image at or behind an address. */
static uint64_t first_line(const struct ntc_profile *profile, const char *image, uint64_t address,
                           uint32_t *number) {
    struct ntc_profile_line key = {.address = address, .image = UINT32_MAX};
    for (uint32_t i = 0; i < profile->images; i++)
        if (!strcmp(profile->image[i], image))
            key.image = i;
    *number = key.image;
    uint64_t low = 0, high = profile->lines;
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if (compare_lines(&profile->line[middle], &key) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void add(uint64_t *sum, uint64_t count) {
    *sum = *sum + count < *sum ? UINT64_MAX : *sum + count;
}

uint64_t ntc_profile_heat(const struct ntc_profile *profile, const char *image, uint64_t address,
                          uint64_t length, uint64_t hash) {
    uint32_t number;
    uint64_t sum = 0, all = 0;
    bool hashes = false;
    for (uint64_t at = first_line(profile, image, address, &number); at < profile->lines; at++) {
        const struct ntc_profile_line *line = &profile->line[at];
        if (line->image != number || line->address - address >= length)
            break;
        hashes |= line->hash != 0;
        add(&all, line->count);
        if (line->hash == hash)
            add(&sum, line->count);
    }
    return hashes ? sum : all;
}

uint64_t ntc_profile_count(const struct ntc_profile *profile, const char *image, uint64_t address,
                           uint64_t length, uint32_t mode) {
    uint32_t number;
    uint64_t sum = 0;
    for (uint64_t low = first_line(profile, image, address, &number); low < profile->lines; low++) {
        const struct ntc_profile_line *line = &profile->line[low];
        if (line->image != number || line->address - address >= length)
            break;
        if (mode != NTC_PROFILE_ANY_MODE && line->mode != NTC_PROFILE_ANY_MODE && line->mode != mode)
            continue;
        add(&sum, line->count);
    }
    return sum;
}
