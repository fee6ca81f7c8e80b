#include "rows_kernel.h"

extern const RowKernels rows_avx512 = kRowKernels;
