#ifndef KERNELS_X86_H
#define KERNELS_X86_H
/*
 * Names of architectural bits, and one inline function for each privileged instruction.
 * Source: Intel SDM volume 3, chapters 2 to 11 and volume 4.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BIT(n) (1ull << (n))

#define CR0_PE BIT(0)
#define CR0_MP BIT(1)
#define CR0_EM BIT(2)
#define CR0_TS BIT(3)
#define CR0_ET BIT(4)
#define CR0_NE BIT(5)
#define CR0_WP BIT(16)
#define CR0_AM BIT(18)
#define CR0_NW BIT(29)
#define CR0_CD BIT(30)
#define CR0_PG BIT(31)

#define CR4_VME BIT(0)
#define CR4_PVI BIT(1)
#define CR4_TSD BIT(2)
#define CR4_DE BIT(3)
#define CR4_PSE BIT(4)
#define CR4_PAE BIT(5)
#define CR4_MCE BIT(6)
#define CR4_PGE BIT(7)
#define CR4_PCE BIT(8)
#define CR4_OSFXSR BIT(9)
#define CR4_OSXMMEXCPT BIT(10)
#define CR4_UMIP BIT(11)
#define CR4_LA57 BIT(12)
#define CR4_FSGSBASE BIT(16)
#define CR4_PCIDE BIT(17)
#define CR4_OSXSAVE BIT(18)
#define CR4_SMEP BIT(20)
#define CR4_SMAP BIT(21)
#define CR4_PKE BIT(22)

#define MSR_TSC 0x10
#define MSR_APIC_BASE 0x1b
#define MSR_SYSENTER_CS 0x174
#define MSR_SYSENTER_ESP 0x175
#define MSR_SYSENTER_EIP 0x176
#define MSR_PAT 0x277
#define MSR_TSC_DEADLINE 0x6e0
#define MSR_EFER 0xc0000080
#define MSR_STAR 0xc0000081
#define MSR_LSTAR 0xc0000082
#define MSR_CSTAR 0xc0000083
#define MSR_SFMASK 0xc0000084
#define MSR_FS_BASE 0xc0000100
#define MSR_GS_BASE 0xc0000101
#define MSR_KERNEL_GS_BASE 0xc0000102
#define MSR_TSC_AUX 0xc0000103

#define EFER_SCE BIT(0)
#define EFER_LME BIT(8)
#define EFER_LMA BIT(10)
#define EFER_NXE BIT(11)

#define FLAG_CF BIT(0)
#define FLAG_FIXED BIT(1)
#define FLAG_PF BIT(2)
#define FLAG_AF BIT(4)
#define FLAG_ZF BIT(6)
#define FLAG_SF BIT(7)
#define FLAG_TF BIT(8)
#define FLAG_IF BIT(9)
#define FLAG_DF BIT(10)
#define FLAG_OF BIT(11)
#define FLAG_IOPL(n) ((uint64_t)(n) << 12)
#define FLAG_NT BIT(14)
#define FLAG_RF BIT(16)
#define FLAG_VM BIT(17)
#define FLAG_AC BIT(18)
#define FLAG_VIF BIT(19)
#define FLAG_VIP BIT(20)
#define FLAG_ID BIT(21)

#define VECTOR_DE 0
#define VECTOR_DB 1
#define VECTOR_NMI 2
#define VECTOR_BP 3
#define VECTOR_OF 4
#define VECTOR_BR 5
#define VECTOR_UD 6
#define VECTOR_NM 7
#define VECTOR_DF 8
#define VECTOR_TS 10
#define VECTOR_NP 11
#define VECTOR_SS 12
#define VECTOR_GP 13
#define VECTOR_PF 14
#define VECTOR_MF 16
#define VECTOR_AC 17
#define VECTOR_XM 19

#define PTE_P BIT(0)
#define PTE_W BIT(1)
#define PTE_U BIT(2)
#define PTE_PWT BIT(3)
#define PTE_PCD BIT(4)
#define PTE_A BIT(5)
#define PTE_D BIT(6)
#define PTE_PS BIT(7)
#define PTE_G BIT(8)
#define PTE_NX BIT(63)
#define PTE_ADDRESS 0x000ffffffffff000ull

/* Page-fault error code (SDM 3, 4.7). */
#define PF_P BIT(0)
#define PF_W BIT(1)
#define PF_U BIT(2)
#define PF_RSVD BIT(3)
#define PF_I BIT(4)

struct cpuid {
    uint32_t a, b, c, d;
};

struct __attribute__((packed)) table_register {
    uint16_t limit;
    unsigned long base;
};

