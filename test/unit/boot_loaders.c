/* The loaders against kernel files made here, one of each kind, and against the real kernels that
 * NESTOR_GUESTS (or the cache of tools/check) holds. What a guest would find is read back out of guest
 * memory. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "boot/boot.h"
#include "boot/layout.h"
#include "boot_images.h"
#include "mem/guest_mem.h"

static int failures;

#define EXPECT(condition)                                                                                    \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            fprintf(stderr, "%s:%d: %s: not so: %s\n", __FILE__, __LINE__, subject, #condition);             \
            failures++;                                                                                      \
        }                                                                                                    \
    } while (0)

static const char *subject = "";

/* A file of these bytes, by a path that lasts until the descriptor is closed. */
static int make_file(const void *data, size_t size, char path[static 32]) {
    int fd = memfd_create("image", MFD_CLOEXEC);
    if (fd < 0 || write(fd, data, size) != (ssize_t)size)
        abort();
    snprintf(path, 32, "/proc/self/fd/%d", fd);
    return fd;
}

static uint64_t peek(const struct guest_mem *mem, uint64_t gpa, size_t size) {
    uint64_t value = 0;
    if (guest_mem_read(mem, gpa, &value, size))
        abort();
    return value;
}

static const char *peek_string(const struct guest_mem *mem, uint64_t gpa) {
    static char text[256];
    memset(text, 0, sizeof text);
    const char *source = guest_mem_ptr(mem, gpa, sizeof text);
    if (source)
        strncpy(text, source, sizeof text - 1);
    return text;
}

static int load(const struct boot_request *request, struct guest_mem *mem, struct boot_state *state) {
    struct boot_source *source;
    int result = boot_source_open(&source, request);
    if (result)
        return result;
    result = boot_source_load(source, mem, 0xe0000, state);
    boot_source_close(source);
    return result;
}

static void expect_flat(const struct guest_mem *mem, const struct boot_state *state) {
    EXPECT(state->segment[SEG_CS].selector == 0x10 && state->segment[SEG_CS].limit == 0xffffffff);
    EXPECT(state->segment[SEG_SS].selector == 0x18 && state->segment[SEG_DS].selector == 0x18);
    EXPECT(state->rflags == FLAG_FIXED);
    EXPECT(state->gdtr.limit == 31);
    EXPECT(peek(mem, state->gdtr.base + 0x18, 8) == 0x00cf93000000ffff);
    EXPECT(peek(mem, state->gdtr.base + 0x10, 8) ==
           (state->long_mode ? 0x00af9b000000ffffull : 0x00cf9b000000ffffull));
    if (state->long_mode) {
        EXPECT(state->cr0 == (CR0_PE | CR0_ET | CR0_PG) && state->cr4 == CR4_PAE);
        EXPECT(state->efer == (EFER_LME | EFER_LMA));
        /* Walk the tables for an address in the fourth GiB. */
        uint64_t address = 0xdeadb000, table = state->cr3;
        table = peek(mem, table + (address >> 39 & 511) * 8, 8) & ~0xfffull;
        table = peek(mem, table + (address >> 30 & 511) * 8, 8) & ~0xfffull;
        EXPECT(peek(mem, table + (address >> 21 & 511) * 8, 8) == ((address & ~0x1fffffull) | 0x83));
    } else {
        EXPECT(state->cr0 == (CR0_PE | CR0_ET) && !state->cr4 && !state->efer);
    }
}

static void expect_text(const struct guest_mem *mem, size_t first) {
    const uint8_t *text = guest_mem_ptr(mem, BOOT_IMAGE_BASE, BOOT_IMAGE_MEMORY);
    bool same = true, zero = true;
    for (size_t i = first; i < BOOT_IMAGE_TEXT; i++)
        same &= text[i] == boot_image_text(i);
    for (size_t i = BOOT_IMAGE_TEXT; i < BOOT_IMAGE_MEMORY; i++)
        zero &= !text[i];
    EXPECT(same);
    EXPECT(zero);
}

