/* What was made, what was left out and why. */
#include "precompile-cache/precompile.h"

#include <Zydis/Zydis.h>
#include <stdio.h>
#include <string.h>

static double percent(uint64_t part, uint64_t whole) {
    return whole ? 100.0 * (double)part / (double)whole : 100.0;
}

static void print_patches(const struct patched *patched) {
    printf("  patched places:");
    for (unsigned kind = 0; kind < PATCH_KINDS; kind++)
        if (patched->sites[kind])
            printf(" %s %u%s", patch_kind_name((enum patch_kind)kind), patched->sites[kind],
                   kind + 1 < PATCH_KINDS ? "," : "");
    printf("\n");
}

/* What became of whole functions. */
static void print_functions(const struct precompile *p) {
    struct functions_counts sum = {0};
    for (size_t i = 0; i < p->images; i++)
        functions_add_counts(&sum, &p->image[i].function_counts);
    if (!sum.functions && !sum.unselected)
        return;
    printf("%s: %zu functions, %zu units, guest code %llu bytes, host code %llu bytes; not hot: %zu",
           p->options->functions->name, sum.functions, sum.units, (unsigned long long)sum.guest_bytes,
           (unsigned long long)sum.host_bytes, sum.unselected);
    for (unsigned i = 0; i < sum.reasons; i++)
        printf("; %s: %zu", sum.reason[i], sum.refused[i]);
    printf("\n");
}

void summary_print(const struct precompile *p, const struct ntc_writer_summary *written, double seconds) {
    struct blocks_counts sum = {0};
    uint64_t text = 0, covered = 0, padding = 0;
    size_t functions = 0, broken = 0, unplaced = 0;
    for (size_t i = 0; i < p->images; i++) {
        const struct precompile_image *image = &p->image[i];
        sum.pieces += image->counts.pieces;
        sum.units += image->counts.units;
        sum.unselected += image->counts.unselected;
        sum.refused += image->counts.refused;
        sum.too_large += image->counts.too_large;
        sum.uncombined += image->counts.uncombined;
        sum.fixed += image->counts.fixed;
        if (image->image.loader) /* text and data in one */
            continue;
        text += image->discovery.text_bytes;
        covered += image->discovery.covered_bytes;
        padding += image->discovery.padding_bytes;
        functions += image->discovery.functions;
        broken += image->broken;
        unplaced += image->analysed && !image->image.fields_known;
    }
    const struct precompile_image *kernel = &p->image[0];
    printf("kernel %s: %zu symbols, %.2f %% of its text without padding is known code\n",
           *kernel->image.release ? kernel->image.release : kernel->image.path, kernel->image.symbols,
           percent(kernel->discovery.covered_bytes,
                   kernel->discovery.text_bytes - kernel->discovery.padding_bytes));
    print_patches(&kernel->patched);
    printf("images %zu, functions %zu, pieces %zu, units %u, entries %u\n", p->images, functions, sum.pieces,
           written->units, written->entries);
    printf("text %llu bytes, %llu of them padding, %llu known code (%.2f %% of the rest)\n",
           (unsigned long long)text, (unsigned long long)padding, (unsigned long long)covered,
           percent(covered, text - padding));
    printf("guest code %llu bytes, host code %llu bytes, loaded %llu bytes, file %llu bytes\n",
           (unsigned long long)written->guest_bytes, (unsigned long long)written->code_bytes,
           (unsigned long long)written->load_size, (unsigned long long)written->file_size);
    printf("left out: %zu pieces without code to keep, %zu instructions too large for a unit, "
           "%zu pieces with too many patched places, %zu pieces by the profile, %zu damaged modules\n",
           sum.refused, sum.too_large, sum.uncombined, sum.unselected, broken);
    if (p->options->functions)
        print_functions(p);
    printf("good at the link address only: %zu units", sum.fixed);
    if (unplaced)
        printf("; %zu image says not where its code depends on its place", unplaced);
    printf("\ntime %.1f s with %u jobs\n", seconds, p->options->jobs);
}

static void list_code(const char *label, const uint8_t *code, size_t length, uint64_t address) {
    ZydisDecoder decoder;
    ZydisFormatter formatter;
    size_t at = 0;
    if (!ZYAN_SUCCESS(ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64)) ||
        !ZYAN_SUCCESS(ZydisFormatterInit(&formatter, ZYDIS_FORMATTER_STYLE_INTEL)))
        return;
    while (at < length) {
        ZydisDecodedInstruction insn;
        ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
        char text[128] = "(no instruction)";
        bool good =
            ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, code + at, length - at, &insn, op)) &&
            ZYAN_SUCCESS(ZydisFormatterFormatInstruction(&formatter, &insn, op, insn.operand_count_visible,
                                                         text, sizeof text, address + at, NULL));
        printf("  %s +%-5zu %s\n", label, at, text);
        at += good ? insn.length : 1;
    }
}

void listing_print(const struct ntc_unit *unit) {
    printf("unit %s+0x%x at 0x%llx: %u bytes -> %u bytes\n", unit->name, unit->name_offset,
           (unsigned long long)unit->link_address, unit->guest_length, unit->code_length);
    list_code("guest", unit->bytes, unit->guest_length, unit->link_address);
    list_code("host", unit->code, unit->code_length, 0);
}
