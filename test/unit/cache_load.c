/* The cache format's security: who signed what, memory that cannot change, code that runs from it, and the
 * store that VMs share it through, with brokers that lie.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cache-format/host_features.h"
#include "cache-format/mapping.h"
#include "cache-format/store_private.h"
#include "cache_sample.h"
#include "devices_check.h"

static char directory[] = "/tmp/nestor-cache-load.XXXXXX";
static struct ntc_secret_key key, other_key;

static const char *in_directory(const char *name) {
    static char path[8][256];
    static unsigned next;
    char *p = path[next++ % 8];
    snprintf(p, sizeof path[0], "%s/%s", directory, name);
    return p;
}

static void must(int result, const struct ntc_error *error) {
    if (!result)
        return;
    fprintf(stderr, "%s\n", error->line);
    exit(1);
}

#define REFUSED(call, kind)                                                                                  \
    do {                                                                                                     \
        struct ntc_error refused = {0};                                                                      \
        CHECK(call);                                                                                         \
        CHECK_EQUAL(refused.fault, kind);                                                                    \
        CHECK(refused.line[0] && !strchr(refused.line, '\n'));                                               \
    } while (0)

static void write_text(const char *name, const char *text, mode_t mode) {
    int fd = open(in_directory(name), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
    if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text) || fchmod(fd, mode))
        exit(1);
    close(fd);
}

static void test_keys(void) {
    struct ntc_error error;
    struct ntc_secret_key again;
    struct ntc_public_key public_key;
    struct ntc_trust trust = {0};
    struct stat info;
    must(ntc_key_generate(&key, &error), &error);
    must(ntc_key_generate(&other_key, &error), &error);
    must(ntc_key_write(&key, in_directory("key"), &error), &error);
    CHECK(!stat(in_directory("key"), &info) && (info.st_mode & 0777) == 0600);
    must(ntc_key_read_secret(&again, in_directory("key"), &error), &error);
    CHECK(!memcmp(&again, &key, sizeof key));
    must(ntc_key_read_public(&public_key, in_directory("key.pub"), &error), &error);
    CHECK(!memcmp(&public_key, &key.public_key, sizeof public_key));
    REFUSED(ntc_key_write(&other_key, in_directory("key"), &refused), NTC_FAULT_KEY);
    REFUSED(ntc_key_read_secret(&again, in_directory("key.pub"), &refused), NTC_FAULT_KEY);
    REFUSED(ntc_key_read_public(&public_key, in_directory("key"), &refused), NTC_FAULT_KEY);
    REFUSED(ntc_key_read_secret(&again, in_directory("none"), &refused), NTC_FAULT_IO);
    REFUSED(ntc_key_read_public(&public_key, directory, &refused), NTC_FAULT_KEY);
    CHECK(!chmod(in_directory("key"), 0640));
    REFUSED(ntc_key_read_secret(&again, in_directory("key"), &refused), NTC_FAULT_KEY);
    CHECK(!chmod(in_directory("key"), 0600));
    static const char wrong_id[] = "nestor-cache public key 1\nid 00112233445566778899aabbccddeeff\nkey "
                                   "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n";
    static const char *const bad[] = {"", "nestor-cache public key 1\n",
                                      "nestor-cache public key 2\nid 00\nkey x\n", wrong_id};
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        write_text("bad", bad[i], 0644);
        REFUSED(ntc_key_read_public(&public_key, in_directory("bad"), &refused), NTC_FAULT_KEY);
    }
    /* A directory of keys: only *.pub, the same key once. */
    must(ntc_trust_add(&trust, directory, &error), &error);
    must(ntc_trust_add(&trust, in_directory("key.pub"), &error), &error);
    CHECK_EQUAL(trust.count, 1);
    CHECK(ntc_trust_find(&trust, key.public_key.id) && !ntc_trust_find(&trust, other_key.public_key.id));
    REFUSED(ntc_trust_add(&trust, in_directory("none"), &refused), NTC_FAULT_IO);
    ntc_trust_destroy(&trust);
    CHECK(!setenv("XDG_CONFIG_HOME", in_directory("none"), 1));
    must(ntc_trust_add_default(&trust, &error), &error);
    CHECK_EQUAL(trust.count, 0);
}

