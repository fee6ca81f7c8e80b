// Vector functions of the row-wise and quantisation kernels: load, round and store any float type, exp. The same bits on
// every instruction set: no FMA, and sums over a row in kRowLanes fixed lanes (one vector of AVX-512, two of AVX2, four of NEON).
#pragma once

#include "rows.h"
#include "vec.h"

namespace {

constexpr int64_t kRowVecs = kRowLanes / Vec::kWidth;

// Rounded to bfloat16, nearest even, and widened again. A NaN computed from bfloat16 values stays NaN: its lower half is 0.
inline Vec rounded_bf16(Vec x);
// Store the upper halves of values that are exact in bfloat16.
inline void store_bf16(uint16_t* p, Vec x);
inline Vec load_f16(const uint16_t* p);
inline void store_f16(uint16_t* p, Vec x);
// 2^n for integral n in −126 … 127, given as n + kRoundMagic: n is in the lowest bits.
inline Vec power_of_two(Vec shifted);
inline Vec min(Vec a, Vec b);

#if defined(__AVX512F__)

inline Vec rounded_bf16(Vec x) {
    const __m512i word = _mm512_castps_si512(x.v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(word, 16), _mm512_set1_epi32(1));
    const __m512i sum = _mm512_add_epi32(_mm512_add_epi32(word, _mm512_set1_epi32(0x7fff)), odd);
    return {_mm512_castsi512_ps(_mm512_and_si512(sum, _mm512_set1_epi32(int(0xffff0000u))))};
}
inline void store_bf16(uint16_t* p, Vec x) {
    const __m512i high = _mm512_srli_epi32(_mm512_castps_si512(x.v), 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(high));
}
inline Vec load_f16(const uint16_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }
inline void store_f16(uint16_t* p, Vec x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
}
inline Vec power_of_two(Vec shifted) {
    const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(shifted.v), 23);
    return {_mm512_castsi512_ps(_mm512_add_epi32(exponent, _mm512_set1_epi32(127 << 23)))};
}
inline Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }

#elif defined(__AVX2__)

inline Vec rounded_bf16(Vec x) {
    const __m256i word = _mm256_castps_si256(x.v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(word, 16), _mm256_set1_epi32(1));
    const __m256i sum = _mm256_add_epi32(_mm256_add_epi32(word, _mm256_set1_epi32(0x7fff)), odd);
    return {_mm256_castsi256_ps(_mm256_and_si256(sum, _mm256_set1_epi32(int(0xffff0000u))))};
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
inline Vec power_of_two(Vec shifted) {
    const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(shifted.v), 23);
    return {_mm256_castsi256_ps(_mm256_add_epi32(exponent, _mm256_set1_epi32(127 << 23)))};
}
inline Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }

#elif defined(__ARM_NEON)

inline Vec rounded_bf16(Vec x) {
    const uint32x4_t word = vreinterpretq_u32_f32(x.v);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(word, 16), vdupq_n_u32(1));
    const uint32x4_t sum = vaddq_u32(vaddq_u32(word, vdupq_n_u32(0x7fff)), odd);
    return {vreinterpretq_f32_u32(vandq_u32(sum, vdupq_n_u32(0xffff0000u)))};
}
inline void store_bf16(uint16_t* p, Vec x) { vst1_u16(p, vshrn_n_u32(vreinterpretq_u32_f32(x.v), 16)); }
inline Vec load_f16(const uint16_t* p) { return {vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)))}; }
inline void store_f16(uint16_t* p, Vec x) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(x.v))); }
inline Vec power_of_two(Vec shifted) {
    const int32x4_t exponent = vshlq_n_s32(vreinterpretq_s32_f32(shifted.v), 23);
    return {vreinterpretq_f32_s32(vaddq_s32(exponent, vdupq_n_s32(127 << 23)))};
}
inline Vec min(Vec a, Vec b) { return {vminq_f32(a.v, b.v)}; }

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
inline Vec power_of_two(Vec shifted) {
    for (float& lane : shifted.v) {
        uint32_t word;
        std::memcpy(&word, &lane, sizeof word);
        word = (word << 23) + (127u << 23);
        std::memcpy(&lane, &word, sizeof lane);
    }
    return shifted;
}
inline Vec min(Vec a, Vec b) {
    return Vec::map(a, b, [](float x, float y) { return x < y ? x : y; });
}

#endif

template <int32_t kType>
inline Vec load_as(const void* data, int64_t i) {
    if (kType == kFloat32) return Vec::load(static_cast<const float*>(data) + i);
    const uint16_t* halves = static_cast<const uint16_t*>(data) + i;
    return kType == kBFloat16 ? Vec::load_bf16(halves) : load_f16(halves);
}

// One value of the type, as float32.
template <int32_t kType>
inline float value_as(const void* data) {
    if (kType == kFloat32) return *static_cast<const float*>(data);
    const uint16_t half = *static_cast<const uint16_t*>(data);
    return kType == kBFloat16 ? widen_bf16(half) : widen_f16(half);
}

// Store x, rounded to the type.
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

// e^x within 2 units in the last place; x is clamped to −87 … 88; unspecified for NaN.
// Cody and Waite's reduction and a polynomial of degree 6 (Cephes' coefficients).
inline Vec exp(Vec x) {
    const Vec magic = Vec::all(kRoundMagic);
    x = max(min(x, Vec::all(88.0f)), Vec::all(-87.0f));
    const Vec shifted = x * Vec::all(1.44269504088896341f) + magic, n = shifted - magic;
    const Vec r = (x - n * Vec::all(0.693359375f)) - n * Vec::all(-2.12194440e-4f);
    const Vec square = r * r;  // Estrin's order: half as long a chain as Horner's
    const Vec high = Vec::all(1.9875691500e-4f) * r + Vec::all(1.3981999507e-3f);
    const Vec middle = Vec::all(8.3334519073e-3f) * r + Vec::all(4.1665795894e-2f);
    const Vec low = Vec::all(1.6666665459e-1f) * r + Vec::all(5.0000001201e-1f);
    const Vec p = (high * square + middle) * square + low;
    return ((p * square + r) + Vec::all(1.0f)) * power_of_two(shifted);
}

}  // namespace
