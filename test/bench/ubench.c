/*
 * A static micro-benchmark that runs the same in a guest and on the host: one "name value unit" line per
 * item.
 *
 *     ubench [SECONDS-PER-ITEM [BUSYBOX|- [ITEM]]]
 *
 * An item is a function that repeats its work n times; n grows until a run lasts long enough. Every item
 * starts with one unmeasured round, so that paging in and translating the code are not counted. The items and
 * what they stand for are in the table before main(). Built with gcc -O2 -static -pthread by compare.py.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

/* How long each item runs. */
static double item_seconds = 0.4;

static void print_item(const char *name, double value, const char *unit) {
    printf("%s %.6g %s\n", name, value, unit);
    fflush(stdout);
}

/* Run work(n) with growing n until it lasts item_seconds; returns the seconds of one repetition. */
static double seconds_per_round(void (*work)(long), long n) {
    work(1);
    for (;;) {
        double begin = now();
        work(n);
        double elapsed = now() - begin;
        if (elapsed >= item_seconds)
            return elapsed / n;
        double growth = elapsed > 1e-4 ? item_seconds / elapsed * 1.25 : 16;
        if (growth > 16)
            growth = 16;
        if (growth < 1.3)
            growth = 1.3;
        n = (long)(n * growth) + 1;
    }
}

static volatile uint64_t sink;

static void run_getppid(long n) {
    while (n--)
        syscall(SYS_getppid);
}

static void run_clock_gettime(long n) {
    struct timespec t;
    while (n--)
        clock_gettime(CLOCK_MONOTONIC, &t);
}

static void run_sched_yield(long n) {
    while (n--)
        sched_yield();
}

static int ping[2], pong[2];
static void run_pipe(long n) {
    char c = 0;
    while (n--) {
        if (write(ping[1], &c, 1) != 1 || read(pong[0], &c, 1) != 1)
            exit(9);
    }
}

static void run_fork(long n) {
    while (n--) {
        pid_t p = fork();
        if (!p)
            _exit(0);
        waitpid(p, 0, 0);
    }
}

static char *busybox = "/bin/busybox";
static void run_vfork_exec(long n) {
    char *av[] = {"true", 0}, *ev[] = {0};
    while (n--) {
        pid_t p = vfork();
        if (!p) {
            execve(busybox, av, ev);
            _exit(99);
        }
        int s;
        waitpid(p, &s, 0);
        if (s)
            exit(8);
    }
}

static void run_fork_exec(long n) {
    char *av[] = {"true", 0}, *ev[] = {0};
    while (n--) {
        pid_t p = fork();
        if (!p) {
            execve(busybox, av, ev);
            _exit(99);
        }
        int s;
        waitpid(p, &s, 0);
        if (s)
            exit(8);
    }
}

