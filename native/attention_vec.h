// Attention's vector functions beyond vec.h: 2^x, sums and maxima across lanes, transposition of keys.
#pragma once

#include <algorithm>
#include <cstdint>

#include "attention.h"
#include "vec.h"

namespace {

// --- 2^x ---------------------------------------------------------------------------------------------------------

// 2^whole · fraction, where `shifted` is whole + kRoundMagic: the low bits of that float are the integer.
inline Vec times_power(Vec fraction, Vec shifted) {
#if defined(__AVX512F__)
    const __m512i power = _mm512_add_epi32(_mm512_slli_epi32(_mm512_castps_si512(shifted.v), 23), _mm512_set1_epi32(0x3f800000));
    return fraction * Vec{_mm512_castsi512_ps(power)};
#elif defined(__AVX2__)
    const __m256i power = _mm256_add_epi32(_mm256_slli_epi32(_mm256_castps_si256(shifted.v), 23), _mm256_set1_epi32(0x3f800000));
    return fraction * Vec{_mm256_castsi256_ps(power)};
#elif defined(__ARM_NEON)
    const uint32x4_t power = vaddq_u32(vshlq_n_u32(vreinterpretq_u32_f32(shifted.v), 23), vdupq_n_u32(0x3f800000));
    return fraction * Vec{vreinterpretq_f32_u32(power)};
#else
    Vec power;
    for (int64_t i = 0; i < Vec::kWidth; i++) {
        uint32_t word;
        std::memcpy(&word, &shifted.v[i], sizeof word);
        word = (word << 23) + 0x3f800000u;
        std::memcpy(&power.v[i], &word, sizeof word);
    }
    return fraction * power;
#endif
}

// 2^x for x ≤ 0, within one unit in the last place (two without fused products); 0 below 2^-126; NaN stays NaN.
// 2^whole · (1 + f·p(f)), f in −½ … ½; p is a minimax polynomial for the relative error (2e-9).
inline Vec exp2_vec(Vec x) {
    const Vec magic = Vec::all(kRoundMagic);
    x = max(Vec::all(-127.0f), x);  // the second operand where either is NaN
    const Vec shifted = x + magic;
    const Vec f = x - (shifted - magic);
    Vec p = Vec::all(1.535336196e-04f);
    p = fma(p, f, Vec::all(1.339887502e-03f));
    p = fma(p, f, Vec::all(9.618436918e-03f));
    p = fma(p, f, Vec::all(5.550332367e-02f));
    p = fma(p, f, Vec::all(2.402264774e-01f));
    p = fma(p, f, Vec::all(6.931471825e-01f));
    return times_power(fma(p, f, Vec::all(1.0f)), shifted);
}

// --- across lanes ------------------------------------------------------------------------------------------------

#if defined(__AVX2__)
// Four lanes, added by halves.
inline float sum_lanes(__m128 x) {
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
inline float greatest_lane(__m128 x) {
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}
inline __m128 low_half(__m256 x) { return _mm256_castps256_ps128(x); }
inline __m128 high_half(__m256 x) { return _mm256_extractf128_ps(x, 1); }
#endif
#if defined(__AVX512F__)
inline __m256 low_half(__m512 x) { return _mm512_castps512_ps256(x); }
inline __m256 high_half(__m512 x) { return _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(x), 1)); }
#endif

// The same additions as vec.h's sum(), in registers.
inline float sum_by_halves(Vec x) {
#if defined(__AVX512F__)
    const __m256 eight = _mm256_add_ps(low_half(x.v), high_half(x.v));
    return sum_lanes(_mm_add_ps(low_half(eight), high_half(eight)));
#elif defined(__AVX2__)
    return sum_lanes(_mm_add_ps(low_half(x.v), high_half(x.v)));
#else
    return sum(x);
#endif
}

inline float greatest(Vec x) {
#if defined(__AVX512F__)
    const __m256 eight = _mm256_max_ps(low_half(x.v), high_half(x.v));
    return greatest_lane(_mm_max_ps(low_half(eight), high_half(eight)));
#elif defined(__AVX2__)
    return greatest_lane(_mm_max_ps(low_half(x.v), high_half(x.v)));
#else
    float lanes[Vec::kWidth];
    x.store(lanes);
    float found = lanes[0];
    for (int64_t i = 1; i < Vec::kWidth; i++) found = lanes[i] > found ? lanes[i] : found;
    return found;
#endif
}

