/* The DSDT's AML: devices of the board as an operating system is told of them. */
#ifndef NESTOR_DEVICES_FIRMWARE_DSDT_H
#define NESTOR_DEVICES_FIRMWARE_DSDT_H

#include "devices/acpi_tables.h"
#include "devices/aml.h"

/* Append the definition block's body (without the table header). */
void firmware_dsdt_write(struct aml *aml, const struct firmware_tables_config *config);

#endif
