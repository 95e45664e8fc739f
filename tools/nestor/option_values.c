/* Parsers of option values. Every refusal is one line that says what would be right. */
#define _GNU_SOURCE
#include "option_values.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NAME_MAX_LENGTH 63
#define MEMORY_MIN (2 * MIB)
#define MEMORY_MAX (512 * GIB) /* within 40-bit physical addresses, with room for the PCI window above */
#define CODE_CACHE_MIN MIB
#define DIRECT_MAX 1024
#define CODE_CACHE_MAX (GIB) /* direct jumps inside reach 2 GiB */

static const char *keep(struct run_options *options, const char *text) {
    return run_options_keep(options, text, strlen(text));
}

int value_parse_number(const char *text, uint64_t max, uint64_t *number) {
    char *end;
    if (!isdigit((unsigned char)*text))
        return -EINVAL;
    errno = 0;
    unsigned long long parsed = strtoull(text, &end, 0);
    if (*end)
        return -EINVAL;
    if (errno || parsed > max)
        return -ERANGE;
    *number = parsed;
    return 0;
}

int value_parse_size(const char *text, uint64_t *size, bool *has_unit) {
    static const char units[] = "KMGT";
    char *end;
    if (!isdigit((unsigned char)*text))
        return -EINVAL;
    errno = 0;
    unsigned long long parsed = strtoull(text, &end, 0);
    if (errno)
        return -ERANGE;
    *has_unit = *end;
    if (*end) {
        const char *unit = strchr(units, toupper((unsigned char)*end));
        if (!unit)
            return -EINVAL;
        unsigned shift = 10 * (unsigned)(unit - units + 1);
        if (parsed > UINT64_MAX >> shift)
            return -ERANGE;
        parsed <<= shift;
        end++;
        if (toupper((unsigned char)end[0]) == 'B')
            end++;
        else if (toupper((unsigned char)end[0]) == 'I' && toupper((unsigned char)end[1]) == 'B')
            end += 2;
    }
    if (*end)
        return -EINVAL;
    *size = parsed;
    return 0;
}

bool value_fields_next(struct value_fields *fields, char **key, char **value) {
    if (!fields->rest)
        return false;
    char *from = fields->rest, *to = from;
    *key = from;
    *value = NULL;
    for (;; from++) {
        if (from[0] == ',' && from[1] == ',') {
            from++;
        } else if (*from == ',' || !*from) {
            break;
        } else if (*from == '=' && !*value) {
            *to++ = 0;
            *value = to;
            continue;
        }
        *to++ = *from;
    }
    fields->rest = *from ? from + 1 : NULL;
    *to = 0;
    return true;
}

static int parse_switch(const struct option_source *source, const char *value, bool *flag) {
    if (strcmp(value, "on") && strcmp(value, "off"))
        return option_refuse(source, value, "write on or off");
    *flag = !strcmp(value, "on");
    return 0;
}

int option_parse_name(struct run_options *options, const struct option_source *source, const char *value) {
    size_t length = strlen(value);
    if (!length || length > NAME_MAX_LENGTH)
        return option_refuse(source, value, "give a name of 1 to %d characters", NAME_MAX_LENGTH);
    for (size_t i = 0; i < length; i++)
        if (!isalnum((unsigned char)value[i]) && !(i && strchr("._-", value[i])))
            return option_refuse(source, value, "use letters, digits and inside also '.', '_' and '-'");
    options->vm.name = keep(options, value);
    return 0;
}

int option_parse_memory(struct run_options *options, const struct option_source *source, const char *value) {
    uint64_t size;
    bool has_unit = false;
    int result = value_parse_size(value, &size, &has_unit);
    if (result == -EINVAL)
        return option_refuse(source, value, "is no size; write one like 512M or 1G");
    if (!result && !has_unit && size && size < MEMORY_MIN)
        return option_refuse(source, value, "has no unit; write %sM for MiB or %sG for GiB", value, value);
    if (result || size > MEMORY_MAX)
        return option_refuse(source, value, "is more than a guest can have; give %lluG at most",
                             MEMORY_MAX / GIB);
    if (size < MEMORY_MIN || size % MIB)
        return option_refuse(source, value, "give a multiple of 1M, at least %lluM", MEMORY_MIN / MIB);
    options->vm.memory = size;
    return 0;
}

