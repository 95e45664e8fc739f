/* The .ntc file: translated guest code that outlives a VM. docs/cache-format.md is the specification; the
 * structures here are its tables in C, fixed-width and little-endian, with their offsets checked below.
 *
 *   header (4096 bytes) | sections that a VM needs | leaf digests | sections that only tools read
 *
 * Everything before load_size is what a VM may load, chunk by chunk when it is first needed. The file's root
 * digest covers every byte of both parts.
 */
#ifndef NESTOR_CACHE_FORMAT_H
#define NESTOR_CACHE_FORMAT_H

#include "base/types.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the structures are the file's bytes");

#define NTC_MAGIC "\x89NTC\r\n\x1a\n"
#define NTC_VERSION_MAJOR 2 /* another one: unreadable */
#define NTC_VERSION_MINOR 0 /* a higher one: readable, with sections that may be ignored */

#define NTC_HEADER_SIZE 4096u
#define NTC_CHUNK_SIZE 65536u /* what one leaf digest covers */
#define NTC_DIGEST_SIZE 32u
#define NTC_KEY_ID_SIZE 16u
#define NTC_SIGNATURE_SIZE 64u

/* Bounds that hold for every file; the reader refuses what is past them. */
#define NTC_LOAD_MAX (1u << 30)   /* bytes that a VM maps */
#define NTC_FILE_MAX (1ull << 36) /* with the sections for tools */
#define NTC_SECTIONS_MAX 32u
#define NTC_UNIT_GUEST_MAX 32768u    /* guest bytes of a unit */
#define NTC_UNIT_CODE_MAX (1u << 20) /* host bytes of a unit */
#define NTC_UNIT_MAP_MAX 65535u      /* bytes of a unit's map */
#define NTC_UNIT_TABLE_MAX 65534u    /* slots, constants, sites, relocations, fields, entries of a unit */
#define NTC_IMAGES_MAX 65535u        /* images of a file */
#define NTC_PROBES_MAX 4096u         /* index slots that a search may look at */
#define NTC_RUNTIME_SLOTS 64u        /* the first link slots, whose values the run time defines */
#define NTC_CODE_ALIGN 16u

enum ntc_section_kind {
    NTC_SECTION_CODE = 1,     /* host code of all units; page-aligned, whole pages */
    NTC_SECTION_SLOTS = 2,    /* u64: link slots; page-aligned, whole pages, right behind CODE */
    NTC_SECTION_CONSTS = 3,   /* u64: constants that code loads; page-aligned, whole pages, behind SLOTS */
    NTC_SECTION_IMAGES = 4,   /* struct ntc_image_record */
    NTC_SECTION_UNITS = 5,    /* struct ntc_unit_record, in the order of their code */
    NTC_SECTION_ENTRIES = 6,  /* struct ntc_entry_record, by image, likely or not, address */
    NTC_SECTION_PAGES = 7,    /* u32: per image, likely or not, and page of link addresses, its first entry */
    NTC_SECTION_INDEX = 8,    /* struct ntc_index_record: the hash table of entry bytes */
    NTC_SECTION_BYTES = 9,    /* guest bytes, each string once */
    NTC_SECTION_SITES = 10,   /* struct ntc_site */
    NTC_SECTION_RELOCS = 11,  /* struct ntc_reloc, of the kinds from NTC_RELOC_RUNTIME_FIRST on */
    NTC_SECTION_FIELDS = 12,  /* struct ntc_field */
    NTC_SECTION_MAPS = 13,    /* host-PC to guest-PC maps: bytes */
    NTC_SECTION_STATES = 14,  /* struct ntc_state */
    NTC_SECTION_STRINGS = 15, /* UTF-8, each ended by a zero byte; offset 0 is the empty string */
    NTC_SECTION_PLACES = 16,  /* u32: where in CODE each unit starts */
    NTC_SECTION_LIKELY = 17,  /* struct ntc_range: what is worth loading when the file is opened */
    NTC_SECTION_LEAVES = 18,  /* 32-byte digests of the chunks; the last that is loaded */
    /* For tools: behind load_size. */
    NTC_SECTION_IR = 19,    /* text */
    NTC_SECTION_NOTES = 20, /* struct ntc_note_record, one for each unit */
    NTC_SECTION_LINKS = 21, /* struct ntc_link */
    NTC_SECTION_KINDS,
};