// --- f16 ---------------------------------------------------------------------------------------------------------

inline Vec load_f16(const uint16_t* p) {
#if defined(__AVX512F__)
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
#elif defined(__AVX2__)
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
#elif defined(__ARM_NEON) && defined(__aarch64__)
    return {vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)))};
#else
    float lanes[Vec::kWidth];
    for (int64_t i = 0; i < Vec::kWidth; i++) lanes[i] = widen_f16(p[i]);
    return Vec::load(lanes);
#endif
}

template <int32_t kType>
inline Vec load_vec(const void* data, int64_t i) {
    if constexpr (kType == kFloat32) return Vec::load(static_cast<const float*>(data) + i);
    if constexpr (kType == kBFloat16) return Vec::load_bf16(static_cast<const uint16_t*>(data) + i);
    if constexpr (kType == kFloat16) return load_f16(static_cast<const uint16_t*>(data) + i);
    return Vec::load_i8(static_cast<const int8_t*>(data) + i);
}

template <int32_t kType>
inline float load_scalar(const void* data, int64_t i) {
    if constexpr (kType == kInt8) return float(static_cast<const int8_t*>(data)[i]);
    return load_one(data, kType, i);
}

// --- transposition of keys ----------------------------------------------------------------------------------------

// A vector of 32-bit words. transpose() takes kLanes of them, one per key, and leaves one lane per key in each.
#if defined(__AVX2__)

