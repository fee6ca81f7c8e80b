// What the processor has and the operating system permits: asked once, by cpu.cpp. Tests link another answer.
#pragma once

#include "cpu.h"

// Why kernels for `isa` cannot run here, or "".
const char* why_not(Isa isa);
