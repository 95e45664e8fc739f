/* nestor-diff: the command line and the main loop of the differential tester.
 *
 * Streams are numbered; stream I of seed N and a mode is the same on every run on one host, so that a report
 * can be repeated with --seed N --first I --count 1.
 */
#include "base/diag.h"
#include "compare.h"
#include "coverage.h"
#include "engine.h"
#include "minimise.h"
#include "regression.h"
#include "rng.h"

#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define ENGINES_MAX 4
#define DEFAULT_COUNT 4000

struct options {
    uint64_t seed, first, count, seconds, max_mismatches;
    bool modes[2]; /* 64, 32 */
    const char *forms;
    const char *regression_directory;
    const char *coverage_file;
    bool minimises, replays, prints, verbose;
    struct generate_options generate;
};

struct tester {
    struct options options;
    const struct diff_engine *engine[ENGINES_MAX];
    void *context[ENGINES_MAX];
    unsigned engines;
    struct oracle *native,
        *stand_in;         /* stand_in: an engine, for a mode that does not run natively here; or NULL */
    struct oracle *oracle; /* which of them the mode under test has */
    struct stream *streams;
    struct diff_state *actual;
    uint64_t streams_run, instructions, mismatches;
    uint64_t unsteady; /* streams in which the processor did not repeat itself */
    double started;
};

static const char help[] =
    "usage: nestor-diff [options]\n"
    "       nestor-diff [--engine LIST] --replay FILE...\n"
    "Runs generated streams of user-mode instructions natively and on Nestor's engines, and compares "
    "everything.\n\n"
    "  --engine LIST           engines to test, by commas (default: all that were built; --engine help)\n"
    "  --mode LIST             64, 32 or 64,32 (default)\n"
    "  --seed N                seed of the streams (default 1)\n"
    "  --first N               number of the first stream (default 0)\n"
    "  --count N               streams per mode (default 4000)\n"
    "  --seconds N             run for so long over all modes, whatever the count\n"
    "  --length N              instructions a stream has at most (default 32)\n"
    "  --forms TEXT            only forms whose name holds TEXT, for instance \"VADDPS EVEX\"\n"
    "  --self-modifying        let some streams store into their own code\n"
    "  --max-mismatches N      stop after so many (default 20)\n"
    "  --minimise              reduce each failing stream before reporting it\n"
    "  --write-regression DIR  write each (minimised) failing stream to a file there\n"
    "  --coverage FILE         write which forms ran, and why others did not\n"
    "  --replay FILE...        run regression files\n"
    "  --print                 print each stream before it runs\n"
    "  --verbose               a progress line every second\n"
    "Exit status: 0 no mismatch, 1 mismatches, 2 trouble.\n";

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static int add_engines(struct tester *tester, const char *list) {
    char *copy = strdup(list), *rest = copy, *name;
    int error = copy ? 0 : -ENOMEM;
    while (!error && (name = strsep(&rest, ","))) {
        const struct diff_engine *engine = engine_find(name);
        if (!engine || tester->engines == ENGINES_MAX) {
            diag_error("nestor-diff: --engine %s: no such engine in this build; --engine help lists them",
                       name);
            error = -EINVAL;
        } else {
            tester->engine[tester->engines++] = engine;
        }
    }
    free(copy);
    return error;
}

static void default_engines(struct tester *tester) {
    for (unsigned i = 1; diff_engines[i]; i++)
        tester->engine[tester->engines++] = diff_engines[i];
    if (!tester->engines)
        tester->engine[tester->engines++] = diff_engines[0];
}

static int tester_start(struct tester *tester) {
    int error = oracle_create(&tester->native);
    tester->oracle = tester->native;
    for (unsigned i = 0; i < tester->engines && !error; i++)
        error = tester->engine[i]->create(&tester->context[i]);
    tester->streams = calloc(ORACLE_BATCH, sizeof *tester->streams);
    tester->actual = aligned_alloc(64, align_up(sizeof *tester->actual, 64));
    if (!error && (!tester->streams || !tester->actual))
        error = -ENOMEM;
    tester->started = now();
    return error;
}

static void tester_stop(struct tester *tester) {
    for (unsigned i = 0; i < tester->engines; i++)
        if (tester->context[i])
            tester->engine[i]->destroy(tester->context[i]);
    oracle_destroy(tester->native);
    oracle_destroy(tester->stand_in);
    free(tester->streams);
    free(tester->actual);
}

