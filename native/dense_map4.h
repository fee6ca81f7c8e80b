// Lookup of 4-bit codes: the table of one group's 16 decoded values, and a step of 64 codes through it.
//
// A byte shuffle looks up sixteen or more bytes at once, so the table is stored as the bytes of its floats, one vector per
// byte; bfloat16 values have two non-zero bytes. AVX-512 looks up whole floats.
#pragma once

#include <limits>

#include "dense.h"
#include "dense_vec.h"

namespace {

// map4_column: the column, within a step, of lane `lane` of vector `index` of Table::lookup.
// Table: owned by a source, on the stack of one thread.

#if defined(__AVX512F__)

constexpr int64_t map4_column(int64_t index, int64_t lane) { return 4 * lane + (index ^ 1); }

template <int32_t kType>
class Table {
  public:
    explicit Table(const float* map) : map_(Vec::load(map)) {}

    void build(float scale) { values_ = rounded<kType>(map_ * Vec::all(scale)); }

    // use(i, vector) for the vectors of 64 codes.
    template <typename Use>
    void lookup(const uint8_t* codes, Use&& use) const {
        // Four codes in each 32 bits; the permutation reads only the lowest four bits.
        const __m512i four = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes)));
        use(0, Vec{_mm512_permutexvar_ps(four, values_.v)});
        use(1, Vec{_mm512_permutexvar_ps(_mm512_srli_epi32(four, 4), values_.v)});
        use(2, Vec{_mm512_permutexvar_ps(_mm512_srli_epi32(four, 8), values_.v)});
        use(3, Vec{_mm512_permutexvar_ps(_mm512_srli_epi32(four, 12), values_.v)});
    }

  private:
    Vec map_, values_ = Vec::zero();
};

#elif defined(__AVX2__)

constexpr int64_t map4_column(int64_t index, int64_t lane) {
    const int64_t byte = lane / 4 * 16 + index / 2 % 2 * 8 + lane % 4 * 2 + index % 2;
    return 2 * byte + index / 4;
}

template <int32_t kType>
class Table {
  public:
    // The halves of the map are interleaved so that the unpacking below leaves the bytes in order.
    explicit Table(const float* map)
        : first_{plain_nan(_mm256_loadu2_m128(map + 8, map))}, second_{plain_nan(_mm256_loadu2_m128(map + 12, map + 4))} {}

    void build(float scale) {
        if (scale != scale) scale = std::numeric_limits<float>::quiet_NaN();
        const __m256i by_byte = _mm256_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15,  //
                                                 0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        const __m256i a = _mm256_shuffle_epi8(upper_bytes(first_ * Vec::all(scale)), by_byte);
        const __m256i b = _mm256_shuffle_epi8(upper_bytes(second_ * Vec::all(scale)), by_byte);
        const __m256i upper = _mm256_unpackhi_epi32(a, b);
        bytes_[2] = _mm256_permute4x64_epi64(upper, 0x88);
        bytes_[3] = _mm256_permute4x64_epi64(upper, 0xdd);
        if constexpr (kType != kBFloat16) {
            const __m256i lower = _mm256_unpacklo_epi32(a, b);
            bytes_[0] = _mm256_permute4x64_epi64(lower, 0x88);
            bytes_[1] = _mm256_permute4x64_epi64(lower, 0xdd);
        }
    }

    template <typename Use>
    void lookup(const uint8_t* codes, Use&& use) const {
        const __m256i nibble = _mm256_set1_epi8(15);
        const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
        half(_mm256_and_si256(_mm256_srli_epi16(both, 4), nibble), 0, use);
        half(_mm256_and_si256(both, nibble), 4, use);
    }

