/* The tables that ring 0's GS-relative accesses go by (emit_percpu.c), as C keeps them. */
#ifndef NESTOR_DBT_PERCPU_H
#define NESTOR_DBT_PERCPU_H

#include "dbt/private.h"

/* The slot of a page at that offset from GS's base; NO_INDEX: there is none left. */
uint32_t percpu_slot(struct dbt_vcpu *dbt, uint64_t page);
/* No code is left that goes by a slot. */
void percpu_reset(struct dbt_vcpu *dbt);
/* GS's base may be another one. */
void percpu_refresh(struct vcpu *vcpu);
/* The TLB has lost something; a page. */
void percpu_forget(struct dbt_area *area);
void percpu_forget_page(struct dbt_vcpu *dbt, uint64_t page);

#endif
