#include "quant_kernel.h"

extern const QuantKernels quant_avx2 = kQuantKernels;
