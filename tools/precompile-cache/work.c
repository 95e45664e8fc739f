/* The workers. Each takes the next pages of an image, translates them with a generator of its own, and hands
 * the units to the one writer under the lock. Images are analysed by the worker that comes to them first. The
 * order in which units arrive does not matter to the file.
 */
#define _GNU_SOURCE
#include "precompile-cache/precompile.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/diag.h"
#include "dbt/portable.h"

#define PIECES_AT_ONCE 32u
#define FUNCTIONS_AT_ONCE 16u
#define KERNEL_SLIDE_ALIGN 0x200000u /* CONFIG_PHYSICAL_ALIGN, of which KASLR's slide is a multiple */

struct worker {
    struct precompile *p;
    struct precompile_image *image;
    struct blocks_options options;
    struct blocks *blocks;
    struct functions_options function_options;
    struct functions *functions;
    pthread_t thread;
};

const char *precompile_image_name(const struct precompile_image *image) {
    return image->image.module ? image->image.release : image->image.loader ? "loader" : "vmlinux";
}

/* In the first mode everything is made, unless the profile alone counts; in the others what it saw. */
static bool select_piece(void *context, uint64_t address, uint32_t length, uint32_t mode) {
    const struct worker *worker = context;
    const struct precompile *p = worker->p;
    const char *name = precompile_image_name(worker->image);
    if (mode != p->modes[0])
        return ntc_profile_count(&p->profile, name, address, length,
                                 dbt_portable_key(mode, PORTABLE_SCALAR)) ||
               ntc_profile_count(&p->profile, name, address, length, dbt_portable_key(mode, PORTABLE_VECTOR));
    return !p->options->profiled_only ||
           ntc_profile_count(&p->profile, name, address, length, NTC_PROFILE_ANY_MODE) > 0;
}

static bool select_function(void *context, uint64_t address, uint64_t length) {
    const struct worker *worker = context;
    return ntc_profile_count(&worker->p->profile, precompile_image_name(worker->image), address, length,
                             NTC_PROFILE_ANY_MODE) > 0;
}

/* Places that the profile saw code being entered at are entries. */
static bool is_entered(void *context, uint64_t address) {
    const struct worker *worker = context;
    return ntc_profile_count(&worker->p->profile, precompile_image_name(worker->image), address, 1,
                             NTC_PROFILE_ANY_MODE) > 0;
}

static int sink(void *context, const struct ntc_unit *unit) {
    struct worker *worker = context;
    struct precompile *p = worker->p;
    struct ntc_unit copy = *unit; /* with what is estimated of it */
    if (p->profile.lines) {
        /* A profile's hashes are those of the template's units. */
        const char *name = precompile_image_name(worker->image);
        uint64_t heat = unit->generator == NTC_GENERATOR_TEMPLATE
                            ? ntc_profile_heat(&p->profile, name, unit->link_address, unit->guest_length,
                                               ntc_unit_hash(unit))
                            : ntc_profile_count(&p->profile, name, unit->link_address, unit->guest_length,
                                                NTC_PROFILE_ANY_MODE);
        if (!heat && p->options->profiled_only)
            return 0;
        copy.heat = heat > UINT32_MAX ? UINT32_MAX : (uint32_t)heat;
    }
    pthread_mutex_lock(&p->lock);
    int result = ntc_writer_add_unit(p->writer, &copy, 0);
    if (!result && p->options->dump_asm && unit->name && !strcmp(unit->name, p->options->dump_asm))
        listing_print(&copy);
    if (!result && unit->ir)
        printf("%.*s", (int)unit->ir_length, unit->ir);
    pthread_mutex_unlock(&p->lock);
    if (result == -ENOMEM)
        diag_error("precompile-cache: out of memory");
    else if (result)
        diag_error(
            "precompile-cache: a unit of %s at 0x%llx is refused by the cache format (%s); please report it",
            unit->name ? unit->name : "an image", (unsigned long long)unit->link_address, strerror(-result));
    return result;
}

static int describe_image(struct precompile *p, struct precompile_image *image) {
    uint64_t low = UINT64_MAX, high = 0;
    for (unsigned i = 0; i < image->patched.sections; i++) {
        const struct patched_section *section = &image->patched.section[i];
        if (!section->code || !section->size)
            continue;
        if (section->address < low)
            low = section->address;
        if (section->address + section->size > high)
            high = section->address + section->size;
    }
    if (low >= high)
        return -ENOENT;
    enum ntc_image_kind kind = image->image.module   ? NTC_IMAGE_MODULE
                               : image->image.loader ? NTC_IMAGE_OTHER
                                                     : NTC_IMAGE_KERNEL;
    const struct ntc_image_input input = {.link_base = low & PAGE_MASK,
                                          .link_length = align_up(high, PAGE_SIZE) - (low & PAGE_MASK),
                                          .slide_align = kind == NTC_IMAGE_MODULE   ? PAGE_SIZE
                                                         : kind == NTC_IMAGE_KERNEL ? KERNEL_SLIDE_ALIGN
                                                                                    : 1,
                                          .kind = kind,
                                          .name = precompile_image_name(image),
                                          .version = image->image.module ? "" : image->image.release};
    return ntc_writer_add_image(p->writer, &input, &image->number);
}

