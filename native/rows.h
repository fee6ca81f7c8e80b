// Row-wise functions: RMSNorm, SwiGLU, rotary embedding, sums. A row's result never depends on other rows.
//
// Every instruction set gives the same bits. `type` is kFloat32, kBFloat16 or kFloat16 for all tensors of a call; values are
// rounded to it wherever PyTorch would round between two operations. Tensors are owned by the caller; rows are partitioned
// among threads.
#pragma once

#include "cpu.h"

// Row width of all kernels and instruction sets: sums over a row are in sixteen fixed lanes.
constexpr int64_t kRowLanes = 16;

// Kernels of one row, by type. Static and immutable, one per instruction set.
struct RowKernels {
    void (*rms_norm[3])(const void* x, const void* weight, void* y, int64_t width, float eps);
    void (*silu_gate[3])(const void* gate, const void* up, void* y, int64_t width);
    void (*rotate[3])(const void* x, const void* cos, const void* sin, void* y, int64_t heads, int64_t width);
    void (*add[3])(const void* x, const void* other, void* y, int64_t width);
    void (*scale[3])(const void* x, const void* factor, void* y, int64_t width);
};

extern const RowKernels rows_portable, rows_neon, rows_avx2, rows_avx512;

// y = weight · round(x / sqrt(mean(x²) + eps)) for each of `rows` rows of `width` elements.
VT_EXPORT void vt_rms_norm(const void* x, const void* weight, void* y, int32_t type, int64_t rows, int64_t width, float eps);

// y = round(silu(gate)) · up over `count` elements.
VT_EXPORT void vt_silu_gate(const void* gate, const void* up, void* y, int32_t type, int64_t count);

// Both q (rows, q_heads, width) and k (rows, k_heads, width), rotated by cos and sin (rows, width); element i pairs with i + width/2.
VT_EXPORT void vt_rotate(const void* q, const void* k, const void* cos, const void* sin, void* q_out, void* k_out,
                         int32_t type, int64_t rows, int64_t q_heads, int64_t k_heads, int64_t width);

// y = x + other over `rows` rows of `width` elements; y may be x.
void add_rows(const void* x, const void* other, void* y, int32_t type, int64_t rows, int64_t width);

// y = x · factor, one factor per row; y may be x.
void scale_rows(const void* x, const void* factors, void* y, int32_t type, int64_t rows, int64_t width);
