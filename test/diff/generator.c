/* The instructions that the generator sets scenes with, and labels. See generator.h. None but
 * gen_define_flags() and gen_zero() touches flags. */
#include "generator.h"

#include "cpu/x86.h"

#include <string.h>

bool gen_has_room(const struct generator *g, unsigned bytes) {
    return g->at + bytes <= g->limit && g->stream->count + 8 < STREAM_MAX;
}

void gen_emit(struct generator *g, const uint8_t *bytes, unsigned length, struct form *form, bool is_glued) {
    if (g->at + length > DIFF_CODE_SIZE - g->test->entry - 16 || g->stream->count == STREAM_MAX)
        return;
    memcpy(g->code + g->at, bytes, length);
    g->stream->insn[g->stream->count++] = (struct stream_insn){.offset = (uint16_t)g->at,
                                                               .length = (uint8_t)length,
                                                               .unit = (uint8_t)g->unit,
                                                               .is_conditional = g->conditional || g->labels,
                                                               .is_glued = is_glued,
                                                               .form = form};
    g->at += length;
}

/* A reserved register is left alone; the caller's caller looks at refused and gives up. */
void gen_mov(struct generator *g, unsigned reg, uint64_t value) {
    uint8_t bytes[16];
    unsigned n = 0;
    bool is_wide = g->mode == 64 && value >> 32;
    if (g->reserved >> reg & 1) {
        g->refused = true;
        return;
    }
    bool is_sign_extended = is_wide && (int64_t)value == (int32_t)value;
    uint8_t rex = (uint8_t)((is_wide ? 8 : 0) | reg >> 3);
    if (rex)
        bytes[n++] = 0x40 | rex;
    if (is_sign_extended) {
        bytes[n++] = 0xc7;
        bytes[n++] = 0xc0 | (reg & 7);
    } else {
        bytes[n++] = 0xb8 | (reg & 7);
    }
    unsigned size = is_wide && !is_sign_extended ? 8 : 4;
    memcpy(bytes + n, &value, size);
    gen_emit(g, bytes, n + size, NULL, false);
}

void gen_push(struct generator *g, uint32_t value) {
    uint8_t bytes[5] = {0x68};
    memcpy(bytes + 1, &value, 4);
    gen_emit(g, bytes, 5, NULL, false);
}

/* [disp32] without base or index. */
static unsigned put_absolute(const struct generator *g, uint8_t *at, unsigned reg, uint64_t address) {
    unsigned n = 0;
    if (g->mode == 64) {
        at[n++] = (uint8_t)(reg << 3 | 4);
        at[n++] = 0x25;
    } else {
        at[n++] = (uint8_t)(reg << 3 | 5);
    }
    memcpy(at + n, &address, 4);
    return n + 4;
}

void gen_store(struct generator *g, uint64_t address, unsigned size, uint32_t value, bool is_glued) {
    uint8_t bytes[16];
    unsigned n = 0;
    if (size == 2)
        bytes[n++] = 0x66;
    bytes[n++] = size == 1 ? 0xc6 : 0xc7;
    n += put_absolute(g, bytes + n, 0, address);
    memcpy(bytes + n, &value, size);
    gen_emit(g, bytes, n + size, NULL, is_glued);
}

void gen_data_segments(struct generator *g) {
    static const uint8_t mov_es_eax[] = {0x8e, 0xc0}, mov_ds_eax[] = {0x8e, 0xd8};
    if (g->mode != 32)
        return;
    unsigned first = g->stream->count;
    gen_mov(g, GPR_RAX, DIFF_DS);
    if (g->refused)
        return;
    for (unsigned i = first; i < g->stream->count; i++)
        g->stream->insn[i].is_glued = true;
    gen_emit(g, mov_es_eax, sizeof mov_es_eax, NULL, true);
    gen_emit(g, mov_ds_eax, sizeof mov_ds_eax, NULL, true);
}

