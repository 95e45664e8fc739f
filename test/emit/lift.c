/* nestor-lift: lift guest code that never runs as one function, and print the IR that LLVM made of it and the
 * host's code.
 *
 *   nestor-lift [--cpl 0|3] FILE     FILE: the code's bytes, for 64-bit mode
 */
#include "base/diag.h"
#include "cpu/mode.h"
#include "sbt/llvm.h"

#include <Zydis/Zydis.h>
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CODE_ADDRESS 0xffffffff81000000ull
#define CODE_MAX 8192u

static void list_code(const uint8_t *code, size_t length) {
    ZydisDecoder decoder;
    ZydisFormatter formatter;
    if (!ZYAN_SUCCESS(ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64)) ||
        !ZYAN_SUCCESS(ZydisFormatterInit(&formatter, ZYDIS_FORMATTER_STYLE_INTEL)))
        return;
    for (size_t at = 0; at < length;) {
        ZydisDecodedInstruction insn;
        ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
        char text[128] = "(no instruction)";
        bool good = ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, code + at, length - at, &insn, op)) &&
                    ZYAN_SUCCESS(ZydisFormatterFormatInstruction(
                        &formatter, &insn, op, insn.operand_count_visible, text, sizeof text, at, NULL));
        printf("host +%04zx %s\n", at, text);
        at += good ? insn.length : 1;
    }
}

static int lift(const uint8_t *code, uint32_t length, unsigned cpl) {
    struct cpu_model model;
    struct ntc_unit unit;
    const uint32_t mode = MODE_CODE_64 | MODE_STACK_32 | MODE_PROTECTED | MODE_LONG | MODE_FLAT |
                          MODE_FS_WIDE | MODE_GS_WIDE | MODE_PAGING |
                          (cpl ? MODE_CPL3 : MODE_CPL0 | MODE_IO_FREE);
    const struct codegen_request request = {
        .address = CODE_ADDRESS, .mode = mode, .bytes = code, .length = length};
    char error[256];
    if (cpu_model_create(&model, "host", 1, error, sizeof error)) {
        diag_error("nestor-lift: %s", error);
        return 1;
    }
    void *state = codegen_llvm.create(&model);
    if (!state)
        return 1;
    codegen_llvm.keep_ir(state, true);
    int result = codegen_llvm.translate(state, &request, &unit);
    if (result) {
        printf("refused: %s\n", codegen_llvm.refusal(state));
    } else {
        printf("%.*s", (int)unit.ir_length, unit.ir);
        for (unsigned i = 0; i < unit.entry_count; i++)
            printf("entry %u at +%04x\n", unit.entries[i].guest, unit.entries[i].host);
        list_code(unit.code, unit.code_length);
    }
    codegen_llvm.destroy(state);
    return 0;
}

int main(int argc, char **argv) {
    static const struct option options[] = {{"cpl", required_argument, NULL, 'c'}, {0}};
    static uint8_t code[CODE_MAX];
    unsigned cpl = 0;
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) >= 0) {
        if (option != 'c')
            return 2;
        cpl = (unsigned)strtoul(optarg, NULL, 10);
    }
    FILE *in = optind + 1 == argc ? fopen(argv[optind], "re") : NULL;
    if (!in) {
        diag_error("nestor-lift: give one file with the code's bytes");
        return 2;
    }
    size_t length = fread(code, 1, sizeof code, in);
    fclose(in);
    return lift(code, (uint32_t)length, cpl);
}
