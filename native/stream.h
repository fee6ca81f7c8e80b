// Reading memory and nothing else: what the machine can deliver, beside which matrix products are measured.
#pragma once

#include "abi.h"

// The sum of `bytes` / 8 words at `words`, modulo 2^64, read once by all threads of the pool.
VT_EXPORT uint64_t vt_stream_read(const void* words, int64_t bytes);
