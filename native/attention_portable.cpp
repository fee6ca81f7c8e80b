#include "attention_kernel.h"

extern const AttentionKernels attention_portable = kAttentionKernels;