static void expect_params(const struct guest_mem *mem, const struct boot_state *state,
                          const char *command_line, uint64_t initrd_size) {
    uint64_t params = state->gpr[GPR_RSI];
    EXPECT(peek(mem, params + 0x1fe, 2) == 0xaa55 && peek(mem, params + 0x202, 4) == 0x53726448);
    EXPECT(peek(mem, params + 0x210, 1) == 0xff);
    EXPECT(peek(mem, params + 0x70, 8) == 0xe0000);
    EXPECT(peek(mem, params + 0x214, 4) == state->kernel_start);
    EXPECT(!strcmp(peek_string(mem, peek(mem, params + 0x228, 4)), command_line));
    EXPECT(peek(mem, params + 0x21c, 4) == initrd_size);
    /* 0-639K, the hole, RAM up to the ACPI tables, those, and RAM behind them; then the ECAM. */
    EXPECT(peek(mem, params + 0x1e8, 1) == 6);
    EXPECT(peek(mem, params + 0x2d0, 8) == 0 && peek(mem, params + 0x2d8, 8) == BOOT_LOW_END);
    EXPECT(peek(mem, params + 0x2e0, 4) == BOOT_RANGE_RAM &&
           peek(mem, params + 0x2f4, 4) == BOOT_RANGE_RESERVED);
    EXPECT(peek(mem, params + 0x2d0 + 3 * 20, 8) == 0x3000000 &&
           peek(mem, params + 0x2e0 + 60, 4) == BOOT_RANGE_ACPI);
    EXPECT(peek(mem, params + 0x2d0 + 5 * 20, 8) == 0xe0000000);
    uint64_t initrd = peek(mem, params + 0x218, 4);
    if (initrd_size)
        EXPECT(initrd >= 0x3010000 && initrd + initrd_size <= 64 * MIB && !(initrd & 0xfff));
}

static const struct boot_range board_ranges[] = {{0xe0000000, 0x10000000, BOOT_RANGE_RESERVED},
                                                 {0x3000000, 0x10000, BOOT_RANGE_ACPI}};

static void check_linux(struct guest_mem *mem, const char *what, struct boot_image image,
                        enum boot_protocol protocol, bool long_mode, uint64_t rip, bool unpacked) {
    char kernel[32], initrd[2][32];
    struct boot_state state;
    int fds[] = {make_file(image.data, image.size, kernel), make_file("first", 5, initrd[0]),
                 make_file("second", 6, initrd[1])};
    const struct boot_initrd initrds[] = {{initrd[0], NULL}, {initrd[1], NULL}};
    const struct boot_request request = {.kernel = kernel,
                                         .initrds = initrds,
                                         .initrd_count = 2,
                                         .command_line = "a=b console=ttyS0",
                                         .protocol = protocol,
                                         .reserved = board_ranges,
                                         .reserved_count = 2};
    subject = what;
    memset(mem->base + BOOT_IMAGE_BASE, 0xee, 0x20000); /* a second boot finds used memory */
    if (load(&request, mem, &state)) {
        EXPECT(!"loaded");
    } else {
        EXPECT(state.rip == rip);
        EXPECT(state.long_mode == long_mode);
        expect_flat(mem, &state);
        expect_params(mem, &state, request.command_line, 14);
        uint64_t at = peek(mem, state.gpr[GPR_RSI] + 0x218, 4);
        EXPECT(!memcmp(guest_mem_ptr(mem, at, 14), "first\0\0\0second", 14));
        if (unpacked)
            expect_text(mem, 0);
    }
    for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
        close(fds[i]);
}

static void test_linux(struct guest_mem *mem) {
    struct boot_image elf64 = boot_image_elf(true, true), elf32 = boot_image_elf(false, true), image;
    for (int codec = 0; codec < BOOT_IMAGE_CODECS; codec++) {
        image = boot_image_bzimage(elf64, codec);
        check_linux(mem, boot_image_codec_name((unsigned)codec), image, BOOT_AUTO, true, BOOT_IMAGE_ENTRY,
                    true);
        if (!codec) {
            check_linux(mem, "setup", image, BOOT_SETUP, true, BOOT_IMAGE_BASE + 0x200, false);
            check_linux(mem, "setup32", image, BOOT_SETUP32, false, BOOT_IMAGE_BASE, false);
        }
        boot_image_free(&image);
    }
    image = boot_image_bzimage(elf32, 1);
    check_linux(mem, "bzImage of a 32-bit kernel", image, BOOT_AUTO, false, BOOT_IMAGE_ENTRY, true);
    boot_image_free(&image);
    image = boot_image_bzimage(elf64, -1);
    check_linux(mem, "bzImage without payload", image, BOOT_AUTO, false, BOOT_IMAGE_BASE, false);
    boot_image_free(&image);
    check_linux(mem, "vmlinux by its entry", elf64, BOOT_LINUX, true, BOOT_IMAGE_ENTRY, true);
    boot_image_free(&elf64);
    boot_image_free(&elf32);
}