/* Take the processor as the oracle of that mode, or what stands in for it. 1: there is nothing to compare. */
static int choose_oracle(struct tester *tester, unsigned mode) {
    static bool runs[2], is_known[2];
    unsigned i = mode == 32;
    if (!is_known[i]) {
        runs[i] = oracle_runs_mode(tester->native, mode);
        is_known[i] = true;
        if (!runs[i])
            fprintf(stderr,
                    "mode %u: this host runs no such code; the interpreter stands in for the processor\n",
                    mode);
    }
    tester->oracle = tester->native;
    if (runs[i])
        return 0;
    const struct diff_engine *interp = engine_find("interp");
    if (!interp)
        return 1;
    int error = tester->stand_in ? 0 : oracle_create_engine(&tester->stand_in, interp);
    tester->oracle = tester->stand_in;
    return error;
}

/* Report a failing stream, minimised if so wished. */
static void report(struct tester *tester, unsigned engine, const struct diff_case *failing,
                   const struct stream *stream, const char *title) {
    struct diff_pair pair = {tester->oracle, tester->engine[engine], tester->context[engine]};
    struct diff_case *test = aligned_alloc(64, align_up(sizeof *test, 64));
    struct diff_state *expected = aligned_alloc(64, align_up(sizeof *expected, 64));
    if (test && expected) {
        *test = *failing;
        if (tester->options.minimises && stream)
            minimise(&pair, test, stream);
        int differs = pair_differs(&pair, test, expected, tester->actual);
        printf("MISMATCH %s on %s%s\n", title, pair.engine->name,
               differs == 1 ? "" : " (did not happen again: the state of an earlier stream matters)");
        compare_disassemble(stdout, test, expected->regs.rip);
        compare_report(stdout, test, expected, tester->actual);
        if (tester->options.regression_directory) {
            char path[4096];
            snprintf(path, sizeof path, "%s/%s-%s.txt", tester->options.regression_directory,
                     pair.engine->name, title);
            int error = regression_write(path, test, title);
            if (error)
                diag_error("nestor-diff: %s: %s", path, strerror(-error));
            else
                printf("  written to %s\n", path);
        }
    }
    free(test);
    free(expected);
}

/* Streams that the machine was too busy for, or that hit the child, are run again alone. */
static int run_again(struct tester *tester, const struct diff_case *batch, struct diff_state *states,
                     unsigned count) {
    for (unsigned i = 0; i < count; i++) {
        if (states[i].end != DIFF_END_TIMEOUT && states[i].end != DIFF_END_LOST)
            continue;
        *oracle_cases(tester->oracle) = batch[i];
        int error = oracle_run(tester->oracle, 1);
        if (error)
            return error;
        states[i] = *oracle_states(tester->oracle);
    }
    return 0;
}

/* Does the oracle end the case as the engine did when it is asked again? A hypervisor below the host may lose
 * a flag or a segment's base whenever it interrupts, which is no fault of the engine's. 1, 0 or -errno. */
static int oracle_agrees_later(struct tester *tester, const struct diff_case *test) {
    for (unsigned attempt = 0; attempt < 3; attempt++) {
        *oracle_cases(tester->oracle) = *test;
        int error = oracle_run(tester->oracle, 1);
        if (error)
            return error;
        if (compare_states(test, oracle_states(tester->oracle), tester->actual))
            return 1;
    }
    return 0;
}

/* Where the engine is the processor, too, its run may be the one that was disturbed. 1, 0 or -errno. */
static int processor_agrees_later(struct tester *tester, unsigned e, const struct diff_case *test,
                                  const struct diff_state *expected) {
    if (tester->engine[e] != diff_engines[0])
        return 0;
    for (unsigned attempt = 0; attempt < 3; attempt++) {
        int error = tester->engine[e]->run(tester->context[e], test, tester->actual);
        if (error)
            return error;
        if (compare_states(test, expected, tester->actual))
            return 1;
    }
    return 0;
}

