/* Mapping a sealed file for execution. The three sections lie in a row in the file and in memory, so that
 * RIP- relative operands made by the writer hold wherever the mapping lands.
 */
#define _GNU_SOURCE
#include "cache-format/mapping.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/pages.h"
#include "cache-format/file_private.h"
#include "cache-format/header.h"
#include "cache-format/parts.h"

#define POPULATE_MAX MIB /* of private memory: about what a boot uses */

/* Address space for the mapping: the caller's, or NULL. */
static uint8_t *reserve(uint64_t size, const struct ntc_room *room) {
    if (room)
        return size <= room->size ? room->at : NULL;
    void *base = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return base == MAP_FAILED ? NULL : base;
}

int ntc_mapping_create(struct ntc_mapping *mapping, const struct ntc_file *file, const struct ntc_room *room,
                       struct ntc_error *error) {
    const struct ntc_header *header = file->view.header;
    const struct ntc_section *code = ntc_header_section(header, NTC_SECTION_CODE),
                             *slots = ntc_header_section(header, NTC_SECTION_SLOTS),
                             *consts = ntc_header_section(header, NTC_SECTION_CONSTS);
    *mapping = (struct ntc_mapping){.view = &file->view, .lent = room != NULL};
    if (file->memfd < 0)
        return ntc_fail(error, NTC_FAULT_STORE, "cache '%s' was opened for reading only", file->path);
    int result = ntc_memfd_check(file->memfd, file->size, file->view.parts != NULL, error);
    if (result)
        return result;
    uint64_t writable = slots->length + consts->length;
    mapping->size = code->length + writable;
    mapping->base = reserve(mapping->size, room);
    if (!mapping->base && room)
        return ntc_fail(error, NTC_FAULT_MEMORY, "cache '%s': no address space near the code cache",
                        file->path);
    mapping->prepared = calloc(slots->length / PAGE_SIZE / 8 + 1, 1);
    mapping->reached = calloc(header->load_size / NTC_CHUNK_SIZE / 64 + 1, sizeof *mapping->reached);
    if (!mapping->base || !mapping->prepared || !mapping->reached)
        goto no_memory;
    if (code->length && mmap(mapping->base, code->length, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_FIXED,
                             file->memfd, (off_t)code->offset) == MAP_FAILED)
        goto no_memory;
    if (mmap(mapping->base + code->length, writable, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED,
             file->memfd, (off_t)slots->offset) == MAP_FAILED)
        goto no_memory;
    mapping->code = mapping->base;
    mapping->code_size = code->length;
    mapping->slots = (uint64_t *)(void *)(mapping->base + code->length);
    mapping->slot_count = slots->record_count;
    mapping->consts = (uint64_t *)(void *)(mapping->base + code->length + slots->length);
    mapping->const_count = consts->record_count;
    return 0;
no_memory:
    result = ntc_fail(error, NTC_FAULT_MEMORY, "cache '%s' cannot be mapped for execution: %s", file->path,
                      strerror(errno));
    ntc_mapping_destroy(mapping);
    return result;
}

/* Bytes of a section's records of 8 bytes that likely units have, which are its first ones; 0: not known, not
 * all there, or too many. */
static uint64_t likely_bytes(const struct ntc_view *view, enum ntc_section_kind kind) {
    const struct ntc_section *section = ntc_header_section(view->header, kind);
    for (uint64_t i = 0; i < view->count[NTC_SECTION_LIKELY]; i++) {
        const struct ntc_range *range = &view->likely[i];
        if (range->offset != section->offset || !range->length || range->length > section->length)
            continue;
        uint64_t length = range->length < POPULATE_MAX ? range->length : POPULATE_MAX;
        bool there = true;
        for (uint64_t at = 0; at < length && there; at += PAGE_SIZE)
            there = ntc_parts_there(view, kind, at / sizeof(uint64_t));
        if (there)
            return length;
    }
    return 0;
}

void ntc_mapping_populate(struct ntc_mapping *mapping) {
    uint64_t slots = likely_bytes(mapping->view, NTC_SECTION_SLOTS);
    if (slots) {
        pages_populate(mapping->slots, slots);
        ntc_mapping_prepare(mapping, 0, (uint32_t)(slots / sizeof(uint64_t)));
    }
    mapping->likely_consts = likely_bytes(mapping->view, NTC_SECTION_CONSTS);
}

void ntc_mapping_destroy(struct ntc_mapping *mapping) {
    if (mapping->base && !mapping->lent)
        munmap(mapping->base, mapping->size);
    free(mapping->prepared);
    free(mapping->reached);
    *mapping = (struct ntc_mapping){0};
}
