/* Between portable.c and function.c. */
#ifndef NESTOR_DBT_PORTABLE_PRIVATE_H
#define NESTOR_DBT_PORTABLE_PRIVATE_H

#include "dbt/emit.h"
#include "dbt/portable.h"

/* What function.c keeps from one translation to the next; NULL without memory. */
struct function *function_create(void);
void function_destroy(struct function *function);
/* Translate into unit->code. pc_spilled: gets the registers that are in memory at each of dbt->pc. 0;
 * -ENOENT: nothing can be made; -E2BIG; -ENOMEM. */
MUST_CHECK int function_translate(struct unit *unit, const struct portable_function *request,
                                  uint16_t *pc_spilled);
/* The entries of what was translated, ascending: their number, or -E2BIG. */
MUST_CHECK int function_entries(const struct unit *unit, struct ntc_unit_entry *entry, unsigned room);

#endif