/* -- Signatures and demands -- */

static struct ntc_trust trust_of(const struct ntc_secret_key *secret) {
    static struct ntc_public_key known[2];
    unsigned at = secret == &other_key;
    known[at] = secret->public_key;
    return (struct ntc_trust){.key = &known[at], .count = 1};
}

static void write_sample(const char *name, uint32_t units, const struct ntc_secret_key *secret) {
    struct ntc_error error;
    struct ntc_writer *writer = sample_writer(&(struct sample_options){.units = units, .with_ir = true});
    if (!writer)
        exit(1);
    must(ntc_writer_write(writer, in_directory(name), secret, NULL, &error), &error);
    ntc_writer_destroy(writer);
}

static void change_byte(const char *name, off_t at) {
    uint8_t byte;
    int fd = open(in_directory(name), O_RDWR | O_CLOEXEC);
    if (fd < 0 || pread(fd, &byte, 1, at) != 1)
        exit(1);
    byte ^= 0x10;
    if (pwrite(fd, &byte, 1, at) != 1)
        exit(1);
    close(fd);
}

static void test_load(void) {
    struct ntc_trust trust = trust_of(&key), others = trust_of(&other_key);
    struct ntc_demand demand = {.translator_abi = SAMPLE_ABI,
                                .translator_layout = SAMPLE_LAYOUT,
                                .host_features = ntc_host_features(),
                                .trust = &trust};
    struct ntc_error error;
    struct ntc_file file;
    write_sample("unsigned.ntc", 100, NULL);
    write_sample("signed.ntc", 100, &key);
    const char *path = in_directory("signed.ntc");
    must(ntc_file_load(&file, path, &demand, &error), &error);
    CHECK_EQUAL(sample_walk(&file.view), 100);
    CHECK(!file.view.ir); /* what a VM does not need it does not have */
    CHECK(!strcmp(file.origin, "copied"));
    /* The memory cannot change, whatever is done with the descriptor. */
    uint8_t byte = 0;
    CHECK(pwrite(file.memfd, &byte, 1, 0) < 0 && errno == EPERM);
    CHECK(ftruncate(file.memfd, 0) < 0 && ftruncate(file.memfd, 1 << 30) < 0);
    CHECK(mmap(NULL, 4096, PROT_WRITE, MAP_SHARED, file.memfd, 0) == MAP_FAILED);
    CHECK(fcntl(file.memfd, F_ADD_SEALS, F_SEAL_WRITE) < 0);
    CHECK(mprotect(file.base, 4096, PROT_READ | PROT_WRITE) < 0);
    /* The file changes, shrinks, goes: what is loaded stays. */
    change_byte("signed.ntc", 5000);
    CHECK(!truncate(in_directory("signed.ntc"), 10000));
    CHECK_EQUAL(sample_walk(&file.view), 100);
    CHECK(!unlink(in_directory("signed.ntc")));
    CHECK_EQUAL(sample_walk(&file.view), 100);
    ntc_file_close(&file);

    write_sample("signed.ntc", 100, &key);
    REFUSED(ntc_file_load(&file, in_directory("unsigned.ntc"), &demand, &refused), NTC_FAULT_UNSIGNED);
    demand.trust = &others;
    REFUSED(ntc_file_load(&file, path, &demand, &refused), NTC_FAULT_UNTRUSTED);
    demand.trust = &(struct ntc_trust){0};
    REFUSED(ntc_file_load(&file, path, &demand, &refused), NTC_FAULT_UNTRUSTED);
    /* Another key under the trusted one's name. */
    struct ntc_public_key false_key = other_key.public_key;
    memcpy(false_key.id, key.public_key.id, sizeof false_key.id);
    demand.trust = &(struct ntc_trust){.key = &false_key, .count = 1};
    REFUSED(ntc_file_load(&file, path, &demand, &refused), NTC_FAULT_SIGNATURE);
    demand.trust = &trust;
    demand.translator_abi++;
    REFUSED(ntc_file_load(&file, path, &demand, &refused), NTC_FAULT_ABI);
    demand.translator_abi--;
    demand.translator_layout ^= 1;
    REFUSED(ntc_file_load(&file, path, &demand, &refused), NTC_FAULT_ABI);
    demand.translator_layout ^= 1;
    REFUSED(ntc_file_load(&file, in_directory("none"), &demand, &refused), NTC_FAULT_IO);
    REFUSED(ntc_file_load(&file, directory, &demand, &refused), NTC_FAULT_IO);
    /* Signing again changes who signed, not what. */
    uint8_t root[NTC_DIGEST_SIZE];
    must(ntc_file_read(&file, path, &error), &error);
    memcpy(root, file.view.header->root, sizeof root);
    ntc_file_close(&file);
    must(ntc_sign_file(in_directory("unsigned.ntc"), in_directory("again.ntc"), &other_key, &error), &error);
    demand.trust = &others;
    must(ntc_file_load(&file, in_directory("again.ntc"), &demand, &error), &error);
    CHECK(!memcmp(root, file.view.header->root, sizeof root));
    ntc_file_close(&file);
}

