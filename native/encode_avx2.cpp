#include "encode_kernel.h"

extern const EncodeKernels encode_avx2 = kEncodeKernels;