static int run_batch(struct tester *tester, struct form_table *forms, uint64_t first, unsigned count,
                     struct diff_case *batch, struct diff_state *states) {
    for (unsigned i = 0; i < count; i++) {
        uint64_t seed = tester->options.seed ^ (uint64_t)forms->mode << 56;
        seed = rng_mix(&seed) + first + i;
        generate_stream(forms, seed, &tester->options.generate, NULL, &batch[i], &tester->streams[i]);
    }
    memcpy(oracle_cases(tester->oracle), batch, count * sizeof *batch);
    int error = oracle_run(tester->oracle, count);
    if (error)
        return error;
    memcpy(states, oracle_states(tester->oracle), count * sizeof *states);
    error = run_again(tester, batch, states, count);
    for (unsigned i = 0; i < count && !error; i++) {
        tester->streams_run++;
        tester->instructions += coverage_count(&batch[i], &tester->streams[i], &states[i]);
        if (tester->options.prints && states[i].end == DIFF_END_TIMEOUT)
            printf("the next stream does not end\n");
        if (tester->options.prints) {
            printf("stream %lu, mode %u\n", (unsigned long)(first + i), forms->mode);
            compare_disassemble(stdout, &batch[i], states[i].regs.rip);
        }
        if (states[i].end == DIFF_END_TIMEOUT || states[i].end == DIFF_END_LOST)
            continue;
        for (unsigned e = 0; e < tester->engines && !error; e++) {
            if (tester->oracle != tester->native && tester->engine[e] == diff_engines[0])
                continue; /* the processor cannot run these */
            error = tester->engine[e]->run(tester->context[e], &batch[i], tester->actual);
            if (error || compare_states(&batch[i], &states[i], tester->actual))
                continue;
            int agrees = oracle_agrees_later(tester, &batch[i]);
            if (!agrees)
                agrees = processor_agrees_later(tester, e, &batch[i], &states[i]);
            if (agrees) {
                error = agrees < 0 ? agrees : 0;
                tester->unsteady += agrees > 0;
                continue;
            }
            char title[96];
            snprintf(title, sizeof title, "m%u-s%lu-i%lu", forms->mode, (unsigned long)tester->options.seed,
                     (unsigned long)(first + i));
            tester->mismatches++;
            report(tester, e, &batch[i], &tester->streams[i], title);
        }
    }
    return error;
}

static void progress(const struct tester *tester, unsigned mode) {
    fprintf(stderr, "mode %u: %lu streams, %lu instructions, %lu mismatches, %.0f s\n", mode,
            (unsigned long)tester->streams_run, (unsigned long)tester->instructions,
            (unsigned long)tester->mismatches, now() - tester->started);
}

static int run_mode(struct tester *tester, unsigned mode, double until, FILE *coverage) {
    int oracle = choose_oracle(tester, mode);
    if (oracle)
        return oracle < 0 ? oracle : 0;
    struct form_table forms;
    struct diff_case *batch = aligned_alloc(64, ORACLE_BATCH * sizeof *batch);
    struct diff_state *states = aligned_alloc(64, ORACLE_BATCH * sizeof *states);
    int error = batch && states ? form_table_create(&forms, mode, tester->options.forms) : -ENOMEM;
    if (!error && !forms.count) {
        diag_error("nestor-diff: --forms %s: no form of mode %u has that in its name", tester->options.forms,
                   mode);
        error = -EINVAL;
    }
    if (!error)
        error = coverage_probe(&forms, tester->oracle);
    double last = now();
    uint64_t at = tester->options.first, end = at + tester->options.count;
    while (!error && tester->mismatches < tester->options.max_mismatches) {
        if (tester->options.seconds ? now() >= until : at >= end)
            break;
        unsigned count = ORACLE_BATCH;
        if (!tester->options.seconds && end - at < count)
            count = (unsigned)(end - at);
        error = run_batch(tester, &forms, at, count, batch, states);
        at += count;
        if (tester->options.verbose && now() - last >= 1) {
            progress(tester, mode);
            last = now();
        }
    }
    if (!error && coverage)
        coverage_report(coverage, &forms);
    if (batch && states)
        form_table_destroy(&forms);
    free(batch);
    free(states);
    return error;
}

static int run_modes(struct tester *tester) {
    static const unsigned modes[2] = {64, 32};
    FILE *coverage = NULL;
    int error = 0;
    if (tester->options.coverage_file && !(coverage = fopen(tester->options.coverage_file, "we"))) {
        diag_error("nestor-diff: %s: %s", tester->options.coverage_file, strerror(errno));
        return -errno;
    }
    unsigned left = tester->options.modes[0] + tester->options.modes[1];
    for (unsigned i = 0; i < 2 && !error; i++) {
        if (!tester->options.modes[i])
            continue;
        double rest = (double)tester->options.seconds - (now() - tester->started);
        error = run_mode(tester, modes[i], now() + rest / left--, coverage);
        if (!error)
            progress(tester, modes[i]);
    }
    if (coverage && fclose(coverage) && !error)
        error = -errno;
    return error;
}

static int replay(struct tester *tester, const char *path) {
    struct diff_case *test = aligned_alloc(64, align_up(sizeof *test, 64));
    struct diff_state *expected = aligned_alloc(64, align_up(sizeof *expected, 64));
    int error = test && expected ? regression_read(path, test) : -ENOMEM;
    int oracle = error ? error : choose_oracle(tester, test->mode);
    if (oracle < 0)
        error = oracle;
    for (unsigned e = 0; e < tester->engines && !error && !oracle; e++) {
        struct diff_pair pair = {tester->oracle, tester->engine[e], tester->context[e]};
        int differs = pair_differs(&pair, test, expected, tester->actual);
        if (differs < 0)
            error = differs;
        if (differs == 1) {
            tester->mismatches++;
            printf("MISMATCH %s on %s\n", path, pair.engine->name);
            compare_disassemble(stdout, test, expected->regs.rip);
            compare_report(stdout, test, expected, tester->actual);
        }
    }
    tester->streams_run++;
    free(test);
    free(expected);
    return error;
}

