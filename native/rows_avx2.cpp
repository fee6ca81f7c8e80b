#include "rows_kernel.h"

extern const RowKernels rows_avx2 = kRowKernels;
