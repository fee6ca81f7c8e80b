#include "dense_kernel.h"

extern const DenseKernels dense_neon = kDenseKernels;
