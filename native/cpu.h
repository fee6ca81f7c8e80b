// Instruction sets: which are available here, and which one kernels are selected for.
#pragma once

#include "abi.h"

// In ascending order of preference; a kernel table without an entry for one falls back to a lower one.
enum Isa : int32_t { kPortable = 0, kNeon = 1, kAvx2 = 2, kAvx512 = 3, kAmx = 4, kIsaCount = 5 };

// The instruction set that kernels are selected for. Thread-safe.
Isa current_isa();

// The table's entry for the current instruction set, or for the best lower one that has an entry; kPortable always has.
// Tables are static and immutable.
template <typename Kernels>
const Kernels& choose(const Kernels* const (&table)[kIsaCount]) {
    int isa = current_isa();
    while (isa > kPortable && table[isa] == nullptr) isa--;
    return *table[isa];
}

VT_EXPORT int64_t vt_abi_version();
// 1 if kernels for `isa` were compiled, the processor has it and the operating system permits it; else 0.
VT_EXPORT int32_t vt_isa_available(int32_t isa);
// Why `isa` is not available, or "".
VT_EXPORT const char* vt_isa_reason(int32_t isa);
VT_EXPORT int32_t vt_isa_current();
// Select `isa` for all later calls; 0, without effect, if it is not available.
VT_EXPORT int32_t vt_isa_use(int32_t isa);
