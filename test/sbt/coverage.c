/* How much of what a guest ran a cache file holds: blocks from the run-time translator's dump against its
 * units.
 *
 *   sbt-coverage CACHE BLOCKS [-v]    BLOCKS: lines "ADDRESS HEX-BYTES", link addresses in hexadecimal
 *
 * Exit status 0 when at least 97 of 100 blocks are there.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cache-format/file.h"

struct place {
    uint64_t address;
    uint32_t unit;
};

static int compare_places(const void *left, const void *right) {
    const struct place *a = left, *b = right;
    if (a->address != b->address)
        return a->address < b->address ? -1 : 1;
    return a->unit < b->unit ? -1 : a->unit > b->unit;
}

static bool holds(const struct ntc_view *view, uint32_t number, const uint8_t *bytes, size_t length) {
    struct ntc_unit unit;
    const uint64_t slide[1] = {0};
    const bool known[1] = {true};
    struct ntc_slides slides = {.slide = slide, .known = known, .count = 1};
    if (ntc_unit_open(view, number, &unit))
        return false;
    uint32_t count = unit.guest_length < length ? unit.guest_length : (uint32_t)length;
    return ntc_unit_compare(&unit, 0, &slides, bytes, 0, count);
}

int main(int argc, char **argv) {
    struct ntc_file file;
    struct ntc_error error;
    if (argc < 3 || ntc_file_read(&file, argv[1], &error)) {
        fprintf(stderr, "%s\n", argc < 3 ? "usage: sbt-coverage CACHE BLOCKS [-v]" : error.line);
        return 2;
    }
    size_t count = file.view.count[NTC_SECTION_UNITS];
    struct place *place = calloc(count + 1, sizeof *place);
    if (!place)
        return 2;
    for (uint32_t i = 0; i < count; i++)
        place[i] = (struct place){file.view.units[i].link_address, i};
    qsort(place, count, sizeof *place, compare_places);
    FILE *blocks = fopen(argv[2], "re");
    char *line = NULL;
    size_t room = 0;
    unsigned total = 0, there = 0, other = 0;
    while (blocks && getline(&line, &room, blocks) >= 0) {
        char *hex;
        uint8_t bytes[1024];
        size_t length = 0, low = 0, high = count;
        unsigned byte;
        uint64_t address = strtoull(line, &hex, 16);
        hex += strspn(hex, " ");
        for (; length < sizeof bytes && sscanf(hex, "%2x", &byte) == 1; hex += 2)
            bytes[length++] = (uint8_t)byte;
        while (low < high) {
            size_t middle = low + (high - low) / 2;
            if (place[middle].address < address)
                low = middle + 1;
            else
                high = middle;
        }
        bool found = false, known = low < count && place[low].address == address;
        for (; low < count && place[low].address == address && !found; low++)
            found = holds(&file.view, place[low].unit, bytes, length);
        total++;
        there += found;
        other += known && !found;
        if (!found && argc > 3)
            printf("%s %llx\n", known ? "bytes" : "place", (unsigned long long)address);
    }
    printf("blocks %u there %u (%.2f %%) other bytes %u\n", total, there, total ? 100.0 * there / total : 0,
           other);
    free(line);
    free(place);
    ntc_file_close(&file);
    return total && there >= 0.97 * total ? 0 : 1;
}
