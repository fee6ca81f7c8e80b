#include "rows_kernel.h"

extern const RowKernels rows_neon = kRowKernels;
