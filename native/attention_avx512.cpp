#include "attention_kernel.h"

extern const AttentionKernels attention_avx512 = kAttentionKernels;
