#include "devices/fw_cfg.h"

#include <string.h>

enum {
    ITEM_SIGNATURE = 0x00,
    ITEM_INTERFACE = 0x01,
    ITEM_RAM_SIZE = 0x03,
    ITEM_CPUS = 0x05,
    ITEM_MAX_CPUS = 0x0f,
};
#define INTERFACE_PORTS 1u /* the two ports, without DMA */
#define DATA_PORT 1u

void fw_cfg_init(struct fw_cfg *config, uint64_t ram_size, uint16_t cpus) {
    *config = (struct fw_cfg){.ram_size = ram_size, .cpus = cpus};
    pthread_mutex_init(&config->lock, NULL);
}

void fw_cfg_destroy(struct fw_cfg *config) {
    pthread_mutex_destroy(&config->lock);
}

void fw_cfg_reset(struct fw_cfg *config) {
    pthread_mutex_lock(&config->lock);
    config->selected = 0;
    config->offset = 0;
    pthread_mutex_unlock(&config->lock);
}

/* The item's bytes; how many there are. */
static unsigned item(const struct fw_cfg *config, uint8_t bytes[8]) {
    static const uint32_t interface = INTERFACE_PORTS;
    switch (config->selected) {
    case ITEM_SIGNATURE:
        memcpy(bytes, "QEMU", 4);
        return 4;
    case ITEM_INTERFACE:
        memcpy(bytes, &interface, sizeof interface);
        return sizeof interface;
    case ITEM_RAM_SIZE:
        memcpy(bytes, &config->ram_size, sizeof config->ram_size);
        return sizeof config->ram_size;
    case ITEM_CPUS:
    case ITEM_MAX_CPUS:
        memcpy(bytes, &config->cpus, sizeof config->cpus);
        return sizeof config->cpus;
    default:
        return 0;
    }
}

uint64_t fw_cfg_read(struct fw_cfg *config, unsigned offset, unsigned size) {
    uint8_t bytes[8], value = 0;
    if (offset != DATA_PORT || size != 1)
        return 0;
    pthread_mutex_lock(&config->lock);
    if (config->offset < item(config, bytes)) /* zeros follow */
        value = bytes[config->offset++];
    pthread_mutex_unlock(&config->lock);
    return value;
}

void fw_cfg_write(struct fw_cfg *config, unsigned offset, unsigned size, uint64_t value) {
    if (offset || size != 2)
        return;
    pthread_mutex_lock(&config->lock);
    config->selected = (uint16_t)value;
    config->offset = 0;
    pthread_mutex_unlock(&config->lock);
}
