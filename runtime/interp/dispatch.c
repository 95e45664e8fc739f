/* Which handler executes an instruction: one table by mnemonic, and the few choices that a mnemonic alone
 * does not make. What no handler claims runs natively, if it may; else it is undefined. */
#include "interp/internal.h"

struct entry {
    interp_handler *handler;
    uint8_t function;
};

static const struct entry table[ZYDIS_MNEMONIC_MAX_VALUE + 1] = {
    /* moves */
    [ZYDIS_MNEMONIC_MOV] = {mov_execute, 0},
    [ZYDIS_MNEMONIC_MOVZX] = {movzx_execute, 0},
    [ZYDIS_MNEMONIC_MOVSX] = {movsx_execute, 0},
    [ZYDIS_MNEMONIC_MOVSXD] = {movsx_execute, 0},
    [ZYDIS_MNEMONIC_LEA] = {lea_execute, 0},
    [ZYDIS_MNEMONIC_XCHG] = {xchg_execute, 0},
    [ZYDIS_MNEMONIC_XLAT] = {xlat_execute, 0},
    [ZYDIS_MNEMONIC_LDS] = {load_far_pointer_execute, 0},
    [ZYDIS_MNEMONIC_LES] = {load_far_pointer_execute, 0},
    [ZYDIS_MNEMONIC_LFS] = {load_far_pointer_execute, 0},
    [ZYDIS_MNEMONIC_LGS] = {load_far_pointer_execute, 0},
    [ZYDIS_MNEMONIC_LSS] = {load_far_pointer_execute, 0},
    /* arithmetic: function is the operation of the 80-83 group */
    [ZYDIS_MNEMONIC_ADD] = {alu_execute, 0},
    [ZYDIS_MNEMONIC_OR] = {alu_execute, 1},
    [ZYDIS_MNEMONIC_ADC] = {alu_execute, 2},
    [ZYDIS_MNEMONIC_SBB] = {alu_execute, 3},
    [ZYDIS_MNEMONIC_AND] = {alu_execute, 4},
    [ZYDIS_MNEMONIC_SUB] = {alu_execute, 5},
    [ZYDIS_MNEMONIC_XOR] = {alu_execute, 6},
    [ZYDIS_MNEMONIC_CMP] = {alu_execute, 7},
    [ZYDIS_MNEMONIC_TEST] = {test_execute, 0},
    [ZYDIS_MNEMONIC_INC] = {incdec_execute, 0},
    [ZYDIS_MNEMONIC_DEC] = {incdec_execute, 1},
    [ZYDIS_MNEMONIC_NEG] = {incdec_execute, 2},
    [ZYDIS_MNEMONIC_NOT] = {incdec_execute, 3},
    [ZYDIS_MNEMONIC_BT] = {bit_test_execute, 0},
    [ZYDIS_MNEMONIC_BTS] = {bit_test_execute, 1},
    [ZYDIS_MNEMONIC_BTR] = {bit_test_execute, 2},
    [ZYDIS_MNEMONIC_BTC] = {bit_test_execute, 3},
    [ZYDIS_MNEMONIC_DAA] = {bcd_execute, 0},
    [ZYDIS_MNEMONIC_DAS] = {bcd_execute, 0},
    [ZYDIS_MNEMONIC_AAA] = {bcd_execute, 0},
    [ZYDIS_MNEMONIC_AAS] = {bcd_execute, 0},
    [ZYDIS_MNEMONIC_AAM] = {bcd_execute, 0},
    [ZYDIS_MNEMONIC_AAD] = {bcd_execute, 0},
    [ZYDIS_MNEMONIC_BOUND] = {bound_execute, 0},
    [ZYDIS_MNEMONIC_ARPL] = {arpl_execute, 0},
    [ZYDIS_MNEMONIC_SALC] = {salc_execute, 0},
    /* flags */
    [ZYDIS_MNEMONIC_CLC] = {flag_execute, 0},
    [ZYDIS_MNEMONIC_STC] = {flag_execute, 0},
    [ZYDIS_MNEMONIC_CMC] = {flag_execute, 0},
    [ZYDIS_MNEMONIC_CLD] = {flag_execute, 0},
    [ZYDIS_MNEMONIC_STD] = {flag_execute, 0},
    [ZYDIS_MNEMONIC_LAHF] = {flag_execute, 0},
    [ZYDIS_MNEMONIC_SAHF] = {flag_execute, 0},
    [ZYDIS_MNEMONIC_CLI] = {cli_execute, 0},
    [ZYDIS_MNEMONIC_STI] = {sti_execute, 0},
    [ZYDIS_MNEMONIC_CLAC] = {ac_execute, 0},
    [ZYDIS_MNEMONIC_STAC] = {ac_execute, 0},
    [ZYDIS_MNEMONIC_SETO] = {setcc_execute, 0},
    [ZYDIS_MNEMONIC_SETNO] = {setcc_execute, 0},
    [ZYDIS_MNEMONIC_SETB] = {setcc_execute, 0},
    [ZYDIS_MNEMONIC_SETNB] = {setcc_execute, 0},
    [ZYDIS_MNEMONIC_SETZ] = {setcc_execute, 0},
    [ZYDIS_MNEMONIC_SETNZ] = {setcc_execute, 0},
    [ZYDIS_MNEMONIC_SETBE] = {setcc_execute, 0},
    [ZYDIS_MNEMONIC_SETNBE] = {setcc_execute, 0},
    [ZYDIS_MNEMONIC_SETS] = {setcc_execute, 0},
    [ZYDIS_MNEMONIC_SETNS] = {setcc_execute, 0},
    [ZYDIS_MNEMONIC_SETP] = {setcc_execute, 0},
    [ZYDIS_MNEMONIC_SETNP] = {setcc_execute, 0},
    [ZYDIS_MNEMONIC_SETL] = {setcc_execute, 0},
    [ZYDIS_MNEMONIC_SETNL] = {setcc_execute, 0},
    [ZYDIS_MNEMONIC_SETLE] = {setcc_execute, 0},
    [ZYDIS_MNEMONIC_SETNLE] = {setcc_execute, 0},
    [ZYDIS_MNEMONIC_CMOVO] = {cmov_execute, 0},
    [ZYDIS_MNEMONIC_CMOVNO] = {cmov_execute, 0},
    [ZYDIS_MNEMONIC_CMOVB] = {cmov_execute, 0},
    [ZYDIS_MNEMONIC_CMOVNB] = {cmov_execute, 0},
    [ZYDIS_MNEMONIC_CMOVZ] = {cmov_execute, 0},
    [ZYDIS_MNEMONIC_CMOVNZ] = {cmov_execute, 0},
    [ZYDIS_MNEMONIC_CMOVBE] = {cmov_execute, 0},
    [ZYDIS_MNEMONIC_CMOVNBE] = {cmov_execute, 0},
    [ZYDIS_MNEMONIC_CMOVS] = {cmov_execute, 0},
    [ZYDIS_MNEMONIC_CMOVNS] = {cmov_execute, 0},
    [ZYDIS_MNEMONIC_CMOVP] = {cmov_execute, 0},
    [ZYDIS_MNEMONIC_CMOVNP] = {cmov_execute, 0},
    [ZYDIS_MNEMONIC_CMOVL] = {cmov_execute, 0},
    [ZYDIS_MNEMONIC_CMOVNL] = {cmov_execute, 0},
    [ZYDIS_MNEMONIC_CMOVLE] = {cmov_execute, 0},
    [ZYDIS_MNEMONIC_CMOVNLE] = {cmov_execute, 0},
    /* control transfer */
    [ZYDIS_MNEMONIC_JO] = {jcc_execute, 0},
    [ZYDIS_MNEMONIC_JNO] = {jcc_execute, 0},
    [ZYDIS_MNEMONIC_JB] = {jcc_execute, 0},
    [ZYDIS_MNEMONIC_JNB] = {jcc_execute, 0},
    [ZYDIS_MNEMONIC_JZ] = {jcc_execute, 0},
    [ZYDIS_MNEMONIC_JNZ] = {jcc_execute, 0},
    [ZYDIS_MNEMONIC_JBE] = {jcc_execute, 0},
    [ZYDIS_MNEMONIC_JNBE] = {jcc_execute, 0},
    [ZYDIS_MNEMONIC_JS] = {jcc_execute, 0},
    [ZYDIS_MNEMONIC_JNS] = {jcc_execute, 0},
    [ZYDIS_MNEMONIC_JP] = {jcc_execute, 0},
    [ZYDIS_MNEMONIC_JNP] = {jcc_execute, 0},
    [ZYDIS_MNEMONIC_JL] = {jcc_execute, 0},
    [ZYDIS_MNEMONIC_JNL] = {jcc_execute, 0},
    [ZYDIS_MNEMONIC_JLE] = {jcc_execute, 0},
    [ZYDIS_MNEMONIC_JNLE] = {jcc_execute, 0},
    [ZYDIS_MNEMONIC_JCXZ] = {jcxz_execute, 0},
    [ZYDIS_MNEMONIC_JECXZ] = {jcxz_execute, 0},
    [ZYDIS_MNEMONIC_JRCXZ] = {jcxz_execute, 0},
    [ZYDIS_MNEMONIC_LOOP] = {loop_execute, 0},
    [ZYDIS_MNEMONIC_LOOPE] = {loop_execute, 0},
    [ZYDIS_MNEMONIC_LOOPNE] = {loop_execute, 0},
    [ZYDIS_MNEMONIC_JMP] = {jmp_execute, 0},
    [ZYDIS_MNEMONIC_CALL] = {call_execute, 0},
    [ZYDIS_MNEMONIC_RET] = {ret_execute, 0},
    [ZYDIS_MNEMONIC_INT] = {int_execute, 0},
    [ZYDIS_MNEMONIC_INT3] = {int3_execute, 0},
    [ZYDIS_MNEMONIC_INTO] = {into_execute, 0},
    [ZYDIS_MNEMONIC_INT1] = {icebp_execute, 0},
    [ZYDIS_MNEMONIC_IRET] = {iret_execute, 0},
    [ZYDIS_MNEMONIC_IRETD] = {iret_execute, 0},
    [ZYDIS_MNEMONIC_IRETQ] = {iret_execute, 0},
    [ZYDIS_MNEMONIC_SYSCALL] = {syscall_execute, 0},
    [ZYDIS_MNEMONIC_SYSRET] = {sysret_execute, 0},
    [ZYDIS_MNEMONIC_SYSENTER] = {sysenter_execute, 0},
    [ZYDIS_MNEMONIC_SYSEXIT] = {sysexit_execute, 0},
    /* stack */
    [ZYDIS_MNEMONIC_PUSH] = {push_execute, 0},
    [ZYDIS_MNEMONIC_POP] = {pop_execute, 0},
    [ZYDIS_MNEMONIC_PUSHF] = {pushf_execute, 0},
    [ZYDIS_MNEMONIC_PUSHFD] = {pushf_execute, 0},
    [ZYDIS_MNEMONIC_PUSHFQ] = {pushf_execute, 0},
    [ZYDIS_MNEMONIC_POPF] = {popf_execute, 0},
    [ZYDIS_MNEMONIC_POPFD] = {popf_execute, 0},
    [ZYDIS_MNEMONIC_POPFQ] = {popf_execute, 0},
    [ZYDIS_MNEMONIC_PUSHA] = {pusha_execute, 0},
    [ZYDIS_MNEMONIC_PUSHAD] = {pusha_execute, 0},
    [ZYDIS_MNEMONIC_POPA] = {popa_execute, 0},
    [ZYDIS_MNEMONIC_POPAD] = {popa_execute, 0},
    [ZYDIS_MNEMONIC_ENTER] = {enter_execute, 0},
    [ZYDIS_MNEMONIC_LEAVE] = {leave_execute, 0},
    /* ports */
    [ZYDIS_MNEMONIC_IN] = {in_execute, 0},
    [ZYDIS_MNEMONIC_OUT] = {out_execute, 0},
    /* system */
    [ZYDIS_MNEMONIC_HLT] = {hlt_execute, 0},
    [ZYDIS_MNEMONIC_LGDT] = {descriptor_table_load_execute, 0},
    [ZYDIS_MNEMONIC_LIDT] = {descriptor_table_load_execute, 0},
    [ZYDIS_MNEMONIC_SGDT] = {descriptor_table_store_execute, 0},
    [ZYDIS_MNEMONIC_SIDT] = {descriptor_table_store_execute, 0},
    [ZYDIS_MNEMONIC_SLDT] = {selector_store_execute, 0},
    [ZYDIS_MNEMONIC_STR] = {selector_store_execute, 0},
    [ZYDIS_MNEMONIC_SMSW] = {smsw_execute, 0},
    [ZYDIS_MNEMONIC_LMSW] = {lmsw_execute, 0},
    [ZYDIS_MNEMONIC_LLDT] = {lldt_execute, 0},
    [ZYDIS_MNEMONIC_LTR] = {ltr_execute, 0},
    [ZYDIS_MNEMONIC_LAR] = {lar_execute, 0},
    [ZYDIS_MNEMONIC_LSL] = {lar_execute, 0},
    [ZYDIS_MNEMONIC_VERR] = {verify_execute, 0},
    [ZYDIS_MNEMONIC_VERW] = {verify_execute, 0},
    [ZYDIS_MNEMONIC_CLTS] = {clts_execute, 0},
    [ZYDIS_MNEMONIC_INVLPG] = {invlpg_execute, 0},
    [ZYDIS_MNEMONIC_INVPCID] = {invpcid_execute, 0},
    [ZYDIS_MNEMONIC_INVD] = {cache_flush_execute, 0},
    [ZYDIS_MNEMONIC_WBINVD] = {cache_flush_execute, 0},
    [ZYDIS_MNEMONIC_SWAPGS] = {swapgs_execute, 0},
    [ZYDIS_MNEMONIC_VMCALL] = {hypercall_execute, 0},
    [ZYDIS_MNEMONIC_VMMCALL] = {hypercall_execute, 0},
    [ZYDIS_MNEMONIC_RDMSR] = {rdmsr_execute, 0},
    [ZYDIS_MNEMONIC_WRMSR] = {wrmsr_execute, 0},
    [ZYDIS_MNEMONIC_CPUID] = {cpuid_execute, 0},
    [ZYDIS_MNEMONIC_RDTSC] = {rdtsc_execute, 0},
    [ZYDIS_MNEMONIC_RDTSCP] = {rdtsc_execute, 0},
    [ZYDIS_MNEMONIC_RDPMC] = {rdpmc_execute, 0},
    [ZYDIS_MNEMONIC_RDPID] = {rdpid_execute, 0},
    [ZYDIS_MNEMONIC_XGETBV] = {xgetbv_execute, 0},
    [ZYDIS_MNEMONIC_XSETBV] = {xsetbv_execute, 0},
    [ZYDIS_MNEMONIC_RDFSBASE] = {segment_base_execute, 0},
    [ZYDIS_MNEMONIC_RDGSBASE] = {segment_base_execute, 0},
    [ZYDIS_MNEMONIC_WRFSBASE] = {segment_base_execute, 0},
    [ZYDIS_MNEMONIC_WRGSBASE] = {segment_base_execute, 0},
    /* caches, order, hints; what is a hint on a processor without CET and MPX */
    [ZYDIS_MNEMONIC_CLFLUSH] = {cache_line_execute, 0},
    [ZYDIS_MNEMONIC_CLFLUSHOPT] = {cache_line_execute, 0},
    [ZYDIS_MNEMONIC_CLWB] = {cache_line_execute, 0},
    [ZYDIS_MNEMONIC_SERIALIZE] = {serialize_execute, 0},
    [ZYDIS_MNEMONIC_LFENCE] = {serialize_execute, 0},
    [ZYDIS_MNEMONIC_SFENCE] = {serialize_execute, 0},
    [ZYDIS_MNEMONIC_MFENCE] = {serialize_execute, 0},
    [ZYDIS_MNEMONIC_NOP] = {nop_execute, 0},
    [ZYDIS_MNEMONIC_PAUSE] = {nop_execute, 0},
    [ZYDIS_MNEMONIC_ENDBR32] = {nop_execute, 0},
    [ZYDIS_MNEMONIC_ENDBR64] = {nop_execute, 0},
    [ZYDIS_MNEMONIC_RDSSPD] = {nop_execute, 0},
    [ZYDIS_MNEMONIC_RDSSPQ] = {nop_execute, 0},
    [ZYDIS_MNEMONIC_CLDEMOTE] = {nop_execute, 0},
    [ZYDIS_MNEMONIC_PREFETCH] = {nop_execute, 0},
    [ZYDIS_MNEMONIC_PREFETCHNTA] = {nop_execute, 0},
    [ZYDIS_MNEMONIC_PREFETCHT0] = {nop_execute, 0},
    [ZYDIS_MNEMONIC_PREFETCHT1] = {nop_execute, 0},
    [ZYDIS_MNEMONIC_PREFETCHT2] = {nop_execute, 0},
    [ZYDIS_MNEMONIC_PREFETCHW] = {nop_execute, 0},
    [ZYDIS_MNEMONIC_PREFETCHWT1] = {nop_execute, 0},
    [ZYDIS_MNEMONIC_BNDCL] = {nop_execute, 0},
    [ZYDIS_MNEMONIC_BNDCN] = {nop_execute, 0},
    [ZYDIS_MNEMONIC_BNDCU] = {nop_execute, 0},
    [ZYDIS_MNEMONIC_BNDLDX] = {nop_execute, 0},
    [ZYDIS_MNEMONIC_BNDMK] = {nop_execute, 0},
    [ZYDIS_MNEMONIC_BNDMOV] = {nop_execute, 0},
    [ZYDIS_MNEMONIC_BNDSTX] = {nop_execute, 0},
    /* extended state */
    [ZYDIS_MNEMONIC_FXSAVE] = {fxsave_execute, 0},
    [ZYDIS_MNEMONIC_FXSAVE64] = {fxsave_execute, 0},
    [ZYDIS_MNEMONIC_FXRSTOR] = {fxrstor_execute, 0},
    [ZYDIS_MNEMONIC_FXRSTOR64] = {fxrstor_execute, 0},
    [ZYDIS_MNEMONIC_XSAVE] = {xsave_execute, 0},
    [ZYDIS_MNEMONIC_XSAVE64] = {xsave_execute, 0},
    [ZYDIS_MNEMONIC_XSAVEOPT] = {xsave_execute, 0},
    [ZYDIS_MNEMONIC_XSAVEOPT64] = {xsave_execute, 0},
    [ZYDIS_MNEMONIC_XSAVEC] = {xsave_execute, 0},
    [ZYDIS_MNEMONIC_XSAVEC64] = {xsave_execute, 0},
    [ZYDIS_MNEMONIC_XRSTOR] = {xrstor_execute, 0},
    [ZYDIS_MNEMONIC_XRSTOR64] = {xrstor_execute, 0},
    [ZYDIS_MNEMONIC_FNSTENV] = {native_execute, 0},
    [ZYDIS_MNEMONIC_FNSAVE] = {native_execute, 0},
    [ZYDIS_MNEMONIC_FLDENV] = {native_execute, 0},
    [ZYDIS_MNEMONIC_FRSTOR] = {native_execute, 0},
    [ZYDIS_MNEMONIC_MASKMOVQ] = {maskmov_execute, 0},
    [ZYDIS_MNEMONIC_MASKMOVDQU] = {maskmov_execute, 0},
    [ZYDIS_MNEMONIC_VMASKMOVDQU] = {maskmov_execute, 0},
    [ZYDIS_MNEMONIC_MOVDIR64B] = {movdir64b_execute, 0},
    /* undefined for a guest, whatever the host makes of them */
    [ZYDIS_MNEMONIC_UD0] = {undefined_execute, 0},
    [ZYDIS_MNEMONIC_UD1] = {undefined_execute, 0},
    [ZYDIS_MNEMONIC_UD2] = {undefined_execute, 0},
    [ZYDIS_MNEMONIC_MONITOR] = {undefined_execute, 0},
    [ZYDIS_MNEMONIC_MWAIT] = {undefined_execute, 0},
    [ZYDIS_MNEMONIC_MCOMMIT] = {undefined_execute, 0},
    [ZYDIS_MNEMONIC_LLWPCB] = {undefined_execute, 0},
    [ZYDIS_MNEMONIC_SLWPCB] = {undefined_execute, 0},
    [ZYDIS_MNEMONIC_LWPINS] = {undefined_execute, 0},
    [ZYDIS_MNEMONIC_LWPVAL] = {undefined_execute, 0},
};