static void test_pvh(struct guest_mem *mem, bool is_64) {
    struct boot_image image = boot_image_elf(is_64, true);
    char kernel[32];
    struct boot_state state;
    int fd = make_file(image.data, image.size, kernel);
    const struct boot_initrd initrd = {kernel, NULL};
    const struct boot_request request = {.kernel = kernel,
                                         .initrds = &initrd,
                                         .initrd_count = 1,
                                         .command_line = "pvh",
                                         .reserved = board_ranges,
                                         .reserved_count = 2};
    subject = is_64 ? "PVH, 64-bit ELF" : "PVH, 32-bit ELF";
    if (load(&request, mem, &state)) {
        EXPECT(!"loaded");
    } else {
        uint64_t info = state.gpr[GPR_RBX];
        EXPECT(state.rip == BOOT_IMAGE_PVH_ENTRY && !state.long_mode);
        expect_flat(mem, &state);
        expect_text(mem, 0);
        EXPECT(peek(mem, info, 8) == (1ull << 32 | 0x336ec578));
        EXPECT(!strcmp(peek_string(mem, peek(mem, info + 24, 8)), "pvh"));
        EXPECT(peek(mem, info + 32, 8) == 0xe0000 && peek(mem, info + 48, 4) == 6);
        uint64_t module = peek(mem, info + 16, 8);
        EXPECT(peek(mem, info + 12, 4) == 1 && peek(mem, module + 8, 8) == image.size);
        EXPECT(!memcmp(guest_mem_ptr(mem, peek(mem, module, 8), image.size), image.data, image.size));
        EXPECT(peek(mem, peek(mem, info + 40, 8) + 24, 8) == BOOT_LOW_END);
    }
    close(fd);
    boot_image_free(&image);
}

static void test_multiboot(struct guest_mem *mem, bool flat) {
    struct boot_image image = flat ? boot_image_multiboot_flat() : boot_image_multiboot_elf();
    char kernel[32], module[32], expected[64];
    struct boot_state state;
    int fds[] = {make_file(image.data, image.size, kernel), make_file("module", 6, module)};
    const struct boot_initrd initrds[] = {{module, "x=1 y"}, {module, NULL}};
    const struct boot_request request = {.kernel = kernel,
                                         .initrds = initrds,
                                         .initrd_count = 2,
                                         .command_line = "smp 2",
                                         .reserved = board_ranges,
                                         .reserved_count = 2};
    subject = flat ? "Multiboot by addresses" : "Multiboot ELF";
    memset(mem->base + BOOT_IMAGE_BASE, 0xee, 0x20000);
    if (load(&request, mem, &state)) {
        EXPECT(!"loaded");
    } else {
        uint64_t info = state.gpr[GPR_RBX], modules = peek(mem, info + 24, 4), map = peek(mem, info + 48, 4);
        EXPECT(state.rip == BOOT_IMAGE_ENTRY && state.gpr[GPR_RAX] == 0x2badb002 && !state.long_mode);
        expect_flat(mem, &state);
        expect_text(mem, flat ? 96 : 12);
        EXPECT(peek(mem, info, 4) == 0x24d);
        EXPECT(peek(mem, info + 4, 4) == 639 && peek(mem, info + 8, 4) == (0x3000000 - MIB) / KIB);
        snprintf(expected, sizeof expected, "%s smp 2", kernel);
        EXPECT(!strcmp(peek_string(mem, peek(mem, info + 16, 4)), expected));
        EXPECT(!strcmp(peek_string(mem, peek(mem, info + 64, 4)), "Nestor"));
        EXPECT(peek(mem, info + 20, 4) == 2);
        snprintf(expected, sizeof expected, "%s x=1 y", module);
        EXPECT(!strcmp(peek_string(mem, peek(mem, modules + 8, 4)), expected));
        for (unsigned i = 0; i < 2; i++) {
            uint64_t start = peek(mem, modules + i * 16, 4);
            EXPECT(peek(mem, modules + i * 16 + 4, 4) == start + 6 && !(start & 0xfff));
            EXPECT(!memcmp(guest_mem_ptr(mem, start, 6), "module", 6));
        }
        EXPECT(peek(mem, info + 44, 4) == 6 * 24 && peek(mem, map, 4) == 20);
        EXPECT(peek(mem, map + 12, 8) == BOOT_LOW_END && peek(mem, map + 20, 4) == 1);
    }
    for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
        close(fds[i]);
    boot_image_free(&image);
}