int option_parse_cpus(struct run_options *options, const struct option_source *source, const char *value) {
    uint64_t number;
    if (value_parse_number(value, VM_MAX_CPUS, &number) || !number)
        return option_refuse(source, value, "give a number from 1 to %d", VM_MAX_CPUS);
    options->vm.cpus = (unsigned)number;
    return 0;
}

static int parse_path(struct run_options *options, const struct option_source *source, const char *value,
                      const char **path) {
    if (!*value)
        return option_refuse(source, value, "give the path of a file");
    *path = keep(options, value);
    return 0;
}

int option_parse_kernel(struct run_options *options, const struct option_source *source, const char *value) {
    return parse_path(options, source, value, &options->vm.kernel);
}

static int add_initrd(struct run_options *options, const struct option_source *source, const char *path,
                      const char *arguments) {
    struct vm_config *vm = &options->vm;
    if (!*path)
        return option_refuse(source, path, "give the path of a file");
    if (vm->initrd_count == VM_INITRDS_MAX)
        return option_refuse(source, path, "is one too many; %d are the limit", VM_INITRDS_MAX);
    vm->initrd[vm->initrd_count++] = (struct vm_initrd_config){path, arguments};
    return 0;
}

/* FILE[ ARGUMENTS][,FILE[ ARGUMENTS]]...; a file whose very name has the commas or spaces is meant by it. */
int option_parse_initrd(struct run_options *options, const struct option_source *source, const char *value) {
    if (!access(value, F_OK))
        return add_initrd(options, source, keep(options, value), NULL);
    char *rest = run_options_keep(options, value, strlen(value));
    while (rest) {
        char *path = rest, *to = rest, *arguments = NULL;
        for (; *rest && (rest[0] != ',' || rest[1] == ','); rest++) {
            if (*rest == ',')
                rest++;
            *to++ = *rest;
        }
        rest = *rest ? rest + 1 : NULL;
        *to = 0;
        if (access(path, F_OK)) {
            arguments = strchr(path, ' ');
            if (arguments)
                *arguments++ = 0;
        }
        int result = add_initrd(options, source, path, arguments);
        if (result)
            return result;
    }
    return 0;
}

int option_parse_append(struct run_options *options, const struct option_source *source, const char *value) {
    (void)source;
    options->vm.append = keep(options, value);
    return 0;
}

int option_parse_boot(struct run_options *options, const struct option_source *source, const char *value) {
    if (boot_protocol_parse(value, &options->vm.boot))
        return option_refuse(source, value, "give auto, pvh, linux, setup or setup32");
    return 0;
}

int option_parse_disk(struct run_options *options, const struct option_source *source, const char *value) {
    struct vm_config *vm = &options->vm;
    struct vm_disk_config disk = {0};
    struct value_fields fields = {run_options_keep(options, value, strlen(value))};
    char *key, *field;

    if (vm->disk_count == VM_DISKS_MAX)
        return option_refuse(source, value, "is one disk too many; %d are the limit", VM_DISKS_MAX);
    while (value_fields_next(&fields, &key, &field)) {
        if (!field) {
            return option_refuse(source, value, "'%s' is not KEY=VALUE; write file=%s", key, key);
        } else if (!strcmp(key, "file")) {
            disk.file = field;
        } else if (!strcmp(key, "format")) {
            if (strcmp(field, "raw"))
                return option_refuse(source, value, "format '%s' is not known; raw is", field);
        } else if (!strcmp(key, "bus")) {
            if (strcmp(field, "virtio"))
                return option_refuse(source, value, "bus '%s' is not known; virtio is", field);
        } else if (!strcmp(key, "readonly")) {
            if (strcmp(field, "on") && strcmp(field, "off"))
                return option_refuse(source, value, "write readonly=on or readonly=off");
            disk.readonly = !strcmp(field, "on");
        } else if (!strcmp(key, "serial")) {
            if (strlen(field) > VM_DISK_SERIAL_MAX)
                return option_refuse(source, value, "serial '%s' is longer than %d bytes", field,
                                     VM_DISK_SERIAL_MAX);
            disk.serial = field;
        } else {
            return option_refuse(source, value,
                                 "key '%s' is not known; file, format, bus, readonly and serial are", key);
        }
    }
    if (!disk.file || !*disk.file)
        return option_refuse(source, value, "has no file; write file=PATH");
    vm->disk[vm->disk_count++] = disk;
    return 0;
}

