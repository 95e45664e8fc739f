/* The extended state, between the vCPU's XSAVE image and a stub's registers. Both are in the standard format
 * (SDM vol. 1, 13.4); the host's kernel adds components that no guest has, which keep their initial values.
 */
#define _GNU_SOURCE
#include "direct/private.h"

#include <elf.h>
#include <errno.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

#define LEGACY_USED 416 /* x87 and XMM0-15; what follows is reserved or the software's */
#define XMM_OFFSET 160
#define MXCSR_OFFSET 24
#define HEADER 512
#define EXTENDED 576
#define XSTATE_SSE 2ull

static uint64_t *components(uint8_t *image) {
    return (uint64_t *)(image + HEADER);
}

/* The image as the kernel takes it: MXCSR counts for it only with the SSE component. */
static void prepare(const struct vcpu *vcpu, uint8_t *image, uint64_t size) {
    uint64_t whole = vcpu->xsave_size < size ? vcpu->xsave_size : size;
    memcpy(image, vcpu->xsave, LEGACY_USED);
    memset(image + LEGACY_USED, 0, HEADER - LEGACY_USED);
    memcpy(image + HEADER, vcpu->xsave + HEADER, whole - HEADER);
    memset(image + HEADER + 8, 0, EXTENDED - HEADER - 8);
    memset(image + whole, 0, size - whole);
    *components(image) &= vcpu->host_xfeatures;
    if (!(*components(image) & XSTATE_SSE)) {
        memset(image + XMM_OFFSET, 0, LEGACY_USED - XMM_OFFSET);
        *components(image) |= XSTATE_SSE;
    }
}

static bool is_same(const struct vcpu *vcpu, const uint8_t *image) {
    return !memcmp(image, vcpu->xsave, LEGACY_USED) &&
           !memcmp(image + HEADER, vcpu->xsave + HEADER, vcpu->xsave_size - HEADER);
}

int state_load_vectors(struct vcpu *vcpu, struct direct_stub *stub) {
    uint64_t size = vcpu->direct->family.xstate_size;
    if (stub->xstate_valid && is_same(vcpu, stub->xstate))
        return 0;
    stub->xstate_valid = false; /* what is set here has one form more than what is read */
    prepare(vcpu, stub->xstate, size);
    struct iovec vector = {stub->xstate, size};
    return ptrace(PTRACE_SETREGSET, stub->pid, NT_X86_XSTATE, &vector) ? -errno : 0;
}

int state_fetch_vectors(struct vcpu *vcpu, struct direct_stub *stub) {
    struct iovec vector = {stub->xstate, vcpu->xsave_size};
    stub->xstate_valid = false;
    if (ptrace(PTRACE_GETREGSET, stub->pid, NT_X86_XSTATE, &vector))
        return -errno;
    if (vector.iov_len < vcpu->xsave_size)
        return -EIO;
    *components(stub->xstate) &= vcpu->host_xfeatures;
    memset(stub->xstate + LEGACY_USED, 0, HEADER - LEGACY_USED);
    memset(stub->xstate + HEADER + 8, 0, EXTENDED - HEADER - 8);
    memcpy(vcpu->xsave, stub->xstate, vcpu->xsave_size);
    stub->xstate_valid = true;
    return 0;
}