static inline struct cpuid cpuid(uint32_t leaf, uint32_t subleaf) {
    struct cpuid r;
    asm volatile("cpuid" : "=a"(r.a), "=b"(r.b), "=c"(r.c), "=d"(r.d) : "a"(leaf), "c"(subleaf));
    return r;
}

static inline void out8(uint16_t port, uint8_t value) {
    asm volatile("outb %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline void out32(uint16_t port, uint32_t value) {
    asm volatile("outl %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline uint8_t in8(uint16_t port) {
    uint8_t value;
    asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

static inline uint8_t cmos_read(unsigned index) {
    out8(0x70, (uint8_t)index);
    return in8(0x71);
}

static inline void cmos_write(unsigned index, uint8_t value) {
    out8(0x70, (uint8_t)index);
    out8(0x71, value);
}

static inline uint32_t in32(uint16_t port) {
    uint32_t value;
    asm volatile("inl %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

static inline unsigned long read_cr0(void) {
    unsigned long v;
    asm volatile("mov %%cr0, %0" : "=r"(v) : : "memory");
    return v;
}

static inline void write_cr0(unsigned long v) {
    asm volatile("mov %0, %%cr0" : : "r"(v) : "memory");
}

static inline unsigned long read_cr2(void) {
    unsigned long v;
    asm volatile("mov %%cr2, %0" : "=r"(v) : : "memory");
    return v;
}

static inline void write_cr2(unsigned long v) {
    asm volatile("mov %0, %%cr2" : : "r"(v) : "memory");
}

static inline unsigned long read_cr3(void) {
    unsigned long v;
    asm volatile("mov %%cr3, %0" : "=r"(v) : : "memory");
    return v;
}

static inline void write_cr3(unsigned long v) {
    asm volatile("mov %0, %%cr3" : : "r"(v) : "memory");
}

static inline unsigned long read_cr4(void) {
    unsigned long v;
    asm volatile("mov %%cr4, %0" : "=r"(v) : : "memory");
    return v;
}

static inline void write_cr4(unsigned long v) {
    asm volatile("mov %0, %%cr4" : : "r"(v) : "memory");
}

static inline unsigned long read_dr6(void) {
    unsigned long v;
    asm volatile("mov %%dr6, %0" : "=r"(v) : : "memory");
    return v;
}

static inline void write_dr6(unsigned long v) {
    asm volatile("mov %0, %%dr6" : : "r"(v) : "memory");
}

static inline unsigned long read_dr7(void) {
    unsigned long v;
    asm volatile("mov %%dr7, %0" : "=r"(v) : : "memory");
    return v;
}

static inline void write_dr7(unsigned long v) {
    asm volatile("mov %0, %%dr7" : : "r"(v) : "memory");
}

static inline void write_dr0(unsigned long v) {
    asm volatile("mov %0, %%dr0" : : "r"(v) : "memory");
}

static inline void write_dr1(unsigned long v) {
    asm volatile("mov %0, %%dr1" : : "r"(v) : "memory");
}

static inline uint64_t read_msr(uint32_t index) {
    uint32_t low, high;
    asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(index) : "memory");
    return (uint64_t)high << 32 | low;
}

static inline void write_msr(uint32_t index, uint64_t value) {
    asm volatile("wrmsr" : : "c"(index), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)) : "memory");
}

static inline uint64_t read_tsc(void) {
    uint32_t low, high;
    asm volatile("rdtsc" : "=a"(low), "=d"(high) : : "memory");
    return (uint64_t)high << 32 | low;
}

static inline void invlpg(const volatile void *address) {
    asm volatile("invlpg (%0)" : : "r"(address) : "memory");
}

static inline void flush_tlb(void) {
    write_cr3(read_cr3());
}

static inline unsigned long read_flags(void) {
    unsigned long v;
    asm volatile("pushf\n\tpop %0" : "=r"(v) : : "memory");
    return v;
}

static inline void write_flags(unsigned long v) {
    asm volatile("push %0\n\tpopf" : : "r"(v) : "memory", "cc");
}

static inline void interrupts_enable(void) {
    asm volatile("sti\n\tnop" : : : "memory");
}

static inline void interrupts_disable(void) {
    asm volatile("cli" : : : "memory");
}

static inline void cpu_pause(void) {
    asm volatile("pause" : : : "memory");
}

static inline uint16_t read_tr(void) {
    uint16_t v;
    asm volatile("str %0" : "=r"(v));
    return v;
}

static inline bool cpu_is_intel(void) {
    return cpuid(0, 0).b == 0x756e6547;
}

#endif