/* In ntc_section.flags. */
#define NTC_SECTION_REQUIRED 1u /* a reader that does not know the kind must refuse the file */

struct ntc_section {
    uint32_t kind;
    uint32_t flags;
    uint64_t offset; /* from the start of the file */
    uint64_t length; /* bytes, without padding */
    uint32_t record_size;
    uint32_t record_count; /* record_size * record_count == length */
};

/* In ntc_header.required_flags. */
#define NTC_REQUIRE_INDEX_LIKELY 1u /* index_likely is not 0 */

struct ntc_header {
    uint8_t magic[8];
    uint16_t version_major;
    uint16_t version_minor;
    uint32_t header_size;
    uint32_t required_flags; /* NTC_REQUIRE_...: an unknown one refuses the file */
    uint32_t optional_flags;
    uint64_t file_size;
    uint64_t load_size; /* up to the end of the leaves, whole pages */
    uint32_t chunk_size;
    uint32_t leaf_count;
    uint32_t section_count;
    uint32_t index_probes;      /* the longest search that finds something looks at so many index slots */
    uint32_t translator_abi;    /* number: what the words in sites, states and stubs mean */
    uint32_t index_likely;      /* so many index slots, the first ones, are a table of likely entries alone */
    uint64_t translator_layout; /* digest of the offsets and constants compiled into the code */
    uint64_t host_features;     /* what every unit needs (host_features.h) */
    uint8_t reserved1[48];      /* zero, as all that is reserved */
    uint8_t producer[128];      /* for people: program and version, zero-filled UTF-8 */
    struct ntc_section section[NTC_SECTIONS_MAX];
    uint8_t reserved2[2560];
    /* From here on not under the root digest. */
    uint8_t root[NTC_DIGEST_SIZE];
    uint32_t signature_kind; /* enum ntc_signature_kind */
    uint32_t reserved3;
    uint8_t key_id[NTC_KEY_ID_SIZE];
    uint8_t signature[NTC_SIGNATURE_SIZE]; /* over NTC_SIGNATURE_CONTEXT and the root */
    uint8_t reserved4[136];
};

/* The part of the header that the root digest covers. */
#define NTC_HEADER_SIGNED 3840u
#define NTC_SIGNATURE_CONTEXT "nestor-cache signature 1" /* 24 bytes, without a zero */

enum ntc_signature_kind { NTC_UNSIGNED = 0, NTC_ED25519 = 1 };

enum ntc_image_kind { NTC_IMAGE_OTHER = 0, NTC_IMAGE_KERNEL = 1, NTC_IMAGE_MODULE = 2 };

/* A guest image: what moves as a whole, by one slide. */
struct ntc_image_record {
    uint64_t link_base;   /* of the first page; whole pages */
    uint64_t link_length; /* every unit lies within; whole pages */
    uint64_t slide_align; /* a slide is a multiple of it; a power of two, at least 1 */
    uint32_t kind;        /* enum ntc_image_kind */
    uint32_t flags;       /* zero */
    uint32_t name;        /* string */
    uint32_t version;     /* string */
    uint32_t first_entry, entry_count;
    uint32_t
        first_page; /* two runs of link_length / 4096 + 1 words: for the likely entries, for the others */
    uint32_t page_count;   /* link_length / 4096 */
    uint32_t likely_count; /* so many of the entries come first and are of units that are likely to be used */
    uint32_t unit_count;
    uint8_t digest[NTC_DIGEST_SIZE]; /* BLAKE2b-256 of the image file, unpacked; zero: not known */
    uint8_t build_id[20];            /* the GNU build ID; zero: none */
    uint32_t reserved;
};

/* Made by; ntc_unit_record.generator. */
enum ntc_generator { NTC_GENERATOR_TEMPLATE = 0, NTC_GENERATOR_LLVM = 1, NTC_GENERATORS };

struct ntc_unit_record {
    uint64_t link_address;
    uint64_t host_features; /* what this unit needs beyond the header's */
    uint32_t bytes;         /* in BYTES */
    uint32_t mode;          /* of the guest, as the translator's ABI defines it */
    uint32_t code;          /* in CODE */
    uint32_t code_length;
    uint32_t first_slot, first_const, first_site, first_reloc, first_field;
    uint32_t map;      /* in MAPS */
    uint32_t abi_data; /* the translator's own */
    uint16_t guest_length, map_length;
    uint16_t image;
    uint16_t slot_count, const_count, site_count, reloc_count, field_count, entry_count;
    uint8_t generator;
    uint8_t flags; /* zero */
};

