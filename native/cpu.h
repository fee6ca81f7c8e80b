// Which instruction sets this processor has, the operating system permits, and the process uses. No kernels.
#pragma once

#include "abi.h"

// In the order of preference on each architecture; a table without an entry for one falls back to a lower one.
enum Isa : int32_t { kPortable = 0, kNeon = 1, kAvx2 = 2, kAvx512 = 3, kAmx = 4, kIsaCount = 5 };

// The instruction set that kernels are chosen by.
Isa current_isa();

// The entry of a table indexed by Isa for the current one, or the best lower one that is there. Entry kPortable always is.
template <typename Kernels>
const Kernels& choose(const Kernels* const (&table)[kIsaCount]) {
    int isa = current_isa();
    while (isa > kPortable && table[isa] == nullptr) isa--;
    return *table[isa];
}

VT_EXPORT int64_t vt_abi_version();
// 1 if kernels for `isa` were compiled, the processor has it and the system lets us use it; else 0.
VT_EXPORT int32_t vt_isa_available(int32_t isa);
// Why `isa` is not available, or "".
VT_EXPORT const char* vt_isa_reason(int32_t isa);
VT_EXPORT int32_t vt_isa_current();
// Use `isa` from now on; 0 if it is not available (nothing changes then).
VT_EXPORT int32_t vt_isa_use(int32_t isa);
