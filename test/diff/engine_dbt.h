/* The translator's engine in parts, for engines that put code of their own into its vCPU. */
#ifndef NESTOR_TEST_DIFF_ENGINE_DBT_H
#define NESTOR_TEST_DIFF_ENGINE_DBT_H

#include "cpu/vcpu.h"
#include "engine.h"

extern const struct diff_engine dbt_engine;

struct vcpu *dbt_engine_vcpu(void *context);
/* Put a case into the guest. False: it cannot be translated from its start. */
bool dbt_engine_load(void *context, const struct diff_case *test);
/* Run what was loaded. */
void dbt_engine_finish(void *context, const struct diff_case *test, struct diff_state *result);

#endif
