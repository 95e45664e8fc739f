/* show: the units of a symbol or at an address. Guest instructions stand to the left of the host code that
 * was made of them, as the unit's map tells; IR, if the file has any, to the right.
 */
#define _GNU_SOURCE
#include "nestor-cache/command.h"

#include <Zydis/Zydis.h>
#include <cjson/cJSON.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/diag.h"
#include "cache-format/host_features.h"
#include "cache-format/map.h"
#include "cpu/mode.h"

#define GUEST_WIDTH 52
#define HOST_WIDTH 72

static ZydisMachineMode guest_machine(uint32_t mode) {
    switch (mode & MODE_CODE_MASK) {
    case MODE_CODE_16:
        return ZYDIS_MACHINE_MODE_LEGACY_16;
    case MODE_CODE_32:
        return ZYDIS_MACHINE_MODE_LEGACY_32;
    default:
        return ZYDIS_MACHINE_MODE_LONG_64;
    }
}

/* One instruction's text; returns its length, 1 for bytes that are none. */
static uint32_t disassemble(ZydisMachineMode machine, uint64_t address, const uint8_t *bytes, uint32_t length,
                            char *text, size_t size) {
    ZydisDisassembledInstruction instruction;
    if (!ZYAN_SUCCESS(ZydisDisassembleIntel(machine, address, bytes, length, &instruction))) {
        snprintf(text, size, "db 0x%02x", *bytes);
        return 1;
    }
    snprintf(text, size, "%s", instruction.text);
    return instruction.info.length;
}

/* What the relocations and sites say of a host instruction. */
static void annotate(const struct ntc_unit *unit, uint32_t at, uint32_t length, char *text, size_t size) {
    *text = 0;
    for (unsigned i = 0; i < unit->reloc_count; i++)
        if (unit->relocs[i].where == NTC_PLACE_CODE && unit->relocs[i].place - at < length)
            snprintf(text, size, " ; moves with the kernel");
    for (uint32_t i = 0; i < unit->link_count; i++) {
        const struct ntc_link *link = &unit->links[i];
        if (link->place - at >= length)
            continue;
        switch (link->kind) {
        case NTC_RELOC_SLOT:
            snprintf(text, size, " ; slot %u, unlinked: +%#" PRIx64, link->index,
                     unit->slots[link->index] - unit->code_offset);
            break;
        case NTC_RELOC_CONST:
            snprintf(text, size, " ; constant %#" PRIx64, unit->consts[link->index]);
            break;
        case NTC_RELOC_RUNTIME:
            snprintf(text, size, " ; run-time slot %u", link->index);
            break;
        case NTC_RELOC_SITE:
            snprintf(text, size, " ; site %u, guest +%#x", link->index, unit->sites[link->index].guest);
            break;
        default:
            break;
        }
    }
}

/* The next line of IR, without its end; *ir moves behind it. */
static int next_line(const char **ir, const char *end, const char **line) {
    *line = *ir;
    if (!*ir || *ir >= end)
        return 0;
    const char *stop = memchr(*ir, '\n', (size_t)(end - *ir));
    *ir = stop ? stop + 1 : end;
    return (int)((stop ? stop : end) - *line);
}

struct sheet {
    const struct ntc_unit *unit;
    const char *ir, *ir_end;
    cJSON *guest, *host; /* NULL: text */
    uint32_t guest_at;   /* guest code up to here was printed */
};

static void print_row(struct sheet *sheet, const char *guest, const char *host) {
    const char *line;
    int length = next_line(&sheet->ir, sheet->ir_end, &line);
    if (length)
        printf("%-*s %-*s %.*s\n", GUEST_WIDTH, guest, HOST_WIDTH, host, length, line);
    else if (*host)
        printf("%-*s %s\n", GUEST_WIDTH, guest, host);
    else
        printf("%s\n", guest);
}

/* The guest instruction at guest_at, as text; moves guest_at behind it. */
static void take_guest(struct sheet *sheet, char *text, size_t size) {
    const struct ntc_unit *unit = sheet->unit;
    char code[128];
    uint32_t at = sheet->guest_at;
    sheet->guest_at += disassemble(guest_machine(unit->mode), unit->link_address + at, unit->bytes + at,
                                   unit->guest_length - at, code, sizeof code);
    snprintf(text, size, "%016" PRIx64 "  %s", unit->link_address + at, code);
    if (sheet->guest)
        cJSON_AddItemToArray(sheet->guest, cJSON_CreateString(text));
}

/* Guest code between two points of the map that has no host code of its own. */
static void skip_guest(struct sheet *sheet, uint32_t to) {
    char text[192];
    while (sheet->guest_at < to && sheet->guest_at < sheet->unit->guest_length) {
        take_guest(sheet, text, sizeof text);
        if (!sheet->guest)
            print_row(sheet, text, "");
    }
}