interp_handler *interp_find_withheld(struct decoded *d) {
    switch (d->insn.z.mnemonic) {
    case ZYDIS_MNEMONIC_LZCNT:
        d->function = 1;
        return d->insn.z.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY ? bit_scan_execute : undefined_execute;
    case ZYDIS_MNEMONIC_TZCNT:
        return d->insn.z.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY ? bit_scan_execute : undefined_execute;
    default:
        return undefined_execute;
    }
}

static bool is_class(const ZydisDecodedOperand *op, ZydisRegisterClass class) {
    return op->type == ZYDIS_OPERAND_TYPE_REGISTER && ZydisRegisterGetClass(op->reg.value) == class;
}

/* The three families behind the one mnemonic MOV. */
static interp_handler *find_mov(struct decoded *d) {
    for (unsigned i = 0; i < 2; i++) {
        const ZydisDecodedOperand *op = &d->insn.op[i];
        if (is_class(op, ZYDIS_REGCLASS_CONTROL))
            return mov_control_execute;
        if (is_class(op, ZYDIS_REGCLASS_DEBUG))
            return mov_debug_execute;
        if (is_class(op, ZYDIS_REGCLASS_TEST))
            return undefined_execute;
        if (is_class(op, ZYDIS_REGCLASS_SEGMENT))
            d->function = 1;
    }
    return mov_execute;
}

interp_handler *interp_find_handler(struct decoded *d) {
    const struct insn *insn = &d->insn;
    switch (insn->z.meta.category) {
    case ZYDIS_CATEGORY_STRINGOP:
        return string_execute;
    case ZYDIS_CATEGORY_IOSTRINGOP:
        return io_string_execute;
    default:
        break;
    }
    if (insn->traits & INSN_VSIB)
        return gather_execute;
    const struct entry *entry = &table[insn->z.mnemonic];
    if (!entry->handler) {
        if (!insn_can_encode(insn))
            return undefined_execute;
        return insn->traits & INSN_MASKED ? masked_execute : native_execute;
    }
    d->function = entry->function;
    if (entry->handler == mov_execute)
        return find_mov(d);
    if (entry->handler == bit_test_execute)
        return insn->memory < 0 ? native_execute : bit_test_execute;
    if (d->locked &&
        (entry->handler == alu_execute || entry->handler == incdec_execute || entry->handler == xchg_execute))
        return native_execute;
    return entry->handler;
}