/* Called without the lock; nobody else touches the image until it is analysed. */
static int analyse(struct precompile *p, struct precompile_image *image) {
    int result = 0;
    if (image->bytes) {
        result = image_open_module(&image->image, image->name, image->bytes, image->size);
        free(image->bytes);
        image->bytes = NULL;
        if (result) {
            /* Told already; one damaged module does not spoil the rest. */
            image->broken = true;
            return result == -ENOMEM ? result : 0;
        }
    }
    result = patched_create(&image->patched, &image->image, &p->features);
    if (result)
        return result;
    result = discovery_create(&image->discovery, &image->patched);
    if (result) {
        patched_destroy(&image->patched);
        return result;
    }
    if (!p->profile.lines && !image->image.module)
        result = estimate_create(&image->estimate, &image->discovery);
    if (!result)
        result = pieces_create(&image->cut, &image->discovery);
    if (result) {
        diag_error("precompile-cache: out of memory");
        estimate_destroy(&image->estimate);
        discovery_destroy(&image->discovery);
        patched_destroy(&image->patched);
        return result;
    }
    image->analysed = true;
    pthread_mutex_lock(&p->lock);
    result = describe_image(p, image);
    pthread_mutex_unlock(&p->lock);
    image->pages = result ? 0 : image->cut.count;
    if (!result && p->options->functions && (p->options->all_functions || p->profile.lines))
        image->functions = functions_count(&image->discovery);
    if (result == -ENOENT)
        return 0;
    if (result)
        diag_error("image '%s' does not fit into the cache format: %s", image->image.path, strerror(-result));
    return result;
}

static void add_counts(struct blocks_counts *to, const struct blocks_counts *from) {
    to->pieces += from->pieces;
    to->units += from->units;
    to->unselected += from->unselected;
    to->refused += from->refused;
    to->too_large += from->too_large;
    to->uncombined += from->uncombined;
    to->fixed += from->fixed;
    to->guest_bytes += from->guest_bytes;
    to->host_bytes += from->host_bytes;
}

/* Leave the image that the worker was at. With the lock held. */
static void leave_image(struct worker *worker) {
    if (worker->blocks)
        add_counts(&worker->image->counts, blocks_counts(worker->blocks));
    if (worker->functions)
        functions_add_counts(&worker->image->function_counts, functions_counts(worker->functions));
    blocks_destroy(worker->blocks);
    functions_destroy(worker->functions);
    worker->blocks = NULL;
    worker->functions = NULL;
    worker->image = NULL;
}

/* Of modules and, with a profile, of all images none is made. */
static const struct estimate *estimate_of(const struct precompile_image *image) {
    return image->estimate.functions ? &image->estimate : NULL;
}

static int enter_image(struct worker *worker, struct precompile_image *image) {
    struct precompile *p = worker->p;
    worker->options = (struct blocks_options){.codegen = &codegen_template,
                                              .mode_count = p->mode_count,
                                              .select = p->profile.lines ? select_piece : NULL,
                                              .entered = p->profile.lines ? is_entered : NULL,
                                              .estimate = estimate_of(image),
                                              .image = image->number,
                                              .stages = {[STAGE_EARLY] = p->options->early,
                                                         [STAGE_TRACED] = p->options->early,
                                                         [STAGE_READY] = true,
                                                         [STAGE_READY_ONE] = p->options->one_cpu},
                                              .fields = true};
    memcpy(worker->options.modes, p->modes, sizeof p->modes);
    worker->image = image;
    worker->function_options = (struct functions_options){
        .codegen = p->options->functions,
        .mode = p->modes[0],
        .select = p->options->all_functions && !p->options->profiled_only ? NULL : select_function,
        .estimate = estimate_of(image),
        .image = image->number,
        .stages = {[STAGE_READY] = true, [STAGE_READY_ONE] = p->options->one_cpu},
        .dump_ir = p->options->dump_ir};
    worker->blocks = blocks_create(&image->discovery, &image->cut, &worker->options, &p->model, sink, worker);
    if (image->functions)
        worker->functions =
            functions_create(&image->discovery, &worker->function_options, &p->model, sink, worker);
    if (worker->blocks && (worker->functions || !image->functions))
        return 0;
    diag_error("precompile-cache: out of memory");
    return -ENOMEM;
}

