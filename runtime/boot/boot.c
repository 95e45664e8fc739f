/* Recognising a kernel file, choosing how to enter it, and loading it.
 *
 * Nothing is kept in memory between open and load but the parsed header: a reset reads the files again. */
#include "boot/boot.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/diag.h"
#include "boot/boot_source.h"
#include "boot/payload.h"
#include "mem/guest_mem.h"

static const struct {
    const char *name;
    enum boot_protocol protocol;
} protocols[] = {
    {"auto", BOOT_AUTO},     {"pvh", BOOT_PVH},     {"linux", BOOT_LINUX},     {"linux64", BOOT_LINUX},
    {"linux32", BOOT_LINUX}, {"setup", BOOT_SETUP}, {"setup32", BOOT_SETUP32},
};

int boot_protocol_parse(const char *name, enum boot_protocol *protocol) {
    for (size_t i = 0; i < ARRAY_SIZE(protocols); i++) {
        if (!strcmp(name, protocols[i].name)) {
            *protocol = protocols[i].protocol;
            return 0;
        }
    }
    return -EINVAL;
}

/* What a file that is no kernel of ours may be instead: the message is half the mend. */
static const struct {
    size_t offset;
    const char *magic;
    size_t length;
    const char *name;
} foreign[] = {
    {0, "\xd6\x50\x52\xe8", 4, "a Multiboot 2 header, not a Multiboot 1 kernel"},
    {0, "070701", 6, "a cpio archive (the --initrd?)"},
    {0, "\x1f\x8b", 2, "gzip data, not a bzImage (the --initrd?)"},
    {0, "\x28\xb5\x2f\xfd", 4, "zstd data, not a bzImage (the --initrd?)"},
    {0,
     "\xfd"
     "7zXZ",
     5, "xz data, not a bzImage (the --initrd?)"},
    {0, "QFI\xfb", 4, "a qcow2 disk image (a --disk?)"},
    {56, "ARM\x64", 4, "a Linux kernel for ARM64, not for x86"},
    {0, "MZ", 2, "an EFI program without a Linux boot header"},
    {0, "#!", 2, "a script"},
    {0, "!<arch>", 7, "an archive (a package? unpack it first)"},
};

static int refuse_foreign(const char *path, const uint8_t *head, size_t size) {
    for (size_t i = 0; i < ARRAY_SIZE(foreign); i++) {
        if (size >= foreign[i].offset + foreign[i].length &&
            !memcmp(head + foreign[i].offset, foreign[i].magic, foreign[i].length)) {
            diag_error("kernel '%s' is %s; give an x86 bzImage, ELF vmlinux or Multiboot kernel", path,
                       foreign[i].name);
            return -ENOEXEC;
        }
    }
    diag_error("kernel '%s' is neither a Linux bzImage nor an ELF or Multiboot kernel; give one of these",
               path);
    return -ENOEXEC;
}

static int refuse_protocol(const struct boot_source *source, const char *boot, const char *why) {
    diag_error("kernel '%s' cannot be started with --boot %s: %s; use --boot auto", source->kernel.path, boot,
               why);
    return -EINVAL;
}

static int choose_for_bzimage(struct boot_source *source, enum boot_protocol wanted) {
    const struct bzimage *image = &source->bzimage;
    uint8_t magic[16] = {0};
    const char *format = NULL;
    if (image->payload_size >= sizeof magic) {
        int result = boot_file_read(&source->kernel, image->payload_offset, magic, sizeof magic);
        if (result)
            return result;
        format = payload_format(magic, sizeof magic);
    }
    bool unpackable = format && payload_can_unpack(format);
    switch (wanted) {
    case BOOT_AUTO:
        source->protocol = unpackable ? BOOT_LINUX : image->payload_size ? BOOT_SETUP : BOOT_SETUP32;
        return 0;
    case BOOT_PVH:
    case BOOT_LINUX:
        if (!image->payload_size)
            return refuse_protocol(source, wanted == BOOT_PVH ? "pvh" : "linux",
                                   "it has no packed kernel inside");
        if (!unpackable)
            return refuse_protocol(source, wanted == BOOT_PVH ? "pvh" : "linux",
                                   "the kernel inside is in a compression format that is not supported");
        source->protocol = wanted;
        return 0;
    case BOOT_SETUP:
    case BOOT_SETUP32:
        source->protocol = wanted;
        return 0;
    }
    return -EINVAL;
}

static int choose_for_elf(struct boot_source *source, enum boot_protocol wanted) {
    const struct boot_bytes bytes = {.file = &source->kernel, .size = source->kernel.size};
    struct elf_image image;
    uint64_t entry;
    int result = elf_image_parse(&image, &bytes);
    if (result)
        return result;
    if (wanted == BOOT_SETUP || wanted == BOOT_SETUP32)
        return refuse_protocol(source, "setup", "only a bzImage has setup code");
    source->protocol = wanted == BOOT_LINUX ? BOOT_LINUX : BOOT_PVH;
    if (source->protocol == BOOT_LINUX)
        return 0;
    result = pvh_find_entry(&image, &entry);
    if (result == -ENOENT)
        diag_error("kernel '%s' is an ELF file with neither a PVH note nor a Multiboot header; give a Linux "
                   "vmlinux built with CONFIG_PVH, or use --boot linux for one without",
                   source->kernel.path);
    return result;
}

