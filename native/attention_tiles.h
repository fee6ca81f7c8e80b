// Attention's micro-kernels: q·kᵀ and p·v of a few rows, accumulated in registers.
#pragma once

#include <type_traits>

#include "attention.h"
#include "attention_vec.h"

namespace {

constexpr int64_t kWidth = Vec::kWidth;
constexpr int kAttentionTileRows = kAttentionTiles[kVecIsa].rows, kAttentionTileVecs = kAttentionTiles[kVecIsa].vectors;
constexpr int64_t kTileColumns = kAttentionTileVecs * kWidth;  // keys or head elements of one tile

// scores[r · kKvTile + j] = Σ q[r · stride + i] · keys[i · kKvTile + j] for kRows rows and kVecs vectors of keys.
template <int kRows, int kVecs>
inline void qk_tile(const float* q, int64_t stride, const float* keys, int64_t width, float* scores) {
    Vec sums[kRows][kVecs];
    for (auto& row : sums)
        for (Vec& sum : row) sum = Vec::zero();
    for (int64_t i = 0; i < width; i++) {
        Vec key[kVecs];
        for (int n = 0; n < kVecs; n++) key[n] = Vec::load(keys + i * kKvTile + n * kWidth);
        for (int r = 0; r < kRows; r++) {
            const Vec query = Vec::all(q[r * stride + i]);
            for (int n = 0; n < kVecs; n++) sums[r][n] = fma(query, key[n], sums[r][n]);
        }
    }
    for (int r = 0; r < kRows; r++)
        for (int n = 0; n < kVecs; n++) sums[r][n].store(scores + r * kKvTile + n * kWidth);
}

// out[r] = out[r] · rescale[r] + Σ weights[r · kKvTile + j] · value(j, vector), keys low … high−1 in order.
template <int kRows, int kVecs, typename Value>
inline void pv_tile(const float* weights, const float* rescale, int64_t low, int64_t high, Value value_of, float* out,
                       int64_t stride) {
    Vec sums[kRows][kVecs];
    for (int r = 0; r < kRows; r++)
        for (int n = 0; n < kVecs; n++) sums[r][n] = Vec::load(out + r * stride + n * kWidth) * Vec::all(rescale[r]);
    for (int64_t j = low; j < high; j++) {
        Vec value[kVecs];
        for (int n = 0; n < kVecs; n++) value[n] = value_of(j, n);
        for (int r = 0; r < kRows; r++) {
            const Vec weight = Vec::all(weights[r * kKvTile + j]);
            for (int n = 0; n < kVecs; n++) sums[r][n] = fma(weight, value[n], sums[r][n]);
        }
    }
    for (int r = 0; r < kRows; r++)
        for (int n = 0; n < kVecs; n++) sums[r][n].store(out + r * stride + n * kWidth);
}

// body(std::integral_constant<int, rows>, first) over `count` rows in tiles of at most kAttentionTileRows.
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
    for (; first + kAttentionTileRows <= count; first += kAttentionTileRows) body(std::integral_constant<int, kAttentionTileRows>{}, first);
    last_tile<kAttentionTileRows - 1>(count - first, first, body);
}

// Sum of vectors by halves: vector i + vector i + half, down to one.
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

// Whether the registers hold tiles of kRows rows with twice the vectors, which hides the latency of the FMAs.
template <int kRows>
constexpr bool kDoubleWidth = 2 * kRows * kAttentionTileVecs <= kAttentionTileRows * kAttentionTileVecs && 2 * kTileColumns <= kKvTile;

}  // namespace
