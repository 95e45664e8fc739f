/* Random bytes executed in random states of every mode: whatever a guest does, the interpreter neither
 * crashes nor hangs, and each step leaves an instruction boundary.
 *
 * usage: interp_random_test [count [seed]]
 */
#include "interp_guest.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t random_state;

static uint64_t random_u64(void) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state * 0x2545f4914f6cdd1dull;
}

static uint64_t random_value(void) {
    switch (random_u64() & 7) {
    case 0:
        return random_u64();
    case 1:
        return random_u64() & 0xffff;
    case 2:
        return TEST_DATA + TEST_MAPPED_SIZE - (random_u64() & 0x3f);
    case 3:
        return random_u64() & 0xff;
    default:
        return TEST_DATA + (random_u64() & 0xffff);
    }
}

static void randomise(struct test_guest *guest, const struct vcpu *initial) {
    struct vcpu *vcpu = &guest->vcpu;
    struct vcpu fresh = *initial;
    /* What has an identity of its own stays. */
    fresh.space = vcpu->space;
    fresh.view = vcpu->view;
    fresh.space_clock = vcpu->space_clock;
    fresh.generation_counter = vcpu->generation_counter;
    *vcpu = fresh;
    for (unsigned i = 0; i < 16; i++)
        vcpu->gpr[i] = random_value();
    vcpu->rflags = FLAG_FIXED |
                   (random_u64() & (FLAGS_ARITHMETIC | FLAG_DF | FLAG_IF | FLAG_IOPL | FLAG_NT | FLAG_AC)) |
                   (random_u64() % 16 ? 0 : FLAG_TF);
    vcpu->rip = (vcpu->cr0 & CR0_PE ? TEST_CODE : 0x1000) + (random_u64() & 0xfff);
    if (random_u64() & 1)
        vcpu->cr0 |= random_u64() & (CR0_AM | CR0_TS | CR0_EM);
    if (vcpu->cr4 & CR4_PAE && random_u64() & 1) {
        vcpu->cpl = 0;
        vcpu->segment[SEG_CS].attributes &= ~SEG_DPL;
        vcpu->segment[SEG_SS].attributes &= ~SEG_DPL;
    }
    vcpu->gdtr = (struct descriptor_table){.base = TEST_DATA, .limit = (uint16_t)random_u64()};
    vcpu->idtr = (struct descriptor_table){.base = TEST_DATA + 0x8000, .limit = (uint16_t)random_u64()};
    vcpu->dr[7] = 0x400 | (random_u64() % 8 ? 0 : random_u64() & 0xffff00ff);
    vcpu->dr[0] = random_value();
    vtlb_flush_all(vcpu);
    cpu_mode_changed(vcpu);
    vtlb_select_view(vcpu);
}

int main(int argc, char **argv) {
    unsigned long count = argc > 1 ? strtoul(argv[1], NULL, 0) : 60000;
    unsigned long results[4] = {0};
    random_state = (argc > 2 ? strtoull(argv[2], NULL, 0) : 1) * 0x9e3779b97f4a7c15ull | 1;
    test_install_signals(NULL);
    for (enum test_mode mode = TEST_REAL; mode <= TEST_USER64; mode++) {
        static struct test_guest guest;
        test_guest_create(&guest, mode);
        struct vcpu initial = guest.vcpu;
        uint8_t xsave[4096];
        memcpy(xsave, guest.vcpu.xsave, sizeof xsave);
        for (unsigned long i = 0; i < count / 3; i++) {
            uint64_t at = (initial.cr0 & CR0_PE ? TEST_CODE : 0x1000), bytes = random_u64();
            for (unsigned n = 0; n < 0x1010; n += 8) {
                bytes = random_u64();
                if (random_u64() & 1)
                    bytes = (bytes & ~0xffffull) | 0x0f | (random_u64() & 0xff) << 8;
                memcpy(guest.mem.base + at + n, &bytes, 8);
                if (n >= 64 && i % 64)
                    break;
            }
            for (unsigned n = 0; n < 32; n++) {
                bytes = random_u64();
                memcpy(guest.mem.base + TEST_DATA + (random_u64() & 0xfff8), &bytes, 8);
            }
            memcpy(guest.vcpu.xsave, xsave, sizeof xsave);
            randomise(&guest, &initial);
            for (unsigned steps = 0; steps < 8; steps++) {
                enum interp_result result = interp_step(&guest.vcpu);
                results[result]++;
                if (result != INTERP_DONE && result != INTERP_EVENT)
                    break;
            }
        }
        test_guest_destroy(&guest);
    }
    printf("%lu done, %lu events, %lu halts, %lu shutdowns\n", results[INTERP_DONE], results[INTERP_EVENT],
           results[INTERP_HALTED], results[INTERP_SHUTDOWN]);
    return 0;
}
