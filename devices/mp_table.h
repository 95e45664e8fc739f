/* MultiProcessor Specification 1.4 tables: the floating pointer, followed by the configuration table. */
#ifndef NESTOR_DEVICES_MP_TABLE_H
#define NESTOR_DEVICES_MP_TABLE_H

#include "devices/acpi_tables.h"

size_t mp_table_size(const struct firmware_tables_config *config);
/* Write mp_table_size() bytes that will be found at this guest-physical address, a multiple of 16. */
void mp_table_write(const struct firmware_tables_config *config, uint64_t address, uint8_t *bytes);

#endif
