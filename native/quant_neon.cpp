#include "quant_kernel.h"

extern const QuantKernels quant_neon = kQuantKernels;