/* What a VM has no use for: of the unit with the same number. */
struct ntc_note_record {
    uint8_t bytes_hash[16]; /* XXH3-128 of the guest bytes with all fields zero: low half, high half */
    uint64_t ir;            /* in IR */
    uint32_t ir_length;     /* 0: none */
    uint32_t name;          /* string: the symbol, or empty */
    uint32_t name_offset;   /* of the unit's first byte from the symbol */
    uint32_t heat;          /* how often a profile saw it, on a scale of the producer's; 0: never */
    uint32_t first_link, link_count;
};

struct ntc_entry_record {
    uint32_t address; /* link address - link_base of the image */
    uint32_t unit;
    uint32_t host;         /* offset in the unit's code */
    uint8_t digest_length; /* bytes under the index's digest, of ntc_digest_lengths; 0: not in the index */
    uint8_t check;         /* low byte of that digest; zero without one */
    uint16_t abi_data;     /* the translator's own */
};

/* Bytes of the file, before LEAVES. */
struct ntc_range {
    uint64_t offset, length;
};

struct ntc_index_record {
    uint32_t tag;   /* upper half of the digest */
    uint32_t entry; /* entry number + 1; 0: empty */
};

/* What a number in host code that C looks up leads to. Kinds from 128 on belong to the translator. */
enum ntc_site_kind {
    NTC_SITE_LINK = 0,     /* direct jump or fall through */
    NTC_SITE_CALL = 1,     /* direct call */
    NTC_SITE_RETURN = 2,   /* return */
    NTC_SITE_INDIRECT = 3, /* indirect jump or call */
    NTC_SITE_MEMORY = 4,   /* the inline check of an access failed */
    NTC_SITE_HELPER = 5,   /* a helper in C */
    NTC_SITE_INTERPRET = 6,
    NTC_SITE_PRIVATE = 128,
};
#define NTC_NO_SLOT 0xffffu
/* In ntc_site.flags; bits 8-15 belong to the translator. */
#define NTC_SITE_TARGET_ABSOLUTE                                                                             \
    1u                           /* target is a guest address, sign-extended, not an offset from the unit's */
#define NTC_SITE_TARGET_FIELD 2u /* target is the number of a field that holds it */
#define NTC_SITE_FLAGS_KNOWN 0xff03u

struct ntc_site {
    uint32_t host;  /* offset in the unit's code: where to go on, to try again */
    uint16_t guest; /* offset of the instruction from the unit's first byte; guest_length at its end */
    uint8_t length; /* of the instruction */
    uint8_t kind;   /* enum ntc_site_kind */
    uint8_t reg;    /* these three: the translator's own */
    uint8_t access;
    uint16_t size;
    uint16_t flags;
    uint16_t slot;  /* of the unit, or NTC_NO_SLOT */
    int32_t target; /* guest address of a direct exit - that of the unit, unless flags say otherwise */
};

enum ntc_reloc_kind {
    /* Settled when the file is laid out; kept so that it can be laid out again. The addend is what stands
     * between the field's end and the end of the instruction. */
    NTC_RELOC_SLOT = 1,    /* RIP-relative: link slot `index` of the unit */
    NTC_RELOC_CONST = 2,   /* RIP-relative: constant `index` of the unit */
    NTC_RELOC_RUNTIME = 3, /* RIP-relative: slot `index` of those that the run time defines */
    NTC_RELOC_SITE = 4,    /* 32 bits: number of site `index` of the unit in the file */
    /* Settled when a unit is put to use; without a slide the bytes are right as they stand. */
    NTC_RELOC_ADDRESS = 16,  /* guest address of the unit + addend */
    NTC_RELOC_SLIDE = 17,    /* addend + the slide of image `index` */
    NTC_RELOC_FIELD = 18,    /* field `index` of the guest's bytes, sign-extended, + addend */
    NTC_RELOC_FIELD_PC = 19, /* the same + guest address of the field's end */
};
#define NTC_RELOC_RUNTIME_FIRST 16u

/* What the relocation changes. */
enum ntc_reloc_place { NTC_PLACE_CODE = 0, NTC_PLACE_CONST = 1 };