static int recognise(struct boot_source *source, enum boot_protocol wanted) {
    uint8_t head[MULTIBOOT_SEARCH];
    size_t size = source->kernel.size < sizeof head ? (size_t)source->kernel.size : sizeof head;
    int result = boot_file_read(&source->kernel, 0, head, size);
    if (result)
        return result;
    if (bzimage_probe(head, size)) {
        source->kind = KERNEL_BZIMAGE;
        result = bzimage_parse(&source->bzimage, &source->kernel);
        return result ? result : choose_for_bzimage(source, wanted);
    }
    bool is_elf = size >= 4 && !memcmp(head,
                                       "\x7f"
                                       "ELF",
                                       4);
    bool is_multiboot = multiboot_probe(head, size);
    if (is_multiboot && (wanted == BOOT_AUTO || !is_elf)) {
        if (wanted != BOOT_AUTO)
            return refuse_protocol(source, "other than auto", "it is a Multiboot kernel");
        source->kind = KERNEL_MULTIBOOT;
        source->protocol = BOOT_AUTO;
        return 0;
    }
    if (is_elf) {
        source->kind = KERNEL_ELF;
        return choose_for_elf(source, wanted);
    }
    return refuse_foreign(source->kernel.path, head, size);
}

static int copy_request(struct boot_source *source, const struct boot_request *request) {
    source->command_line = strdup(request->command_line ? request->command_line : "");
    source->initrds = calloc(request->initrd_count + 1, sizeof *source->initrds);
    source->reserved = calloc(request->reserved_count + 1, sizeof *source->reserved);
    if (!source->command_line || !source->initrds || !source->reserved)
        return -ENOMEM;
    for (size_t i = 0; i < request->reserved_count; i++)
        source->reserved[i] = request->reserved[i];
    source->reserved_count = request->reserved_count;
    for (size_t i = 0; i < request->initrd_count; i++) {
        struct boot_source_initrd *initrd = &source->initrds[i];
        int result = boot_file_open(&initrd->file, request->initrds[i].path, "initrd");
        if (result)
            return result;
        source->initrd_count++;
        const char *arguments = request->initrds[i].arguments;
        if (arguments && *arguments) {
            initrd->arguments = strdup(arguments);
            if (!initrd->arguments)
                return -ENOMEM;
        }
    }
    return 0;
}

int boot_source_open(struct boot_source **result_source, const struct boot_request *request) {
    struct boot_source *source = calloc(1, sizeof *source);
    if (!source)
        return -ENOMEM;
    int result = boot_file_open(&source->kernel, request->kernel, "kernel");
    if (result) {
        free(source);
        return result;
    }
    result = recognise(source, request->protocol);
    if (!result)
        result = copy_request(source, request);
    if (result) {
        boot_source_close(source);
        return result;
    }
    *result_source = source;
    return 0;
}

void boot_source_close(struct boot_source *source) {
    if (!source)
        return;
    for (size_t i = 0; i < source->initrd_count; i++) {
        boot_file_close(&source->initrds[i].file);
        free(source->initrds[i].arguments);
    }
    boot_file_close(&source->kernel);
    free(source->initrds);
    free(source->command_line);
    free(source->reserved);
    free(source);
}

static int load_elf(const struct boot_source *source, const struct boot_bytes *bytes,
                    struct boot_layout *layout, struct boot_state *state) {
    struct elf_image image;
    int result = elf_image_parse(&image, bytes);
    if (result)
        return result;
    return source->protocol == BOOT_PVH ? pvh_boot(source, &image, layout, state)
                                        : linux_boot_elf(source, &image, layout, state);
}

/* Unpack the kernel inside a bzImage and load that. */
static int load_payload(const struct boot_source *source, struct boot_layout *layout,
                        struct boot_state *state) {
    const struct bzimage *bzimage = &source->bzimage;
    struct boot_bytes bytes = {.file = &source->kernel};
    int result = payload_open(&bytes.payload, &source->kernel, bzimage->payload_offset, bzimage->payload_size,
                              layout->low_end);
    if (result)
        return result;
    bytes.size = payload_size(bytes.payload);
    result = load_elf(source, &bytes, layout, state);
    if (!result)
        result = payload_check(bytes.payload);
    payload_close(bytes.payload);
    return result;
}

static void prefix_summary(const struct boot_source *source, struct boot_state *state) {
    static const char *const kinds[] = {
        [KERNEL_BZIMAGE] = "bzImage", [KERNEL_ELF] = "ELF kernel", [KERNEL_MULTIBOOT] = "Multiboot kernel"};
    char how[sizeof state->summary];
    memcpy(how, state->summary, sizeof how);
    snprintf(state->summary, sizeof state->summary, "%s%s%s, %.80s", kinds[source->kind],
             source->kind == KERNEL_BZIMAGE ? " " : "",
             source->kind == KERNEL_BZIMAGE ? source->bzimage.release : "", how);
}

int boot_source_load(const struct boot_source *source, struct guest_mem *mem, uint64_t acpi_rsdp,
                     struct boot_state *state) {
    struct boot_layout layout;
    *state = (struct boot_state){0};
    if (mem->size < 2 * MIB) {
        diag_error("%llu KiB of memory is too little for any kernel; raise --memory",
                   (unsigned long long)(mem->size / KIB));
        return -ENOMEM;
    }
    int result = boot_layout_create(&layout, mem, source->reserved, source->reserved_count);
    layout.acpi_rsdp = acpi_rsdp;
    if (result)
        return result;
    if (source->kind == KERNEL_MULTIBOOT) {
        result = multiboot_boot(source, &layout, state);
    } else if (source->kind == KERNEL_ELF) {
        const struct boot_bytes bytes = {.file = &source->kernel, .size = source->kernel.size};
        result = load_elf(source, &bytes, &layout, state);
    } else if (source->protocol == BOOT_SETUP || source->protocol == BOOT_SETUP32) {
        result = linux_boot_setup(source, &layout, state);
    } else {
        result = load_payload(source, &layout, state);
    }
    if (!result)
        prefix_summary(source, state);
    return result;
}