  private:
    // A NaN whose lower bits are zeros survives the rounding below.
    static __m256 plain_nan(__m256 x) {
        const __m256 nan = _mm256_set1_ps(std::numeric_limits<float>::quiet_NaN());
        return _mm256_blendv_ps(x, nan, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    }

    // Rounded values, of bfloat16 the upper two bytes only.
    static __m256i upper_bytes(Vec x) {
        if constexpr (kType != kBFloat16) return _mm256_castps_si256(rounded<kType>(x).v);
        const __m256i bits = _mm256_castps_si256(x.v);
        const __m256i last = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        return _mm256_add_epi32(bits, _mm256_add_epi32(last, _mm256_set1_epi32(0x7fff)));
    }

    template <typename Use>
    void half(__m256i codes, int64_t at, Use& use) const {
        const __m256i b2 = _mm256_shuffle_epi8(bytes_[2], codes), b3 = _mm256_shuffle_epi8(bytes_[3], codes);
        __m256i b0 = codes, b1 = codes;
        if constexpr (kType != kBFloat16) {
            b0 = _mm256_shuffle_epi8(bytes_[0], codes);
            b1 = _mm256_shuffle_epi8(bytes_[1], codes);
        }
        words(_mm256_unpacklo_epi8(b0, b1), _mm256_unpacklo_epi8(b2, b3), at, use);
        words(_mm256_unpackhi_epi8(b0, b1), _mm256_unpackhi_epi8(b2, b3), at + 2, use);
    }

    // From the lower and upper halves of 16 floats.
    template <typename Use>
    void words(__m256i lower, __m256i upper, int64_t at, Use& use) const {
        __m256i even = _mm256_slli_epi32(upper, 16), odd;
        if constexpr (kType == kBFloat16) {
            odd = _mm256_and_si256(upper, _mm256_set1_epi32(int(0xffff0000u)));
        } else {
            even = _mm256_blend_epi16(lower, even, 0xaa);
            odd = _mm256_blend_epi16(_mm256_srli_epi32(lower, 16), upper, 0xaa);
        }
        use(at, Vec{_mm256_castsi256_ps(even)});
        use(at + 1, Vec{_mm256_castsi256_ps(odd)});
    }

    Vec first_, second_;
    __m256i bytes_[4] = {};
};

#elif defined(__ARM_NEON)

constexpr int64_t map4_column(int64_t index, int64_t lane) {
    const int64_t byte = index / 8 * 16 + index / 2 % 2 * 8 + lane * 2 + index % 2;
    return 2 * byte + index / 4 % 2;
}

template <int32_t kType>
class Table {
  public:
    explicit Table(const float* map) : map_(map) {}

    void build(float scale) {
        float values[16];
        for (int64_t i = 0; i < 16; i += 4) rounded<kType>(Vec::load(map_ + i) * Vec::all(scale)).store(values + i);
        bytes_ = vld4q_u8(reinterpret_cast<const uint8_t*>(values));
    }

    template <typename Use>
    void lookup(const uint8_t* codes, Use&& use) const {
        for (int64_t part = 0; part < 2; part++) {
            const uint8x16_t both = vld1q_u8(codes + 16 * part);
            half(vshrq_n_u8(both, 4), 8 * part, use);
            half(vandq_u8(both, vdupq_n_u8(15)), 8 * part + 4, use);
        }
    }

  private:
    template <typename Use>
    void half(uint8x16_t codes, int64_t at, Use& use) const {
        const uint8x16_t b0 = vqtbl1q_u8(bytes_.val[0], codes), b1 = vqtbl1q_u8(bytes_.val[1], codes);
        const uint8x16_t b2 = vqtbl1q_u8(bytes_.val[2], codes), b3 = vqtbl1q_u8(bytes_.val[3], codes);
        words(vzip1q_u8(b0, b1), vzip1q_u8(b2, b3), at, use);
        words(vzip2q_u8(b0, b1), vzip2q_u8(b2, b3), at + 2, use);
    }

    template <typename Use>
    void words(uint8x16_t low, uint8x16_t high, int64_t at, Use& use) const {
        const uint32x4_t lower = vreinterpretq_u32_u8(low), upper = vreinterpretq_u32_u8(high);
        use(at, Vec{vreinterpretq_f32_u32(vsliq_n_u32(lower, upper, 16))});
        use(at + 1, Vec{vreinterpretq_f32_u32(vsriq_n_u32(upper, lower, 16))});
    }

    const float* map_;
    uint8x16x4_t bytes_ = {};
};

#else

constexpr int64_t map4_column(int64_t index, int64_t lane) { return index * Vec::kWidth + lane; }

template <int32_t kType>
class Table {
  public:
    explicit Table(const float* map) : map_(map) {}

    void build(float scale) {
        for (int64_t i = 0; i < 16; i++) values_[i] = rounded<kType>(map_[i] * scale);
    }

    template <typename Use>
    void lookup(const uint8_t* codes, Use&& use) const {
        for (int64_t i = 0; i < kDenseStep / Vec::kWidth; i++) {
            Vec v;
            for (int64_t j = 0; j < Vec::kWidth; j += 2) {
                const uint8_t both = codes[(i * Vec::kWidth + j) / 2];
                v.v[j] = values_[both >> 4];
                v.v[j + 1] = values_[both & 15];
            }
            use(i, v);
        }
    }

  private:
    const float* map_;
    float values_[16] = {};
};

#endif

}  // namespace