static void test_features(void) {
    char text[400];
    uint64_t features = ntc_host_features();
    CHECK(features & NTC_HOST_BIT(NTC_HOST_SSE3));
    CHECK_EQUAL(ntc_host_feature_find("bmi2"), NTC_HOST_BIT(NTC_HOST_BMI2));
    CHECK(!ntc_host_feature_find("no_such") && !ntc_host_feature_name(63));
    ntc_host_features_print(NTC_HOST_BIT(NTC_HOST_AVX) | NTC_HOST_BIT(NTC_HOST_ADX) | 1ull << 63, text,
                            sizeof text);
    CHECK(!strcmp(text, "avx,adx,bit63"));
    ntc_host_features_print(~0ull, text, 8);
    CHECK(strlen(text) == 7);
    const struct ntc_header header = {.host_features = 1ull << 62 | NTC_HOST_BIT(NTC_HOST_SSE3)};
    const struct ntc_demand demand = {.host_features = features};
    REFUSED(ntc_demand_check(&demand, &header, "x", &refused), NTC_FAULT_FEATURES);
}

/* -- Running code -- */

/* mov rax, [rip + constant 0]; jmp [rip + slot 0]; padding; unlinked: ret */
static const uint8_t real_code[] = {0x48, 0x8b, 0x05, 0, 0, 0, 0, 0xff, 0x25, 0, 0, 0, 0, 0xcc, 0xcc, 0xc3};

static void write_real(const char *name) {
    static const struct ntc_reloc relocs[] = {{.place = 3, .kind = NTC_RELOC_CONST, .width = 4},
                                              {.place = 9, .kind = NTC_RELOC_SLOT, .width = 4}};
    static const struct ntc_unit_entry entry = {.guest = 0, .host = 0};
    static const uint64_t slot = 15;
    struct ntc_writer *writer;
    struct ntc_error error;
    uint32_t image;
    must(ntc_writer_create(&writer, &(struct ntc_writer_options){.producer = "test"}), &error);
    must(ntc_writer_add_image(writer,
                              &(struct ntc_image_input){.link_base = SAMPLE_KERNEL_BASE,
                                                        .link_length = SAMPLE_LENGTH,
                                                        .slide_align = 1},
                              &image),
         &error);
    for (uint64_t i = 0; i < 3000; i++) {
        const struct ntc_unit unit = {.link_address = SAMPLE_KERNEL_BASE + 16 * i,
                                      .guest_length = 8,
                                      .bytes = (const uint8_t *)&i,
                                      .code = real_code,
                                      .code_length = sizeof real_code,
                                      .slots = &slot,
                                      .slot_count = 1,
                                      .consts = &i,
                                      .const_count = 1,
                                      .relocs = relocs,
                                      .reloc_count = 2,
                                      .entries = &entry,
                                      .entry_count = 1};
        must(ntc_writer_add_unit(writer, &unit, 0), &error);
    }
    must(ntc_writer_write(writer, in_directory(name), &key, NULL, &error), &error);
    ntc_writer_destroy(writer);
}