static int parse_line(struct run_options *options, const struct option_source *source, const char *value,
                      struct vm_serial_config *line) {
    if (!strcmp(value, "stdio"))
        *line = (struct vm_serial_config){VM_SERIAL_STDIO, NULL};
    else if (!strcmp(value, "pty"))
        *line = (struct vm_serial_config){VM_SERIAL_PTY, NULL};
    else if (!strcmp(value, "none"))
        *line = (struct vm_serial_config){VM_SERIAL_NONE, NULL};
    else if (!strncmp(value, "file=", 5) && value[5])
        *line = (struct vm_serial_config){VM_SERIAL_FILE, keep(options, value + 5)};
    else if (!strncmp(value, "unix=", 5) && value[5])
        *line = (struct vm_serial_config){VM_SERIAL_UNIX, keep(options, value + 5)};
    else
        return option_refuse(source, value, "give stdio, file=PATH, pty, unix=PATH or none");
    return 0;
}

int option_parse_serial(struct run_options *options, const struct option_source *source, const char *value) {
    options->serial_given = true;
    return parse_line(options, source, value, &options->vm.serial);
}

int option_parse_console(struct run_options *options, const struct option_source *source, const char *value) {
    return parse_line(options, source, value, &options->vm.console);
}

int option_parse_engine(struct run_options *options, const struct option_source *source, const char *value) {
    static const char *const names[] = {[VM_ENGINE_AUTO] = "auto",
                                        [VM_ENGINE_DIRECT] = "direct",
                                        [VM_ENGINE_DBT] = "dbt",
                                        [VM_ENGINE_INTERP] = "interp"};
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        if (!strcmp(value, names[i])) {
            options->vm.engine = (enum vm_engine)i;
            return 0;
        }
    }
    return option_refuse(source, value, "give auto, direct, dbt or interp");
}

int option_parse_direct_max(struct run_options *options, const struct option_source *source,
                            const char *value) {
    uint64_t number;
    if (value_parse_number(value, DIRECT_MAX, &number) || !number)
        return option_refuse(source, value, "give a number from 1 to %d", DIRECT_MAX);
    options->vm.direct_max = (unsigned)number;
    return 0;
}

int option_parse_cpu(struct run_options *options, const struct option_source *source, const char *value) {
    if (!*value)
        return option_refuse(source, value, "give host or the name of a model");
    options->vm.cpu = keep(options, value);
    return 0;
}

int option_parse_code_cache(struct run_options *options, const struct option_source *source,
                            const char *value) {
    struct value_fields fields = {run_options_keep(options, value, strlen(value))};
    char *text, *field;
    uint64_t size;
    bool has_unit, grows = false;
    if (!value_fields_next(&fields, &text, &field) || field || value_parse_size(text, &size, &has_unit) ||
        size < CODE_CACHE_MIN || size > CODE_CACHE_MAX || size % PAGE_SIZE)
        return option_refuse(source, value, "give a size from 1M to %lluM", CODE_CACHE_MAX / MIB);
    while (value_fields_next(&fields, &text, &field)) {
        if (strcmp(text, "grow") || !field || (strcmp(field, "on") && strcmp(field, "off")))
            return option_refuse(source, value, "behind the size there can be grow=on or grow=off");
        grows = !strcmp(field, "on");
    }
    options->vm.code_cache = size;
    options->vm.code_cache_grows = grows;
    return 0;
}

static int add_path(struct run_options *options, const struct option_source *source, const char *value,
                    const char **paths, size_t *count, size_t max) {
    if (!*value)
        return option_refuse(source, value, "give the path of a file");
    if (*count == max)
        return option_refuse(source, value, "at most %zu may be given", max);
    paths[(*count)++] = keep(options, value);
    return 0;
}

int option_parse_cache(struct run_options *options, const struct option_source *source, const char *value) {
    return add_path(options, source, value, options->vm.cache, &options->vm.cache_count, VM_CACHES_MAX);
}