struct Words {
    static constexpr int64_t kLanes = 8;
    __m256i v;
    static Words load(const void* p) { return {_mm256_loadu_si256(static_cast<const __m256i*>(p))}; }
    // Eight elements of f16 as float32.
    static Words load_f16(const uint16_t* p) {
        return {_mm256_castps_si256(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
    }
    void store(float* p) const { _mm256_storeu_ps(p, _mm256_castsi256_ps(v)); }
    void store_low_bf16(float* p) const { Words{_mm256_slli_epi32(v, 16)}.store(p); }
    void store_high_bf16(float* p) const { Words{_mm256_and_si256(v, _mm256_set1_epi32(int(0xffff0000u)))}.store(p); }
    template <int kByte>
    void store_byte(float* p) const {
        const __m256i byte = _mm256_srai_epi32(_mm256_slli_epi32(v, 24 - 8 * kByte), 24);
        _mm256_storeu_ps(p, _mm256_cvtepi32_ps(byte));
    }
};

__attribute__((always_inline)) inline void transpose(Words (&w)[8]) {
    __m256i a[8], b[8];
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_epi32(w[i].v, w[i + 1].v);
        a[i + 1] = _mm256_unpackhi_epi32(w[i].v, w[i + 1].v);
    }
    for (int i = 0; i < 8; i += 4) {
        b[i] = _mm256_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm256_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm256_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm256_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        w[i].v = _mm256_permute2x128_si256(b[i], b[i + 4], 0x20);
        w[i + 4].v = _mm256_permute2x128_si256(b[i], b[i + 4], 0x31);
    }
}

#elif defined(__ARM_NEON)

struct Words {
    static constexpr int64_t kLanes = 4;
    uint32x4_t v;
    static Words load(const void* p) { return {vld1q_u32(static_cast<const uint32_t*>(p))}; }
    static Words load_f16(const uint16_t* p) { return {vreinterpretq_u32_f32(::load_f16(p).v)}; }
    void store(float* p) const { vst1q_f32(p, vreinterpretq_f32_u32(v)); }
    void store_low_bf16(float* p) const { Words{vshlq_n_u32(v, 16)}.store(p); }
    void store_high_bf16(float* p) const { Words{vandq_u32(v, vdupq_n_u32(0xffff0000u))}.store(p); }
    template <int kByte>
    void store_byte(float* p) const {
        const int32x4_t left = vshlq_s32(vreinterpretq_s32_u32(v), vdupq_n_s32(24 - 8 * kByte));
        vst1q_f32(p, vcvtq_f32_s32(vshrq_n_s32(left, 24)));
    }
};

__attribute__((always_inline)) inline void transpose(Words (&w)[4]) {
    const uint32x4x2_t low = vtrnq_u32(w[0].v, w[1].v), high = vtrnq_u32(w[2].v, w[3].v);
    w[0].v = vcombine_u32(vget_low_u32(low.val[0]), vget_low_u32(high.val[0]));
    w[1].v = vcombine_u32(vget_low_u32(low.val[1]), vget_low_u32(high.val[1]));
    w[2].v = vcombine_u32(vget_high_u32(low.val[0]), vget_high_u32(high.val[0]));
    w[3].v = vcombine_u32(vget_high_u32(low.val[1]), vget_high_u32(high.val[1]));
}

#else

struct Words {
    static constexpr int64_t kLanes = 4;
    uint32_t v[4];
    static Words load(const void* p) {
        Words w;
        std::memcpy(w.v, p, sizeof w.v);
        return w;
    }
    static Words load_f16(const uint16_t* p) {
        Words w;
        for (int i = 0; i < 4; i++) {
            const float wide = widen_f16(p[i]);
            std::memcpy(&w.v[i], &wide, sizeof wide);
        }
        return w;
    }
    void store(float* p) const { std::memcpy(p, v, sizeof v); }
    void store_low_bf16(float* p) const {
        for (int i = 0; i < 4; i++) p[i] = widen_bf16(uint16_t(v[i]));
    }
    void store_high_bf16(float* p) const {
        for (int i = 0; i < 4; i++) p[i] = widen_bf16(uint16_t(v[i] >> 16));
    }
    template <int kByte>
    void store_byte(float* p) const {
        for (int i = 0; i < 4; i++) p[i] = float(int8_t(uint8_t(v[i] >> (8 * kByte))));
    }
};

__attribute__((always_inline)) inline void transpose(Words (&w)[4]) {
    for (int i = 0; i < 4; i++) {
        for (int j = 0; j < i; j++) std::swap(w[i].v[j], w[j].v[i]);
    }
}

#endif

// Transpose kLanes keys × kLanes words, from element `at` on, to rows of kKvTile floats, one row per head element.
template <int32_t kType>
__attribute__((always_inline)) inline void transpose_words(const char* const* rows, int64_t at, float* out) {
    constexpr int64_t kLanes = Words::kLanes, kEach = kType == kInt8 ? 4 : kType == kBFloat16 ? 2 : 1;
    Words words[kLanes];
    for (int64_t i = 0; i < kLanes; i++) {
        const char* row = rows[i] + at * size_of(kType);
        if constexpr (kType == kFloat16) {
            words[i] = Words::load_f16(reinterpret_cast<const uint16_t*>(row));
        } else {
            words[i] = Words::load(row);
        }
    }
    transpose(words);
    for (int64_t i = 0; i < kLanes; i++) {
        float* to = out + i * kEach * kKvTile;
        if constexpr (kType == kInt8) {
            words[i].template store_byte<0>(to);
            words[i].template store_byte<1>(to + kKvTile);
            words[i].template store_byte<2>(to + 2 * kKvTile);
            words[i].template store_byte<3>(to + 3 * kKvTile);
        } else if constexpr (kType == kBFloat16) {
            words[i].store_low_bf16(to);
            words[i].store_high_bf16(to + kKvTile);
        } else {
            words[i].store(to);
        }
    }
}

template <int32_t kType>
inline void transpose_typed(const char* const (&rows)[kKvTile], int64_t width, float* out) {
    constexpr int64_t kLanes = Words::kLanes, kEach = kType == kInt8 ? 4 : kType == kBFloat16 ? 2 : 1;
    const int64_t whole = width - width % (kLanes * kEach);
    for (int64_t key = 0; key < kKvTile; key += kLanes) {
        for (int64_t at = 0; at < whole; at += kLanes * kEach) transpose_words<kType>(rows + key, at, out + at * kKvTile + key);
    }
    for (int64_t at = whole; at < width; at++) {
        for (int64_t key = 0; key < kKvTile; key++) out[at * kKvTile + key] = load_scalar<kType>(rows[key], at);
    }
}

// Transpose the keys of one tile to float32: out[element · kKvTile + key].
inline void transpose_keys(const char* const (&rows)[kKvTile], int32_t type, int64_t width, float* out) {
    switch (type) {
        case kBFloat16:
            return transpose_typed<kBFloat16>(rows, width, out);
        case kFloat16:
            return transpose_typed<kFloat16>(rows, width, out);
        case kInt8:
            return transpose_typed<kInt8>(rows, width, out);
        default:
            return transpose_typed<kFloat32>(rows, width, out);
    }
}

}  // namespace
