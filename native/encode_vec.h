// Quantisation's vector functions on 32 values: floats to small integers, and the search for the code of each.
//
// No FMA here. Values of a panel are 4 columns of 8 rows, column by column.
#pragma once

#include "encode.h"
#include "rows_vec.h"

namespace {

constexpr int64_t kParts = kEncodeBlock / Vec::kWidth;
constexpr int64_t kHalves = kEncodeTileRows / Vec::kWidth;
static_assert(Vec::kWidth <= kEncodeTileRows, "a vector must not take more rows than a tile has");

using Block = Vec[kParts];

// Eight floats, one per group.
struct Eight {
    Vec v[kHalves];
    static Eight all(float x) {
        Eight r;
        for (Vec& half : r.v) half = Vec::all(x);
        return r;
    }
    static Eight load(const float* p) {
        Eight r;
        for (int64_t i = 0; i < kHalves; i++) r.v[i] = Vec::load(p + i * Vec::kWidth);
        return r;
    }
    void store(float* p) const {
        for (int64_t i = 0; i < kHalves; i++) v[i].store(p + i * Vec::kWidth);
    }
};

// 32 codes or small integers.
struct Bytes;
// The integer part of each value minus 256, saturated to −128 … 127.
inline Bytes cells(const Block& x);
// The number of bounds below each; `tree` is that of EncodeLevels.
inline Bytes search(const Bytes& x, const int8_t (&tree)[4][16]);
// The number of bounds that are not ≥ each value: 15 for NaN.
inline Bytes count_below(const Block& x, const float (&bounds)[15]);
// table[index] of each index 0 … 15.
inline Bytes look_up(const int8_t (&table)[16], const Bytes& index);
inline Vec look_up(const float (&table)[16], const uint8_t* index);
// Small integers as floats.
inline void widen(const Bytes& whole, Block& x);
// Each value rounded to the nearest integer, half to even, within −127 … 127.
inline Bytes nearest_integers(const Block& x);
// 4 columns of 8 as 8 rows of 4.
inline Bytes row_by_row(const Bytes& x);
// Codes of 4 bits, two in a byte.
inline Bytes nibbles(const Bytes& low, const Bytes& high);
// 32 codes of 4 bits to and from 16 bytes, the first of two in the high half.
inline void join_pairs(const Bytes& codes, uint8_t* pairs);
inline void split_pairs(const uint8_t* pairs, uint8_t* codes);
// a > b ? x : y of each lane.
inline Vec pick_greater(Vec a, Vec b, Vec x, Vec y);
// columns[j · 8 + i] = rows[i][j].
inline void transpose(const float (&rows)[kEncodeTileRows][kEncodeTileRows], float* columns);

#if defined(__AVX2__)

struct Bytes {
    __m256i v;
    void store(void* p) const { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
};

// 32 integers minus `less`, clamped to bytes, in order.
inline Bytes packed(const __m256i (&x)[4], int16_t less) {
    const __m256i low = _mm256_subs_epi16(_mm256_packs_epi32(x[0], x[1]), _mm256_set1_epi16(less));
    const __m256i high = _mm256_subs_epi16(_mm256_packs_epi32(x[2], x[3]), _mm256_set1_epi16(less));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    return {_mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order)};
}
inline Bytes cells(const Block& x) {
    __m256i whole[4];  // values below the range of int32 become INT32_MIN
    for (int i = 0; i < 4; i++) whole[i] = _mm256_cvttps_epi32(_mm256_min_ps(x[i].v, _mm256_set1_ps(511)));
    return packed(whole, 256);
}
inline Bytes search(const Bytes& x, const int8_t (&tree)[4][16]) {
    __m256i found = _mm256_abs_epi8(_mm256_cmpgt_epi8(x.v, _mm256_set1_epi8(tree[0][0])));
    for (int depth = 1; depth < 4; depth++) {
        const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(tree[depth]));
        const __m256i bound = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(half), found);
        found = _mm256_sub_epi8(_mm256_add_epi8(found, found), _mm256_cmpgt_epi8(x.v, bound));
    }
    return {found};
}
inline Bytes count_below(const Block& x, const float (&bounds)[15]) {
    __m256i count[4] = {};
    for (float bound : bounds) {
        for (int i = 0; i < 4; i++) {
            const __m256 below = _mm256_cmp_ps(_mm256_set1_ps(bound), x[i].v, _CMP_NGE_UQ);
            count[i] = _mm256_sub_epi32(count[i], _mm256_castps_si256(below));
        }
    }
    return packed(count, 0);
}
inline Bytes look_up(const int8_t (&table)[16], const Bytes& index) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
    return {_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(half), index.v)};
}
inline Vec look_up(const float (&table)[16], const uint8_t* index) {
    const __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(index)));
    const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), wide);
    const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), wide);
    return {_mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(wide, 28)))};
}
inline void widen(const Bytes& whole, Block& x) {
    const __m128i low = _mm256_castsi256_si128(whole.v), high = _mm256_extracti128_si256(whole.v, 1);
    x[0].v = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(low));
    x[1].v = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(low, 8)));
    x[2].v = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(high));
    x[3].v = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(high, 8)));
}
inline Bytes nearest_integers(const Block& x) {
    __m256i whole[4];
    for (int i = 0; i < 4; i++) {
        whole[i] = _mm256_cvtps_epi32(min(max(x[i], Vec::all(-127)), Vec::all(127)).v);
    }
    return packed(whole, 0);
}

