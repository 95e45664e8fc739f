/* Made-up cache files for tests and the fuzzer: units with records of every kind, a function of a number
 * each, so that the same numbers give the same file. The code is random bytes: it is never run.
 */
#ifndef NESTOR_TEST_CACHE_SAMPLE_H
#define NESTOR_TEST_CACHE_SAMPLE_H

#include "cache-format/map.h"
#include "cache-format/writer.h"

#define SAMPLE_ABI 7u
#define SAMPLE_LAYOUT 0x1122334455667788ull
#define SAMPLE_MODE 0x48au
#define SAMPLE_KERNEL_BASE 0xffffffff81000000ull
#define SAMPLE_MODULE_BASE 0xffffffffc0000000ull
#define SAMPLE_LENGTH (4 * MIB) /* of each image */

struct sample_unit {
    struct ntc_unit unit;
    uint8_t bytes[192];
    uint8_t code[512];
    uint64_t slots[4];
    uint64_t consts[2];
    struct ntc_site sites[6];
    struct ntc_reloc relocs[8];
    struct ntc_field fields[3];
    struct ntc_state states[2];
    struct ntc_unit_entry entries[3];
    struct ntc_map_builder map;
    char name[32], ir[64];
};

/* Unit number `number`: even ones are the kernel's, odd ones the module's. */
void sample_unit_make(struct sample_unit *sample, uint32_t number);
void sample_unit_destroy(struct sample_unit *sample);
uint64_t sample_address(uint32_t number);

struct sample_options {
    uint32_t units;
    uint32_t step; /* order in which they are added: number * step modulo units; 0: 1 */
    bool with_ir;
    bool module_first; /* order in which the images are added */
};
/* A writer that holds the units. NULL: something failed. */
struct ntc_writer *sample_writer(const struct sample_options *options);

/* Make leaves and root those of the bytes as they are, as far as the header can be followed; no signature. */
void sample_redigest(uint8_t *file, uint64_t size);

/* Use everything that a view offers, as a hostile file would have it used. The number of units that opened.
 */
uint32_t sample_walk(const struct ntc_view *view);

#endif
