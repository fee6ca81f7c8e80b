// Attention's innermost loops: scores and sums of values of a few rows, held in registers. Which rows is Part's.
#pragma once

#include <type_traits>

#include "attention.h"
#include "attention_vec.h"

namespace {

constexpr int64_t kWidth = Vec::kWidth;
// Rows and vectors of a register tile: as many running sums as there are registers for.
#if defined(__AVX512F__)
constexpr int kTileRows = 12, kTileVecs = 2;
#elif defined(__AVX2__)
constexpr int kTileRows = 6, kTileVecs = 2;
#elif defined(__ARM_NEON)
constexpr int kTileRows = 5, kTileVecs = 4;
#else
constexpr int kTileRows = 4, kTileVecs = 2;
#endif
constexpr int64_t kStrip = kTileVecs * kWidth;

// scores[r · kWalk + j] = Σ q[r · stride + i] · keys[i · kWalk + j] for kRows rows and kVecs vectors of keys.
template <int kRows, int kVecs>
inline void score_tile(const float* q, int64_t stride, const float* keys, int64_t width, float* scores) {
    Vec sums[kRows][kVecs];
    for (auto& row : sums)
        for (Vec& sum : row) sum = Vec::zero();
    for (int64_t i = 0; i < width; i++) {
        Vec key[kVecs];
        for (int n = 0; n < kVecs; n++) key[n] = Vec::load(keys + i * kWalk + n * kWidth);
        for (int r = 0; r < kRows; r++) {
            const Vec one = Vec::all(q[r * stride + i]);
            for (int n = 0; n < kVecs; n++) sums[r][n] = fma(one, key[n], sums[r][n]);
        }
    }
    for (int r = 0; r < kRows; r++)
        for (int n = 0; n < kVecs; n++) sums[r][n].store(scores + r * kWalk + n * kWidth);
}

// out[r] = out[r] · fade[r] + Σ weights[r · kWalk + j] · value(j, vector), keys low … high−1 in order.
template <int kRows, int kVecs, typename Value>
inline void value_tile(const float* weights, const float* fade, int64_t low, int64_t high, Value value_of, float* out,
                       int64_t stride) {
    Vec sums[kRows][kVecs];
    for (int r = 0; r < kRows; r++)
        for (int n = 0; n < kVecs; n++) sums[r][n] = Vec::load(out + r * stride + n * kWidth) * Vec::all(fade[r]);
    for (int64_t j = low; j < high; j++) {
        Vec value[kVecs];
        for (int n = 0; n < kVecs; n++) value[n] = value_of(j, n);
        for (int r = 0; r < kRows; r++) {
            const Vec one = Vec::all(weights[r * kWalk + j]);
            for (int n = 0; n < kVecs; n++) sums[r][n] = fma(one, value[n], sums[r][n]);
        }
    }
    for (int r = 0; r < kRows; r++)
        for (int n = 0; n < kVecs; n++) sums[r][n].store(out + r * stride + n * kWidth);
}

// body(std::integral_constant<int, rows>, first) over `count` rows in tiles of at most kTileRows.
template <int kRows, typename Body>
inline void last_tile(int64_t count, int64_t first, Body&& body) {
    if constexpr (kRows > 0) {
        if (count == kRows) {
            body(std::integral_constant<int, kRows>{}, first);
        } else {
            last_tile<kRows - 1>(count, first, body);
        }
    }
}

template <typename Body>
inline void by_tiles(int64_t count, Body&& body) {
    int64_t first = 0;
    for (; first + kTileRows <= count; first += kTileRows) body(std::integral_constant<int, kTileRows>{}, first);
    last_tile<kTileRows - 1>(count - first, first, body);
}

// Vectors added by halves: i + i + half, down to one.
template <size_t kCount>
inline Vec fold(const Vec (&parts)[kCount]) {
    if constexpr (kCount == 1) {
        return parts[0];
    } else {
        Vec half[kCount / 2];
        for (size_t i = 0; i < kCount / 2; i++) half[i] = parts[i] + parts[i + kCount / 2];
        return fold(half);
    }
}

// Few rows leave registers for twice the vectors, which hides the products' latency.
template <int kRows>
constexpr bool kTwice = 2 * kRows * kTileVecs <= kTileRows * kTileVecs && 2 * kStrip <= kWalk;

}  // namespace