/* Every truncation of every image must be refused, or load as the whole one does; never crash. */
static void test_truncation(struct guest_mem *mem) {
    struct boot_image elf = boot_image_elf(true, true);
    struct boot_image images[] = {boot_image_bzimage(elf, 3), boot_image_bzimage(elf, 1),
                                  boot_image_multiboot_elf(), boot_image_multiboot_flat(), elf};
    for (size_t i = 0; i < ARRAY_SIZE(images); i++) {
        for (size_t size = 1; size < images[i].size; size += 1 + size / 16) {
            char kernel[32];
            struct boot_state state;
            int fd = make_file(images[i].data, size, kernel);
            const struct boot_request request = {.kernel = kernel};
            int result = load(&request, mem, &state);
            char name[64];
            snprintf(name, sizeof name, "image %zu cut to %zu of %zu bytes", i, size, images[i].size);
            subject = name;
            EXPECT(result < 0 || size + 15 >= images[i].size);
            close(fd);
        }
        boot_image_free(&images[i]);
    }
}

static void test_layout(struct guest_mem *mem) {
    struct boot_layout layout;
    struct boot_range map[BOOT_MAP_ENTRIES];
    const struct boot_range overlapping[] = {{0x200000, 0x2000, BOOT_RANGE_ACPI},
                                             {0x201000, 1, BOOT_RANGE_NVS}};
    subject = "layout";
    EXPECT(boot_layout_create(&layout, mem, overlapping, 2) < 0);
    EXPECT(!boot_layout_create(&layout, mem, board_ranges, 2));
    EXPECT(boot_layout_map(&layout, map) == 6);
    EXPECT(boot_layout_claim(&layout, 0xa0000, 1) < 0);
    EXPECT(boot_layout_claim(&layout, 64 * MIB - 1, 2) < 0);
    EXPECT(boot_layout_claim(&layout, UINT64_MAX - 5, 10) < 0);
    EXPECT(!boot_layout_claim(&layout, 0x1000, 0x1000));
    EXPECT(boot_layout_claim(&layout, 0x1fff, 1) < 0);
    EXPECT(boot_layout_place_low(&layout, 16, 4096, 0, BOOT_LOW_END) == 0x2000);
    EXPECT(boot_layout_place_low(&layout, MIB, 4096, 0x1000, UINT64_MAX) == MIB);
    EXPECT(boot_layout_place_high(&layout, MIB, 4096, 0, 0x3008000) == 0x2f00000);
    EXPECT(!boot_layout_place_high(&layout, 65 * MIB, 4096, 0, UINT64_MAX));
    EXPECT(!boot_layout_place_low(&layout, UINT64_MAX, 4096, 0, UINT64_MAX));
}

/* RAM above the hole appears behind it, and nothing is loaded there. */
static void test_high_memory(void) {
    struct guest_mem mem;
    struct boot_layout layout;
    struct boot_range map[BOOT_MAP_ENTRIES];
    subject = "memory above 4 GiB";
    if (guest_mem_create(&mem, 4 * GIB, 0))
        abort();
    EXPECT(!boot_layout_create(&layout, &mem, board_ranges, 1));
    size_t count = boot_layout_map(&layout, map);
    EXPECT(count == 5 && map[2].base == MIB && map[2].base + map[2].length == GUEST_LOW_RAM_END);
    EXPECT(map[3].type == BOOT_RANGE_RESERVED && map[4].base == GUEST_HIGH_RAM_START && map[4].length == GIB);
    EXPECT(boot_layout_place_high(&layout, MIB, 4096, 0, UINT64_MAX) == GUEST_LOW_RAM_END - MIB);
    guest_mem_destroy(&mem);
}

