// The dense products' vector functions beyond vec.h: sums of lanes, pairs of bfloat16, rounding.
#pragma once

#include "dense.h"
#include "vec.h"

namespace {

// Two vectors from one load of 16-bit floats: `even` from the lower half of each 32 bits, `odd` from the upper half.
struct Pair {
    Vec even, odd;
};

#if defined(__AVX512F__)

inline Pair load_pairs(const uint16_t* p) {
    const __m512i both = _mm512_loadu_si512(p);
    const __m512i odd = _mm512_and_si512(both, _mm512_set1_epi32(int(0xffff0000u)));
    return {{_mm512_castsi512_ps(_mm512_slli_epi32(both, 16))}, {_mm512_castsi512_ps(odd)}};
}

inline Vec load_f16(const uint16_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}

// By halves: lane i + lane i + 8, then + 4, + 2, + 1.
inline float add_lanes(Vec x) {
    const __m256 upper = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(x.v), 1));
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(x.v), upper);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

inline Vec to_bf16(Vec x) {
    const __m512i bits = _mm512_castps_si512(x.v);
    const __m512i last = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(last, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
    const __m512i quiet = _mm512_mask_or_epi32(up, nan, bits, _mm512_set1_epi32(0x400000));
    return {_mm512_castsi512_ps(_mm512_and_si512(quiet, _mm512_set1_epi32(int(0xffff0000u))))};
}

inline Vec to_f16(Vec x) { return {_mm512_cvtph_ps(_mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC))}; }

#elif defined(__AVX2__)

inline Pair load_pairs(const uint16_t* p) {
    const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    const __m256i odd = _mm256_and_si256(both, _mm256_set1_epi32(int(0xffff0000u)));
    return {{_mm256_castsi256_ps(_mm256_slli_epi32(both, 16))}, {_mm256_castsi256_ps(odd)}};
}

inline Vec load_f16(const uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}

inline float add_lanes(Vec x) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x.v), _mm256_extractf128_ps(x.v, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

inline Vec to_bf16(Vec x) {
    const __m256i bits = _mm256_castps_si256(x.v);
    const __m256i last = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(last, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x.v, x.v, _CMP_UNORD_Q));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i rounded = _mm256_blendv_epi8(up, quiet, nan);
    return {_mm256_castsi256_ps(_mm256_and_si256(rounded, _mm256_set1_epi32(int(0xffff0000u))))};
}

inline Vec to_f16(Vec x) { return {_mm256_cvtph_ps(_mm256_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC))}; }

#elif defined(__ARM_NEON)

inline Pair load_pairs(const uint16_t* p) {
    const uint32x4_t both = vreinterpretq_u32_u16(vld1q_u16(p));
    const uint32x4_t odd = vandq_u32(both, vdupq_n_u32(0xffff0000u));
    return {{vreinterpretq_f32_u32(vshlq_n_u32(both, 16))}, {vreinterpretq_f32_u32(odd)}};
}

inline Vec load_f16(const uint16_t* p) { return {vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)))}; }

inline float add_lanes(Vec x) {
    const float32x2_t two = vadd_f32(vget_low_f32(x.v), vget_high_f32(x.v));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

inline Vec to_bf16(Vec x) {
    const uint32x4_t bits = vreinterpretq_u32_f32(x.v);
    const uint32x4_t last = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t up = vaddq_u32(bits, vaddq_u32(last, vdupq_n_u32(0x7fff)));
    const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
    const uint32x4_t rounded = vbslq_u32(vceqq_f32(x.v, x.v), up, quiet);
    return {vreinterpretq_f32_u32(vandq_u32(rounded, vdupq_n_u32(0xffff0000u)))};
}

inline Vec to_f16(Vec x) { return {vcvt_f32_f16(vcvt_f16_f32(x.v))}; }

#else

inline Pair load_pairs(const uint16_t* p) {
    Pair pair;
    for (int i = 0; i < 8; i++) {
        pair.even.v[i] = widen_bf16(p[2 * i]);
        pair.odd.v[i] = widen_bf16(p[2 * i + 1]);
    }
    return pair;
}

inline Vec load_f16(const uint16_t* p) {
    Vec r;
    for (int i = 0; i < 8; i++) r.v[i] = widen_f16(p[i]);
    return r;
}

inline float add_lanes(Vec x) { return sum(x); }

inline Vec to_bf16(Vec x) {
    for (float& lane : x.v) lane = widen_bf16(round_bf16(lane));
    return x;
}

inline Vec to_f16(Vec x) {
    for (float& lane : x.v) lane = widen_f16(round_f16(lane));
    return x;
}

#endif

// x rounded to `kType`, a DataType or a Rounding.
template <int32_t kType>
inline Vec rounded(Vec x) {
    if constexpr (kType == kBFloat16) return to_bf16(x);
    if constexpr (kType == kFloat16) return to_f16(x);
    if constexpr (kType == kFloat16ThenBFloat16) return to_bf16(to_f16(x));
    if constexpr (kType == kBFloat16ThenFloat16) return to_f16(to_bf16(x));
    return x;
}

template <int32_t kType>
inline float rounded(float x) {
    if constexpr (kType == kBFloat16) return widen_bf16(round_bf16(x));
    if constexpr (kType == kFloat16) return widen_f16(round_f16(x));
    if constexpr (kType == kFloat16ThenBFloat16) return rounded<kBFloat16>(rounded<kFloat16>(x));
    if constexpr (kType == kBFloat16ThenFloat16) return rounded<kFloat16>(rounded<kBFloat16>(x));
    return x;
}

}  // namespace
