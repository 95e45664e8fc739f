/* The tables that emit_percpu.c reaches a processor's own data by: C's part. */
#include "dbt/percpu.h"
#include "base/light.h"

uint32_t percpu_slot(struct dbt_vcpu *dbt, uint64_t page) {
    for (unsigned i = 0; i < dbt->percpu_pages; i++)
        if (dbt->percpu_page[i] == page)
            return i;
    if (dbt->percpu_pages == PERCPU_SLOTS)
        return NO_INDEX;
    dbt->percpu_page[dbt->percpu_pages] = page;
    return dbt->percpu_pages++;
}

void percpu_forget(struct dbt_area *area) {
    if (!area->hot.percpu_filled)
        return;
    area->hot.percpu_filled = 0;
    light_fill(area->hot.percpu_of_base, 0, sizeof *area->hot.percpu_of_base);
}

void percpu_forget_page(struct dbt_vcpu *dbt, uint64_t page) {
    const struct dbt_hot *hot = &dbt->area->hot;
    if (!hot->percpu_filled)
        return;
    for (unsigned i = 0; i < dbt->percpu_pages; i++)
        if (UNLIKELY(hot->percpu_base + dbt->percpu_page[i] == page))
            hot->percpu_of_base->page[VMEM_READ][i] = hot->percpu_of_base->page[VMEM_WRITE][i] = 0;
}

void percpu_reset(struct dbt_vcpu *dbt) {
    dbt->percpu_pages = 0;
    percpu_forget(dbt->area);
}

void percpu_refresh(struct vcpu *vcpu) {
    struct dbt_area *area = area_of(vcpu);
    struct dbt_hot *hot = &area->hot;
    uint64_t base = vcpu->segment[SEG_GS].base;
    if (base != hot->percpu_base && vcpu->mode & MODE_CPL0 && base && !(base & (PAGE_SIZE - 1))) {
        percpu_forget(area);
        hot->percpu_base = base;
    }
    hot->percpu_swapped = vcpu->kernel_gs_base == hot->percpu_base ? hot->percpu_of_base : hot->percpu_none;
    hot->percpu = base == hot->percpu_base ? hot->percpu_of_base : hot->percpu_none;
}
