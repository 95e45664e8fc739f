/* The system half of the processor: everything that is not arithmetic. Shared by the interpreter and the
 * DBT's helpers.
 *
 * Convention: functions return CPU_OK or CPU_FAULT (vcpu->exception set, and no architectural state changed
 * but what the SDM says). vcpu->rip is the address of the current instruction on entry; `next` is that of the
 * following one. Functions that transfer control set vcpu->rip on success; the others leave it alone.
 * Compiled without vector code and without calls into the C library: see fpu.h.
 */
#ifndef NESTOR_CPU_SYSTEM_H
#define NESTOR_CPU_SYSTEM_H

#include "cpu/mode.h"
#include "cpu/vmem.h"

/* -- exceptions and interrupts (exception.c) -- */

/* Record an exception of the current instruction; always returns CPU_FAULT. */
int cpu_fault(struct vcpu *vcpu, uint8_t vector, uint32_t error); /* with error code */
int cpu_fault_plain(struct vcpu *vcpu, uint8_t vector);           /* without */
#define DR6_BS (1ull << 14)                                       /* single step */
int cpu_fault_debug(struct vcpu *vcpu, uint64_t dr6_bits);        /* #DB */
/* Deliver vcpu->exception through the IDT (or IVT): pushes vcpu->rip, serves double and triple faults
 * (RUN_SHUTDOWN). RF is set in the pushed image for fault-class exceptions (SDM vol. 3, 17.3.1.1). */
void cpu_deliver_exception(struct vcpu *vcpu);
/* Deliver an external interrupt or NMI at the current boundary; ends HLT. */
void cpu_deliver_interrupt(struct vcpu *vcpu, uint8_t vector);
void cpu_deliver_nmi(struct vcpu *vcpu);
/* INT n, INT3, INTO (software), INT1/ICEBP: transfers control; a fault on the way is in vcpu->exception. */
MUST_CHECK int cpu_software_interrupt(struct vcpu *vcpu, uint8_t vector, uint64_t next, bool is_int_n);
MUST_CHECK int cpu_icebp(struct vcpu *vcpu, uint64_t next);
MUST_CHECK int cpu_iret(struct vcpu *vcpu, unsigned operand_size);

/* -- segmentation (segment.c) and far transfers (far.c, task.c) -- */

/* Linear address of [segment:offset, +size) for an access; limit, type and canonicality checks: #GP or #SS.
 */
MUST_CHECK int cpu_linear(struct vcpu *vcpu, enum segment_index segment, uint64_t offset, unsigned size,
                          enum vmem_access access, uint64_t *linear);
MUST_CHECK int cpu_load_segment(struct vcpu *vcpu, enum segment_index segment,
                                uint16_t selector); /* MOV/POP/LxS */
MUST_CHECK int cpu_lldt(struct vcpu *vcpu, uint16_t selector);
MUST_CHECK int cpu_ltr(struct vcpu *vcpu, uint16_t selector);
/* LAR, LSL: *ok is ZF. VERR/VERW: return ZF. */
MUST_CHECK int cpu_lar(struct vcpu *vcpu, uint16_t selector, uint32_t *rights, bool *ok);
MUST_CHECK int cpu_lsl(struct vcpu *vcpu, uint16_t selector, uint32_t *limit, bool *ok);
MUST_CHECK int cpu_verify(struct vcpu *vcpu, uint16_t selector, bool for_write, bool *ok);
MUST_CHECK int cpu_far_jump(struct vcpu *vcpu, uint16_t selector, uint64_t offset, unsigned operand_size,
                            uint64_t next);
MUST_CHECK int cpu_far_call(struct vcpu *vcpu, uint16_t selector, uint64_t offset, unsigned operand_size,
                            uint64_t next);
MUST_CHECK int cpu_far_return(struct vcpu *vcpu, unsigned operand_size, uint16_t release_bytes);

