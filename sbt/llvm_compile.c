/* Optimisation, emission, and what is taken out of the object file: one section of code, and relocations
 * against symbols that we named ourselves. Whatever else LLVM might emit (constant pools, jump tables, calls
 * to a library) makes the function the template's. */
#include "sbt/llvm_compile.h"

#include <elf.h>
#include <libelf.h>
#include <llvm-c/Analysis.h>
#include <llvm-c/Target.h>
#include <llvm-c/Transforms/PassBuilder.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "sbt/llvm_private.h"

#define TRIPLE "x86_64-unknown-linux-gnu"

static void set_up(void) {
    LLVMInitializeX86TargetInfo();
    LLVMInitializeX86Target();
    LLVMInitializeX86TargetMC();
    LLVMInitializeX86AsmPrinter();
    LLVMInitializeX86AsmParser();
    (void)elf_version(EV_CURRENT);
}

LLVMTargetMachineRef compile_target_create(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    LLVMTargetRef target;
    char *message = NULL;
    pthread_once(&once, set_up);
    if (LLVMGetTargetFromTriple(TRIPLE, &target, &message)) {
        LLVMDisposeMessage(message);
        return NULL;
    }
    return LLVMCreateTargetMachine(target, TRIPLE, "x86-64", LLVM_FEATURES, LLVMCodeGenLevelDefault,
                                   LLVMRelocPIC, LLVMCodeModelSmall);
}

static const char *optimise(LLVMModuleRef module, LLVMTargetMachineRef target) {
    LLVMPassBuilderOptionsRef options = LLVMCreatePassBuilderOptions();
    LLVMPassBuilderOptionsSetLoopVectorization(options, false);
    LLVMPassBuilderOptionsSetSLPVectorization(options, false);
    LLVMPassBuilderOptionsSetLoopUnrolling(options, false);
    LLVMErrorRef error = LLVMRunPasses(module, "default<O2>", target, options);
    LLVMDisposePassBuilderOptions(options);
    if (!error)
        return NULL;
    LLVMConsumeError(error);
    return "optimisation failed";
}

static bool symbol_of(const char *name, struct text_reloc *reloc) {
    if (!strcmp(name, "address")) {
        reloc->symbol = TEXT_ADDRESS;
        return true;
    }
    if (name[0] != 'x' && name[0] != 'r')
        return false;
    reloc->symbol = name[0] == 'x' ? TEXT_EXIT : TEXT_REGION;
    reloc->number = (uint32_t)strtoul(name + 1, NULL, 10);
    return true;
}

static const char *read_symbols(Elf *elf, Elf_Scn *section, const Elf64_Shdr *header, size_t code,
                                struct text *text) {
    Elf_Data *data = elf_getdata(section, NULL);
    const Elf64_Sym *symbol = data ? data->d_buf : NULL;
    for (size_t i = 0; symbol && i < data->d_size / sizeof *symbol; i++) {
        const char *name = elf_strptr(elf, header->sh_link, symbol[i].st_name);
        struct text_reloc number = {0};
        if (name && symbol[i].st_shndx == code && symbol_of(name, &number) && number.symbol == TEXT_REGION &&
            number.number < text->regions)
            text->region[number.number] = (uint32_t)symbol[i].st_value;
    }
    return symbol ? NULL : "no symbols";
}

