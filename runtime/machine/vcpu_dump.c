#include "machine/vcpu_dump.h"
#include "base/diag.h"

#include <inttypes.h>
#include <stdio.h>

static const char *const gpr_names[16] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                          "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};
static const char *const segment_names[SEG_COUNT] = {"es", "cs", "ss", "ds", "fs", "gs"};

void vcpu_dump(const struct vcpu *vcpu, const char *why) {
    diag_error("vCPU %u: %s at rip %#" PRIx64, vcpu->index, why, vcpu->rip);
    fprintf(stderr, "  rip %016" PRIx64 " rflags %08" PRIx64 " cpl %u mode %08x\n", vcpu->rip, vcpu->rflags,
            vcpu->cpl, vcpu->mode);
    for (unsigned i = 0; i < 16; i++)
        fprintf(stderr, "%s%-3s %016" PRIx64 "%s", i % 4 ? " " : "  ", gpr_names[i], vcpu->gpr[i],
                i % 4 == 3 ? "\n" : "");
    fprintf(stderr,
            "  cr0 %08" PRIx64 " cr2 %016" PRIx64 " cr3 %016" PRIx64 " cr4 %08" PRIx64 " efer %04" PRIx64
            "\n",
            vcpu->cr0, vcpu->cr2, vcpu->cr3, vcpu->cr4, vcpu->efer);
    for (unsigned i = 0; i < SEG_COUNT; i++)
        fprintf(stderr, "  %s %04x base %016" PRIx64 " limit %08x attributes %05x\n", segment_names[i],
                vcpu->segment[i].selector, vcpu->segment[i].base, vcpu->segment[i].limit,
                vcpu->segment[i].attributes);
    fprintf(stderr, "  gdt %016" PRIx64 "/%04x idt %016" PRIx64 "/%04x tr %04x ldt %04x\n", vcpu->gdtr.base,
            vcpu->gdtr.limit, vcpu->idtr.base, vcpu->idtr.limit, vcpu->tr.selector, vcpu->ldtr.selector);
    fprintf(stderr, "  last exception: vector %u error %#x cr2 %#" PRIx64 "\n", vcpu->exception.vector,
            vcpu->exception.error, vcpu->exception.cr2);
}
