// Quantisation of weights: q4 and q8 in panels, bitsandbytes' 4-bit maps, and the errors of codes.
//
// Every instruction set gives the bits of the PyTorch definition (ops/reference/encode.py). `type` is the matrix's: kFloat32,
// kBFloat16 or kFloat16. Results do not depend on the number of threads.
#pragma once

#include "cpu.h"

// Register tile of all kernels and instruction sets: kEncodeTileRows groups (MR) × kEncodeBlock / kEncodeTileRows columns, or
// kEncodeBlock consecutive values of a map.
constexpr int64_t kEncodeTileRows = 8;
constexpr int64_t kEncodeBlock = 32;  // values per step: the smallest group

// The levels of q4 and the 15 bounds between them: a code is the number of bounds below a value's cell. Built per call, then
// read by all threads.
struct EncodeLevels {
    float values[16];
    int8_t whole[16];    // the same as integers, if they are
    int8_t tree[4][16];  // the bounds for bisection: row d is indexed by the results of d comparisons
};

// A map of 16 values: the number of bounds below a value is its rank; `codes` has the code of each rank. As EncodeLevels.
struct EncodeMap {
    float bounds[15];
    int8_t codes[16];
};

// The value of each code, and the type that decoded values are rounded to. As EncodeLevels.
struct EncodeTable {
    float values[16];
    int32_t rounded;
};

// Kernels by element type; static and immutable, one table per instruction set. Rows of a panel are `stride` elements apart;
// `count` of its 16 exist.
struct EncodeKernels {
    void (*q4[3])(const void* rows, int64_t stride, int64_t count, int64_t columns, int64_t group, const EncodeLevels& levels,
                  uint8_t* codes, uint16_t* scales);
    void (*q8[3])(const void* rows, int64_t stride, int64_t count, int64_t columns, int64_t group, int8_t* codes,
                  uint16_t* scales);
    void (*map4[3])(const void* values, int64_t count, int64_t group, const EncodeMap& map, uint8_t* codes, float* absmax);
    // The scales (value of one level) and codes of `count` groups whose extremes are 1, in tiles of eight groups, column by
    // column. Buffers hold a multiple of eight groups.
    void (*fit)(const float* ratio, int64_t count, int64_t group, const EncodeLevels& levels, uint8_t* codes, float* scales);
    // Both add Σ (decoded − value)² and Σ value² to `sums`.
    void (*panel_error[3])(const void* rows, int64_t stride, int64_t count, int64_t columns, int64_t group, int32_t bits,
                           const EncodeTable& table, const uint8_t* codes, const uint16_t* scales, double* sums);
    void (*map_error[3])(const void* values, int64_t count, int64_t group, const EncodeTable& table, const uint8_t* codes,
                         const float* absmax, double* sums);
};

extern const EncodeKernels encode_portable, encode_neon, encode_avx2;

// A matrix (rows, columns), rows `stride` apart, as panels: codes (P, columns/8, 64) for 4 bits with 16 levels, else
// (P, columns/4, 64), scales bfloat16 (P, columns/group, 16). A group with a non-finite value gets scale NaN and codes 0.
VT_EXPORT void vt_encode_own(int32_t bits, const void* matrix, int32_t type, int64_t rows, int64_t stride, int64_t columns,
                             int64_t group, const float* levels, void* codes, void* scales);

// One round of Lloyd's method over groups (count, group) whose extremes are 1, weighted by `weights` (count): sums (2, 16) are,
// for each code, Σ scale · weight² · value and Σ (scale · weight)². `codes` (count, group) and `scales` (count) are
// scratch that holds a multiple of eight groups.
VT_EXPORT void vt_encode_fit(const float* ratio, const float* weights, int64_t count, int64_t group, const float* levels,
                             void* codes, float* scales, double* sums);

// `count` values in groups of `group`, the last of which may be short: codes (ceil(count/2)), the first in the high half, and
// absmax (groups). `bounds` (15) ascend; `order` (16) has the code of each rank.
VT_EXPORT void vt_encode_map4(const void* values, int32_t type, int64_t count, int64_t group, const float* bounds,
                              const void* order, void* codes, float* absmax);

// Σ (decoded − value)² and Σ value² of each of `vt_encode_pieces` pieces, into sums (pieces, 2); decoded values are rounded to
// the type `rounded`. `bits` is 4 or 8 for panels, 0 for a map: then rows is 1 and columns the number of values. `table` (16)
// has the value of each code; 8 bits need none.
VT_EXPORT void vt_encode_error(int32_t bits, const void* values, int32_t type, int64_t rows, int64_t stride, int64_t columns,
                               int64_t group, const float* table, int32_t rounded, const void* codes, const void* scales,
                               double* sums);
VT_EXPORT int64_t vt_encode_pieces(int32_t bits, int64_t rows, int64_t columns, int64_t group);
