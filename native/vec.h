// Vec, a float32 vector of the instruction set that a file is compiled for, so that each kernel is written once.
//
// Everything is in an unnamed namespace: files are compiled with different instruction sets, and the linker must never
// merge one file's AVX-512 copy of an inline function with another file's portable copy.
#pragma once

#include <cmath>
#include <cstring>

#include "align.h"
#include "cpu.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace {

// The instruction set that Vec is of: the index of the tile tables in the areas' headers.
#if defined(__AVX512F__)
constexpr Isa kVecIsa = kAvx512;
#elif defined(__AVX2__)
constexpr Isa kVecIsa = kAvx2;
#elif defined(__ARM_NEON)
constexpr Isa kVecIsa = kNeon;
#else
constexpr Isa kVecIsa = kPortable;
#endif

// 1.5·2^23. Added to |x| < 2^22 it rounds x to the nearest integer, half to even, which is then in the low bits of the
// sum: its bits less kRoundMagicBits. Subtracting it again gives that integer as a float.
constexpr float kRoundMagic = 12582912.0f;
constexpr int32_t kRoundMagicBits = 0x4b400000;

inline float widen_bf16(uint16_t bits) {
    const uint32_t word = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &word, sizeof value);
    return value;
}

// Round to nearest even, as PyTorch does; NaN stays NaN.
inline uint16_t round_bf16(float value) {
    uint32_t word;
    std::memcpy(&word, &value, sizeof word);
    if ((word & 0x7fffffffu) > 0x7f800000u) return uint16_t((word >> 16) | 0x40);
    return uint16_t((word + 0x7fffu + ((word >> 16) & 1)) >> 16);
}

inline float widen_f16(uint16_t bits) {
    const uint32_t sign = uint32_t(bits & 0x8000) << 16, exponent = (bits >> 10) & 31, mantissa = bits & 1023;
    if (exponent == 0) {
        const float value = float(mantissa) * 5.9604644775390625e-8f;  // 2^-24
        return sign ? -value : value;
    }
    const uint32_t word = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | (mantissa << 13);
    float value;
    std::memcpy(&value, &word, sizeof value);
    return value;
}

inline uint16_t round_f16(float value) {
    uint32_t word;
    std::memcpy(&word, &value, sizeof word);
    const uint16_t sign = uint16_t((word >> 16) & 0x8000);
    word &= 0x7fffffffu;
    if (word > 0x7f800000u) return sign | 0x7e00;
    if (word >= 0x477ff000u) return sign | 0x7c00;  // rounds to infinity
    if (word < 0x38800000u) {                        // subnormal: let the adder round
        float magnitude;
        std::memcpy(&magnitude, &word, sizeof magnitude);
        magnitude += 0.5f;  // its last bit is 2^-24
        uint32_t shifted;
        std::memcpy(&shifted, &magnitude, sizeof shifted);
        return sign | uint16_t(shifted - 0x3f000000u);
    }
    return sign | uint16_t((word - 0x38000000u + 0xfffu + ((word >> 13) & 1)) >> 13);
}

#if defined(__AVX512F__)

struct Vec {
    static constexpr int64_t kWidth = 16;
    __m512 v;
    static Vec zero() { return {_mm512_setzero_ps()}; }
    static Vec all(float x) { return {_mm512_set1_ps(x)}; }
    static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
    static Vec load_bf16(const uint16_t* p) {
        const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
        return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
    }
    static Vec load_i8(const int8_t* p) {
        return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
    }
    void store(float* p) const { _mm512_storeu_ps(p, v); }
    friend Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
    friend Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
    friend Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
    friend Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
    friend Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
    // a·b + c with one rounding.
    friend Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
};

#elif defined(__AVX2__)

struct Vec {
    static constexpr int64_t kWidth = 8;
    __m256 v;
    static Vec zero() { return {_mm256_setzero_ps()}; }
    static Vec all(float x) { return {_mm256_set1_ps(x)}; }
    static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
    static Vec load_bf16(const uint16_t* p) {
        const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
        return {_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))};
    }
    static Vec load_i8(const int8_t* p) {
        return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))))};
    }
    void store(float* p) const { _mm256_storeu_ps(p, v); }
    friend Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
    friend Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
    friend Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
    friend Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
    friend Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
    friend Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
};

