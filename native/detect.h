// Detection of instruction sets: what the processor has and the operating system permits. cpu.cpp calls it once; tests with
// emulated kernels link a replacement.
#pragma once

#include "cpu.h"

// Why kernels for `isa` cannot run here, or "".
const char* why_not(Isa isa);