/* A file of a guest directory as tools/quickstart lays it out, or of an unpacked kernel package. */
static bool find_guest(const char *directory, const char *name, const char *pattern, char path[static 512]) {
    glob_t found;
    snprintf(path, 512, "%s/%s", directory, name);
    if (!access(path, R_OK))
        return true;
    snprintf(path, 512, "%s/%s", directory, pattern);
    bool any = !glob(path, 0, NULL, &found);
    if (any) {
        snprintf(path, 512, "%s", found.gl_pathv[0]);
        globfree(&found);
    }
    return any;
}

static void check_real(struct guest_mem *mem, const char *path, enum boot_protocol protocol, bool long_mode) {
    struct boot_state state;
    const struct boot_request request = {
        .kernel = path, .command_line = "console=ttyS0", .protocol = protocol};
    subject = path;
    if (load(&request, mem, &state)) {
        EXPECT(!"loaded");
        return;
    }
    printf("%s: %s\n", path, state.summary);
    EXPECT(state.long_mode == long_mode);
    EXPECT(state.rip >= state.kernel_start && state.rip < state.kernel_end);
    expect_flat(mem, &state);
    /* Linux's entry points and memtest86+'s all start with CLD, CLI, or (PVH) CLD; 64-bit 6.12 differs. */
    EXPECT(peek(mem, state.rip, 8) != 0);
    if (protocol != BOOT_PVH)
        EXPECT(peek(mem, state.gpr[GPR_RSI] + 0x202, 4) == 0x53726448);
}

static void test_real(void) {
    static const struct {
        const char *name, *pattern;
        bool is_64, has_payload;
    } guests[] = {
        {"kernels/6.1/vmlinuz", "vmlinuz-6.1.*-cloud-amd64", true, true},
        {"kernels/6.12/vmlinuz", "vmlinuz-6.12.*-cloud-amd64", true, true},
        {"kernels/686-pae/vmlinuz", "vmlinuz-*-686-pae", false, true},
        {"memtest86+.bin", "memtest86+x64.bin", true, false},
        {"memtest86+ia32.bin", "memtest86+ia32.bin", false, false},
    };
    const char *directory = getenv("NESTOR_GUESTS"), *home = getenv("HOME");
    char cache[256], path[512];
    struct guest_mem mem;
    if (!directory) {
        snprintf(cache, sizeof cache, "%s/.cache/nestor/guests", home ? home : "");
        directory = cache;
    }
    if (guest_mem_create(&mem, 256 * MIB, 0))
        abort();
    for (size_t i = 0; i < ARRAY_SIZE(guests); i++) {
        if (!find_guest(directory, guests[i].name, guests[i].pattern, path)) {
            printf("skipped: no %s or %s in %s (set NESTOR_GUESTS)\n", guests[i].name, guests[i].pattern,
                   directory);
            continue;
        }
        check_real(&mem, path, BOOT_SETUP, guests[i].is_64);
        check_real(&mem, path, BOOT_SETUP32, false);
        check_real(&mem, path, BOOT_AUTO, guests[i].is_64 && guests[i].has_payload);
        if (guests[i].has_payload)
            check_real(&mem, path, BOOT_PVH, false);
    }
    guest_mem_destroy(&mem);
}

int main(void) {
    struct guest_mem mem;
    if (guest_mem_create(&mem, 64 * MIB, 0))
        abort();
    test_layout(&mem);
    test_high_memory();
    test_linux(&mem);
    test_pvh(&mem, true);
    test_pvh(&mem, false);
    test_multiboot(&mem, false);
    test_multiboot(&mem, true);
    test_truncation(&mem);
    guest_mem_destroy(&mem);
    test_real();
    printf("%d failures\n", failures);
    return failures != 0;
}
