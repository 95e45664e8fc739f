/* Values of options: the parsers that the option table names, and the pieces they are made of. */
#ifndef NESTOR_TOOLS_OPTION_VALUES_H
#define NESTOR_TOOLS_OPTION_VALUES_H

#include "options.h"

option_parser option_parse_name, option_parse_memory, option_parse_cpus, option_parse_kernel,
    option_parse_initrd, option_parse_append, option_parse_boot, option_parse_disk, option_parse_net,
    option_parse_serial, option_parse_console, option_parse_engine, option_parse_direct_max, option_parse_cpu,
    option_parse_code_cache, option_parse_cache, option_parse_trust, option_parse_cache_required,
    option_parse_record_cache, option_parse_record_profile, option_parse_prealloc, option_parse_no_reboot,
    option_parse_debug_exit, option_parse_stats, option_parse_stats_spaces, option_parse_sandbox,
    option_parse_trace, option_parse_dump;

/* "512M", "1G", "0x1000": bytes, with the suffix K, M, G or T (powers of 1024). -EINVAL, -ERANGE. */
MUST_CHECK int value_parse_size(const char *text, uint64_t *size, bool *has_unit);
/* A number of any base that C has. -EINVAL, -ERANGE when above max. */
MUST_CHECK int value_parse_number(const char *text, uint64_t max, uint64_t *number);

/* Walks "a=1,b=2" in place; ",," stands for a comma inside a value. */
struct value_fields {
    char *rest;
};
/* The next field: key, and value or NULL when it has no '='. False at the end. */
bool value_fields_next(struct value_fields *fields, char **key, char **value);

#endif
