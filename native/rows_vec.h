// What kernels on rows do with a Vec of any float type: load, round, store, exp. The same bits on every instruction set.
//
// No fused multiply-add here, and sums over a row run in sixteen fixed lanes: AVX2 takes two vectors, NEON four.
#pragma once

#include "vec.h"

namespace {

constexpr int64_t kLanes = 16;
constexpr int64_t kVecs = kLanes / Vec::kWidth;

// Rounded to bfloat16, nearest even, and widened again; NaNs stay NaNs.
inline Vec rounded_bf16(Vec x);
// The upper halves of values that are bfloat16 already.
inline void store_bf16(uint16_t* p, Vec x);
inline Vec load_f16(const uint16_t* p);
inline void store_f16(uint16_t* p, Vec x);
// 2^n for integral n in −126 … 127.
inline Vec power_of_two(Vec n);

#if defined(__AVX512F__)

inline Vec rounded_bf16(Vec x) {
    const __m512i word = _mm512_castps_si512(x.v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(word, 16), _mm512_set1_epi32(1));
    const __m512i sum = _mm512_add_epi32(_mm512_add_epi32(word, _mm512_set1_epi32(0x7fff)), odd);
    const __m512i kept = _mm512_and_si512(sum, _mm512_set1_epi32(int(0xffff0000u)));
    const __mmask16 none = _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
    return {_mm512_mask_blend_ps(none, _mm512_castsi512_ps(kept), _mm512_castsi512_ps(_mm512_set1_epi32(0x7fc00000)))};
}
inline void store_bf16(uint16_t* p, Vec x) {
    const __m512i high = _mm512_srli_epi32(_mm512_castps_si512(x.v), 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(high));
}
inline Vec load_f16(const uint16_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }
inline void store_f16(uint16_t* p, Vec x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
}
inline Vec power_of_two(Vec n) {
    const __m512i exponent = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23))};
}

#elif defined(__AVX2__)

inline Vec rounded_bf16(Vec x) {
    const __m256i word = _mm256_castps_si256(x.v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(word, 16), _mm256_set1_epi32(1));
    const __m256i sum = _mm256_add_epi32(_mm256_add_epi32(word, _mm256_set1_epi32(0x7fff)), odd);
    const __m256i kept = _mm256_and_si256(sum, _mm256_set1_epi32(int(0xffff0000u)));
    const __m256 none = _mm256_cmp_ps(x.v, x.v, _CMP_UNORD_Q);
    return {_mm256_blendv_ps(_mm256_castsi256_ps(kept), _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000)), none)};
}
inline void store_bf16(uint16_t* p, Vec x) {
    const __m256i high = _mm256_srli_epi32(_mm256_castps_si256(x.v), 16);
    const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
}
inline Vec load_f16(const uint16_t* p) { return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }
inline void store_f16(uint16_t* p, Vec x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
}
inline Vec power_of_two(Vec n) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23))};
}

#elif defined(__ARM_NEON)

inline Vec rounded_bf16(Vec x) {
    const uint32x4_t word = vreinterpretq_u32_f32(x.v);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(word, 16), vdupq_n_u32(1));
    const uint32x4_t sum = vaddq_u32(vaddq_u32(word, vdupq_n_u32(0x7fff)), odd);
    const uint32x4_t kept = vandq_u32(sum, vdupq_n_u32(0xffff0000u));
    return {vreinterpretq_f32_u32(vbslq_u32(vceqq_f32(x.v, x.v), kept, vdupq_n_u32(0x7fc00000)))};
}
inline void store_bf16(uint16_t* p, Vec x) { vst1_u16(p, vshrn_n_u32(vreinterpretq_u32_f32(x.v), 16)); }
inline Vec load_f16(const uint16_t* p) { return {vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)))}; }
inline void store_f16(uint16_t* p, Vec x) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(x.v))); }
inline Vec power_of_two(Vec n) {
    return {vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n.v), vdupq_n_s32(127)), 23))};
}

#else

inline Vec rounded_bf16(Vec x) {
    for (float& lane : x.v) lane = widen_bf16(round_bf16(lane));
    return x;
}
inline void store_bf16(uint16_t* p, Vec x) {
    for (int i = 0; i < Vec::kWidth; i++) p[i] = round_bf16(x.v[i]);
}
inline Vec load_f16(const uint16_t* p) {
    Vec x;
    for (int i = 0; i < Vec::kWidth; i++) x.v[i] = widen_f16(p[i]);
    return x;
}
inline void store_f16(uint16_t* p, Vec x) {
    for (int i = 0; i < Vec::kWidth; i++) p[i] = round_f16(x.v[i]);
}
inline Vec power_of_two(Vec n) {
    for (float& lane : n.v) {
        const int32_t word = (int32_t(lane) + 127) * (1 << 23);
        std::memcpy(&lane, &word, sizeof lane);
    }
    return n;
}

#endif

template <int32_t kType>
inline Vec load_as(const void* data, int64_t i) {
    if (kType == kFloat32) return Vec::load(static_cast<const float*>(data) + i);
    const uint16_t* halves = static_cast<const uint16_t*>(data) + i;
    return kType == kBFloat16 ? Vec::load_bf16(halves) : load_f16(halves);
}

// Stores x rounded to the type.
template <int32_t kType>
inline void store_as(void* data, int64_t i, Vec x) {
    if (kType == kFloat32) {
        x.store(static_cast<float*>(data) + i);
    } else if (kType == kBFloat16) {
        store_bf16(static_cast<uint16_t*>(data) + i, rounded_bf16(x));
    } else {
        store_f16(static_cast<uint16_t*>(data) + i, x);
    }
}

// x rounded to the type, still as float32.
template <int32_t kType>
inline Vec rounded_as(Vec x) {
    if (kType == kFloat32) return x;
    if (kType == kBFloat16) return rounded_bf16(x);
    uint16_t halves[Vec::kWidth];
    store_f16(halves, x);
    return load_f16(halves);
}

// e^x for x up to 104, infinity from 88.73 on, within 2 units in the last place; below −104 it is e^−104 = 0.
// Cody and Waite's reduction and a polynomial of degree 6 (Cephes' coefficients).
inline Vec exp(Vec x) {
    const Vec most = Vec::all(104.0f), big = Vec::all(12582912.0f);  // 1.5·2^23: adding it rounds to an integer
    x = max(x, Vec::zero() - most);
    x = Vec::zero() - max(Vec::zero() - x, Vec::zero() - most);
    const Vec n = (x * Vec::all(1.44269504088896341f) + big) - big;
    const Vec r = (x - n * Vec::all(0.693359375f)) - n * Vec::all(-2.12194440e-4f);
    Vec p = Vec::all(1.9875691500e-4f);
    p = p * r + Vec::all(1.3981999507e-3f);
    p = p * r + Vec::all(8.3334519073e-3f);
    p = p * r + Vec::all(4.1665795894e-2f);
    p = p * r + Vec::all(1.6666665459e-1f);
    p = p * r + Vec::all(5.0000001201e-1f);
    p = (p * (r * r) + r) + Vec::all(1.0f);
    // In two steps, so that a result of 2^128 and more becomes infinity, and one below 2^-126 a subnormal.
    const Vec half = (n * Vec::all(0.5f) + big) - big;
    return (p * power_of_two(half)) * power_of_two(n - half);
}

}  // namespace
