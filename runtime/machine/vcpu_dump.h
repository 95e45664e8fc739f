/* A vCPU's state for people, on stderr. */
#ifndef NESTOR_MACHINE_VCPU_DUMP_H
#define NESTOR_MACHINE_VCPU_DUMP_H

#include "cpu/vcpu.h"

void vcpu_dump(const struct vcpu *vcpu, const char *why);

#endif
