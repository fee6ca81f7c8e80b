// Products with q4 and q8 matrices, bit for bit those of src/vitrail/ops/reference/quant_matmul.py. The layout is that of
// src/vitrail/ops/packing_layout.py.
#pragma once

#include "cpu.h"

enum QuantKind : int32_t { kQ4 = 4, kQ8 = 8 };

// Column block (KC): unpacked at once. A multiple of every group size.
constexpr int64_t kUnpackColumns = 512;
// Largest unit of work of one call of a kernel: its sums are on the stack.
constexpr int64_t kMostRows = 128, kMostPanels = 8;
// Up to this many rows the product is bound by memory bandwidth: a thread reads panels in the order of memory.
constexpr int64_t kQuantFewRows = 16;

// Register tiles by instruction set: MR rows of activations × kPanelRows outputs (NR).
constexpr int kQuantTileRows[kIsaCount] = {
    2,   // portable
    4,   // neon
    4,   // avx2
    8,   // avx512
    16,  // amx, from 16 rows on; fewer as avx512
};

// One matrix of a call; Python passes it as seven 64-bit words. Owned by the caller, read by all threads; each output in
// `y` is written by one thread.
struct QuantWeight {
    const uint8_t* codes;
    const uint16_t* scales;  // bfloat16
    const int8_t* levels;    // q4: 16 of them; q8: null
    const float* bias;       // (out,), or null
    void* y;                 // (rows, out)
    int64_t out;
    int64_t panels;
};

// Quantised activations: codes (rows, columns), scales and starts (rows, groups). The start of a sum cancels the offset
// that an instruction set adds to the weights to make them unsigned. Views of the caller's scratch: written in parallel,
// one row by one thread, then read by all threads.
struct Rounded {
    int8_t* codes;
    float* scales;
    int32_t* starts;
    int64_t rows, columns, group;
    int64_t groups() const { return columns / group; }
};

// Static and immutable, one per instruction set.
struct QuantKernels {
    // Quantise row `row` of x into `to`.
    void (*round)(const void* x, int32_t type, int64_t row, int32_t kind, const Rounded& to);
    // Rows begin … end-1 times panels first … last-1; at most kMostRows and kMostPanels.
    void (*multiply)(const Rounded& x, const QuantWeight& weight, int32_t kind, int32_t type, int64_t first, int64_t last,
                     int64_t begin, int64_t end);
};

extern const QuantKernels quant_portable, quant_neon, quant_avx2, quant_avx512, quant_amx;

// Bytes of scratch for the quantised activations of a call.
VT_EXPORT int64_t vt_quant_scratch(int64_t rows, int64_t columns, int64_t group);
// y = x · Wᵀ + bias for each of `count` matrices of one kind and group; x (rows, columns) and all y are of `type`.
// `scratch` is 64-byte aligned and has vt_quant_scratch bytes.
VT_EXPORT void vt_quant_linear(int32_t kind, const void* x, int32_t type, int64_t rows, int64_t columns, int64_t group,
                               const QuantWeight* weights, int64_t count, void* scratch);
// Decode rows `ids` of one matrix to y (count, columns) of `type`. Returns 1, and leaves y undefined, if an id is out of range.
VT_EXPORT int32_t vt_quant_rows(int32_t kind, const QuantWeight* weight, int64_t columns, int64_t group, const int64_t* ids,
                                int64_t count, void* y, int32_t type);
