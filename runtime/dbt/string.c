/* MOVS and STOS, page by page at the host's own speed. What is odd (backward, MMIO, an element across pages)
 * is left to the interpreter; progress made so far is in the registers, as the architecture wants it. */
#include "cpu/vmem.h"
#include "dbt/private.h"

static uint64_t page_room(uint64_t linear) {
    return PAGE_SIZE - (linear & (PAGE_SIZE - 1));
}

static void copy_elements(void *to, const void *from, uint64_t count, unsigned size) {
    switch (size) {
    case 1:
        __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count)::"memory");
        break;
    case 2:
        __asm__ volatile("rep movsw" : "+D"(to), "+S"(from), "+c"(count)::"memory");
        break;
    case 4:
        __asm__ volatile("rep movsl" : "+D"(to), "+S"(from), "+c"(count)::"memory");
        break;
    default:
        __asm__ volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(count)::"memory");
    }
}

static void store_elements(void *to, uint64_t value, uint64_t count, unsigned size) {
    switch (size) {
    case 1:
        __asm__ volatile("rep stosb" : "+D"(to), "+c"(count) : "a"(value) : "memory");
        break;
    case 2:
        __asm__ volatile("rep stosw" : "+D"(to), "+c"(count) : "a"(value) : "memory");
        break;
    case 4:
        __asm__ volatile("rep stosl" : "+D"(to), "+c"(count) : "a"(value) : "memory");
        break;
    default:
        __asm__ volatile("rep stosq" : "+D"(to), "+c"(count) : "a"(value) : "memory");
    }
}

int dbt_string(struct vcpu *vcpu, const struct site *site, uint64_t rip, bool *done) {
    bool stos = site->reg & 1, rep = site->reg & 2, wide = cpu_is_code64(vcpu);
    unsigned size = site->size;
    uint64_t mask = wide ? ~0ull : UINT32_MAX;
    *done = false;
    if (vcpu->rflags & FLAG_DF)
        return CPU_OK;
    uint64_t left = rep ? vcpu->gpr[GPR_RCX] & mask : 1;
    while (left) {
        uint64_t to = vcpu->gpr[GPR_RDI] & mask, from = vcpu->gpr[GPR_RSI] & mask;
        uint64_t room = page_room(to);
        if (!stos && page_room(from) < room)
            room = page_room(from);
        uint64_t count = room / size < left ? room / size : left;
        if (!count || !cpu_is_canonical(to) || (!stos && !cpu_is_canonical(from)))
            return CPU_OK;
        void *target, *source = NULL;
        unsigned bytes = (unsigned)(count * size);
        vcpu->rip = rip;
        int result = stos ? CPU_OK : vmem_host(vcpu, from, bytes, VMEM_READ, AS_CURRENT, &source);
        if (!result)
            result = vmem_host(vcpu, to, bytes, VMEM_WRITE, AS_CURRENT, &target);
        if (result)
            return result;
        if (!target || (!stos && !source))
            return CPU_OK;
        if (stos)
            store_elements(target, vcpu->gpr[GPR_RAX], count, size);
        else
            copy_elements(target, source, count, size);
        vmem_written(vcpu, target, bytes);
        vcpu->gpr[GPR_RDI] = (to + bytes) & mask;
        if (!stos)
            vcpu->gpr[GPR_RSI] = (from + bytes) & mask;
        left -= count;
        if (rep)
            vcpu->gpr[GPR_RCX] = left;
        if (left && __atomic_load_n(&vcpu->requests, __ATOMIC_RELAXED))
            return CPU_OK;
    }
    *done = true;
    return CPU_OK;
}
