/* The virtual CPU: the one state that every tier reads and writes. No tier keeps private guest state.
 *
 * Translated code addresses this struct through GS. While it runs, the general registers, the flags of
 * FLAGS_ARITHMETIC and (fpu_live) the extended state are in the host's registers; at every entry to C the
 * general registers and flags are here, and the extended state is wherever fpu_live says.
 *
 * Ownership: everything is the vCPU thread's own, except the fields marked (any thread), which are atomic.
 */
#ifndef NESTOR_CPU_VCPU_H
#define NESTOR_CPU_VCPU_H

#include "cpu/vtlb.h"
#include "cpu/x86.h"

struct guest_mem;
struct cpu_model;
struct dbt_vcpu;
struct interp_vcpu;
struct trace;
struct direct_vcpu;

struct segment {
    uint16_t selector;
    uint32_t attributes; /* SEG_* */
    uint32_t limit;      /* in bytes, granularity applied */
    uint64_t base;
};

struct descriptor_table {
    uint64_t base;
    uint16_t limit;
};

/* An exception on its way to delivery, or the reason why an instruction did not complete. */
struct exception {
    uint8_t vector;
    bool has_error;
    uint32_t error;
    uint64_t cr2;     /* #PF: the linear address; loaded into CR2 at delivery */
    uint64_t dr6;     /* #DB: bits to merge into DR6 at delivery */
    bool is_software; /* INT n, INT3, INTO: a trap with DPL check; ICEBP is not */
};

/* Results of every cpu_*, vmem_* and interp_* function that can fault. */
enum cpu_result {
    CPU_OK = 0,
    CPU_FAULT =
        1, /* vcpu->exception says which; nothing of the instruction is visible but what the SDM allows */
};

enum run_state {
    RUN_ACTIVE,
    RUN_HALTED,        /* HLT: until an interrupt, NMI, INIT */
    RUN_WAIT_FOR_SIPI, /* after INIT, or an application processor at reset */
    RUN_SHUTDOWN,      /* triple fault */
    RUN_ASLEEP,        /* this vCPU put the machine to sleep: until the reset that wakes it */
};

/* Bits of vcpu->requests (any thread sets with vcpu_request(); the run loop takes). */
#define REQUEST_IRQ 1u /* look at the local APIC: an interrupt may be deliverable */
#define REQUEST_NMI 2u /* an NMI is pending */
#define REQUEST_INIT 4u
#define REQUEST_SIPI 8u  /* sipi_vector is valid */
#define REQUEST_STOP 16u /* leave vcpu_run() */
#define REQUEST_CODE                                                                                         \
    64u /* another processor wrote code that this one may have translated: serve_code_requests() */
#define REQUEST_QUIESCE 32u /* stand at an instruction boundary until released */

/* vcpu->nmis: how many wait (at most 2), and whether one is in service: nmi_blocked, as other threads see it.
 */
#define NMIS_WAITING 3u
#define NMI_IN_SERVICE 4u

/* What the vCPU sees of the machine around it. All are called on the vCPU thread with the extended state
 * parked. size is 1, 2, 4 or 8 bytes. */
struct vcpu_env {
    void *context;
    uint64_t (*mmio_read)(void *context, uint64_t gpa, unsigned size);
    void (*mmio_write)(void *context, uint64_t gpa, unsigned size, uint64_t value);
    uint32_t (*pio_read)(void *context, uint16_t port, unsigned size);
    void (*pio_write)(void *context, uint16_t port, unsigned size, uint32_t value);
    /* Highest deliverable vector or -1; may be called with guest extended state live (plain loads only). */
    int (*irq_pending)(void *context);
    /* Acknowledge: the vector to deliver, or -1 when it went away. */
    int (*irq_ack)(void *context);
    /* A page of RAM is about to hold code translated for this vCPU: stop the others from writing it unseen.
     * NULL: there are no others. Both may block until other vCPUs have passed an instruction boundary; they
     * serve requests meanwhile. */
    void (*hold_code)(void *context, struct vcpu *vcpu, uint64_t ram_page);
    void (*serve_code_requests)(void *context, struct vcpu *vcpu);
    /* The vCPU takes an INIT: its local APIC does, too. */
    void (*init_taken)(void *context);
    /* FERR#: an x87 error that CR0.NE does not make #MF (SDM vol. 3, 9.2.2). NULL: it is #MF. */
    void (*ferr)(void *context);
    /* CR8. */
    uint64_t (*tpr_read)(void *context);
    void (*tpr_write)(void *context, uint64_t tpr);
    /* End the service of the highest interrupt, as a write to the local APIC's EOI register does: the guest
     * has said so through PV EOI. NULL: the APIC does not do that. */
    void (*eoi)(void *context);
    /* Send an interrupt message to the local APIC with that ID; mode is the delivery mode of an ICR's bits
     * 10:8. How many took it. */
    unsigned (*send_ipi)(void *context, uint32_t apic_id, unsigned mode, uint8_t vector);
    /* IA32_APIC_BASE, IA32_TSC_DEADLINE and the x2APIC range; false: #GP. */
    bool (*apic_msr_read)(void *context, uint32_t msr, uint64_t *value);
    bool (*apic_msr_write)(void *context, uint32_t msr, uint64_t value);
};

