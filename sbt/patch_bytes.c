/* Byte strings that the kernel writes over its code: NOPs, branches, replacements in another place. */
#include "sbt/patch_private.h"

#include <string.h>

int32_t patch_read32(const uint8_t *bytes) {
    int32_t value;
    memcpy(&value, bytes, 4);
    return value;
}

static void write32(uint8_t *bytes, uint64_t value) {
    uint32_t low = (uint32_t)value;
    memcpy(bytes, &low, 4);
}

void patch_branch(uint8_t bytes[5], uint8_t opcode, uint64_t address, uint64_t target) {
    bytes[0] = opcode;
    write32(bytes + 1, target - (address + 5));
}

void patch_nops(const struct patching *p, uint8_t *bytes, size_t length) {
    /* From 6.3 on a long run is jumped over. */
    if (p->modern && length > p->longest_nop) {
        size_t head = length < 128 ? 2 : 5;
        if (head == 2) {
            bytes[0] = 0xeb;
            bytes[1] = (uint8_t)(length - 2);
        } else {
            patch_branch(bytes, 0xe9, 0, length);
        }
        memset(bytes + head, 0xcc, length - head);
        return;
    }
    while (length) {
        size_t part = length < p->longest_nop ? length : p->longest_nop;
        memcpy(bytes, p->nop[part], part);
        bytes += part;
        length -= part;
    }
}

static bool is_nop(const struct insn *insn, bool modern) {
    const uint8_t *bytes = insn->bytes;
    if (!modern)
        return insn->length == 1 && bytes[0] == 0x90;
    if (insn->z.opcode == 0x90 && insn->z.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT)
        return bytes[0] != 0xf3 && !(bytes[0] >= 0x41 && bytes[0] <= 0x4f);
    return insn->z.opcode_map == ZYDIS_OPCODE_MAP_0F && insn->z.opcode == 0x1f;
}

void patch_optimize_nops(const struct patching *p, uint8_t *bytes, size_t length) {
    struct insn insn;
    size_t at = 0;
    while (at < length && insn_decode(&insn, bytes + at, length - at, 64) == INSN_OK) {
        size_t start = at;
        at += insn.length;
        if (!is_nop(&insn, p->modern))
            continue;
        while (at < length && insn_decode(&insn, bytes + at, length - at, 64) == INSN_OK &&
               is_nop(&insn, p->modern))
            at += insn.length;
        if (p->modern || at - start > 1)
            patch_nops(p, bytes + start, at - start);
    }
}

/* Does a distance that ends at `target`, an offset from the replacement's start, leave the replacement? */
static bool leaves(uint64_t target, size_t length) {
    return (int64_t)target < 0 || target > length;
}

static void shift_field(uint8_t *field, unsigned bits, uint64_t shift) {
    if (bits == 32)
        write32(field, (uint64_t)patch_read32(field) + shift);
    else if (bits == 8)
        field[0] = (uint8_t)(field[0] + shift);
}

void patch_relocate(uint8_t *bytes, size_t length, uint64_t from, uint64_t to, size_t from_length) {
    struct insn insn;
    uint64_t shift = from - to;
    for (size_t at = 0; at < length; at += insn.length) {
        if (insn_decode(&insn, bytes + at, length - at, 64) != INSN_OK)
            return;
        uint64_t next = at + insn.length;
        const ZydisDecodedOperand *op = &insn.op[0];
        if (insn.z.operand_count && op->type == ZYDIS_OPERAND_TYPE_IMMEDIATE && op->imm.is_relative) {
            if (leaves(next + (uint64_t)op->imm.value.s, from_length))
                shift_field(bytes + at + insn.z.raw.imm[0].offset, insn.z.raw.imm[0].size, shift);
            if (bytes[at] == 0xe9) {
                /* The kernel decides by the distance before it is adjusted, and shortens what was not, too.
                 */
                int64_t distance = (int32_t)(op->imm.value.s + (int64_t)shift + 3);
                if (distance == (int8_t)distance) {
                    bytes[at] = 0xeb;
                    bytes[at + 1] = (uint8_t)distance;
                    memset(bytes + at + 2, 0xcc, insn.length - 2u);
                }
            }
        }
        for (unsigned i = 0; i < insn.z.operand_count; i++)
            if (insn.op[i].type == ZYDIS_OPERAND_TYPE_MEMORY && insn.op[i].mem.base == ZYDIS_REGISTER_RIP &&
                leaves(next + (uint64_t)insn.op[i].mem.disp.value, from_length))
                shift_field(bytes + at + insn.z.raw.disp.offset, insn.z.raw.disp.size, shift);
    }
}