static void show_code(struct sheet *sheet) {
    const struct ntc_unit *unit = sheet->unit;
    struct ntc_map_reader reader;
    struct ntc_point point;
    ntc_map_read(&reader, unit);
    int more = ntc_map_next(&reader, &point);
    for (uint32_t at = 0; at < unit->code_length;) {
        char guest[192] = "", code[128], note[64], host[256];
        while (more > 0 && point.host <= at) {
            skip_guest(sheet, point.guest);
            if (!*guest && point.guest == sheet->guest_at && point.guest < unit->guest_length)
                take_guest(sheet, guest, sizeof guest);
            more = ntc_map_next(&reader, &point);
        }
        uint32_t length = disassemble(ZYDIS_MACHINE_MODE_LONG_64, at, unit->code + at, unit->code_length - at,
                                      code, sizeof code);
        annotate(unit, at, length, note, sizeof note);
        snprintf(host, sizeof host, "+%04x  %s%s", at, code, note);
        if (sheet->host)
            cJSON_AddItemToArray(sheet->host, cJSON_CreateString(host));
        else
            print_row(sheet, guest, host);
        at += length;
    }
    skip_guest(sheet, unit->guest_length);
    while (!sheet->host && sheet->ir < sheet->ir_end)
        print_row(sheet, "", "");
}

static void print_heading(const struct ntc_view *view, uint32_t number, const struct ntc_unit *unit) {
    struct ntc_unit_entry entry;
    char features[300];
    uint64_t at = 0;
    printf("%s+%#x at %016" PRIx64 " in %s: %u guest bytes, %u host bytes, by %s, mode %#x, heat %u\n",
           *unit->name ? unit->name : "(no symbol)", unit->name_offset, unit->link_address,
           cache_image_name(view, unit->image), unit->guest_length, unit->code_length,
           cache_generator_name(unit->generator), unit->mode, unit->heat);
    fputs("entered at", stdout);
    while (ntc_unit_entry(view, number, unit, &at, &entry))
        printf(" %016" PRIx64 "=+%#x", unit->link_address + entry.guest, entry.host);
    putchar('\n');
    ntc_host_features_print(unit->host_features, features, sizeof features);
    if (*features)
        printf("needs %s\n", features);
}

static void show_unit(const struct ntc_view *view, uint32_t number, const struct ntc_unit *unit, cJSON *all) {
    struct sheet sheet = {
        .unit = unit, .ir = unit->ir, .ir_end = unit->ir ? unit->ir + unit->ir_length : NULL};
    if (!all) {
        print_heading(view, number, unit);
        show_code(&sheet);
        putchar('\n');
        return;
    }
    cJSON *json = cache_json_unit(view, number, unit);
    cJSON_AddItemToArray(all, json);
    sheet.guest = cJSON_AddArrayToObject(json, "guest");
    sheet.host = cJSON_AddArrayToObject(json, "host");
    show_code(&sheet);
    char *ir = strndup(unit->ir ? unit->ir : "", unit->ir_length);
    cJSON_AddStringToObject(json, "ir", ir ? ir : "");
    free(ir);
}

/* Hexadecimal with 0x in front, or sixteen digits: an address; anything else a symbol. */
static bool parse_address(const char *text, uint64_t *address) {
    char *end;
    if (strncmp(text, "0x", 2) && strlen(text) != 16)
        return false;
    errno = 0;
    *address = strtoull(text, &end, 16);
    return !*end && !errno;
}

int cache_show(const struct cache_options *options) {
    const char *wanted = options->argument[1];
    uint64_t address = 0;
    bool by_address = parse_address(wanted, &address);
    struct ntc_error error;
    struct ntc_file file;
    unsigned shown = 0;
    if (ntc_file_read(&file, options->argument[0], &error))
        return cache_fail(&error);
    cJSON *all = options->json ? cJSON_CreateArray() : NULL;
    for (uint64_t i = 0; i < file.view.count[NTC_SECTION_UNITS]; i++) {
        struct ntc_unit unit;
        if (ntc_unit_open(&file.view, (uint32_t)i, &unit))
            continue;
        if (options->image && strcmp(options->image, cache_image_name(&file.view, unit.image)))
            continue;
        if (by_address ? address - unit.link_address >= unit.guest_length : strcmp(unit.name, wanted) != 0)
            continue;
        show_unit(&file.view, (uint32_t)i, &unit, all);
        shown++;
    }
    ntc_file_close(&file);
    if (!shown) {
        cJSON_Delete(all);
        diag_error("cache '%s' has no unit for '%s'; nestor-cache ls lists them", options->argument[0],
                   wanted);
        return CACHE_FAILED;
    }
    return all ? cache_json_print(all) : CACHE_OK;
}