inline Bytes row_by_row(const Bytes& x) {
    const __m256i halves = _mm256_permutevar8x32_epi32(x.v, _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7));
    const __m128i transposed = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return {_mm256_shuffle_epi8(halves, _mm256_broadcastsi128_si256(transposed))};
}
inline Bytes nibbles(const Bytes& low, const Bytes& high) { return {_mm256_or_si256(low.v, _mm256_slli_epi16(high.v, 4))}; }
inline Vec pick_greater(Vec a, Vec b, Vec x, Vec y) {
    return {_mm256_blendv_ps(y.v, x.v, _mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ))};
}
inline void transpose(const float (&rows)[kEncodeTileRows][kEncodeTileRows], float* columns) {
    __m256 pairs[8], fours[8];
    for (int i = 0; i < 8; i += 2) {
        const __m256 a = _mm256_loadu_ps(rows[i]), b = _mm256_loadu_ps(rows[i + 1]);
        pairs[i] = _mm256_unpacklo_ps(a, b);
        pairs[i + 1] = _mm256_unpackhi_ps(a, b);
    }
    for (int i = 0; i < 8; i += 4) {
        for (int j = 0; j < 2; j++) {
            fours[i + 2 * j] = _mm256_shuffle_ps(pairs[i + j], pairs[i + 2 + j], 0x44);
            fours[i + 2 * j + 1] = _mm256_shuffle_ps(pairs[i + j], pairs[i + 2 + j], 0xee);
        }
    }
    for (int i = 0; i < 4; i++) {
        _mm256_storeu_ps(columns + i * 8, _mm256_permute2f128_ps(fours[i], fours[4 + i], 0x20));
        _mm256_storeu_ps(columns + 32 + i * 8, _mm256_permute2f128_ps(fours[i], fours[4 + i], 0x31));
    }
}

inline void join_pairs(const Bytes& codes, uint8_t* pairs) {
    const __m256i sums = _mm256_maddubs_epi16(codes.v, _mm256_set1_epi16(0x0110));
    const __m128i low = _mm256_castsi256_si128(sums), high = _mm256_extracti128_si256(sums, 1);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(pairs), _mm_packus_epi16(low, high));
}
inline void split_pairs(const uint8_t* pairs, uint8_t* codes) {
    const __m128i both = _mm_loadu_si128(reinterpret_cast<const __m128i*>(pairs)), mask = _mm_set1_epi8(15);
    const __m128i first = _mm_and_si128(_mm_srli_epi16(both, 4), mask), second = _mm_and_si128(both, mask);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes), _mm_unpacklo_epi8(first, second));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + 16), _mm_unpackhi_epi8(first, second));
}