/* -- fast system calls (syscall.c) -- */
MUST_CHECK int cpu_syscall(struct vcpu *vcpu, uint64_t next);
/* What SYSCALL loads into CS and SS in 64-bit code, or (user) SYSRET on the way back to 64-bit code. */
void cpu_syscall_segments(const struct vcpu *vcpu, bool user, struct segment *cs, struct segment *ss);
MUST_CHECK int cpu_sysret(struct vcpu *vcpu, unsigned operand_size);
MUST_CHECK int cpu_sysenter(struct vcpu *vcpu);
MUST_CHECK int cpu_sysexit(struct vcpu *vcpu, unsigned operand_size);
MUST_CHECK int cpu_swapgs(struct vcpu *vcpu);

/* -- control registers, debug registers, flags (control.c, debug.c) -- */
MUST_CHECK int cpu_read_cr(struct vcpu *vcpu, unsigned n, uint64_t *value);
MUST_CHECK int cpu_write_cr(struct vcpu *vcpu, unsigned n, uint64_t value);
MUST_CHECK int cpu_read_dr(struct vcpu *vcpu, unsigned n, uint64_t *value);
MUST_CHECK int cpu_write_dr(struct vcpu *vcpu, unsigned n, uint64_t value);
MUST_CHECK int cpu_clts(struct vcpu *vcpu);
MUST_CHECK int cpu_lmsw(struct vcpu *vcpu, uint16_t value);
MUST_CHECK int cpu_invlpg(struct vcpu *vcpu, uint64_t linear);
MUST_CHECK int cpu_invpcid(struct vcpu *vcpu, uint64_t type, const uint64_t descriptor[2]);
MUST_CHECK int cpu_xsetbv(struct vcpu *vcpu, uint32_t index, uint64_t value);
MUST_CHECK int cpu_cli(struct vcpu *vcpu);
MUST_CHECK int cpu_sti(struct vcpu *vcpu); /* sets irq_shadow when IF was clear */
MUST_CHECK int cpu_popf(struct vcpu *vcpu, uint64_t value,
                        unsigned operand_size); /* flags only; the stack is the caller's */
MUST_CHECK int cpu_pushf_value(struct vcpu *vcpu, unsigned operand_size, uint64_t *value);
MUST_CHECK int cpu_hlt(struct vcpu *vcpu); /* RUN_HALTED; the caller advances rip */
/* Ports: #GP unless CPL <= IOPL or the TSS's bitmap allows [port, port + size). */
MUST_CHECK int cpu_check_io(struct vcpu *vcpu, uint16_t port, unsigned size);
/* Data breakpoints: DR6 bits that an access of this kind hits (0: none). I/O breakpoints with CR4.DE
 * likewise. */
uint64_t cpu_data_breakpoint(const struct vcpu *vcpu, uint64_t linear, unsigned size, bool is_write);
uint64_t cpu_io_breakpoint(const struct vcpu *vcpu, uint16_t port, unsigned size);
uint64_t cpu_code_breakpoint(const struct vcpu *vcpu, uint64_t linear);

/* -- MSRs, CPUID, counters (msr.c, cpuid.c, kvm_pv.c) -- */
MUST_CHECK int cpu_rdmsr(struct vcpu *vcpu, uint32_t index, uint64_t *value);
MUST_CHECK int cpu_wrmsr(struct vcpu *vcpu, uint32_t index, uint64_t value);
void cpu_cpuid(struct vcpu *vcpu, uint32_t leaf, uint32_t subleaf, uint32_t out[4]);
MUST_CHECK int cpu_rdtsc(struct vcpu *vcpu, uint64_t *value); /* CR4.TSD applied */
MUST_CHECK int cpu_rdpmc(struct vcpu *vcpu, uint32_t counter, uint64_t *value);

/* -- reset (reset.c) -- */

/* Power-on and INIT state (SDM vol. 3, table 9-1). */
void cpu_reset(struct vcpu *vcpu, bool is_init);
/* Start at the SIPI's address. */
void cpu_sipi(struct vcpu *vcpu, uint8_t vector);
/* After power-on: go on where firmware hands over to a guest that slept in S3 (ACPI 6.5, 16.3.2). Real mode:
 * at CS:IP = address / 16:address % 16. */
void cpu_wake(struct vcpu *vcpu, uint32_t address, bool protected_mode);

#endif
