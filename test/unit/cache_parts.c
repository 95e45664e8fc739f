/* Large cache files that come in parts (cache-format/parts.h): what is there, what is asked for, that nothing
 * of it can change, and that whatever happens to the file, the store or a part, units are right or refused.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cache-format/parts.h"
#include "cache-format/store_private.h"
#include "cache_sample.h"
#include "devices_check.h"

#define UNITS 9000u

static char directory[] = "/tmp/nestor-cache-parts.XXXXXX";
static char path[128], other_path[128], store[128];
static struct ntc_secret_key key;
static struct ntc_trust trust;
static const struct ntc_demand demand = {
    .translator_abi = SAMPLE_ABI, .translator_layout = SAMPLE_LAYOUT, .trust = &trust};
static const struct ntc_store_options options = {.directory = store};
static pid_t broker;

static void must(int result, const struct ntc_error *error) {
    if (!result)
        return;
    fprintf(stderr, "%s\n", error->line);
    exit(1);
}

static void write_sample(const char *to, uint32_t units) {
    struct ntc_error error;
    struct ntc_writer *writer = sample_writer(&(struct sample_options){.units = units});
    if (!writer)
        exit(1);
    must(ntc_writer_write(writer, to, &key, NULL, &error), &error);
    ntc_writer_destroy(writer);
}

static void start_broker(void) {
    struct ntc_store_entry entry;
    struct ntc_error error;
    broker = fork();
    if (!broker)
        _exit(ntc_broker_run(store, 60, &error) ? 1 : 0);
    for (unsigned i = 0; i < 4000 && ntc_store_list(&options, &entry, 1, &error) < 0; i++)
        usleep(5000);
}

static void stop_broker(void) {
    struct ntc_error error;
    int status;
    must(ntc_store_stop(&options, &error), &error);
    CHECK(waitpid(broker, &status, 0) == broker && status == 0);
}

static void open_shared(struct ntc_file *file, const char *from) {
    struct ntc_error error;
    must(ntc_store_open(file, from, &demand, &options, &error), &error);
    CHECK(!strcmp(file->origin, "shared"));
}

/* Bytes of the broker's mappings of memory files that it can write. */
static uint64_t writable_bytes(void) {
    char name[64], line[512];
    uint64_t total = 0;
    snprintf(name, sizeof name, "/proc/%d/maps", (int)broker);
    FILE *maps = fopen(name, "re");
    if (!maps)
        exit(1);
    while (fgets(line, sizeof line, maps)) {
        unsigned long from, to;
        char access[8];
        if (strstr(line, "nestor-cache") && sscanf(line, "%lx-%lx %7s", &from, &to, access) == 3 &&
            access[1] == 'w')
            total += to - from;
    }
    fclose(maps);
    return total;
}

static void check_cannot_change(const struct ntc_file *file) {
    uint8_t byte = 0;
    CHECK(pwrite(file->memfd, &byte, 1, 0) < 0);
    CHECK(ftruncate(file->memfd, 0) < 0 && ftruncate(file->memfd, 1 << 30) < 0);
    CHECK(fallocate(file->memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) < 0);
    CHECK(mmap(NULL, 4096, PROT_WRITE, MAP_SHARED, file->memfd, 0) == MAP_FAILED);
    CHECK(fcntl(file->memfd, F_ADD_SEALS, F_SEAL_WRITE) < 0);
    CHECK(mprotect(file->base, 4096, PROT_READ | PROT_WRITE) < 0);
}

static void test_whole(void) {
    struct ntc_file file, second;
    open_shared(&file, path);
    CHECK(file.view.parts != NULL);
    uint64_t all = file.view.parts->chunks * (uint64_t)NTC_CHUNK_SIZE;
    CHECK(ntc_file_count(&file).loaded < all);
    check_cannot_change(&file);
    open_shared(&second, path);
    CHECK_EQUAL(sample_walk(&file.view), UNITS);
    CHECK(ntc_file_count(&file).requests > 0);
    /* What the first one had loaded, the second one has. */
    CHECK_EQUAL(sample_walk(&second.view), UNITS);
    CHECK_EQUAL(ntc_file_count(&second).requests, 0);
    check_cannot_change(&second);
    /* Of what is loaded the store itself can write nothing. */
    uint64_t missing = all - ntc_file_count(&file).loaded;
    CHECK(writable_bytes() <= missing + ntc_parts_state_size(file.view.parts->chunks));
    ntc_file_close(&file);
    ntc_file_close(&second);
}

static void *walk(void *context) {
    CHECK_EQUAL(sample_walk(context), UNITS);
    return NULL;
}

