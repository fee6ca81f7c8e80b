#include "dense_kernel.h"

extern const DenseKernels dense_avx512 = kDenseKernels;