#elif defined(__ARM_NEON)

struct Vec {
    static constexpr int64_t kWidth = 4;
    float32x4_t v;
    static Vec zero() { return {vdupq_n_f32(0)}; }
    static Vec all(float x) { return {vdupq_n_f32(x)}; }
    static Vec load(const float* p) { return {vld1q_f32(p)}; }
    static Vec load_bf16(const uint16_t* p) { return {vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16))}; }
    static Vec load_i8(const int8_t* p) {
        int32_t four;
        std::memcpy(&four, p, sizeof four);
        const int16x8_t wide = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)));
        return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)))};
    }
    void store(float* p) const { vst1q_f32(p, v); }
    friend Vec operator+(Vec a, Vec b) { return {vaddq_f32(a.v, b.v)}; }
    friend Vec operator-(Vec a, Vec b) { return {vsubq_f32(a.v, b.v)}; }
    friend Vec operator*(Vec a, Vec b) { return {vmulq_f32(a.v, b.v)}; }
    friend Vec operator/(Vec a, Vec b) { return {vdivq_f32(a.v, b.v)}; }
    friend Vec max(Vec a, Vec b) { return {vmaxq_f32(a.v, b.v)}; }
    friend Vec fma(Vec a, Vec b, Vec c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
};

#else

struct Vec {
    static constexpr int64_t kWidth = 8;
    float v[8];
    static Vec zero() { return all(0); }
    static Vec all(float x) {
        Vec r;
        for (float& lane : r.v) lane = x;
        return r;
    }
    static Vec load(const float* p) {
        Vec r;
        std::memcpy(r.v, p, sizeof r.v);
        return r;
    }
    static Vec load_bf16(const uint16_t* p) {
        Vec r;
        for (int i = 0; i < 8; i++) r.v[i] = widen_bf16(p[i]);
        return r;
    }
    static Vec load_i8(const int8_t* p) {
        Vec r;
        for (int i = 0; i < 8; i++) r.v[i] = float(p[i]);
        return r;
    }
    void store(float* p) const { std::memcpy(p, v, sizeof v); }
    template <typename F>
    static Vec map(Vec a, Vec b, F f) {
        Vec r;
        for (int i = 0; i < 8; i++) r.v[i] = f(a.v[i], b.v[i]);
        return r;
    }
    friend Vec operator+(Vec a, Vec b) { return map(a, b, [](float x, float y) { return x + y; }); }
    friend Vec operator-(Vec a, Vec b) { return map(a, b, [](float x, float y) { return x - y; }); }
    friend Vec operator*(Vec a, Vec b) { return map(a, b, [](float x, float y) { return x * y; }); }
    friend Vec operator/(Vec a, Vec b) { return map(a, b, [](float x, float y) { return x / y; }); }
    friend Vec max(Vec a, Vec b) { return map(a, b, [](float x, float y) { return x > y ? x : y; }); }
    // Two roundings: without an FMA instruction, fmaf is a library call of about a hundred cycles.
    friend Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
};

#endif

// Sum of the lanes by halves (lane i + lane i + half): one fixed order for each width.
inline float sum(Vec x) {
    float lanes[Vec::kWidth];
    x.store(lanes);
    for (int64_t half = Vec::kWidth / 2; half > 0; half /= 2) {
        for (int64_t i = 0; i < half; i++) lanes[i] += lanes[i + half];
    }
    return lanes[0];
}

// Element i of `data`, of any float type, as float32 (exact).
inline float load_one(const void* data, int32_t type, int64_t i) {
    switch (type) {
        case kBFloat16:
            return widen_bf16(static_cast<const uint16_t*>(data)[i]);
        case kFloat16:
            return widen_f16(static_cast<const uint16_t*>(data)[i]);
        default:
            return static_cast<const float*>(data)[i];
    }
}

// Store `value`, rounded to `type`, as element i of `data`.
inline void store_one(void* data, int32_t type, int64_t i, float value) {
    switch (type) {
        case kBFloat16:
            static_cast<uint16_t*>(data)[i] = round_bf16(value);
            break;
        case kFloat16:
            static_cast<uint16_t*>(data)[i] = round_f16(value);
            break;
        default:
            static_cast<float*>(data)[i] = value;
    }
}

}  // namespace