/* Find pages to do, with the lock held. False: there are none any more. */
static bool take_pages(struct worker *worker, struct precompile_image **image, size_t *first, size_t *count) {
    struct precompile *p = worker->p;
    for (size_t i = 0; i < p->images; i++) {
        struct precompile_image *candidate = &p->image[i];
        if (candidate->next_page >= candidate->pages)
            continue;
        *image = candidate;
        *first = candidate->next_page;
        *count = candidate->pages - *first < PIECES_AT_ONCE ? candidate->pages - *first : PIECES_AT_ONCE;
        candidate->next_page += *count;
        return true;
    }
    return false;
}

/* The same for functions. */
static bool take_functions(struct worker *worker, struct precompile_image **image, size_t *first,
                           size_t *count) {
    struct precompile *p = worker->p;
    for (size_t i = 0; i < p->images; i++) {
        struct precompile_image *candidate = &p->image[i];
        size_t left = candidate->functions - candidate->next_function;
        if (!left)
            continue;
        *image = candidate;
        *first = candidate->next_function;
        *count = left < FUNCTIONS_AT_ONCE ? left : FUNCTIONS_AT_ONCE;
        candidate->next_function += *count;
        return true;
    }
    return false;
}

static int go_to_image(struct worker *worker, struct precompile_image *image) {
    if (worker->image == image)
        return 0;
    pthread_mutex_lock(&worker->p->lock);
    leave_image(worker);
    pthread_mutex_unlock(&worker->p->lock);
    return enter_image(worker, image);
}

static int do_functions(struct worker *worker, struct precompile_image *image, size_t first, size_t count) {
    struct precompile *p = worker->p;
    int result = go_to_image(worker, image);
    for (size_t number = first; number < first + count && !result; number++)
        result = functions_make(worker->functions, number);
    pthread_mutex_lock(&p->lock);
    image->done_functions += count;
    pthread_mutex_unlock(&p->lock);
    return result;
}

static int do_pages(struct worker *worker, struct precompile_image *image, size_t first, size_t count) {
    struct precompile *p = worker->p;
    int result = go_to_image(worker, image);
    for (size_t page = first; page < first + count && !result; page++)
        result = blocks_make_piece(worker->blocks, page);
    pthread_mutex_lock(&p->lock);
    image->done_pages += count;
    pthread_mutex_unlock(&p->lock);
    return result;
}

static void *work(void *context) {
    struct worker *worker = context;
    struct precompile *p = worker->p;
    pthread_mutex_lock(&p->lock);
    while (!p->result) {
        struct precompile_image *image;
        size_t first, count;
        int result;
        if (take_pages(worker, &image, &first, &count)) {
            pthread_mutex_unlock(&p->lock);
            result = do_pages(worker, image, first, count);
        } else if (take_functions(worker, &image, &first, &count)) {
            pthread_mutex_unlock(&p->lock);
            result = do_functions(worker, image, first, count);
        } else if (p->next_image < p->images) {
            image = &p->image[p->next_image++];
            p->running++;
            pthread_mutex_unlock(&p->lock);
            result = analyse(p, image);
            pthread_mutex_lock(&p->lock);
            p->running--;
            pthread_cond_broadcast(&p->changed);
            pthread_mutex_unlock(&p->lock);
        } else if (p->running) {
            /* Another worker is about to have pages. */
            pthread_cond_wait(&p->changed, &p->lock);
            continue;
        } else {
            break;
        }
        pthread_mutex_lock(&p->lock);
        if (result && !p->result)
            p->result = result;
    }
    leave_image(worker);
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

static bool all_done(const struct precompile *p) {
    if (p->result)
        return true;
    if (p->next_image < p->images || p->running)
        return false;
    for (size_t i = 0; i < p->images; i++)
        if (p->image[i].done_pages < p->image[i].pages || p->image[i].done_functions < p->image[i].functions)
            return false;
    return true;
}

int precompile_work(struct precompile *p) {
    struct worker *workers = calloc(p->options->jobs, sizeof *workers);
    unsigned started = 0;
    if (!workers) {
        diag_error("precompile-cache: out of memory");
        return -ENOMEM;
    }
    for (; started < p->options->jobs; started++) {
        workers[started].p = p;
        if (pthread_create(&workers[started].thread, NULL, work, &workers[started]))
            break;
    }
    if (!started) {
        diag_error("precompile-cache: no thread can be started; raise the process limit");
        free(workers);
        return -EAGAIN;
    }
    pthread_mutex_lock(&p->lock);
    while (!all_done(p)) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += 200000000;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        pthread_cond_timedwait(&p->changed, &p->lock, &until);
        if (!p->options->quiet)
            progress_draw(p, false);
    }
    if (!p->options->quiet)
        progress_draw(p, true);
    pthread_mutex_unlock(&p->lock);
    for (unsigned i = 0; i < started; i++)
        pthread_join(workers[i].thread, NULL);
    free(workers);
    return p->result;
}