#elif defined(__ARM_NEON)

struct Bytes {
    int8x16_t v[2];
    void store(void* p) const {
        vst1q_s8(static_cast<int8_t*>(p), v[0]);
        vst1q_s8(static_cast<int8_t*>(p) + 16, v[1]);
    }
};

inline Bytes packed(const int32x4_t (&x)[8], int16_t less) {
    int8x8_t eights[4];
    for (int i = 0; i < 4; i++) {
        const int16x8_t wide = vcombine_s16(vqmovn_s32(x[2 * i]), vqmovn_s32(x[2 * i + 1]));
        eights[i] = vqmovn_s16(vqsubq_s16(wide, vdupq_n_s16(less)));
    }
    return {{vcombine_s8(eights[0], eights[1]), vcombine_s8(eights[2], eights[3])}};
}
inline Bytes cells(const Block& x) {
    int32x4_t whole[8];
    for (int i = 0; i < 8; i++) whole[i] = vcvtq_s32_f32(x[i].v);
    return packed(whole, 256);
}
inline Bytes search(const Bytes& x, const int8_t (&tree)[4][16]) {
    Bytes found;
    for (int i = 0; i < 2; i++) {
        int8x16_t index = vdupq_n_s8(0);
        for (const auto& bounds : tree) {
            const int8x16_t bound = vqtbl1q_s8(vld1q_s8(bounds), vreinterpretq_u8_s8(index));
            index = vsubq_s8(vaddq_s8(index, index), vreinterpretq_s8_u8(vcgtq_s8(x.v[i], bound)));
        }
        found.v[i] = index;
    }
    return found;
}
inline Bytes count_below(const Block& x, const float (&bounds)[15]) {
    int32x4_t count[8];
    for (int32x4_t& four : count) four = vdupq_n_s32(15);
    for (float bound : bounds) {
        for (int i = 0; i < 8; i++) {
            count[i] = vaddq_s32(count[i], vreinterpretq_s32_u32(vcgeq_f32(vdupq_n_f32(bound), x[i].v)));
        }
    }
    return packed(count, 0);
}
inline Bytes look_up(const int8_t (&table)[16], const Bytes& index) {
    const int8x16_t whole = vld1q_s8(table);
    return {{vqtbl1q_s8(whole, vreinterpretq_u8_s8(index.v[0])), vqtbl1q_s8(whole, vreinterpretq_u8_s8(index.v[1]))}};
}
inline Vec look_up(const float (&table)[16], const uint8_t* index) {
    const float four[4] = {table[index[0]], table[index[1]], table[index[2]], table[index[3]]};
    return Vec::load(four);
}
inline Bytes nearest_integers(const Block& x) {
    int32x4_t whole[8];
    for (int i = 0; i < 8; i++) whole[i] = vcvtnq_s32_f32(min(max(x[i], Vec::all(-127)), Vec::all(127)).v);
    return packed(whole, 0);
}

inline Bytes row_by_row(const Bytes& x) {
    const int8x16x2_t columns = {{x.v[0], x.v[1]}};
    alignas(16) static constexpr uint8_t transposed[16] = {0, 8, 16, 24, 1, 9, 17, 25, 2, 10, 18, 26, 3, 11, 19, 27};
    const uint8x16_t first = vld1q_u8(transposed);
    return {{vqtbl2q_s8(columns, first), vqtbl2q_s8(columns, vaddq_u8(first, vdupq_n_u8(4)))}};
}
inline Bytes nibbles(const Bytes& low, const Bytes& high) {
    return {{vorrq_s8(low.v[0], vshlq_n_s8(high.v[0], 4)), vorrq_s8(low.v[1], vshlq_n_s8(high.v[1], 4))}};
}
inline Vec pick_greater(Vec a, Vec b, Vec x, Vec y) { return {vbslq_f32(vcgtq_f32(a.v, b.v), x.v, y.v)}; }

#else

struct Bytes {
    int8_t v[kEncodeBlock];
    void store(void* p) const { std::memcpy(p, v, sizeof v); }
};

