/* A writer of ACPI Machine Language: just what a DSDT needs (ACPI 6.5, chapter 20, "AML Byte Stream").
 *
 * Terms are appended in order; a term with a package length is opened by aml_begin_*() and closed by
 * aml_end(), nested like blocks. Running out of memory or depth makes aml->failed true and every later call a
 * no-op. */
#ifndef NESTOR_DEVICES_AML_H
#define NESTOR_DEVICES_AML_H

#include "base/types.h"

#define AML_DEPTH 16

struct aml {
    uint8_t *data;
    size_t size, capacity;
    size_t open[AML_DEPTH]; /* where the package length of each open term will go */
    size_t resource;        /* where the resource template's size goes; 0 if none is open */
    unsigned depth;
    bool failed;
};

void aml_init(struct aml *aml);
void aml_destroy(struct aml *aml);
void aml_bytes(struct aml *aml, const void *bytes, size_t count);

/* Names are paths as ASL writes them: "_SB_", "\\_SB_.PCI0", each segment four characters. */
void aml_begin_scope(struct aml *aml, const char *name);
void aml_begin_device(struct aml *aml, const char *name);
void aml_begin_method(struct aml *aml, const char *name, unsigned arguments);
void aml_begin_package(struct aml *aml, unsigned elements);
/* If (name) */
void aml_begin_if(struct aml *aml, const char *name);
void aml_end(struct aml *aml);

void aml_integer(struct aml *aml, uint64_t value);
void aml_string(struct aml *aml, const char *text);
/* Name (name, <the next object>) */
void aml_name(struct aml *aml, const char *name);
void aml_name_integer(struct aml *aml, const char *name, uint64_t value);
/* Name (name, EisaId (id)) with id like "PNP0A08". */
void aml_name_eisa_id(struct aml *aml, const char *name, const char *id);
/* Return (name) and Store (Arg0, name). */
void aml_return_name(struct aml *aml, const char *name);
void aml_store_arg0(struct aml *aml, const char *name);

/* Name (_CRS, ResourceTemplate () { ... }) */
void aml_begin_resources(struct aml *aml);
void aml_end_resources(struct aml *aml);
void aml_io(struct aml *aml, uint16_t base, uint8_t length);
void aml_irq(struct aml *aml, unsigned irq);
void aml_memory32(struct aml *aml, uint32_t base, uint32_t length, bool writable);
void aml_bus_range(struct aml *aml, uint16_t first, uint16_t last);
void aml_io_range(struct aml *aml, uint16_t first, uint16_t last);
void aml_memory_range32(struct aml *aml, uint32_t first, uint32_t last);
void aml_memory_range64(struct aml *aml, uint64_t first, uint64_t last);

#endif
