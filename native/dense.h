// Products with a matrix of floats that is stored as bfloat16, float16, float32, NF4, FP4 or int8: shared declarations.
//
// The product is that of the decoded matrix: every weight is exactly what dequantising gives, sums are in float32 and
// rounded once. An output's sum has an order of its own that depends on neither the number of rows nor the threads: by
// lanes within blocks of kBlock columns and block after block (panels: column after column).
#pragma once

#include "cpu.h"

// How a matrix is stored. Rows: floats of `type`, one row after another. Map4: two codes a byte over the flat matrix, the
// first in the high half. Int8: codes with one scale a row. Panels: 16 rows together, pairs of bfloat16 columns.
enum DenseFormat : int32_t { kRows = 0, kMap4 = 1, kInt8Rows = 2, kPairPanels = 3 };

// One matrix (out, in) and where its product goes. Python fills it field by field (ops/cpu/dense.py).
struct DenseMatrix {
    const void* codes;
    const float* map;            // map4: the value of each of the 16 codes
    const void* scales;          // map4: one a group, float32, or uint8 where nested; int8: float32, one a row
    const float* nested_absmax;  // null: the scales are float32
    const float* nested_map;
    const float* nested_offset;
    const void* bias;  // null or (out,) of the activations' type
    void* y;           // (rows, out) of the activations' type
    int64_t out, in, group;
    int32_t format;
    int32_t type;  // rows: the stored type; others: a DataType or a Rounding, to which decoded values are rounded
};

// Two roundings, one after the other: a weight of one 16-bit type that meets activations of the other. Beside DataType.
enum Rounding : int32_t { kFloat16ThenBFloat16 = 4, kBFloat16ThenFloat16 = 5 };

constexpr int64_t kStep = 64;         // columns are taken in steps; activations are padded to whole ones with zeros
constexpr int64_t kBlock = 512;       // columns whose lanes are added before the next ones
constexpr int64_t kOuts = 24;         // outputs of one piece of work
constexpr int64_t kMostTileRows = 8;  // no kernel takes more rows of activations at once

struct DenseKernels {
    int64_t tile_rows;   // activations that one call of `tile` takes, at most
    int64_t panel_rows;  // the same of `panel`
    // One row of activations as floats in the order in which the format's weights are decoded.
    void (*arrange)(const void* x, int32_t x_type, const DenseMatrix& like, float* to);
    // Columns first … last-1 of a row in that order; `first` and `last` are whole steps, columns beyond `in` are zeros.
    void (*decode)(const DenseMatrix& matrix, int64_t row, int64_t first, int64_t last, float* to);
    // Undoes the order of one step: 64 floats to 64 floats.
    void (*natural)(const DenseMatrix& like, const float* arranged, float* to);
    // One arranged row of activations times `count` ≤ kOuts rows of the matrix.
    void (*dots)(const DenseMatrix& matrix, int64_t row, int64_t count, const float* x, float* totals);
    // rows ≤ tile_rows of activations times kOuts decoded rows over one block of columns, added to totals (rows, kOuts).
    void (*tile)(const float* x, int64_t x_stride, int64_t rows, const float* weights, int64_t columns, float* totals);
    // rows ≤ panel_rows of activations times one panel: totals (rows, 16).
    void (*panel)(const DenseMatrix& matrix, int64_t panel, const float* x, int64_t x_stride, int64_t rows, float* totals);
};

extern const DenseKernels dense_portable, dense_neon, dense_avx2, dense_avx512;

// x (rows, in) of `x_type` times each of `count` matrices transposed, plus bias, into their y. All matrices have the same
// `in`, format and type. `room` holds room_rows arranged rows of in rounded up to kStep floats.
VT_EXPORT void vt_dense_linear(const void* x, int32_t x_type, int64_t rows, const DenseMatrix* matrices, int64_t count,
                               float* room, int64_t room_rows);
// Rows first … last-1 of a matrix (not of panels) as (last-first, in) of `to_type`.
VT_EXPORT void vt_dense_decode(const DenseMatrix* matrix, int64_t first, int64_t last, void* to, int32_t to_type);