static uint64_t call_unit(struct ntc_mapping *mapping, uint32_t number) {
    struct ntc_unit unit;
    uint64_t (*function)(void);
    uint32_t found, offset;
    if (ntc_unit_open(mapping->view, number, &unit))
        exit(1);
    ntc_mapping_prepare(mapping, unit.first_slot, unit.slot_count);
    const uint8_t *code = ntc_mapping_code(mapping, &unit);
    CHECK(ntc_mapping_holds(mapping, (uint64_t)(uintptr_t)code));
    CHECK(ntc_mapping_find(mapping, (uint64_t)(uintptr_t)code + 7, &found, &offset));
    CHECK(found == number && offset == 7);
    memcpy(&function, &code, sizeof function);
    return function();
}

static uint64_t answer_42(void) {
    return 42;
}

static void test_mapping(void) {
    struct ntc_trust trust = trust_of(&key);
    const struct ntc_demand demand = {.trust = &trust};
    struct ntc_mapping one, other;
    struct ntc_error error;
    struct ntc_file file;
    struct ntc_unit unit;
    uint32_t number, offset;
    write_real("real.ntc");
    must(ntc_file_load(&file, in_directory("real.ntc"), &demand, &error), &error);
    must(ntc_mapping_create(&one, &file, NULL, &error), &error);
    struct ntc_room room = {.size = one.size};
    room.at = mmap(NULL, room.size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(room.at != MAP_FAILED);
    room.size--;
    REFUSED(ntc_mapping_create(&other, &file, &room, &refused), NTC_FAULT_MEMORY);
    room.size++;
    must(ntc_mapping_create(&other, &file, &room, &error), &error);
    CHECK(other.base == room.at);
    CHECK_EQUAL(one.private_pages, 0);
    CHECK_EQUAL(call_unit(&one, 3), 3);
    CHECK_EQUAL(call_unit(&one, 7), 7);
    CHECK_EQUAL(one.private_pages, 1);
    CHECK_EQUAL(call_unit(&other, 7), 7);
    /* Linking in one mapping is no matter of the other. */
    CHECK(!ntc_unit_open(&file.view, 7, &unit));
    one.slots[unit.first_slot] = (uint64_t)(uintptr_t)answer_42;
    CHECK_EQUAL(call_unit(&one, 7), 42);
    CHECK_EQUAL(call_unit(&other, 7), 7);
    CHECK_EQUAL(call_unit(&one, 2999), 2999);
    CHECK_EQUAL(one.private_pages, 2);
    ntc_mapping_prepare(&one, 4000000, 10); /* of no unit: nothing happens */
    ntc_mapping_prepare(&one, 3, 0xffffffff);
    CHECK_EQUAL(one.private_pages, 2);
    CHECK(!ntc_mapping_find(&one, (uint64_t)(uintptr_t)one.code + one.code_size, &number, &offset));
    CHECK(!ntc_mapping_find(&one, (uint64_t)(uintptr_t)one.code + one.code_size - 1, &number, &offset));
    /* Code memory cannot be made writable. */
    CHECK(mprotect(one.base, 4096, PROT_READ | PROT_WRITE | PROT_EXEC) < 0);
    CHECK(mprotect(one.base, 4096, PROT_READ | PROT_WRITE) < 0);
    ntc_mapping_destroy(&one);
    ntc_mapping_destroy(&other);
    CHECK(!munmap(room.at, room.size));
    ntc_file_close(&file);
    must(ntc_file_read(&file, in_directory("real.ntc"), &error), &error);
    REFUSED(ntc_mapping_create(&one, &file, NULL, &refused), NTC_FAULT_STORE);
    ntc_file_close(&file);
}

/* -- The store -- */

static pid_t run_broker(const char *store) {
    pid_t child = fork();
    if (child)
        return child;
    struct ntc_error error = {0};
    int result = ntc_broker_run(store, 20, &error);
    if (result)
        fprintf(stderr, "%s\n", error.line);
    _exit(result ? 1 : 0);
}

static void wait_for_broker(const struct ntc_store_options *options) {
    struct ntc_store_entry entry;
    struct ntc_error error;
    for (unsigned i = 0; i < 1000 && ntc_store_list(options, &entry, 1, &error) < 0; i++)
        usleep(5000);
}

static void test_store(void) {
    char store[256];
    struct ntc_trust trust = trust_of(&key), others = trust_of(&other_key);
    struct ntc_demand demand = {
        .translator_abi = SAMPLE_ABI, .translator_layout = SAMPLE_LAYOUT, .trust = &trust};
    struct ntc_store_entry entry[2];
    struct ntc_error error;
    struct ntc_file file, second;
    int status;
    snprintf(store, sizeof store, "%s/store", directory);
    const struct ntc_store_options options = {.directory = store};
    CHECK_EQUAL(ntc_store_list(&options, entry, 2, &error), -ENOENT);
    CHECK_EQUAL(ntc_store_stop(&options, &error), -ENOENT);
    /* Without a store a VM loads its own copy. */
    must(ntc_store_open(&file, in_directory("signed.ntc"), &demand, &options, &error), &error);
    CHECK(!strcmp(file.origin, "copied"));
    ntc_file_close(&file);
    pid_t broker = run_broker(store);
    wait_for_broker(&options);
    must(ntc_store_open(&file, in_directory("signed.ntc"), &demand, &options, &error), &error);
    must(ntc_store_open(&second, in_directory("signed.ntc"), &demand, &options, &error), &error);
    CHECK(!strcmp(file.origin, "shared") && !strcmp(second.origin, "shared"));
    struct stat one, other;
    CHECK(!fstat(file.memfd, &one) && !fstat(second.memfd, &other) && one.st_ino == other.st_ino);
    CHECK_EQUAL(sample_walk(&second.view), 100);
    CHECK_EQUAL(ntc_store_list(&options, entry, 2, &error), 1);
    CHECK_EQUAL(entry[0].served, 2);
    CHECK_EQUAL(entry[0].size, file.size);
    CHECK(!memcmp(entry[0].root, file.view.header->root, sizeof entry[0].root));
    ntc_file_close(&file);
    ntc_file_close(&second);
    /* What is not trusted is refused before the store is asked, and though it holds the same bytes. */
    REFUSED(ntc_store_open(&file, in_directory("unsigned.ntc"), &demand, &options, &refused),
            NTC_FAULT_UNSIGNED);
    REFUSED(ntc_store_open(&file, in_directory("again.ntc"), &demand, &options, &refused),
            NTC_FAULT_UNTRUSTED);
    /* The same content under another signature is the same memory. */
    demand.trust = &others;
    must(ntc_store_open(&file, in_directory("again.ntc"), &demand, &options, &error), &error);
    CHECK(!strcmp(file.origin, "shared"));
    ntc_file_close(&file);
    demand.trust = &trust;
    /* A damaged file: the broker refuses it, and so does the VM. */
    write_sample("damaged.ntc", 101, &key);
    change_byte("damaged.ntc", 9000);
    REFUSED(ntc_store_open(&file, in_directory("damaged.ntc"), &demand, &options, &refused),
            NTC_FAULT_DIGEST);
    CHECK_EQUAL(ntc_store_list(&options, entry, 2, &error), 1);
    /* A second broker leaves the first one alone. */
    pid_t late = run_broker(store);
    CHECK(waitpid(late, &status, 0) == late && status == 0);
    CHECK_EQUAL(ntc_store_list(&options, entry, 2, &error), 1);
    must(ntc_store_stop(&options, &error), &error);
    CHECK(waitpid(broker, &status, 0) == broker && status == 0);
    /* A directory that others may enter is not used. */
    CHECK(!chmod(store, 0755));
    must(ntc_store_open(&file, in_directory("signed.ntc"), &demand, &options, &error), &error);
    CHECK(!strcmp(file.origin, "copied"));
    ntc_file_close(&file);
    REFUSED(ntc_store_list(&options, entry, 2, &refused), NTC_FAULT_STORE);
    CHECK(!chmod(store, 0700));
}

enum lie { LIE_UNSEALED, LIE_FILE, LIE_OTHER, LIE_NOTHING, LIE_SHORT, LIE_TWO, LIE_HANG_UP, LIES };

struct liar {
    int listener, honest, unsealed, plain;
    enum lie lie;
};

static void *lie(void *context) {
    struct liar *liar = context;
    struct store_request request;
    struct store_answer answer = {0};
    int client = accept4(liar->listener, NULL, NULL, SOCK_CLOEXEC), fd = -1;
    if (client < 0 || store_receive(client, &request, sizeof request, &fd))
        return NULL;
    if (fd >= 0)
        close(fd);
    int result = 0;
    switch (liar->lie) {
    case LIE_UNSEALED:
        result = store_send(client, &answer, sizeof answer, liar->unsealed);
        break;
    case LIE_FILE:
        result = store_send(client, &answer, sizeof answer, liar->plain);
        break;
    case LIE_OTHER:
        result = store_send(client, &answer, sizeof answer, liar->honest);
        break;
    case LIE_NOTHING:
        result = store_send(client, &answer, sizeof answer, -1);
        break;
    case LIE_SHORT:
        result = store_send(client, &answer, 20, liar->honest);
        break;
    case LIE_TWO:
        memset(&answer, 0xff, sizeof answer);
        result = store_send(client, &answer, sizeof answer, liar->honest);
        break;
    default:
        break;
    }
    CHECK(!result);
    close(client);
    return NULL;
}

/* Whatever a broker answers, the VM ends up with the right bytes. */
static void test_liars(void) {
    char store[256];
    struct ntc_trust trust = trust_of(&key);
    const struct ntc_demand demand = {
        .translator_abi = SAMPLE_ABI, .translator_layout = SAMPLE_LAYOUT, .trust = &trust};
    const struct ntc_demand any = {.trust = &trust};
    struct sockaddr_un address;
    struct ntc_error error;
    struct ntc_file honest, file;
    struct liar liar;
    int directory_fd;
    pthread_t thread;
    snprintf(store, sizeof store, "%s/store", directory);
    const struct ntc_store_options options = {.directory = store};
    must(ntc_file_load(&honest, in_directory("real.ntc"), &any, &error), &error);
    must(ntc_file_load(&file, in_directory("signed.ntc"), &demand, &error), &error);
    liar.honest = honest.memfd;
    liar.plain = open(in_directory("signed.ntc"), O_RDONLY | O_CLOEXEC);
    liar.unsealed = memfd_create("unsealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    CHECK(write(liar.unsealed, file.base, file.size) == (ssize_t)file.size);
    ntc_file_close(&file);
    must(store_directory(store, true, &directory_fd, &error), &error);
    store_address(directory_fd, &address);
    liar.listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    CHECK(!bind(liar.listener, (struct sockaddr *)&address, sizeof address) && !listen(liar.listener, 4));
    for (liar.lie = 0; liar.lie < LIES; liar.lie++) {
        if (pthread_create(&thread, NULL, lie, &liar))
            exit(1);
        must(ntc_store_open(&file, in_directory("signed.ntc"), &demand, &options, &error), &error);
        CHECK(!strcmp(file.origin, "copied"));
        CHECK_EQUAL(sample_walk(&file.view), 100);
        ntc_file_close(&file);
        pthread_join(thread, NULL);
    }
    close(liar.listener);
    close(liar.unsealed);
    close(liar.plain);
    ntc_file_close(&honest);
    unlinkat(directory_fd, STORE_SOCKET, 0);
    unlinkat(directory_fd, STORE_LOCK, 0);
    close(directory_fd);
    CHECK(!rmdir(store));
}

static void clean_up(void) {
    static const char *const names[] = {"key",        "key.pub",   "bad",      "unsigned.ntc",
                                        "signed.ntc", "again.ntc", "real.ntc", "damaged.ntc"};
    for (unsigned i = 0; i < ARRAY_SIZE(names); i++)
        unlink(in_directory(names[i]));
    CHECK(!rmdir(directory));
}

int main(void) {
    if (!mkdtemp(directory))
        return 1;
    test_keys();
    test_load();
    test_features();
    test_mapping();
    test_store();
    test_liars();
    clean_up();
    return check_result();
}
