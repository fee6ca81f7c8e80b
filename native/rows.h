// Functions of single rows: root-mean-square norm. Row by row, so that a row's result never depends on its neighbours.
#pragma once

#include "cpu.h"

struct RowKernels {
    void (*rms_norm)(const void* x, const void* weight, void* y, int32_t type, int64_t width, float eps);
};

extern const RowKernels rows_portable, rows_neon, rows_avx2, rows_avx512;

// y = weight · round(x / sqrt(mean(x²) + eps)) for each of `rows` rows of `width` elements of one float type.
VT_EXPORT void vt_rms_norm(const void* x, const void* weight, void* y, int32_t type, int64_t rows, int64_t width, float eps);
