/* nestor-emit: translate guest code that never runs, and print what the translator makes of it: the text of
 * --dump guest,decoded,emitted. One block after the other, until the bytes are used up.
 *
 *   nestor-emit [--mode 64|32] [--cpl 0|3] FILE     FILE: the code's bytes
 */
#include "base/diag.h"
#include "base/trace.h"
#include "dbt/dbt.h"
#include "dbt/dump.h"
#include "guest.h"
#include "interp/interp.h"
#include "layout.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CODE_CACHE_SIZE (1 * MIB)
#define CODE_GPA 0x300000ull /* RAM that guest.c leaves alone */
#define CODE_ADDRESS 0x400000ull
#define CODE_MAX PAGE_SIZE

struct emitter {
    struct guest guest;
    struct vcpu *vcpu;
    struct trace trace;
    unsigned mode, cpl;
};

static int read_code(const char *path, uint8_t *code, size_t *length) {
    FILE *in = fopen(path, "re");
    if (!in) {
        diag_error("nestor-emit: %s: %s", path, strerror(errno));
        return -ENOENT;
    }
    *length = fread(code, 1, CODE_MAX, in);
    fclose(in);
    return *length ? 0 : -EINVAL;
}

static void enter_mode(struct emitter *emitter) {
    static const struct segment data = {.selector = 0x2b, .limit = UINT32_MAX, .attributes = 0xc0f3};
    struct vcpu *vcpu = emitter->vcpu;
    for (unsigned i = 0; i < SEG_COUNT; i++)
        vcpu->segment[i] = data;
    vcpu->segment[SEG_CS].attributes = emitter->mode == 64 ? 0xa0fb : 0xc0fb;
    vcpu->cpl = (uint8_t)emitter->cpl;
    vcpu->rflags = FLAG_FIXED | FLAG_IF;
    cpu_mode_changed(vcpu);
    vtlb_select_view(vcpu);
}

static int create(struct emitter *emitter) {
    const struct dbt_options options = {.code_cache_size = CODE_CACHE_SIZE};
    int result = guest_create(&emitter->guest);
    if (result)
        return result;
    emitter->vcpu = dbt_area_create();
    result = emitter->vcpu ? guest_add_vcpu(&emitter->guest, emitter->vcpu) : -ENOMEM;
    if (!result)
        result = interp_vcpu_create(emitter->vcpu);
    if (!result)
        result = dbt_vcpu_create(emitter->vcpu, &options);
    if (!result)
        result = trace_open(&emitter->trace, DUMP_GUEST | DUMP_DECODED | DUMP_EMITTED, "/dev/stdout");
    if (result)
        return result;
    emitter->vcpu->trace = &emitter->trace;
    emitter->vcpu->trace_subjects = emitter->trace.subjects;
    return 0;
}

static int translate(struct emitter *emitter, size_t length) {
    struct vcpu *vcpu = emitter->vcpu;
    enter_mode(emitter);
    for (size_t at = 0; at < length;) {
        vcpu->rip = CODE_ADDRESS + at;
        uint32_t index = dbt_translate_watched(vcpu, CODE_GPA + at, vcpu->mode);
        if (index == NO_INDEX || !vcpu->dbt->block[index].guest_length) {
            diag_error("nestor-emit: nothing was translated at offset %zu", at);
            return -EINVAL;
        }
        at += vcpu->dbt->block[index].guest_length;
    }
    return 0;
}

int main(int argc, char **argv) {
    static const struct option options[] = {
        {"mode", required_argument, NULL, 'm'}, {"cpl", required_argument, NULL, 'c'}, {0}};
    static struct emitter emitter = {.mode = 64};
    static uint8_t code[CODE_MAX];
    size_t length;
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) >= 0) {
        if (option == 'm')
            emitter.mode = (unsigned)strtoul(optarg, NULL, 10);
        else if (option == 'c')
            emitter.cpl = (unsigned)strtoul(optarg, NULL, 10);
        else
            return 2;
    }
    if (optind + 1 != argc) {
        diag_error("nestor-emit: give one file with the code's bytes");
        return 2;
    }
    if (read_code(argv[optind], code, &length) || create(&emitter) ||
        guest_mem_write(&emitter.guest.mem, CODE_GPA, code, length) || translate(&emitter, length))
        return 1;
    trace_close(&emitter.trace);
    return 0;
}
