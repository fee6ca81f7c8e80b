// From floats to codes and scales: q4 and q8 in panels, bitsandbytes' 4-bit maps, and how far codes are from their floats.
//
// Every instruction set gives the bits of the PyTorch definition (ops/reference/encode.py). `type` is the matrix's: kFloat32,
// kBFloat16 or kFloat16. Pieces are divided among threads; none of the results depends on how many there are.
#pragma once

#include "cpu.h"

constexpr int64_t kEncodeBlock = 32;  // values that are coded together: the smallest group

// The levels of q4, and where one code ends and the next begins: a code is how many of 15 bounds lie below a value's cell.
struct EncodeLevels {
    float values[16];
    int8_t whole[16];    // the same, where they are integers
    int8_t tree[4][16];  // the bounds for bisection: row d is indexed by what d comparisons found
};

// A map of 16 values: how many bounds lie below a value tells its place in ascending order, `codes` the code of the place.
struct EncodeMap {
    float bounds[15];
    int8_t codes[16];
};

// What codes decode to, for measuring: the value of each code, and the type that decoded values are rounded to.
struct EncodeTable {
    float values[16];
    int32_t rounded;
};

// Kernels by the type of the floats. Rows of a panel are `stride` elements apart; `count` of its 16 are there.
struct EncodeKernels {
    void (*q4[3])(const void* rows, int64_t stride, int64_t count, int64_t columns, int64_t group, const EncodeLevels& levels,
                  uint8_t* codes, uint16_t* scales);
    void (*q8[3])(const void* rows, int64_t stride, int64_t count, int64_t columns, int64_t group, int8_t* codes,
                  uint16_t* scales);
    void (*map4[3])(const void* values, int64_t count, int64_t group, const EncodeMap& map, uint8_t* codes, float* absmax);
    // The worth of a level in `count` groups whose extremes are 1, and their codes: eight groups after eight, column by column.
    // Room for a multiple of eight groups.
    void (*fit)(const float* ratio, int64_t count, int64_t group, const EncodeLevels& levels, uint8_t* codes, float* scales);
    // Both add Σ (decoded − value)² and Σ value² to sums.
    void (*panel_error[3])(const void* rows, int64_t stride, int64_t count, int64_t columns, int64_t group, int32_t bits,
                           const EncodeTable& table, const uint8_t* codes, const uint16_t* scales, double* sums);
    void (*map_error[3])(const void* values, int64_t count, int64_t group, const EncodeTable& table, const uint8_t* codes,
                         const float* absmax, double* sums);
};

extern const EncodeKernels encode_portable, encode_neon, encode_avx2;

// A matrix (rows, columns), rows `stride` apart, as panels: codes (P, columns/8, 64) for 4 bits with 16 levels, else
// (P, columns/4, 64), scales bfloat16 (P, columns/group, 16). A group with a value that is not finite has the scale NaN.
VT_EXPORT void vt_encode_own(int32_t bits, const void* matrix, int32_t type, int64_t rows, int64_t stride, int64_t columns,
                             int64_t group, const float* levels, void* codes, void* scales);

// One round of Lloyd's method over groups (count, group) whose extremes are 1, weighted by `weights` (count): sums (2, 16) are,
// for each code, weight · worth · value and the squared worths. `codes` (count, group) and `scales` (count) are scratch, with
// room for a multiple of eight groups.
VT_EXPORT void vt_encode_fit(const float* ratio, const float* weights, int64_t count, int64_t group, const float* levels,
                             void* codes, float* scales, double* sums);

// `count` values in groups of `group`, the last one may be short: codes (ceil(count/2)), the first in the high half, and
// absmax (groups). `bounds` (15) ascend; `order` (16) has the code of each place.
VT_EXPORT void vt_encode_map4(const void* values, int32_t type, int64_t count, int64_t group, const float* bounds,
                              const void* order, void* codes, float* absmax);

// Σ (decoded − value)² and Σ value² of each of `vt_encode_pieces`, into sums (pieces, 2), decoded values rounded to the type
// `rounded`. `bits` is 4 or 8 for panels, 0 for a map: then rows and columns are 1 and the count of values. `table` (16) has
// the value of each code; 8 bits need none.
VT_EXPORT void vt_encode_error(int32_t bits, const void* values, int32_t type, int64_t rows, int64_t stride, int64_t columns,
                               int64_t group, const float* table, int32_t rounded, const void* codes, const void* scales,
                               double* sums);
VT_EXPORT int64_t vt_encode_pieces(int32_t bits, int64_t rows, int64_t columns, int64_t group);
