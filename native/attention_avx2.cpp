#include "attention_kernel.h"

extern const AttentionKernels attention_avx2 = kAttentionKernels;