void gen_zero(struct generator *g, uint64_t address, uint32_t size) {
    static const uint8_t cld[] = {0xfc}, rep_stosb[] = {0xf3, 0xaa};
    gen_emit(g, cld, sizeof cld, NULL, true);
    unsigned first = g->stream->count;
    gen_mov(g, GPR_RDI, address);
    gen_mov(g, GPR_RCX, size);
    gen_mov(g, GPR_RAX, 0);
    for (unsigned i = first; i < g->stream->count; i++)
        g->stream->insn[i].is_glued = true;
    gen_emit(g, rep_stosb, sizeof rep_stosb, NULL, true);
}

void gen_define_flags(struct generator *g) {
    /* CMP r32, imm32 */
    uint8_t bytes[6] = {0x81, (uint8_t)(0xf8 | rng_below(&g->rng, 8))};
    uint32_t value = (uint32_t)value_u64(&g->rng);
    memcpy(bytes + 2, &value, 4);
    gen_emit(g, bytes, 6, NULL, false);
    g->undefined = 0;
}

void gen_load_indices(struct generator *g, unsigned vector, unsigned bits, bool is_qword) {
    uint8_t bytes[16];
    unsigned n = 0;
    if (bits == 512 || vector >= 16) {
        /* VMOVDQU32 */
        bytes[n++] = 0x62;
        bytes[n++] =
            (uint8_t)((vector & 8 ? 0x61 : 0xe1) & (vector & 16 ? 0xef : 0xff)) | (vector & 16 ? 0 : 0x10);
        bytes[n++] = 0x7e;
        bytes[n++] = 0x08 | (bits == 512 ? 0x40 : bits == 256 ? 0x20 : 0);
    } else {
        bytes[n++] = 0xc5;
        bytes[n++] = (uint8_t)((vector & 8 ? 0x7a : 0xfa) | (bits == 256 ? 4 : 0));
    }
    bytes[n++] = 0x6f;
    n += put_absolute(g, bytes + n, vector & 7, LAYOUT_INDEX_TABLE + (is_qword ? 64 : 0));
    gen_emit(g, bytes, n, NULL, false);
}

bool gen_label_add(struct generator *g, enum label_kind kind, unsigned at, unsigned countdown) {
    if (g->labels == LABELS_MAX)
        return false;
    g->label[g->labels++] = (struct label){
        .kind = kind, .at = (uint16_t)at, .countdown = (uint16_t)countdown, .undefined = g->undefined};
    return true;
}

void gen_label_place(struct generator *g, unsigned index) {
    struct label label = g->label[index];
    g->label[index] = g->label[--g->labels];
    uint8_t *field = g->code + label.at;
    if (label.kind == LABEL_IMMEDIATE) {
        unsigned reg;
        do
            reg = rng_below(&g->rng, 8);
        while ((g->pinned | g->reserved) >> reg & 1);
        g->conditional++;
        gen_mov(g, reg, (uint32_t)rng_u64(&g->rng));
        g->conditional--;
        uint32_t target = (uint32_t)(g->pc + g->at - 4);
        memcpy(field, &target, 4);
        return;
    }
    g->undefined |= label.undefined;
    int32_t relative = (int32_t)(g->at - label.at);
    uint32_t absolute = (uint32_t)(g->pc + g->at);
    switch (label.kind) {
    case LABEL_REL8:
        relative -= 1;
        *field = (uint8_t)relative;
        break;
    case LABEL_REL16:
        relative -= 2;
        memcpy(field, &relative, 2);
        break;
    case LABEL_REL32:
        relative -= 4;
        memcpy(field, &relative, 4);
        break;
    default:
        memcpy(field, &absolute, 4);
    }
}

void gen_label_tick(struct generator *g) {
    for (unsigned i = 0; i < g->labels;) {
        struct label *label = &g->label[i];
        if (label->countdown)
            label->countdown--;
        if (!label->countdown || (label->kind == LABEL_REL8 && g->at - label->at > 60))
            gen_label_place(g, i);
        else
            i++;
    }
}
