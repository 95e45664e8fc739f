/* Moving the guest's extended state between the host's registers and vcpu->xsave. */
#include "cpu/fpu.h"

#define MXCSR_DEFAULT 0x1f80u
#define X87_CONTROL_DEFAULT 0x037fu
#define IMAGE_FIP 1 /* quadwords of the legacy region (SDM vol. 1, table 10-2) */
#define IMAGE_FDP 2

void vcpu_fpu_save(struct vcpu *vcpu) {
    uint32_t low = (uint32_t)vcpu->host_xfeatures, high = (uint32_t)(vcpu->host_xfeatures >> 32);
    static const uint32_t mxcsr = MXCSR_DEFAULT;
    static const uint16_t control = X87_CONTROL_DEFAULT;
    __asm__ volatile("xsave64 %0" : "+m"(*(uint8_t(*)[4096])vcpu->xsave) : "a"(low), "d"(high) : "memory");
    /* The x87 pointers are the host's addresses: not for the guest to see. */
    ((volatile uint64_t *)vcpu->xsave)[1] = ((volatile uint64_t *)vcpu->xsave)[2] = 0;
    __asm__ volatile("fninit\n\tfldcw %0\n\tldmxcsr %1" ::"m"(control), "m"(mxcsr));
    /* They name the host's code and data. */
    uint64_t *image = (uint64_t *)(void *)vcpu->xsave;
    image[IMAGE_FIP] = image[IMAGE_FDP] = 0;
    vcpu->fpu_live = 0;
}

void vcpu_fpu_load(struct vcpu *vcpu) {
    uint32_t low = (uint32_t)vcpu->host_xfeatures, high = (uint32_t)(vcpu->host_xfeatures >> 32);
    __asm__ volatile("xrstor64 %0" ::"m"(*(uint8_t(*)[4096])vcpu->xsave), "a"(low), "d"(high) : "memory");
    vcpu->fpu_live = 1;
}