template <typename F>
inline Bytes from_floats(const Block& x, F f) {
    Bytes r;
    for (int64_t i = 0; i < kEncodeBlock; i++) r.v[i] = int8_t(f(x[i / Vec::kWidth].v[i % Vec::kWidth]));
    return r;
}
inline Bytes cells(const Block& x) {
    return from_floats(x, [](float value) {
        const float near = value > 128.0f ? value < 383.0f ? value : 383.0f : 128.0f;
        return int32_t(near) - 256;
    });
}
inline Bytes search(const Bytes& x, const int8_t (&tree)[4][16]) {
    Bytes r = {};
    for (const auto& bounds : tree) {
        for (int64_t i = 0; i < kEncodeBlock; i++) r.v[i] = int8_t(2 * r.v[i] + (x.v[i] > bounds[r.v[i]]));
    }
    return r;
}
inline Bytes count_below(const Block& x, const float (&bounds)[15]) {
    return from_floats(x, [&](float value) {
        int32_t count = 0;
        for (float bound : bounds) count += !(bound >= value);
        return count;
    });
}
inline Bytes look_up(const int8_t (&table)[16], const Bytes& index) {
    Bytes r;
    for (int64_t i = 0; i < kEncodeBlock; i++) r.v[i] = table[index.v[i]];
    return r;
}
inline Vec look_up(const float (&table)[16], const uint8_t* index) {
    Vec r;
    for (int64_t i = 0; i < Vec::kWidth; i++) r.v[i] = table[index[i]];
    return r;
}
inline Bytes nearest_integers(const Block& x) {
    return from_floats(x, [](float value) {
        const float near = value > -127.0f ? value < 127.0f ? value : 127.0f : -127.0f;
        return int32_t(std::nearbyint(near));
    });
}

inline Bytes row_by_row(const Bytes& x) {
    Bytes r;
    for (int64_t i = 0; i < kEncodeBlock; i++) r.v[i] = x.v[i % 4 * kEncodeTileRows + i / 4];
    return r;
}
inline Bytes nibbles(const Bytes& low, const Bytes& high) {
    Bytes r;
    for (int64_t i = 0; i < kEncodeBlock; i++) r.v[i] = int8_t(low.v[i] | high.v[i] << 4);
    return r;
}
inline Vec pick_greater(Vec a, Vec b, Vec x, Vec y) {
    for (int64_t i = 0; i < Vec::kWidth; i++) x.v[i] = a.v[i] > b.v[i] ? x.v[i] : y.v[i];
    return x;
}

#endif

#if !defined(__AVX2__)
inline void join_pairs(const Bytes& codes, uint8_t* pairs) {
    uint8_t single[kEncodeBlock];
    codes.store(single);
    for (int64_t i = 0; i < kEncodeBlock / 2; i++) pairs[i] = uint8_t(single[2 * i] << 4 | single[2 * i + 1]);
}
inline void split_pairs(const uint8_t* pairs, uint8_t* codes) {
    for (int64_t i = 0; i < kEncodeBlock; i++) codes[i] = uint8_t(pairs[i / 2] >> (i % 2 ? 0 : 4) & 15);
}
inline void widen(const Bytes& whole, Block& x) {
    int8_t bytes[kEncodeBlock];
    whole.store(bytes);
    for (int64_t i = 0; i < kParts; i++) x[i] = Vec::load_i8(bytes + i * Vec::kWidth);
}
inline void transpose(const float (&rows)[kEncodeTileRows][kEncodeTileRows], float* columns) {
    for (int64_t column = 0; column < kEncodeTileRows; column++) {
        for (int64_t row = 0; row < kEncodeTileRows; row++) columns[column * kEncodeTileRows + row] = rows[row][column];
    }
}
#endif

template <int32_t kType>
inline void load_block(const void* values, int64_t at, Block& x) {
    for (int64_t i = 0; i < kParts; i++) x[i] = load_as<kType>(values, at + i * Vec::kWidth);
}

inline Vec magnitude(Vec x) { return max(x, Vec::zero() - x); }

}  // namespace
