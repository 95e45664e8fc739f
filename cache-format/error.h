/* What can be wrong with a cache file: a kind for programs, one line for people. */
#ifndef NESTOR_CACHE_ERROR_H
#define NESTOR_CACHE_ERROR_H

#include "base/types.h"

enum ntc_fault {
    NTC_FAULT_NONE,
    NTC_FAULT_IO,        /* cannot be opened, read, written: errno is in the line */
    NTC_FAULT_NO_SPACE,  /* disk full, or a size limit of the process */
    NTC_FAULT_MEMORY,    /* no memory, address space or descriptors */
    NTC_FAULT_TRUNCATED, /* shorter than its header says, or than a header */
    NTC_FAULT_MAGIC,     /* not a cache file */
    NTC_FAULT_VERSION,   /* another format version, or something required that is not known */
    NTC_FAULT_MALFORMED, /* header or sections contradict the specification */
    NTC_FAULT_DIGEST,    /* the bytes are not those that the root digest stands for */
    NTC_FAULT_UNSIGNED,  /* no signature, and one is demanded */
    NTC_FAULT_UNTRUSTED, /* signed by a key that is not trusted */
    NTC_FAULT_SIGNATURE, /* the signature is not the key's */
    NTC_FAULT_ABI,       /* for another version of the translator */
    NTC_FAULT_FEATURES,  /* for a host CPU with features that this one lacks */
    NTC_FAULT_KEY,       /* a key file that is not one */
    NTC_FAULT_STORE,     /* the host-wide store refused or misbehaved */
    NTC_FAULT_LIMIT,     /* past a bound of the format */
};

struct ntc_error {
    enum ntc_fault fault;
    char line[400]; /* without "nestor: " in front and newline behind: for diag_error("%s", line) */
};

/* The word for a fault in JSON and statistics, such as "bad-signature". */
const char *ntc_fault_name(enum ntc_fault fault);

/* Set *error (if not NULL) and return the -errno that goes with the fault. */
int ntc_fail(struct ntc_error *error, enum ntc_fault fault, const char *format, ...) PRINTF_LIKE(3, 4);

#endif
