/* The bar on a terminal: one line on standard error that is drawn over and over, and wiped at the end. */
#include "precompile-cache/precompile.h"

#include <stdio.h>
#include <unistd.h>

#define BAR 30u

void progress_draw(const struct precompile *p, bool last) {
    size_t pages = 0, done = 0, analysed = 0;
    char bar[BAR + 1];
    if (!isatty(STDERR_FILENO))
        return;
    if (last) {
        fputs("\r\033[K", stderr);
        fflush(stderr);
        return;
    }
    for (size_t i = 0; i < p->images; i++) {
        pages += p->image[i].pages + p->image[i].functions;
        done += p->image[i].done_pages + p->image[i].done_functions;
        analysed += p->image[i].pages || i < p->next_image;
    }
    /* Images that nobody has looked into yet count like the average one that is done. */
    double share =
        pages && p->images ? (double)done / (double)pages * (double)analysed / (double)p->images : 0;
    for (unsigned i = 0; i < BAR; i++)
        bar[i] = i < (unsigned)(share * BAR) ? '#' : '.';
    bar[BAR] = 0;
    fprintf(stderr, "\r\033[K[%s] %3.0f %%  image %zu of %zu, page %zu of %zu", bar, share * 100, analysed,
            p->images, done, pages);
    fflush(stderr);
}
