// Products with matrices stored as bfloat16, float16, float32, NF4, FP4 or int8.
//
// The product is that of the decoded matrix: every weight is exactly its dequantised value, sums are in float32 and rounded
// once. The order of an output's additions depends on neither the number of rows nor the threads: by lanes within blocks of
// kDenseBlock columns, then block after block (panels: column after column).
#pragma once

#include "cpu.h"

// Column block (KC): decoded at once, and its lanes are added up before the next block's.
constexpr int64_t kDenseBlock = 512;
constexpr int64_t kDenseStep = 64;         // columns per decoder step; activations are padded with zeros to a multiple
constexpr int64_t kDenseOuts = 24;         // outputs per unit of work: a multiple of every tile's
constexpr int64_t kDenseMostTileRows = 8;  // upper bound of all tiles' rows

// Register tiles by instruction set. tile(): MR rows of activations × NR decoded rows of the matrix; panel(): rows of
// activations × kPanelRows outputs.
struct DenseTile {
    int64_t rows, outs, panel_rows;
};
constexpr DenseTile kDenseTiles[kIsaCount] = {
    {2, 2, 1},  // portable
    {4, 6, 4},  // neon
    {3, 4, 6},  // avx2
    {4, 6, 4},  // avx512
    {4, 6, 4},  // amx: as avx512
};

// How a matrix is stored. Rows: floats of `type`, row-major. Map4: two codes per byte over the flat matrix, the first in the
// high half. Int8: codes with one scale per row. Panels: 16 rows interleaved, pairs of bfloat16 columns.
enum DenseFormat : int32_t { kRows = 0, kMap4 = 1, kInt8Rows = 2, kPairPanels = 3 };

// One matrix (out, in) and its product's destination, filled in by ops/cpu/dense.py. Owned by the caller, read by all
// threads; each output in `y` is written by one thread.
struct DenseMatrix {
    const void* codes;
    const float* map;            // map4: the value of each of the 16 codes
    const void* scales;          // map4: one per group, float32, or uint8 if nested; int8: float32, one per row
    const float* nested_absmax;  // null: the scales are float32
    const float* nested_map;
    const float* nested_offset;
    const void* bias;  // null or (out,) of the activations' type
    void* y;           // (rows, out) of the activations' type
    int64_t out, in, group;
    int32_t format;
    int32_t type;  // rows: the stored type; others: a DataType or a Rounding, to which decoded values are rounded
};

// Two roundings in sequence: a weight of one 16-bit type with activations of the other. Continues DataType.
enum Rounding : int32_t { kFloat16ThenBFloat16 = 4, kBFloat16ThenFloat16 = 5 };

// Static and immutable, one per instruction set.
struct DenseKernels {
    int64_t tile_rows;   // largest number of rows of activations in one call of `tile`
    int64_t panel_rows;  // the same for `panel`
    // One row of activations as floats, in the column order of the format's decoder.
    void (*arrange)(const void* x, int32_t x_type, const DenseMatrix& like, float* to);
    // Columns first … last-1 of a row in that order; `first` and `last` are multiples of kDenseStep, columns beyond `in` zeros.
    void (*decode)(const DenseMatrix& matrix, int64_t row, int64_t first, int64_t last, float* to);
    // Undo that order for one step: 64 floats to 64 floats.
    void (*natural)(const DenseMatrix& like, const float* arranged, float* to);
    // One arranged row of activations times `count` ≤ kDenseOuts rows of the matrix.
    void (*dots)(const DenseMatrix& matrix, int64_t row, int64_t count, const float* x, float* totals);
    // rows ≤ tile_rows of activations times kDenseOuts decoded rows over one block of columns, added to totals (rows, kDenseOuts).
    void (*tile)(const float* x, int64_t x_stride, int64_t rows, const float* weights, int64_t columns, float* totals);
    // rows ≤ panel_rows of activations times one panel: totals (rows, 16).
    void (*panel)(const DenseMatrix& matrix, int64_t panel, const float* x, int64_t x_stride, int64_t rows, float* totals);
};

extern const DenseKernels dense_portable, dense_neon, dense_avx2, dense_avx512;

// y = x · Wᵀ + bias for each of `count` matrices of the same `in`, format and type; x is (rows, in) of `x_type`. `scratch` is
// scratch for scratch_rows arranged rows of `in` floats, rounded up to a multiple of kDenseStep.
VT_EXPORT void vt_dense_linear(const void* x, int32_t x_type, int64_t rows, const DenseMatrix* matrices, int64_t count,
                               float* scratch, int64_t scratch_rows);
// Rows first … last-1 of a matrix (not of panels) as (last-first, in) of `to_type`.
VT_EXPORT void vt_dense_decode(const DenseMatrix* matrix, int64_t first, int64_t last, void* to, int32_t to_type);