static void list_engines(void) {
    for (unsigned i = 0; diff_engines[i]; i++)
        printf("%-8s %s\n", diff_engines[i]->name, diff_engines[i]->summary);
}

/* 0, or an exit status + 1 to leave with. */
static int parse(struct tester *tester, int argc, char **argv) {
    enum {
        ENGINE = 256,
        MODE,
        SEED,
        FIRST,
        COUNT,
        SECONDS,
        LENGTH,
        FORMS,
        SMC,
        MAXIMUM,
        MINIMISE,
        WRITE,
        COVERAGE,
        REPLAY,
        PRINT,
        VERBOSE,
        HELP
    };
    static const struct option longs[] = {{"engine", 1, 0, ENGINE},      {"mode", 1, 0, MODE},
                                          {"seed", 1, 0, SEED},          {"first", 1, 0, FIRST},
                                          {"count", 1, 0, COUNT},        {"seconds", 1, 0, SECONDS},
                                          {"length", 1, 0, LENGTH},      {"forms", 1, 0, FORMS},
                                          {"self-modifying", 0, 0, SMC}, {"max-mismatches", 1, 0, MAXIMUM},
                                          {"minimise", 0, 0, MINIMISE},  {"write-regression", 1, 0, WRITE},
                                          {"coverage", 1, 0, COVERAGE},  {"replay", 0, 0, REPLAY},
                                          {"print", 0, 0, PRINT},        {"verbose", 0, 0, VERBOSE},
                                          {"help", 0, 0, HELP},          {0}};
    struct options *options = &tester->options;
    int option;
    *options = (struct options){.seed = 1, .max_mismatches = 20, .modes = {true, true}};
    while ((option = getopt_long(argc, argv, "", longs, NULL)) != -1) {
        switch (option) {
        case ENGINE:
            if (!strcmp(optarg, "help")) {
                list_engines();
                return 1;
            }
            if (add_engines(tester, optarg))
                return 3;
            break;
        case MODE:
            options->modes[0] = strstr(optarg, "64");
            options->modes[1] = strstr(optarg, "32");
            if (!options->modes[0] && !options->modes[1]) {
                diag_error("nestor-diff: --mode %s: must be 64, 32 or 64,32", optarg);
                return 3;
            }
            break;
        case SEED:
            options->seed = strtoull(optarg, NULL, 0);
            break;
        case FIRST:
            options->first = strtoull(optarg, NULL, 0);
            break;
        case COUNT:
            options->count = strtoull(optarg, NULL, 0);
            break;
        case SECONDS:
            options->seconds = strtoull(optarg, NULL, 0);
            break;
        case LENGTH:
            options->generate.length = (unsigned)strtoul(optarg, NULL, 0);
            break;
        case FORMS:
            options->forms = optarg;
            break;
        case SMC:
            options->generate.self_modifying = true;
            break;
        case MAXIMUM:
            options->max_mismatches = strtoull(optarg, NULL, 0);
            break;
        case MINIMISE:
            options->minimises = true;
            break;
        case WRITE:
            options->regression_directory = optarg;
            options->minimises = true;
            break;
        case COVERAGE:
            options->coverage_file = optarg;
            break;
        case REPLAY:
            options->replays = true;
            break;
        case PRINT:
            options->prints = true;
            break;
        case VERBOSE:
            options->verbose = true;
            break;
        case HELP:
            fputs(help, stdout);
            return 1;
        default:
            return 3;
        }
    }
    if (!tester->engines)
        default_engines(tester);
    if (!options->count)
        options->count = DEFAULT_COUNT;
    return 0;
}

int main(int argc, char **argv) {
    static struct tester tester;
    setvbuf(stdout, NULL, _IOLBF, 0);
    int leave = parse(&tester, argc, argv);
    if (leave)
        return leave - 1;
    int error = tester_start(&tester);
    if (!error && tester.options.replays)
        for (int i = optind; i < argc && !error; i++)
            error = replay(&tester, argv[i]);
    else if (!error)
        error = run_modes(&tester);
    if (tester.unsteady)
        printf("%lu streams ended otherwise, as on the engine, when the processor ran them again\n",
               (unsigned long)tester.unsteady);
    printf("%lu streams, %lu instructions, %lu mismatches\n", (unsigned long)tester.streams_run,
           (unsigned long)tester.instructions, (unsigned long)tester.mismatches);
    tester_stop(&tester);
    if (error) {
        diag_error("nestor-diff: stopped: %s", strerror(-error));
        return 2;
    }
    return tester.mismatches ? 1 : 0;
}
