#include "cache-format/error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

static const struct {
    const char *name;
    int error;
} faults[] = {
    [NTC_FAULT_NONE] = {"none", 0},
    [NTC_FAULT_IO] = {"io", EIO},
    [NTC_FAULT_NO_SPACE] = {"no-space", ENOSPC},
    [NTC_FAULT_MEMORY] = {"no-memory", ENOMEM},
    [NTC_FAULT_TRUNCATED] = {"truncated", EBADMSG},
    [NTC_FAULT_MAGIC] = {"not-a-cache", EBADMSG},
    [NTC_FAULT_VERSION] = {"version", EPROTONOSUPPORT},
    [NTC_FAULT_MALFORMED] = {"malformed", EBADMSG},
    [NTC_FAULT_DIGEST] = {"digest", EBADMSG},
    [NTC_FAULT_UNSIGNED] = {"unsigned", EKEYREJECTED},
    [NTC_FAULT_UNTRUSTED] = {"untrusted-key", EKEYREJECTED},
    [NTC_FAULT_SIGNATURE] = {"bad-signature", EKEYREJECTED},
    [NTC_FAULT_ABI] = {"translator-abi", ENOEXEC},
    [NTC_FAULT_FEATURES] = {"host-features", ENOEXEC},
    [NTC_FAULT_KEY] = {"key-file", EINVAL},
    [NTC_FAULT_STORE] = {"store", EPROTO},
    [NTC_FAULT_LIMIT] = {"limit", E2BIG},
};

const char *ntc_fault_name(enum ntc_fault fault) {
    return (size_t)fault < ARRAY_SIZE(faults) ? faults[fault].name : "unknown";
}

int ntc_fail(struct ntc_error *error, enum ntc_fault fault, const char *format, ...) {
    if (error) {
        va_list args;
        error->fault = fault;
        va_start(args, format);
        vsnprintf(error->line, sizeof error->line, format, args);
        va_end(args);
    }
    return -faults[fault].error;
}
