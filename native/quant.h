// Products with q4 and q8 matrices (layout: src/vitrail/ops/packing_layout.py; numbers: src/vitrail/ops/reference/quant_matmul.py, to the bit).
#pragma once

#include "cpu.h"

enum QuantKind : int32_t { kQ4 = 4, kQ8 = 8 };

// Columns whose weights are unpacked at once; every group size divides it.
constexpr int64_t kUnpackColumns = 512;
// The largest piece of work one call of a kernel gets: its sums lie on the stack.
constexpr int64_t kMostRows = 128, kMostPanels = 8;
// Up to so many rows the memory is the limit: a thread reads panel after panel, as they lie.
constexpr int64_t kFewRows = 16;

// One matrix of a call. As Python passes it: seven 64-bit words.
struct QuantWeight {
    const uint8_t* codes;
    const uint16_t* scales;  // bfloat16
    const int8_t* levels;    // q4: 16 of them; q8: null
    const float* bias;       // (out,), or null
    void* y;                 // (rows, out)
    int64_t out;
    int64_t panels;
};

// Activations after rounding: codes (rows, columns), scales and starts (rows, groups). What a sum starts with takes
// back the offset that an instruction set adds to the weights to make them unsigned.
struct Rounded {
    int8_t* codes;
    float* scales;
    int32_t* starts;
    int64_t rows, columns, group;
    int64_t groups() const { return columns / group; }
};

struct QuantKernels {
    // Row `row` of x, of a float type, into `to`.
    void (*round)(const void* x, int32_t type, int64_t row, int32_t kind, const Rounded& to);
    // Panels first … last-1 times rows begin … end-1, at most kMostPanels and kMostRows.
    void (*multiply)(const Rounded& x, const QuantWeight& weight, int32_t kind, int32_t type, int64_t first, int64_t last,
                     int64_t begin, int64_t end);
};

extern const QuantKernels quant_portable, quant_neon, quant_avx2, quant_avx512, quant_amx;

// Bytes that a call needs for its rounded activations.
VT_EXPORT int64_t vt_quant_scratch(int64_t rows, int64_t columns, int64_t group);
// y_i = x · W_iᵀ + bias_i for `count` matrices of one kind and group; x (rows, columns) and every y are of `type`.
// `scratch` is 64-byte aligned and vt_quant_scratch bytes long.
VT_EXPORT void vt_quant_linear(int32_t kind, const void* x, int32_t type, int64_t rows, int64_t columns, int64_t group,
                               const QuantWeight* weights, int64_t count, void* scratch);
// Rows `ids` of one matrix, decoded: y (count, columns) of `type`. 1 if an id lies outside; then y is undefined.
VT_EXPORT int32_t vt_quant_rows(int32_t kind, const QuantWeight* weight, int64_t columns, int64_t group, const int64_t* ids,
                                int64_t count, void* y, int32_t type);
