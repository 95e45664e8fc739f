/* What the guest's page tables let ring 3 do with a page without changing them. */
#include "cpu_guest.h"

#include "direct/tables.h"

#define TABLE 0x20000ull /* of 4 KiB entries */
#define ALL (MAP_READ | MAP_WRITE | MAP_EXECUTE)
#define USED (PTE_P | PTE_U | PTE_A)

static uint64_t rights(const struct guest *guest, uint64_t linear) {
    struct tables_path path;
    tables_walk(&guest->vcpu, linear, &path);
    unsigned index = linear >> PAGE_SHIFT & (REGION_PAGES - 1);
    return tables_rights(&guest->vcpu, &path, index, path.table ? path.table[index] : 0);
}

static void use_upper(struct guest *guest) {
    guest_set_u64(guest, GUEST_TABLES, guest_u64(guest, GUEST_TABLES) | PTE_A);
    guest_set_u64(guest, GUEST_TABLES + PAGE_SIZE, guest_u64(guest, GUEST_TABLES + PAGE_SIZE) | PTE_A);
}

static void test_large(void) {
    struct guest guest;
    uint64_t at = 4 * MIB, *leaf;
    guest_create(&guest, true);
    leaf = guest_leaf(&guest, at);
    *leaf |= PTE_A | PTE_D;
    guest_set_u64(&guest, GUEST_TABLES, guest_u64(&guest, GUEST_TABLES) & ~PTE_A);
    CHECK_EQUAL(rights(&guest, at), 0); /* A is not set on the whole way */
    use_upper(&guest);
    CHECK_EQUAL(rights(&guest, at + 5 * PAGE_SIZE), (at + 5 * PAGE_SIZE) | ALL);
    *leaf &= ~PTE_D;
    CHECK_EQUAL(rights(&guest, at), at | MAP_READ | MAP_EXECUTE);
    *leaf |= PTE_D | PTE_NX;
    CHECK_EQUAL(rights(&guest, at), at | MAP_READ | MAP_WRITE);
    *leaf &= ~PTE_A;
    CHECK_EQUAL(rights(&guest, at), 0);
    *leaf |= PTE_A | 1ull << 13; /* reserved in a large page */
    CHECK_EQUAL(rights(&guest, at), 0);
    guest_destroy(&guest);
}

static void test_small(void) {
    struct guest guest;
    uint64_t at = 6 * MIB + 3 * PAGE_SIZE, entry = TABLE + 3 * 8;
    guest_create(&guest, true);
    use_upper(&guest);
    *guest_leaf(&guest, at) = TABLE | USED | PTE_W;
    CHECK_EQUAL(rights(&guest, at), 0);
    guest_set_u64(&guest, entry, 0x5000 | USED | PTE_W | PTE_D);
    CHECK_EQUAL(rights(&guest, at), 0x5000 | ALL);
    guest_set_u64(&guest, entry, 0x5000 | USED | PTE_W);
    CHECK_EQUAL(rights(&guest, at), 0x5000 | MAP_READ | MAP_EXECUTE);
    guest_set_u64(&guest, entry, 0x5000 | PTE_P | PTE_A | PTE_W | PTE_D); /* the kernel's */
    CHECK_EQUAL(rights(&guest, at), 0);
    guest_set_u64(&guest, entry, (GUEST_RAM + GIB) | USED | PTE_W | PTE_D); /* no RAM: a device's */
    CHECK_EQUAL(rights(&guest, at), 0);
    guest_set_u64(&guest, entry, 1ull << 51 | 0x5000 | USED); /* a reserved address bit */
    CHECK_EQUAL(rights(&guest, at), 0);
    guest_set_u64(&guest, entry, 0x5000 | USED | PTE_W | PTE_D);
    *guest_leaf(&guest, at) = TABLE | USED; /* read-only by the upper entry */
    CHECK_EQUAL(rights(&guest, at), 0x5000 | MAP_READ | MAP_EXECUTE);
    *guest_leaf(&guest, at) = TABLE | PTE_P | PTE_U | PTE_W;
    CHECK_EQUAL(rights(&guest, at), 0);
    *guest_leaf(&guest, at) = (GUEST_RAM + GIB) | USED | PTE_W; /* a table that is nowhere */
    CHECK_EQUAL(rights(&guest, at), 0);
    guest_destroy(&guest);
}

/* Without NX enabled its bit is a reserved one. */
static void test_no_nx(void) {
    struct guest guest;
    uint64_t at = 2 * MIB;
    guest_create(&guest, true);
    use_upper(&guest);
    *guest_leaf(&guest, at) |= PTE_A | PTE_NX;
    CHECK_EQUAL(rights(&guest, at), at | MAP_READ);
    guest.vcpu.efer &= ~EFER_NXE;
    CHECK_EQUAL(rights(&guest, at), 0);
    guest_destroy(&guest);
}

int main(void) {
    test_large();
    test_small();
    test_no_nx();
    return check_result();
}
