/* What the readers of the image kinds share. Private to sbt/. */
#ifndef NESTOR_SBT_IMAGE_PRIVATE_H
#define NESTOR_SBT_IMAGE_PRIVATE_H

#include <elf.h>
#include <libelf.h>

#include "sbt/image.h"

#define IMAGE_SECTIONS_MAX 4096

/* Open bytes as a 64-bit x86 ELF file of that type; NULL after one diag_error() line. elf_end() takes it. */
MUST_CHECK Elf *image_elf_open(const char *path, uint8_t *bytes, size_t size, unsigned type);
/* Section number index of the file, and its data if it lies in the file (NULL for SHT_NOBITS or when it
 * reaches beyond the end). False: no such section. */
MUST_CHECK bool image_elf_section(Elf *elf, const struct image *image, unsigned index, Elf64_Shdr *header,
                                  const char **name, uint8_t **data);
/* Sort sections, symbols and fields; drop sections that overlap the one before; index the names. 0 or
 * -ENOMEM.
 */
MUST_CHECK int image_sort(struct image *image);
/* Symbols from SHT_SYMTAB, with section addresses added for a relocatable file (addresses by section index,
 * NULL otherwise). 0 or -ENOMEM; a file without is no error. */
MUST_CHECK int image_elf_symbols(struct image *image, Elf *elf, const uint64_t *addresses, unsigned count);

/* kallsyms.c: find and unpack the symbol table inside a kernel image. 0 (also when there is none: the image
 * then has no symbols) or -ENOMEM. */
MUST_CHECK int kallsyms_read(struct image *image);

#endif