struct ntc_reloc {
    uint32_t place;    /* offset in the unit's code, or number of its constant */
    uint8_t kind;      /* enum ntc_reloc_kind */
    uint8_t where : 4; /* enum ntc_reloc_place */
    uint8_t width : 4; /* bytes: 4 (must fit, signed or unsigned) or 8 */
    uint16_t index;
    int64_t addend;
};

/* A relocation of the kinds before NTC_RELOC_RUNTIME_FIRST: 4 bytes of code. */
struct ntc_link {
    uint32_t place; /* offset in the unit's code */
    uint16_t index;
    uint8_t kind;
    uint8_t addend;
};

/* Guest bytes that may differ from the recorded ones. */
enum ntc_field_kind {
    NTC_FIELD_ANY = 0,     /* any value: the code takes it by a relocation */
    NTC_FIELD_SLIDE = 1,   /* recorded value + the slide of `image` */
    NTC_FIELD_UNSLIDE = 2, /* recorded value - the slide of `image` */
    NTC_FIELD_APART = 3,   /* recorded value + the slide of `image` - the slide of the unit's own image */
};

struct ntc_field {
    uint16_t offset; /* from the unit's first byte */
    uint8_t size;    /* 1, 2, 4 or 8 */
    uint8_t kind;    /* enum ntc_field_kind */
    uint16_t image;
    uint16_t reserved;
};

/* Where the guest's registers are at an instruction. State 0 is always: each in its own, flags live. */
#define NTC_WHERE_REGISTER 0x00u      /* + number: a host register */
#define NTC_WHERE_SPILL 0x40u         /* + number: a word of the translator's spill area */
#define NTC_WHERE_VCPU 0x80u          /* in the vCPU's own word for it */
#define NTC_STATE_FLAGS_SAVED 1u      /* the arithmetic flags are in the saved word, not in the host's */
#define NTC_STATE_FLAGS_KNOWN 0xff01u /* bits 8-15 belong to the translator */

struct ntc_state {
    uint8_t where[16]; /* by guest register number */
    uint16_t flags;
    uint16_t reserved;
    uint32_t abi_data[3]; /* the translator's own */
};

#define NTC_OFFSET(type, field, at)                                                                          \
    _Static_assert(offsetof(struct type, field) == (at), "docs/cache-format.md says where " #field " stand"  \
                                                         "s")
NTC_OFFSET(ntc_header, file_size, 24);
NTC_OFFSET(ntc_header, translator_abi, 56);
NTC_OFFSET(ntc_header, host_features, 72);
NTC_OFFSET(ntc_header, producer, 128);
NTC_OFFSET(ntc_header, section, 256);
NTC_OFFSET(ntc_header, root, NTC_HEADER_SIGNED);
NTC_OFFSET(ntc_header, signature, 3896);
NTC_OFFSET(ntc_image_record, first_entry, 40);
NTC_OFFSET(ntc_image_record, digest, 64);
NTC_OFFSET(ntc_unit_record, mode, 20);
NTC_OFFSET(ntc_unit_record, guest_length, 60);
NTC_OFFSET(ntc_unit_record, generator, 78);
NTC_OFFSET(ntc_note_record, first_link, 40);
NTC_OFFSET(ntc_site, target, 16);
NTC_OFFSET(ntc_reloc, addend, 8);
_Static_assert(sizeof(struct ntc_section) == 32, "see docs/cache-format.md");
_Static_assert(sizeof(struct ntc_header) == NTC_HEADER_SIZE, "see docs/cache-format.md");
_Static_assert(sizeof(struct ntc_image_record) == 120, "see docs/cache-format.md");
_Static_assert(sizeof(struct ntc_note_record) == 48, "see docs/cache-format.md");
_Static_assert(sizeof(struct ntc_link) == 8, "see docs/cache-format.md");
_Static_assert(sizeof(struct ntc_unit_record) == 80, "see docs/cache-format.md");
_Static_assert(sizeof(struct ntc_entry_record) == 16, "see docs/cache-format.md");
_Static_assert(sizeof(struct ntc_range) == 16, "see docs/cache-format.md");
_Static_assert(sizeof(struct ntc_index_record) == 8, "see docs/cache-format.md");
_Static_assert(sizeof(struct ntc_site) == 20, "see docs/cache-format.md");
_Static_assert(sizeof(struct ntc_reloc) == 16, "see docs/cache-format.md");
_Static_assert(sizeof(struct ntc_field) == 8, "see docs/cache-format.md");
_Static_assert(sizeof(struct ntc_state) == 32, "see docs/cache-format.md");

#endif
