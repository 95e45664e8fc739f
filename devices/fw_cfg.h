/* The configuration port that emulators offer to firmware and test kernels (QEMU, docs/specs/fw_cfg.rst): a
 * selector port and a data port, which gives one byte of the selected item after the other. Only what the
 * machine's size is about; there are no files and there is no DMA. Thread-safe. */
#ifndef NESTOR_DEVICES_FW_CFG_H
#define NESTOR_DEVICES_FW_CFG_H

#include <pthread.h>

#include "base/types.h"

#define FW_CFG_PORT 0x510u /* selector; data at the next one */
#define FW_CFG_PORTS 2u

struct fw_cfg {
    pthread_mutex_t lock; /* of the place; a leaf */
    uint16_t selected;
    unsigned offset;
    uint64_t ram_size;
    uint16_t cpus;
};

void fw_cfg_init(struct fw_cfg *config, uint64_t ram_size, uint16_t cpus);
void fw_cfg_destroy(struct fw_cfg *config);
void fw_cfg_reset(struct fw_cfg *config);

/* offset: from FW_CFG_PORT. */
uint64_t fw_cfg_read(struct fw_cfg *config, unsigned offset, unsigned size);
void fw_cfg_write(struct fw_cfg *config, unsigned offset, unsigned size, uint64_t value);

#endif
