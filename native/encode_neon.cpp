#include "encode_kernel.h"

extern const EncodeKernels encode_neon = kEncodeKernels;
