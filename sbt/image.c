/* Lookups in an image: all by binary search in sorted tables, all bounded. */
#define _GNU_SOURCE
#include "sbt/image.h"

#include <stdlib.h>
#include <string.h>

void image_close(struct image *image) {
    free(image->path);
    free(image->section);
    free(image->symbol);
    free(image->by_name);
    free(image->field);
    free(image->bytes);
    free(image->strings);
    free(image->extra);
    *image = (struct image){0};
}

const struct image_section *image_section_at(const struct image *image, uint64_t address) {
    unsigned low = 0, high = image->sections;
    while (low < high) {
        unsigned middle = low + (high - low) / 2;
        const struct image_section *section = &image->section[middle];
        if (address < section->address)
            high = middle;
        else if (address - section->address >= section->size)
            low = middle + 1;
        else
            return section;
    }
    return NULL;
}

const struct image_section *image_section_named(const struct image *image, const char *name) {
    for (unsigned i = 0; i < image->sections; i++)
        if (!strcmp(image->section[i].name, name))
            return &image->section[i];
    return NULL;
}

const uint8_t *image_at(const struct image *image, uint64_t address, size_t room) {
    const struct image_section *section = image_section_at(image, address);
    if (!section || !section->data || section->size - (address - section->address) < room)
        return NULL;
    return section->data + (address - section->address);
}

bool image_read(const struct image *image, uint64_t address, unsigned size, uint64_t *value) {
    const struct image_section *section = image_section_at(image, address);
    *value = 0;
    if (!section || section->size - (address - section->address) < size)
        return false;
    if (section->data)
        memcpy(value, section->data + (address - section->address), size);
    return true;
}

const struct image_symbol *image_symbol_named(const struct image *image, const char *name) {
    size_t low = 0, high = image->by_name ? image->symbols : 0;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (strcmp(image->symbol[image->by_name[middle]].name, name) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    if (!image->by_name || low == image->symbols)
        return NULL;
    const struct image_symbol *symbol = &image->symbol[image->by_name[low]];
    return strcmp(symbol->name, name) ? NULL : symbol;
}

const struct image_symbol *image_symbol_at(const struct image *image, uint64_t address) {
    size_t low = 0, high = image->symbols;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (image->symbol[middle].address <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low ? &image->symbol[low - 1] : NULL;
}

struct image_table image_table(const struct image *image, const char *section, const char *start,
                               const char *stop) {
    const struct image_section *found = image_section_named(image, section);
    if (found && found->data)
        return (struct image_table){found->address, found->size, found->data};
    const struct image_symbol *from = start ? image_symbol_named(image, start) : NULL;
    const struct image_symbol *to = stop ? image_symbol_named(image, stop) : NULL;
    if (!from || !to || to->address <= from->address)
        return (struct image_table){0};
    size_t size = to->address - from->address;
    const uint8_t *data = image_at(image, from->address, size);
    return data ? (struct image_table){from->address, size, data} : (struct image_table){0};
}

size_t image_field_from(const struct image *image, uint64_t address) {
    size_t low = 0, high = image->fields;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (image->field[middle].address < address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}
