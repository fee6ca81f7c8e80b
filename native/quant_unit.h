// The unit step of a q4 or q8 product, by instruction set: sixteen outputs times four columns of small integers.
//
// Bytes: 64 weights of one step of a panel, prepared for `add4` (levels of q4) or `add8` (codes of q8). Sums: sixteen int32.
// kOffset4, kOffset8: how much prepared weights exceed the true ones. Values in registers, on the stack of one thread.
#pragma once

#include "quant.h"
#include "vec.h"

namespace {

#if defined(__AVX512F__)

struct Bytes {
    __m512i v;
    static Bytes load(const void* p) { return {_mm512_loadu_si512(p)}; }
    void store(void* p) const { _mm512_storeu_si512(p, v); }
};

struct Levels {
    __m512i v;
    explicit Levels(const int8_t* levels) {
        const __m128i sixteen = _mm_loadu_si128(reinterpret_cast<const __m128i*>(levels));
        v = _mm512_maskz_broadcast_i32x4(0xffff, _mm_add_epi8(sixteen, _mm_set1_epi8(63)));
    }
};

// The weights of one step of q4 codes: its first four columns (low), and the next four (high).
inline void split(Bytes codes, const Levels& levels, Bytes& low, Bytes& high) {
    const __m512i mask = _mm512_set1_epi8(15);
    low.v = _mm512_shuffle_epi8(levels.v, _mm512_and_si512(codes.v, mask));
    high.v = _mm512_shuffle_epi8(levels.v, _mm512_and_si512(_mm512_srli_epi16(codes.v, 4), mask));
}

inline Bytes ready8(Bytes codes) { return {_mm512_xor_si512(codes.v, _mm512_set1_epi8(-128))}; }

struct Sums {
    __m512i v;
    static Sums start(int32_t x) { return {_mm512_set1_epi32(x)}; }
    template <bool kInOrder>
    void add4(const Bytes& w, const int8_t* x) {
        int32_t four;
        std::memcpy(&four, x, sizeof four);
        v = _mm512_dpbusd_epi32(v, w.v, _mm512_set1_epi32(four));
    }
    template <bool kInOrder>
    void add8(const Bytes& w, const int8_t* x) { add4<kInOrder>(w, x); }
    Vec floats(int) const { return {_mm512_cvtepi32_ps(v)}; }
};

constexpr int32_t kOffset4 = 63, kOffset8 = 128;
constexpr int kUnitTileRows = kQuantTileRows[kAvx512];

#elif defined(__AVX2__)

struct Bytes {
    __m256i a, b;
    static Bytes load(const void* p) {
        const __m256i* q = static_cast<const __m256i*>(p);
        return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
    }
    void store(void* p) const {
        __m256i* q = static_cast<__m256i*>(p);
        _mm256_storeu_si256(q, a);
        _mm256_storeu_si256(q + 1, b);
    }
};

struct Levels {
    __m256i v;
    explicit Levels(const int8_t* levels) {
        const __m128i sixteen = _mm_loadu_si128(reinterpret_cast<const __m128i*>(levels));
        v = _mm256_broadcastsi128_si256(_mm_add_epi8(sixteen, _mm_set1_epi8(63)));
    }
};

inline void split(Bytes codes, const Levels& levels, Bytes& low, Bytes& high) {
    const __m256i mask = _mm256_set1_epi8(15);
    low.a = _mm256_shuffle_epi8(levels.v, _mm256_and_si256(codes.a, mask));
    low.b = _mm256_shuffle_epi8(levels.v, _mm256_and_si256(codes.b, mask));
    high.a = _mm256_shuffle_epi8(levels.v, _mm256_and_si256(_mm256_srli_epi16(codes.a, 4), mask));
    high.b = _mm256_shuffle_epi8(levels.v, _mm256_and_si256(_mm256_srli_epi16(codes.b, 4), mask));
}

inline Bytes ready8(Bytes codes) { return codes; }

struct Sums {
    __m256i a, b;
    static Sums start(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
    static __m256i four(const int8_t* x) {
        int32_t word;
        std::memcpy(&word, x, sizeof word);
        return _mm256_set1_epi32(word);
    }
    // sum + products of four columns. GCC reassociates: it adds the products of many steps before it adds them to the sum,
    // which is fast for few sums and spills registers for many; then the empty asm keeps the order.
    template <bool kInOrder>
    static __m256i plus(__m256i sum, __m256i pairs) {
        __m256i next = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
        if constexpr (kInOrder) __asm__("" : "+x"(next));
        return next;
    }
    // Levels are 0 … 126: a pair of products is below 2·126·127 < 2^15.
    template <bool kInOrder>
    void add4(const Bytes& w, const int8_t* x) {
        const __m256i xs = four(x);
        a = plus<kInOrder>(a, _mm256_maddubs_epi16(w.a, xs));
        b = plus<kInOrder>(b, _mm256_maddubs_epi16(w.b, xs));
    }
    // |x| times the weight with x's sign: below 2·127·127 < 2^15.
    template <bool kInOrder>
    void add8(const Bytes& w, const int8_t* x) {
        const __m256i xs = four(x), size = _mm256_abs_epi8(xs);
        a = plus<kInOrder>(a, _mm256_maddubs_epi16(size, _mm256_sign_epi8(w.a, xs)));
        b = plus<kInOrder>(b, _mm256_maddubs_epi16(size, _mm256_sign_epi8(w.b, xs)));
    }
    Vec floats(int part) const { return {_mm256_cvtepi32_ps(part ? b : a)}; }
};

constexpr int32_t kOffset4 = 63, kOffset8 = 0;
constexpr int kUnitTileRows = kQuantTileRows[kAvx2];

#elif defined(__ARM_FEATURE_DOTPROD)

struct Bytes {
    int8x16_t v[4];
    static Bytes load(const void* p) {
        const int8_t* q = static_cast<const int8_t*>(p);
        return {{vld1q_s8(q), vld1q_s8(q + 16), vld1q_s8(q + 32), vld1q_s8(q + 48)}};
    }
    void store(void* p) const {
        for (int i = 0; i < 4; i++) vst1q_s8(static_cast<int8_t*>(p) + 16 * i, v[i]);
    }
};

struct Levels {
    int8x16_t v;
    explicit Levels(const int8_t* levels) : v(vld1q_s8(levels)) {}
};

inline void split(Bytes codes, const Levels& levels, Bytes& low, Bytes& high) {
    for (int i = 0; i < 4; i++) {
        const uint8x16_t both = vreinterpretq_u8_s8(codes.v[i]);
        low.v[i] = vqtbl1q_s8(levels.v, vandq_u8(both, vdupq_n_u8(15)));
        high.v[i] = vqtbl1q_s8(levels.v, vshrq_n_u8(both, 4));
    }
}

inline Bytes ready8(Bytes codes) { return codes; }

struct Sums {
    int32x4_t v[4];
    static Sums start(int32_t x) { return {{vdupq_n_s32(x), vdupq_n_s32(x), vdupq_n_s32(x), vdupq_n_s32(x)}}; }
    template <bool kInOrder>
    void add4(const Bytes& w, const int8_t* x) {
        int32_t word;
        std::memcpy(&word, x, sizeof word);
        const int8x16_t four = vreinterpretq_s8_s32(vdupq_n_s32(word));
        for (int i = 0; i < 4; i++) v[i] = vdotq_s32(v[i], w.v[i], four);
    }
    template <bool kInOrder>
    void add8(const Bytes& w, const int8_t* x) { add4<kInOrder>(w, x); }
    Vec floats(int part) const { return {vcvtq_f32_s32(v[part])}; }
};

constexpr int32_t kOffset4 = 0, kOffset8 = 0;
constexpr int kUnitTileRows = kQuantTileRows[kNeon];

#else

struct Bytes {
    int8_t v[64];
    static Bytes load(const void* p) {
        Bytes r;
        std::memcpy(r.v, p, sizeof r.v);
        return r;
    }
    void store(void* p) const { std::memcpy(p, v, sizeof v); }
};

struct Levels {
    int8_t v[16];
    explicit Levels(const int8_t* levels) { std::memcpy(v, levels, sizeof v); }
};

inline void split(const Bytes& codes, const Levels& levels, Bytes& low, Bytes& high) {
    for (int i = 0; i < 64; i++) {
        low.v[i] = levels.v[codes.v[i] & 15];
        high.v[i] = levels.v[uint8_t(codes.v[i]) >> 4];
    }
}

inline Bytes ready8(const Bytes& codes) { return codes; }

struct Sums {
    int32_t v[16];
    static Sums start(int32_t x) {
        Sums r;
        for (int32_t& lane : r.v) lane = x;
        return r;
    }
    template <bool kInOrder>
    void add4(const Bytes& w, const int8_t* x) {
        for (int i = 0; i < 16; i++) {
            for (int j = 0; j < 4; j++) v[i] += w.v[4 * i + j] * x[j];
        }
    }
    template <bool kInOrder>
    void add8(const Bytes& w, const int8_t* x) { add4<kInOrder>(w, x); }
    Vec floats(int part) const {
        float lanes[Vec::kWidth];
        for (int64_t i = 0; i < Vec::kWidth; i++) lanes[i] = float(v[part * Vec::kWidth + i]);
        return Vec::load(lanes);
    }
};

constexpr int32_t kOffset4 = 0, kOffset8 = 0;
constexpr int kUnitTileRows = kQuantTileRows[kPortable];

#endif

// Sixteen float32, one for each row of a panel.
struct Floats {
    static constexpr int kParts = int(kPanelRows / Vec::kWidth);
    Vec v[kParts];
    static Floats load(const float* p) {
        Floats r;
        for (int i = 0; i < kParts; i++) r.v[i] = Vec::load(p + i * Vec::kWidth);
        return r;
    }
    static Floats load_bf16(const uint16_t* p) {
        Floats r;
        for (int i = 0; i < kParts; i++) r.v[i] = Vec::load_bf16(p + i * Vec::kWidth);
        return r;
    }
    void store(float* p) const {
        for (int i = 0; i < kParts; i++) v[i].store(p + i * Vec::kWidth);
    }
    // Add one group's part of the result: two products and a sum, each rounded.
    void add_group(const Sums& sums, const Floats& scales, float x_scale) {
        const Vec xs = Vec::all(x_scale);
        for (int i = 0; i < kParts; i++) v[i] = v[i] + (sums.floats(i) * scales.v[i]) * xs;
    }
};

}  // namespace