/* Several threads and several VMs at once, of a file that nobody has read yet. */
static void test_together(void) {
    struct ntc_file file[2];
    pthread_t thread[4];
    stop_broker();
    start_broker();
    open_shared(&file[0], path);
    open_shared(&file[1], path);
    for (unsigned i = 0; i < 4; i++)
        if (pthread_create(&thread[i], NULL, walk, &file[i % 2].view))
            exit(1);
    for (unsigned i = 0; i < 4; i++)
        pthread_join(thread[i], NULL);
    ntc_file_close(&file[0]);
    ntc_file_close(&file[1]);
}

static void overwrite(const char *name, uint64_t at, uint64_t length) {
    static const uint8_t nonsense[4096] = {0x5a};
    int fd = open(name, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        exit(1);
    for (; length; length -= length < sizeof nonsense ? length : sizeof nonsense, at += sizeof nonsense)
        if (pwrite(fd, nonsense, length < sizeof nonsense ? length : sizeof nonsense, (off_t)at) < 0)
            exit(1);
    close(fd);
}

/* Units that open, of what is left of a file. Those that do are right. */
static uint32_t count_good(const struct ntc_view *view) {
    uint32_t good = 0;
    for (uint32_t i = 0; i < view->count[NTC_SECTION_UNITS]; i++) {
        struct ntc_unit unit;
        struct sample_unit sample;
        if (ntc_unit_open(view, i, &unit))
            continue;
        good++;
        sample_unit_make(&sample, unit.abi_data);
        CHECK(unit.guest_length == sample.unit.guest_length &&
              !memcmp(unit.bytes, sample.bytes, unit.guest_length));
        sample_unit_destroy(&sample);
    }
    return good;
}

/* The file is written over, cut off, replaced or removed while it is in use. */
static void test_changes(void) {
    struct ntc_file file;
    for (unsigned change = 0; change < 4; change++) {
        stop_broker();
        start_broker();
        write_sample(other_path, UNITS);
        open_shared(&file, other_path);
        const struct ntc_section *code = &file.view.header->section[0];
        CHECK_EQUAL(code->kind, NTC_SECTION_CODE);
        if (change == 0)
            overwrite(other_path, code->offset + code->length / 2, code->length / 2);
        else if (change == 1)
            CHECK(!truncate(other_path, (off_t)(code->offset + code->length / 2)));
        else if (change == 2)
            write_sample(other_path, 20); /* renamed over it: ours is the old one */
        else
            CHECK(!unlink(other_path));
        uint32_t good = count_good(&file.view);
        CHECK(change < 2 ? good > 0 && good < UNITS : good == UNITS);
        CHECK_EQUAL(file.view.parts->told, change < 2);
        CHECK_EQUAL(count_good(&file.view), good);
        ntc_file_close(&file);
    }
    /* A good file mends what a bad one could not give. */
    write_sample(other_path, UNITS);
    open_shared(&file, other_path);
    CHECK_EQUAL(count_good(&file.view), UNITS);
    ntc_file_close(&file);
}

/* A VM does not wait: what is not there is refused, and is there when it has come. What cannot come is told
 * of once, as where it is waited for. */
static void test_no_waiting(void) {
    struct ntc_file file;
    for (unsigned damaged = 0; damaged < 2; damaged++) {
        stop_broker();
        start_broker();
        write_sample(other_path, UNITS);
        open_shared(&file, other_path);
        const struct ntc_section *code = &file.view.header->section[0];
        if (damaged)
            overwrite(other_path, code->offset + code->length / 2, code->length / 2);
        ntc_file_do_not_wait(&file);
        uint32_t good = count_good(&file.view), before = 0;
        CHECK(good > 0 && good < UNITS);
        /* As long as it takes: only a store that gives nothing more ends this early. */
        for (unsigned i = 0;
             i < 6000 && (damaged ? !file.view.parts->told || good < UNITS / 2 : good < UNITS); i++) {
            CHECK(good >= before);
            before = good;
            usleep(5000);
            good = count_good(&file.view);
        }
        CHECK(damaged ? good >= UNITS / 2 && good < UNITS : good == UNITS);
        CHECK_EQUAL(file.view.parts->told, damaged != 0);
        CHECK(!file.view.parts->lost);
        if (!damaged)
            CHECK_EQUAL(sample_walk(&file.view), UNITS);
        ntc_file_close(&file);
    }
    /* The store ends: that is told, and nothing waits for it. */
    write_sample(other_path, UNITS);
    stop_broker();
    start_broker();
    open_shared(&file, other_path);
    ntc_file_do_not_wait(&file);
    stop_broker();
    uint32_t good = count_good(&file.view);
    CHECK(good > 0 && good < UNITS && count_good(&file.view) == good);
    CHECK(file.view.parts->lost && file.view.parts->told);
    ntc_file_close(&file);
    start_broker();
}

/* The store ends: what is there stays, what is not is refused, at once. */
static void test_store_ends(void) {
    struct ntc_file file;
    struct ntc_unit unit;
    stop_broker();
    start_broker();
    open_shared(&file, path);
    CHECK(!ntc_unit_open(&file.view, 0, &unit));
    stop_broker();
    CHECK(!ntc_unit_open(&file.view, 0, &unit));
    uint32_t good = count_good(&file.view);
    CHECK(good > 0 && good < UNITS);
    CHECK(file.view.parts->lost && file.view.parts->told);
    CHECK(file.view.parts->requests <= 64 * (uint64_t)file.view.parts->chunks);
    ntc_file_close(&file);
    start_broker();
}

/* Requests that no VM would make leave the store and the others alone. */
static void test_bad_requests(void) {
    struct sockaddr_un address;
    struct ntc_error error;
    struct ntc_file file;
    int directory_fd;
    must(store_directory(store, true, &directory_fd, &error), &error);
    store_address(directory_fd, &address);
    open_shared(&file, path);
    const struct ntc_section *code = &file.view.header->section[0];
    uint32_t cold = (uint32_t)((code->offset + code->length * 3 / 4) / NTC_CHUNK_SIZE);
    for (unsigned i = 0; i < 6; i++) {
        struct store_request request = {.what = STORE_LOAD, .count = 1};
        struct store_answer answer;
        int client = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
        CHECK(!connect(client, (struct sockaddr *)&address, sizeof address));
        memcpy(request.root, file.view.header->root, sizeof request.root);
        if (i == 0)
            request.count = UINT32_MAX; /* too many; and nobody sent a file here */
        if (i == 1)
            request.root[0] ^= 1;
        if (i == 2)
            request.what = 99;
        int fd = i == 4   ? open(path, O_RDONLY | O_CLOEXEC)
                 : i == 5 ? open("/dev/null", O_RDONLY | O_CLOEXEC)
                          : -1;
        if (i >= 4)
            request.chunk[0] = i == 4 ? UINT32_MAX : cold;
        CHECK(!store_send(client, &request, i == 3 ? 20 : sizeof request, fd));
        int result = store_receive(client, &answer, sizeof answer, NULL);
        if (i == 2 || i == 3)
            CHECK(result);
        else
            CHECK(!result && !answer.result == (i == 4));
        if (fd >= 0)
            close(fd);
        close(client);
    }
    /* Wishes have no answers: too many end the connection, for what there is not they are passed over. */
    for (unsigned i = 0; i < 2; i++) {
        struct store_request request = {.what = STORE_WISH, .count = i ? UINT32_MAX : 2};
        struct store_answer answer;
        int client = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        CHECK(!connect(client, (struct sockaddr *)&address, sizeof address));
        memcpy(request.root, file.view.header->root, sizeof request.root);
        request.chunk[0] = UINT32_MAX;
        request.chunk[1] = cold;
        CHECK(!store_send(client, &request, sizeof request, fd));
        request.what = STORE_LIST;
        int result = store_send(client, &request, sizeof request, -1);
        if (!result)
            result = store_receive(client, &answer, sizeof answer, NULL);
        CHECK(i ? result : !result && !answer.result && answer.detail);
        close(fd);
        close(client);
    }
    CHECK_EQUAL(sample_walk(&file.view), UNITS);
    ntc_file_close(&file);
    close(directory_fd);
}

int main(void) {
    struct ntc_error error;
    if (!mkdtemp(directory))
        return 1;
    snprintf(path, sizeof path, "%s/a.ntc", directory);
    snprintf(other_path, sizeof other_path, "%s/b.ntc", directory);
    snprintf(store, sizeof store, "%s/store", directory);
    must(ntc_key_generate(&key, &error), &error);
    trust = (struct ntc_trust){.key = &key.public_key, .count = 1};
    write_sample(path, UNITS);
    start_broker();
    test_whole();
    test_together();
    test_changes();
    test_no_waiting();
    test_store_ends();
    test_bad_requests();
    stop_broker();
    unlink(path);
    unlink(other_path);
    char lock[sizeof store + sizeof STORE_LOCK + 1];
    snprintf(lock, sizeof lock, "%s/%s", store, STORE_LOCK);
    unlink(lock);
    CHECK(!rmdir(store) && !rmdir(directory));
    return check_result();
}