static const char *read_relocs(Elf *elf, Elf_Scn *section, Elf_Scn *symbols, struct text *text) {
    Elf_Data *data = elf_getdata(section, NULL), *table = elf_getdata(symbols, NULL);
    const Elf64_Shdr *header = elf64_getshdr(symbols);
    if (!data || !table || !header)
        return "no relocations";
    const Elf64_Rela *rela = data->d_buf;
    const Elf64_Sym *symbol = table->d_buf;
    size_t count = data->d_size / sizeof *rela;
    text->reloc = calloc(count + 1, sizeof *text->reloc);
    if (!text->reloc)
        return "no memory";
    for (size_t i = 0; i < count; i++) {
        uint32_t type = (uint32_t)ELF64_R_TYPE(rela[i].r_info);
        const char *name = elf_strptr(elf, header->sh_link, symbol[ELF64_R_SYM(rela[i].r_info)].st_name);
        struct text_reloc *reloc = &text->reloc[text->relocs++];
        reloc->place = (uint32_t)rela[i].r_offset;
        reloc->distance = (int32_t)(-rela[i].r_addend - 4);
        if ((type != R_X86_64_PC32 && type != R_X86_64_PLT32) || !name || !symbol_of(name, reloc) ||
            rela[i].r_offset + 4 > text->size)
            return "an unknown relocation";
    }
    return NULL;
}

/* .text alone may have contents. */
static const char *read_object(Elf *elf, struct text *text) {
    Elf_Scn *section = NULL, *symbols = NULL, *relocs = NULL;
    size_t names, code = 0;
    if (elf_kind(elf) != ELF_K_ELF || elf_getshdrstrndx(elf, &names))
        return "no object file";
    while ((section = elf_nextscn(elf, section))) {
        const Elf64_Shdr *header = elf64_getshdr(section);
        const char *name = header ? elf_strptr(elf, names, header->sh_name) : NULL;
        if (!name)
            return "no object file";
        if (header->sh_type == SHT_SYMTAB) {
            symbols = section;
        } else if (header->sh_type == SHT_RELA && !strcmp(name, ".rela.text")) {
            relocs = section;
        } else if (header->sh_flags & SHF_ALLOC && header->sh_size) {
            if (strcmp(name, ".text") != 0)
                return "data beside the code";
            Elf_Data *data = elf_getdata(section, NULL);
            if (!data)
                return "no code";
            code = elf_ndxscn(section);
            text->bytes = data->d_buf;
            text->size = data->d_size;
        }
    }
    if (!text->bytes || !symbols)
        return "no code";
    const char *why = read_symbols(elf, symbols, elf64_getshdr(symbols), code, text);
    return why || !relocs ? why : read_relocs(elf, relocs, symbols, text);
}

const char *compile_module(LLVMModuleRef module, LLVMTargetMachineRef target, uint32_t regions,
                           struct text *text, char **ir) {
    char *message = NULL;
    *text = (struct text){.regions = regions, .region = malloc((regions + 1) * sizeof *text->region)};
    if (!text->region)
        return "no memory";
    memset(text->region, 0xff, regions * sizeof *text->region);
    LLVMSetTarget(module, TRIPLE);
    LLVMTargetDataRef layout = LLVMCreateTargetDataLayout(target);
    LLVMSetModuleDataLayout(module, layout);
    LLVMDisposeTargetData(layout);
    if (LLVMVerifyModule(module, LLVMReturnStatusAction, &message)) {
        LLVMDisposeMessage(message);
        return "malformed IR";
    }
    LLVMDisposeMessage(message);
    const char *why = optimise(module, target);
    if (why)
        return why;
    if (ir)
        *ir = LLVMPrintModuleToString(module); /* emission changes it further */
    message = NULL;
    if (LLVMTargetMachineEmitToMemoryBuffer(target, module, LLVMObjectFile, &message, &text->object)) {
        LLVMDisposeMessage(message);
        return "emission failed";
    }
    Elf *elf = elf_memory((char *)LLVMGetBufferStart(text->object), LLVMGetBufferSize(text->object));
    if (!elf)
        return "no object file";
    /* The code is copied: it goes with the Elf. */
    why = read_object(elf, text);
    uint8_t *copy = why ? NULL : malloc(text->size);
    if (copy)
        memcpy(copy, text->bytes, text->size);
    text->bytes = copy;
    elf_end(elf);
    return why ? why : copy ? NULL : "no memory";
}

void text_destroy(struct text *text) {
    if (text->object)
        LLVMDisposeMemoryBuffer(text->object);
    free((void *)text->bytes);
    free(text->reloc);
    free(text->region);
    *text = (struct text){0};
}