struct vcpu {
    /* -- hot: translated code's own part -- */
    uint64_t gpr[16];
    uint64_t rip;
    uint64_t rflags;        /* whole and architectural whenever C runs */
    struct vtlb_view *view; /* the current view: see vtlb_select_view() */
    struct segment segment[SEG_COUNT];
    uint64_t kernel_gs_base;
    uint8_t cpl;
    uint8_t fpu_live; /* the guest's extended state is in the host's registers */
    uint8_t
        irq_shadow; /* interrupts (and after MOV SS, #DB) are held off until the next instruction is done */
    uint8_t nmi_blocked;   /* until IRET */
    uint32_t mode;         /* what translated code depends on: see mode.h; kept by cpu_mode_changed() */
    uint32_t requests;     /* (any thread) REQUEST_* */
    uint8_t cpuid_changed; /* an answer of CPUID may have changed: whoever keeps answers drops them and clears
                              this */
    uint8_t tlb_lost; /* (any thread sets) the TLB has lost an entry or a write tag: whoever keeps copies of
                         what it held drops them and clears this */
    uint8_t crossing_changed; /* what SYSCALL, SYSRET or IRET would do has changed otherwise than with the
                                 address space: whoever does them by copies drops those and clears this */
    struct vcpu *self;

    /* -- system registers -- */
    uint64_t cr0, cr2, cr3, cr4, efer, xcr0;
    uint64_t dr[8]; /* 4 and 5 unused */
    struct descriptor_table gdtr, idtr;
    struct segment ldtr, tr;
    uint64_t pdpte[4]; /* PAE paging: loaded at MOV CR3 (SDM vol. 3, 4.4.1) */
    uint64_t star, lstar, cstar, sfmask;
    uint64_t sysenter_cs, sysenter_esp, sysenter_eip;
    uint64_t pat, tsc_aux, tsc_adjust, misc_enable, spec_ctrl;
    uint64_t mtrr_def_type, mtrr_fixed[11], mtrr_variable[16];
    uint64_t tsc_offset; /* guest TSC = host TSC + tsc_offset */
    uint64_t kvm_system_time, kvm_wall_clock, kvm_async_pf, kvm_steal_time, kvm_pv_eoi, kvm_poll_control;
    bool pv_eoi_armed;      /* the guest's PV EOI flag was set and not taken back: kvm_pv_eoi_settle() */
    uint64_t blocked_ticks; /* TSC ticks that this vCPU's thread has waited by its own will */
    struct steal_clock {    /* kvm_pv_account_steal() */
        uint64_t tsc, blocked_ticks, cpu_ns;
    } steal_clock;
    bool a20_masked; /* A20 gate closed: bit 20 of physical addresses is forced to 0 */

    struct exception exception;
    bool event_in_delivery;      /* an event is being delivered: faults now may become #DF */
    struct exception delivering; /* that event */
    enum run_state run_state;    /* (any thread reads) */
    uint8_t sipi_vector;         /* (any thread, before REQUEST_SIPI) */
    uint32_t nmis;               /* (any thread) NMIS_WAITING, NMI_IN_SERVICE: see vcpu_send_nmi() */
    bool is_bsp;

    /* -- surroundings -- */
    unsigned index;
    struct guest_mem *mem;
    const struct cpu_model *model;
    bool model_1g_pages; /* copied from the model: the walker asks at every walk */
    const struct vcpu_env *env;
    const struct trace *trace; /* where trace_subjects go */
    uint32_t trace_subjects;   /* TRACE_* and DUMP_* (base/trace.h); 0: no log */
    struct dbt_vcpu *dbt;
    struct interp_vcpu *interp;
    void *vm;       /* runtime/vm's own */
    uint8_t *xsave; /* 64-byte aligned XSAVE image in the standard format, valid when !fpu_live */
    uint32_t xsave_size;
    uint64_t host_xfeatures; /* components that xsave holds */

    /* -- memory -- */
    struct vtlb_space *space;  /* the current one; an element of spaces[] */
    struct vtlb_space *spaces; /* VTLB_SPACES of them */
    uint64_t space_clock;
    uint32_t *write_hint;        /* per page of RAM, for vtlb_write_protect() */
    uint64_t generation_counter; /* source of vtlb_space.generation */
    struct code_flush code_flush;
    struct lost_pages lost_pages; /* its reader empties it */
    bool global_user;             /* a global page of the user half may be in some space */
    uint64_t code_epoch;          /* counts code invalidations by this vCPU's own stores */

    /* -- direct execution of ring 3 (runtime/direct) -- */
    struct direct_vcpu *direct;
    bool (*tier_up)(
        struct vcpu *vcpu); /* shall ring 3 go on there? Asked with live extended state; may be NULL */
    bool tier_settled;      /* its answer was no, and need not be asked for at each entry */
    uint64_t user_entries;  /* times that ring 3 was entered */
    uint64_t flushes;       /* counts invalidations of the user half, in any address space */
    uint8_t *direct_write;  /* per page of RAM: not 0 when it may be writable there; NULL: nothing is */
    uint64_t
        direct_revocations; /* (any thread) counts pages with direct_write that must not be writable now */
};

/* Set request bits from any thread and make the vCPU look at them soon: implemented by runtime/vm. */
void vcpu_request(struct vcpu *vcpu, uint32_t bits);
/* An NMI arrives; any thread. While one is in service one more waits and the rest is lost (SDM vol.
 * 3, 6.7.1). Otherwise two may wait: a processor would have taken the first by the time the second comes. */
void vcpu_send_nmi(struct vcpu *vcpu);

#endif
