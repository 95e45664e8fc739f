/* Direct boot: a kernel file, its initrd and its command line go into guest RAM, and a struct boot_state
 * says how the boot processor starts.
 *
 * Usage: boot_source_open() once, while files may still be opened; boot_source_load() for the first boot
 * and again for every reset of the guest (it needs the open files only); boot_source_close() at the end.
 * Errors are told to the user by one diag_error() line each, naming the file and the mend.
 *
 * What --kernel takes is listed at enum boot_protocol. Sources: Linux Documentation/arch/x86/boot.rst and
 * zero-page.rst ("the Linux boot protocol"), Xen's hvm/start_info.h (PVH), the Multiboot Specification
 * 0.6.96, and the ELF gABI.
 */
#ifndef NESTOR_BOOT_BOOT_H
#define NESTOR_BOOT_BOOT_H

#include "cpu/vcpu.h"

struct guest_mem;
struct boot_source;

/* How to enter the kernel. */
enum boot_protocol {
    /* Multiboot for a file with a Multiboot header; PVH for an ELF file with the PVH note; LINUX for a
     * bzImage with a payload; SETUP32 for a bzImage without (memtest86+). */
    BOOT_AUTO,
    BOOT_PVH,   /* the ELF file, unpacked from a bzImage if need be, by its XEN_ELFNOTE_PHYS32_ENTRY */
    BOOT_LINUX, /* the same ELF file by its entry point, in 64- or 32-bit mode as its class says */
    /* A bzImage's own entry point, so its own decompressor and KASLR: in 64-bit mode where it has such an
     * entry, or always in 32-bit mode. */
    BOOT_SETUP,
    BOOT_SETUP32,
};

/* e820 types (ACPI 6.5, table 15.4), which are also PVH's and Multiboot's. */
enum boot_range_type {
    BOOT_RANGE_RAM = 1,
    BOOT_RANGE_RESERVED = 2,
    BOOT_RANGE_ACPI = 3,
    BOOT_RANGE_NVS = 4,
};

struct boot_range {
    uint64_t base;
    uint64_t length;
    enum boot_range_type type;
};

struct boot_initrd {
    const char *path;
    const char *arguments; /* Multiboot: follow the path in the module's command line. NULL: none */
};

struct boot_request {
    const char *kernel;
    /* Multiboot: one module each. Linux: concatenated, each at a multiple of four bytes. */
    const struct boot_initrd *initrds;
    size_t initrd_count;
    const char *command_line; /* NULL: empty */
    enum boot_protocol protocol;
    /* Ranges that the guest must not use as RAM (ACPI tables) or should know as taken (ECAM). They are
     * cut out of RAM in the memory map and nothing is loaded there. 640 KiB to 1 MiB always is reserved. */
    const struct boot_range *reserved;
    size_t reserved_count;
};

/* How the boot processor starts; what is not here is at its reset value (SDM vol. 3, table 10-1). */
struct boot_state {
    uint64_t rip;
    uint64_t rflags;
    uint64_t gpr[16]; /* by enum gpr */
    uint64_t cr0, cr3, cr4, efer;
    struct segment segment[SEG_COUNT];
    struct segment ldtr, tr;
    struct descriptor_table gdtr, idtr; /* the GDT is in guest memory */
    bool bios_clock;                    /* the kernel may expect the timer to run as a BIOS leaves it */
    bool long_mode;                     /* 64-bit code; else 32-bit protected mode without paging */
    /* For people: what was loaded and how it is entered, e.g. "Linux 6.1.0 (lz4), 64-bit boot protocol". */
    char summary[160];
    uint64_t kernel_start, kernel_end; /* physical addresses that the kernel itself was loaded to */
};

/* Open the files of a request and look at the kernel's kind. The request's strings need not outlive the
 * call. 0, or -errno after one diag_error() line. */
MUST_CHECK int boot_source_open(struct boot_source **source, const struct boot_request *request);
/* Fill RAM and *state. RAM that nothing is put into keeps what it holds; no byte of a reserved range is
 * written, but for the BIOS data area in page 0. acpi_rsdp is the guest-physical address of the ACPI RSDP, or
 * 0; tables outside of the area below 1 MiB must lie in a reserved range. 0, or -errno after one line. */
MUST_CHECK int boot_source_load(const struct boot_source *source, struct guest_mem *mem, uint64_t acpi_rsdp,
                                struct boot_state *state);
void boot_source_close(struct boot_source *source);

/* "auto", "pvh", "linux" (also "linux64" and "linux32": the file decides), "setup", "setup32"; -EINVAL for
 * another name. */
MUST_CHECK int boot_protocol_parse(const char *name, enum boot_protocol *protocol);

#endif