static void run_mmap_touch(long n) {
    while (n--) {
        size_t z = 64 << 20;
        char *p = mmap(0, z, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        madvise(p, z, MADV_NOHUGEPAGE);
        for (size_t i = 0; i < z; i += 4096)
            p[i] = 1;
        munmap(p, z);
    }
}

static void run_mprotect(long n) {
    static char *p;
    if (!p)
        p = mmap(0, 4096, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    while (n--) {
        mprotect(p, 4096, PROT_READ);
        mprotect(p, 4096, 3);
        *p = 1;
    }
}

static void on_signal(int number) {
    (void)number;
}

static void run_signal(long n) {
    signal(SIGUSR1, on_signal);
    pid_t p = getpid();
    while (n--)
        syscall(SYS_kill, p, SIGUSR1);
}

static char *segv_page;
static void on_segv(int number) {
    (void)number;
    mprotect(segv_page, 4096, 3);
}

static void run_segv(long n) {
    if (!segv_page)
        segv_page = mmap(0, 4096, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    signal(SIGSEGV, on_segv);
    while (n--) {
        mprotect(segv_page, 4096, 1);
        *(volatile char *)segv_page = 1;
    }
}

#define SIEVE_SIZE 4000000
static void run_sieve(long n) {
    static char *b;
    if (!b)
        b = malloc(SIEVE_SIZE + 1);
    while (n--) {
        memset(b, 1, SIEVE_SIZE + 1);
        long c = 0;
        for (long i = 2; i <= SIEVE_SIZE; i++)
            if (b[i]) {
                c++;
                for (long j = i * 2; j <= SIEVE_SIZE; j += i)
                    b[j] = 0;
            }
        if (c != 283146)
            exit(7);
        sink += c;
    }
}

static const uint32_t sha256_constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
static uint32_t rotate_right(uint32_t x, unsigned n) {
    return x >> n | x << (32 - n);
}

static void sha256_block(uint32_t *h, const uint8_t *p) {
    uint32_t w[64], s[8];
    for (int i = 0; i < 16; i++) {
        uint32_t v;
        memcpy(&v, p + 4 * i, 4);
        w[i] = __builtin_bswap32(v);
    }
    for (int i = 16; i < 64; i++) {
        uint32_t a = rotate_right(w[i - 15], 7) ^ rotate_right(w[i - 15], 18) ^ (w[i - 15] >> 3),
                 b = rotate_right(w[i - 2], 17) ^ rotate_right(w[i - 2], 19) ^ (w[i - 2] >> 10);
        w[i] = w[i - 16] + a + w[i - 7] + b;
    }
    memcpy(s, h, 32);
    for (int i = 0; i < 64; i++) {
        uint32_t t1 = s[7] + (rotate_right(s[4], 6) ^ rotate_right(s[4], 11) ^ rotate_right(s[4], 25)) +
                      ((s[4] & s[5]) ^ (~s[4] & s[6])) + sha256_constants[i] + w[i],
                 t2 = (rotate_right(s[0], 2) ^ rotate_right(s[0], 13) ^ rotate_right(s[0], 22)) +
                      ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
        s[7] = s[6];
        s[6] = s[5];
        s[5] = s[4];
        s[4] = s[3] + t1;
        s[3] = s[2];
        s[2] = s[1];
        s[1] = s[0];
        s[0] = t1 + t2;
    }
    for (int i = 0; i < 8; i++)
        h[i] += s[i];
}

static void run_sha256(long n) {
    static uint8_t b[1 << 16];
    uint32_t h[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                     0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    while (n--)
        for (int i = 0; i < (1 << 16); i += 64)
            sha256_block(h, b + i);
    sink += h[0];
}

#define MATRIX_SIZE 256
static double matrix_a[MATRIX_SIZE][MATRIX_SIZE], matrix_b[MATRIX_SIZE][MATRIX_SIZE],
    matrix_c[MATRIX_SIZE][MATRIX_SIZE];
static void run_matmul(long n) {
    while (n--) {
        memset(matrix_c, 0, sizeof(matrix_c));
        for (int i = 0; i < MATRIX_SIZE; i++)
            for (int k = 0; k < MATRIX_SIZE; k++) {
                double a = matrix_a[i][k];
                for (int j = 0; j < MATRIX_SIZE; j++)
                    matrix_c[i][j] += a * matrix_b[k][j];
            }
        sink += (uint64_t)matrix_c[3][5];
    }
}

static void run_memcpy(long n) {
    static char *a, *b;
    size_t z = 16 << 20;
    if (!a) {
        a = malloc(z);
        b = malloc(z);
        memset(a, 1, z);
        memset(b, 2, z);
    }
    while (n--) {
        memcpy(a, b, z);
        __asm__ volatile("" ::"r"(a) : "memory");
    }
}

static void run_rep_movsb(long n) {
    static char a[4096], b[4096];
    while (n--) {
        void *d = a, *s = b;
        size_t c = 4096;
        __asm__ volatile("rep movsb" : "+D"(d), "+S"(s), "+c"(c)::"memory");
    }
}

static void run_chase(long n) {
    static void **p;
    enum { N = 8 << 20 };
    if (!p) {
        p = malloc(N * sizeof *p);
        uint32_t *ix = malloc(N * 4);
        for (uint32_t i = 0; i < N; i++)
            ix[i] = i;
        uint64_t r = 88172645463325252ull;
        for (uint32_t i = N - 1; i > 0; i--) {
            r ^= r << 13;
            r ^= r >> 7;
            r ^= r << 17;
            uint32_t j = r % i, t = ix[i];
            ix[i] = ix[j];
            ix[j] = t;
        }
        for (uint32_t i = 0; i < N; i++)
            p[ix[i]] = &p[ix[(i + 1) % N]];
        free(ix);
    }
    void **q = p;
    while (n--)
        q = *q;
    sink += (uintptr_t)q;
}

/* A bytecode interpreter: one indirect branch for every few instructions. */
static void run_interpreter(long n) {
    static const unsigned char program[] = {0, 1, 2, 3, 1, 0, 2, 4, 5, 1, 3, 2, 0, 5, 4, 6};
    static void *const operations[] = {&&add, &&xor, &&triple, &&add_seven, &&halve, &&rotate, &&loop};
    uint64_t x = 1, y = 2;
    const unsigned char *pc = program;
#define NEXT goto *operations[*pc++]
    NEXT;
add:
    x += y;
    NEXT;
    xor : y ^= x;
    NEXT;
triple:
    x = x * 3 + 1;
    NEXT;
add_seven:
    y += 7;
    NEXT;
halve:
    x >>= 1;
    NEXT;
rotate:
    y = y << 3 | y >> 61;
    NEXT;
loop:
    if (--n > 0) {
        pc = program;
        NEXT;
    }
#undef NEXT
    sink += x + y;
}

static __attribute__((noinline)) uint64_t fib(int n) {
    return n < 2 ? (uint64_t)n : fib(n - 1) + fib(n - 2);
}

static void run_fib(long n) {
    while (n--)
        sink += fib(27);
}

/* What a JIT does: rewrite "mov eax, imm32; ret", then call it. */
static void run_jit(long n) {
    static unsigned char *p;
    if (!p)
        p = mmap(0, 4096, 7, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (long i = 0; i < n; i++) {
        p[0] = 0xb8;
        int32_t v = (int)i;
        memcpy(p + 1, &v, 4);
        p[5] = 0xc3;
        __asm__ volatile("" ::: "memory");
        if (((int (*)(void))p)() != (int)i) {
            puts("SMC-BROKEN");
            exit(6);
        }
    }
}

static void run_cpuid(long n) {
    while (n--) {
        unsigned a = 0, b, c = 0, d;
        __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    }
}

static void run_rdtsc(long n) {
    while (n--)
        sink += __rdtsc();
}

static void run_atomic(long n) {
    static volatile long v;
    while (n--)
        __sync_fetch_and_add(&v, 1);
}

static void run_divide(long n) {
    uint64_t x = 0x123456789abcdefull;
    while (n--) {
        __asm__ volatile("" : "+r"(x));
        x = x / ((n & 0xff) | 3) + 0x987654321ull * n;
    }
    sink += x;
}

static pthread_mutex_t turn_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t turn_changed = PTHREAD_COND_INITIALIZER;
static int turn;
static long turns;
static void *take_turns(void *a) {
    int me = (int)(long)a;
    for (long i = 0; i < turns; i++) {
        pthread_mutex_lock(&turn_lock);
        while (turn != me)
            pthread_cond_wait(&turn_changed, &turn_lock);
        turn = !me;
        pthread_cond_signal(&turn_changed);
        pthread_mutex_unlock(&turn_lock);
    }
    return 0;
}

static void run_mutex(long n) {
    turns = n;
    turn = 0;
    pthread_t a, b;
    pthread_create(&a, 0, take_turns, (void *)0);
    pthread_create(&b, 0, take_turns, (void *)1);
    pthread_join(a, 0);
    pthread_join(b, 0);
}

static void run_thread(long n) {
    while (n--) {
        pthread_t a;
        turns = 0;
        pthread_create(&a, 0, take_turns, 0);
        pthread_join(a, 0);
    }
}

static void run_file_read(long n) {
    static char b[65536];
    int fd = open("/tmp/ubfile", O_RDWR | O_CREAT | O_TRUNC, 0600);
    for (int i = 0; i < 256; i++)
        if (write(fd, b, sizeof b) != sizeof b)
            exit(5);
    while (n--) {
        lseek(fd, 0, 0);
        while (read(fd, b, sizeof b) > 0)
            ;
    }
    close(fd);
}

enum scale { PER_SECOND, TIME };

/* An item's figure is `factor` over the seconds of a round (a rate) or times them (a time). */
static const struct item {
    const char *name;
    void (*work)(long);
    long first;
    enum scale scale;
    double factor;
    const char *unit;
} items[] = {
    {"null_syscall", run_getppid, 1000, TIME, 1e9, "ns"},
    {"clock_gettime", run_clock_gettime, 1000, TIME, 1e9, "ns"},
    {"sched_yield", run_sched_yield, 1000, TIME, 1e9, "ns"},
    {"pipe_pingpong", run_pipe, 100, TIME, 1e9, "ns/roundtrip"},
    {"fork_exit_wait", run_fork, 10, TIME, 1e6, "us"},
    {"fork_exec_true", run_fork_exec, 5, TIME, 1e6, "us"},
    {"vfork_exec_true", run_vfork_exec, 5, TIME, 1e6, "us"},
    {"mmap64M_touch", run_mmap_touch, 1, TIME, 1e9 / 16384, "ns/page"},
    {"mprotect_pair", run_mprotect, 100, TIME, 1e9, "ns"},
    {"signal_self", run_signal, 100, TIME, 1e9, "ns"},
    {"segv_handle", run_segv, 100, TIME, 1e9, "ns"},
    {"sieve_4M", run_sieve, 1, TIME, 1e3, "ms"},
    {"sha256", run_sha256, 1, PER_SECOND, 65536 / 1e6, "MB/s"},
    {"matmul_f64_256", run_matmul, 1, PER_SECOND, 2.0 * MATRIX_SIZE *MATRIX_SIZE *MATRIX_SIZE / 1e6,
     "MFLOPS"},
    {"memcpy_16M", run_memcpy, 1, PER_SECOND, (16 << 20) / 1e9, "GB/s"},
    {"rep_movsb_4K", run_rep_movsb, 100, PER_SECOND, 4096 / 1e9, "GB/s"},
    {"chase_64M", run_chase, 10000, TIME, 1e9, "ns/load"},
    {"interp_indirect", run_interpreter, 1000, TIME, 1e9 / 16, "ns/op"},
    {"fib27", run_fib, 1, TIME, 1e3, "ms"},
    {"int_div", run_divide, 1000, TIME, 1e9, "ns"},
    {"jit_smc", run_jit, 100, TIME, 1e9, "ns/rewrite"},
    {"cpuid", run_cpuid, 100, TIME, 1e9, "ns"},
    {"rdtsc", run_rdtsc, 1000, TIME, 1e9, "ns"},
    {"atomic_add", run_atomic, 1000, TIME, 1e9, "ns"},
    {"mutex_pingpong", run_mutex, 100, TIME, 1e9 / 2, "ns/handoff"},
    {"thread_create_join", run_thread, 10, TIME, 1e6, "us"},
    {"file_read_16M", run_file_read, 1, PER_SECOND, (16 << 20) / 1e9, "GB/s"},
};

/* The other end of run_pipe(): sends back what it gets. */
static pid_t start_echo(void) {
    if (pipe(ping) || pipe(pong))
        exit(1);
    pid_t child = fork();
    if (!child) {
        char c;
        while (read(ping[0], &c, 1) == 1)
            if (write(pong[1], &c, 1) != 1)
                break;
        _exit(0);
    }
    return child;
}

static void stop_echo(pid_t child) {
    kill(child, SIGKILL);
    waitpid(child, 0, 0);
    for (int i = 0; i < 2; i++) {
        close(ping[i]);
        close(pong[i]);
    }
}

int main(int argc, char **argv) {
    const char *only = argc > 3 ? argv[3] : NULL;
    if (argc > 1)
        item_seconds = atof(argv[1]);
    if (argc > 2 && strcmp(argv[2], "-"))
        busybox = argv[2];
    for (int i = 0; i < MATRIX_SIZE; i++)
        for (int j = 0; j < MATRIX_SIZE; j++) {
            matrix_a[i][j] = i + j * 0.5;
            matrix_b[i][j] = i - j * 0.25;
        }
    double begin = now();
    for (size_t i = 0; i < sizeof(items) / sizeof(items[0]); i++) {
        const struct item *item = &items[i];
        if (only && strcmp(only, item->name))
            continue;
        pid_t echo = item->work == run_pipe ? start_echo() : 0;
        double seconds = seconds_per_round(item->work, item->first);
        print_item(item->name, item->scale == TIME ? seconds * item->factor : item->factor / seconds,
                   item->unit);
        if (echo)
            stop_echo(echo);
    }
    if (!only)
        print_item("total_bench_time", now() - begin, "s");
    return 0;
}