int option_parse_trust(struct run_options *options, const struct option_source *source, const char *value) {
    return add_path(options, source, value, options->vm.trust, &options->vm.trust_count, VM_TRUST_MAX);
}

int option_parse_cache_required(struct run_options *options, const struct option_source *source,
                                const char *value) {
    return parse_switch(source, value, &options->vm.cache_required);
}

int option_parse_record_cache(struct run_options *options, const struct option_source *source,
                              const char *value) {
    if (!*value)
        return option_refuse(source, value, "give the path of a file");
    options->vm.record_cache = keep(options, value);
    return 0;
}

int option_parse_record_profile(struct run_options *options, const struct option_source *source,
                                const char *value) {
    if (!*value)
        return option_refuse(source, value, "give the path of a file");
    options->vm.record_profile = keep(options, value);
    return 0;
}

int option_parse_prealloc(struct run_options *options, const struct option_source *source,
                          const char *value) {
    return parse_switch(source, value, &options->vm.prealloc);
}

int option_parse_no_reboot(struct run_options *options, const struct option_source *source,
                           const char *value) {
    return parse_switch(source, value, &options->vm.no_reboot);
}

int option_parse_sandbox(struct run_options *options, const struct option_source *source, const char *value) {
    return parse_switch(source, value, &options->vm.sandbox);
}

int option_parse_debug_exit(struct run_options *options, const struct option_source *source,
                            const char *value) {
    uint64_t port;
    if (value_parse_number(value, 0xffff, &port))
        return option_refuse(source, value, "give an I/O port from 0 to 0xffff");
    options->vm.debug_exit = (uint32_t)port;
    return 0;
}

int option_parse_stats_spaces(struct run_options *options, const struct option_source *source,
                              const char *value) {
    return parse_switch(source, value, &options->vm.stats_spaces);
}

int option_parse_stats(struct run_options *options, const struct option_source *source, const char *value) {
    return parse_path(options, source, value, &options->vm.stats);
}

struct bit_name {
    const char *name;
    uint32_t bit;
};

static bool set_bit_by_name(const struct bit_name *names, size_t count, const char *name, uint32_t *bits) {
    bool found = false;
    for (size_t i = 0; i < count; i++) {
        if (!strcmp(name, names[i].name) || !strcmp(name, "all")) {
            *bits |= names[i].bit;
            found = true;
        }
    }
    return found;
}

int option_parse_trace(struct run_options *options, const struct option_source *source, const char *value) {
    static const struct bit_name subjects[] = {
        {"exceptions", TRACE_EXCEPTIONS},
        {"interrupts", TRACE_INTERRUPTS},
        {"pio", TRACE_PIO},
        {"mmio", TRACE_MMIO},
        {"msr", TRACE_MSR},
        {"cr", TRACE_CR},
        {"disk", TRACE_DISK},
        {"net", TRACE_NET},
    };
    struct value_fields fields = {run_options_keep(options, value, strlen(value))};
    char *key, *field;
    uint32_t bits = 0;
    while (value_fields_next(&fields, &key, &field)) {
        if (field && !strcmp(key, "file") && *field)
            options->vm.trace_file = field;
        else if (field || !set_bit_by_name(subjects, ARRAY_SIZE(subjects), key, &bits))
            return option_refuse(
                source, value,
                "'%s' is not known; exceptions, interrupts, pio, mmio, msr, cr, disk, net, all and "
                "file=PATH are",
                key);
    }
    if (!bits)
        return option_refuse(source, value, "names nothing to trace; add all, or what you need");
    options->vm.trace = bits;
    return 0;
}

int option_parse_dump(struct run_options *options, const struct option_source *source, const char *value) {
    static const struct bit_name stages[] = {
        {"guest", DUMP_GUEST},
        {"decoded", DUMP_DECODED},
        {"emitted", DUMP_EMITTED},
        {"exits", DUMP_EXITS},
    };
    struct value_fields fields = {run_options_keep(options, value, strlen(value))};
    char *key, *field;
    uint32_t bits = 0;
    while (value_fields_next(&fields, &key, &field))
        if (field || !set_bit_by_name(stages, ARRAY_SIZE(stages), key, &bits))
            return option_refuse(source, value,
                                 "'%s' is not known; guest, decoded, emitted, exits and all are", key);
    options->vm.dump = bits;
    return 0;
}
