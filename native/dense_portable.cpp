#include "dense_kernel.h"

extern const DenseKernels dense_portable = kDenseKernels;
