// AVX-512 and AMX for processors that have neither: included before each file that is compiled to be emulated.
//
// SIMDe gives most of AVX-512 on AVX2; what it lacks stands here, lane by lane, and so does AMX. Tiles are refused
// (the process is ended) in a thread that has not loaded a tile configuration, as the processor does.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

#define VT_INLINE static inline __attribute__((always_inline))

template <typename To, typename From>
VT_INLINE To vt_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "a cast of the same size");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

template <typename Lane, int kLanes>
struct vt_lanes {
    Lane at[kLanes];
};

// Each lane of `From` through a function, into a register of type `Register`.
template <typename Register, typename To, typename From, int kLanes, typename Source, typename Function>
VT_INLINE Register vt_each(Source source, Function function) {
    const auto from = vt_bits<vt_lanes<From, kLanes>>(source);
    vt_lanes<To, kLanes> to;
    for (int i = 0; i < kLanes; i++) to.at[i] = function(from.at[i]);
    return vt_bits<Register>(to);
}

VT_INLINE uint16_t vt_round_bf16(float value) {
    uint32_t word = vt_bits<uint32_t>(value);
    if ((word & 0x7fffffffu) > 0x7f800000u) return uint16_t((word >> 16) | 0x40);
    if ((word & 0x7f800000u) == 0) return uint16_t((word >> 16) & 0x8000);  // the instruction flushes subnormals
    return uint16_t((word + 0x7fffu + ((word >> 16) & 1)) >> 16);
}

VT_INLINE float vt_widen_bf16(uint16_t bits) {
    const float value = vt_bits<float>(uint32_t(bits) << 16);
    return std::fpclassify(value) == FP_SUBNORMAL ? std::copysign(0.0f, value) : value;
}

// --- widening and narrowing -------------------------------------------------------------------------------------

#define VT_WIDEN(NAME, TO, FROM, LANES, SOURCE)                                              \
    VT_INLINE __m512i vt##NAME(SOURCE a) {                                                   \
        return vt_each<__m512i, TO, FROM, LANES>(a, [](FROM lane) { return TO(lane); });     \
    }
VT_WIDEN(_mm512_cvtepi8_epi32, int32_t, int8_t, 16, __m128i)
VT_WIDEN(_mm512_cvtepu8_epi32, int32_t, uint8_t, 16, __m128i)
VT_WIDEN(_mm512_cvtepi16_epi32, int32_t, int16_t, 16, __m256i)
VT_WIDEN(_mm512_cvtepu16_epi32, int32_t, uint16_t, 16, __m256i)
VT_WIDEN(_mm512_cvtepi8_epi16, int16_t, int8_t, 32, __m256i)
VT_WIDEN(_mm512_cvtepu8_epi16, int16_t, uint8_t, 32, __m256i)
VT_WIDEN(_mm512_cvtepi32_epi64, int64_t, int32_t, 8, __m256i)
#undef _mm512_cvtepi8_epi32
#undef _mm512_cvtepu8_epi32
#undef _mm512_cvtepi16_epi32
#undef _mm512_cvtepu16_epi32
#undef _mm512_cvtepi8_epi16
#undef _mm512_cvtepu8_epi16
#undef _mm512_cvtepi32_epi64
#define _mm512_cvtepi8_epi32 vt_mm512_cvtepi8_epi32
#define _mm512_cvtepu8_epi32 vt_mm512_cvtepu8_epi32
#define _mm512_cvtepi16_epi32 vt_mm512_cvtepi16_epi32
#define _mm512_cvtepu16_epi32 vt_mm512_cvtepu16_epi32
#define _mm512_cvtepi8_epi16 vt_mm512_cvtepi8_epi16
#define _mm512_cvtepu8_epi16 vt_mm512_cvtepu8_epi16
#define _mm512_cvtepi32_epi64 vt_mm512_cvtepi32_epi64

template <typename Register, typename To, typename From, int kLanes>
VT_INLINE Register vt_narrow(__m512i a) {
    return vt_each<Register, To, From, kLanes>(a, [](From lane) { return To(lane); });
}

template <typename Register, typename To, typename From, int kLanes>
VT_INLINE Register vt_saturate(__m512i a) {
    return vt_each<Register, To, From, kLanes>(a, [](From lane) {
        const int64_t low = To(-1) < 0 ? -(int64_t(1) << (8 * sizeof(To) - 1)) : 0;
        const int64_t high = low + (int64_t(1) << (8 * sizeof(To))) - 1;
        return To(lane < low ? low : lane > high ? high : lane);
    });
}
#undef _mm512_cvtepi32_epi16
#undef _mm512_cvtepi32_epi8
#undef _mm512_cvtepi16_epi8
#undef _mm512_cvtsepi32_epi8
#undef _mm512_cvtsepi32_epi16
#undef _mm512_cvtsepi16_epi8
#define _mm512_cvtepi32_epi16(a) (vt_narrow<__m256i, int16_t, int32_t, 16>(a))
#define _mm512_cvtepi32_epi8(a) (vt_narrow<__m128i, int8_t, int32_t, 16>(a))
#define _mm512_cvtepi16_epi8(a) (vt_narrow<__m256i, int8_t, int16_t, 32>(a))
#define _mm512_cvtsepi32_epi8(a) (vt_saturate<__m128i, int8_t, int32_t, 16>(a))
#define _mm512_cvtsepi32_epi16(a) (vt_saturate<__m256i, int16_t, int32_t, 16>(a))
#define _mm512_cvtsepi16_epi8(a) (vt_saturate<__m256i, int8_t, int16_t, 32>(a))

VT_INLINE __m512 vt_cvtepi32_ps(__m512i a) {
    return vt_each<__m512, float, int32_t, 16>(a, [](int32_t lane) { return float(lane); });
}
VT_INLINE int32_t vt_to_int(float lane) {
    return lane >= -2147483648.0f && lane < 2147483648.0f ? int32_t(lane) : INT32_MIN;  // "indefinite"
}
VT_INLINE __m512i vt_cvtps_epi32(__m512 a) {
    return vt_each<__m512i, int32_t, float, 16>(a, [](float lane) { return vt_to_int(std::nearbyint(lane)); });
}
VT_INLINE __m512i vt_cvttps_epi32(__m512 a) {
    return vt_each<__m512i, int32_t, float, 16>(a, [](float lane) { return vt_to_int(std::trunc(lane)); });
}
VT_INLINE __m512 vt_cvtph_ps(__m256i a) {
    const auto halves = vt_bits<vt_lanes<__m128i, 2>>(a);
    return vt_bits<__m512>(vt_lanes<__m256, 2>{{_mm256_cvtph_ps(halves.at[0]), _mm256_cvtph_ps(halves.at[1])}});
}
VT_INLINE __m256i vt_cvtps_ph(__m512 a) {
    const auto halves = vt_bits<vt_lanes<__m256, 2>>(a);
    return vt_bits<__m256i>(vt_lanes<__m128i, 2>{{_mm256_cvtps_ph(halves.at[0], 0), _mm256_cvtps_ph(halves.at[1], 0)}});
}
#undef _mm512_cvtepi32_ps
#undef _mm512_cvtps_epi32
#undef _mm512_cvttps_epi32
#undef _mm512_cvtph_ps
#undef _mm512_cvtps_ph
#define _mm512_cvtepi32_ps vt_cvtepi32_ps
#define _mm512_cvtps_epi32 vt_cvtps_epi32
#define _mm512_cvttps_epi32 vt_cvttps_epi32
#define _mm512_cvtph_ps vt_cvtph_ps
#define _mm512_cvtps_ph(a, rounding) vt_cvtps_ph(a)  // to nearest even, as everywhere here

VT_INLINE __m256bh vt_cvtneps_pbh(__m512 a) { return vt_each<__m256bh, uint16_t, float, 16>(a, vt_round_bf16); }
VT_INLINE __m512bh vt_cvtne2ps_pbh(__m512 high, __m512 low) {
    const auto l = vt_cvtneps_pbh(low), h = vt_cvtneps_pbh(high);
    return vt_bits<__m512bh>(vt_lanes<__m256bh, 2>{{l, h}});
}
// Each product pair is added exactly as the instruction does: odd lane first, products rounded by the fused addition.
VT_INLINE __m512 vt_dpbf16_ps(__m512 sum, __m512bh a, __m512bh b) {
    auto s = vt_bits<vt_lanes<float, 16>>(sum);
    const auto x = vt_bits<vt_lanes<uint16_t, 32>>(a), y = vt_bits<vt_lanes<uint16_t, 32>>(b);
    for (int i = 0; i < 16; i++) {
        for (int j = 1; j >= 0; j--) s.at[i] = std::fma(vt_widen_bf16(x.at[2 * i + j]), vt_widen_bf16(y.at[2 * i + j]), s.at[i]);
    }
    return vt_bits<__m512>(s);
}
#undef _mm512_cvtneps_pbh
#undef _mm512_cvtne2ps_pbh
#undef _mm512_dpbf16_ps
#define _mm512_cvtneps_pbh vt_cvtneps_pbh
#define _mm512_cvtne2ps_pbh vt_cvtne2ps_pbh
#define _mm512_dpbf16_ps vt_dpbf16_ps

// --- memory under a mask ------------------------------------------------------------------------------------------

template <typename Register, typename Lane, typename Mask>
VT_INLINE Register vt_maskz_load(Mask mask, const void* from) {
    constexpr int kLanes = sizeof(Register) / sizeof(Lane);
    vt_lanes<Lane, kLanes> to{};
    for (int i = 0; i < kLanes; i++) {
        if ((uint64_t(mask) >> i) & 1) std::memcpy(&to.at[i], static_cast<const char*>(from) + i * sizeof(Lane), sizeof(Lane));
    }
    return vt_bits<Register>(to);
}
template <typename Register, typename Lane, typename Mask>
VT_INLINE void vt_mask_store(void* to, Mask mask, Register value) {
    constexpr int kLanes = sizeof(Register) / sizeof(Lane);
    const auto from = vt_bits<vt_lanes<Lane, kLanes>>(value);
    for (int i = 0; i < kLanes; i++) {
        if ((uint64_t(mask) >> i) & 1) std::memcpy(static_cast<char*>(to) + i * sizeof(Lane), &from.at[i], sizeof(Lane));
    }
}
#undef _mm512_maskz_loadu_ps
#undef _mm512_maskz_loadu_epi8
#undef _mm512_maskz_loadu_epi16
#undef _mm512_maskz_loadu_epi32
#undef _mm512_mask_storeu_ps
#undef _mm512_mask_storeu_epi8
#undef _mm512_mask_storeu_epi16
#undef _mm512_mask_storeu_epi32
#undef _mm256_maskz_loadu_epi8
#undef _mm256_maskz_loadu_epi16
#undef _mm256_mask_storeu_epi16
#undef _mm_maskz_loadu_epi8
#define _mm512_maskz_loadu_ps(mask, from) (vt_maskz_load<__m512, float>(mask, from))
#define _mm512_maskz_loadu_epi8(mask, from) (vt_maskz_load<__m512i, int8_t>(mask, from))
#define _mm512_maskz_loadu_epi16(mask, from) (vt_maskz_load<__m512i, int16_t>(mask, from))
#define _mm512_maskz_loadu_epi32(mask, from) (vt_maskz_load<__m512i, int32_t>(mask, from))
#define _mm512_mask_storeu_ps(to, mask, value) (vt_mask_store<__m512, float>(to, mask, value))
#define _mm512_mask_storeu_epi8(to, mask, value) (vt_mask_store<__m512i, int8_t>(to, mask, value))
#define _mm512_mask_storeu_epi16(to, mask, value) (vt_mask_store<__m512i, int16_t>(to, mask, value))
#define _mm512_mask_storeu_epi32(to, mask, value) (vt_mask_store<__m512i, int32_t>(to, mask, value))
#define _mm256_maskz_loadu_epi8(mask, from) (vt_maskz_load<__m256i, int8_t>(mask, from))
#define _mm256_maskz_loadu_epi16(mask, from) (vt_maskz_load<__m256i, int16_t>(mask, from))
#define _mm256_mask_storeu_epi16(to, mask, value) (vt_mask_store<__m256i, int16_t>(to, mask, value))
#define _mm_maskz_loadu_epi8(mask, from) (vt_maskz_load<__m128i, int8_t>(mask, from))

// --- across lanes ---------------------------------------------------------------------------------------------------

// By halves, as compilers expand it.
template <typename Register, typename Lane, typename Function>
VT_INLINE Lane vt_reduce(Register value, Function function) {
    auto lanes = vt_bits<vt_lanes<Lane, 64 / sizeof(Lane)>>(value);
    for (int half = 32 / sizeof(Lane); half > 0; half /= 2) {
        for (int i = 0; i < half; i++) lanes.at[i] = function(lanes.at[i], lanes.at[i + half]);
    }
    return lanes.at[0];
}
VT_INLINE float vt_reduce_add_ps(__m512 a) {
    return vt_reduce<__m512, float>(a, [](float x, float y) { return x + y; });
}
VT_INLINE float vt_reduce_max_ps(__m512 a) {
    return vt_reduce<__m512, float>(a, [](float x, float y) { return x > y ? x : y; });
}
VT_INLINE int32_t vt_reduce_add_epi32(__m512i a) {
    return vt_reduce<__m512i, int32_t>(a, [](int32_t x, int32_t y) { return int32_t(uint32_t(x) + uint32_t(y)); });
}
#undef _mm512_reduce_add_ps
#undef _mm512_reduce_max_ps
#undef _mm512_reduce_add_epi32
#define _mm512_reduce_add_ps vt_reduce_add_ps
#define _mm512_reduce_max_ps vt_reduce_max_ps
#define _mm512_reduce_add_epi32 vt_reduce_add_epi32

VT_INLINE __m512i vt_zext256(__m256i a) { return vt_bits<__m512i>(vt_lanes<__m256i, 2>{{a, _mm256_setzero_si256()}}); }
VT_INLINE __m512i vt_zext128(__m128i a) {
    const __m128i zero = _mm_setzero_si128();
    return vt_bits<__m512i>(vt_lanes<__m128i, 4>{{a, zero, zero, zero}});
}
VT_INLINE __m512i vt_stream_load(const void* from) {
    __m512i value;
    std::memcpy(&value, from, sizeof value);
    return value;
}
#undef _mm512_zextsi256_si512
#undef _mm512_zextsi128_si512
#undef _mm512_stream_load_si512
#define _mm512_zextsi256_si512 vt_zext256
#define _mm512_zextsi128_si512 vt_zext128
#define _mm512_stream_load_si512 vt_stream_load

template <typename Lane>
VT_INLINE __m512 vt_gather(__m512i index, const Lane* base, int scale) {
    const auto places = vt_bits<vt_lanes<int32_t, 16>>(index);
    vt_lanes<float, 16> to;
    for (int i = 0; i < 16; i++) {
        std::memcpy(&to.at[i], reinterpret_cast<const char*>(base) + int64_t(places.at[i]) * scale, sizeof(float));
    }
    return vt_bits<__m512>(to);
}
#undef _mm512_i32gather_ps
#define _mm512_i32gather_ps(index, base, scale) vt_gather(index, static_cast<const char*>(static_cast<const void*>(base)), scale)

// --- AMX --------------------------------------------------------------------------------------------------------------

struct vt_tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
};
struct vt_tiles {
    bool configured = false;
    vt_tile_config config{};
    uint8_t rows[8][16][64];
};

VT_INLINE void vt_refuse(const char* why) {
    std::fprintf(stderr, "emulated AMX: %s\n", why);
    std::abort();
}

// One per thread for all files of the library: inline functions' statics are shared.
inline vt_tiles& vt_thread_tiles() {
    static thread_local vt_tiles tiles;
    return tiles;
}
inline vt_tiles& vt_ready(int tile) {
    vt_tiles& tiles = vt_thread_tiles();
    if (!tiles.configured) vt_refuse("this thread has loaded no tile configuration");
    if (tile < 0 || tile > 7 || !tiles.config.rows[tile] || !tiles.config.bytes[tile]) vt_refuse("a tile that is not configured");
    return tiles;
}
inline void vt_tile_loadconfig(const void* from) {
    vt_tiles& tiles = vt_thread_tiles();
    std::memcpy(&tiles.config, from, sizeof tiles.config);
    if (tiles.config.palette != 1) vt_refuse("a palette other than 1");
    for (int i = 0; i < 8; i++) {
        if (tiles.config.rows[i] > 16 || tiles.config.bytes[i] > 64) vt_refuse("a tile of more than 16 rows of 64 bytes");
    }
    tiles.configured = true;
    std::memset(tiles.rows, 0, sizeof tiles.rows);
}
inline void vt_tile_release() { vt_thread_tiles().configured = false; }
inline void vt_tile_zero(int tile) { std::memset(vt_ready(tile).rows[tile], 0, 1024); }
inline void vt_tile_load(int tile, const void* from, int64_t stride) {
    vt_tiles& tiles = vt_ready(tile);
    std::memset(tiles.rows[tile], 0, 1024);
    for (int r = 0; r < tiles.config.rows[tile]; r++) {
        std::memcpy(tiles.rows[tile][r], static_cast<const char*>(from) + r * stride, tiles.config.bytes[tile]);
    }
}
inline void vt_tile_store(int tile, void* to, int64_t stride) {
    vt_tiles& tiles = vt_ready(tile);
    for (int r = 0; r < tiles.config.rows[tile]; r++) {
        std::memcpy(static_cast<char*>(to) + r * stride, tiles.rows[tile][r], tiles.config.bytes[tile]);
    }
}
inline void vt_check_product(const vt_tile_config& c, int to, int a, int b) {
    if (c.rows[to] != c.rows[a] || c.bytes[to] != c.bytes[b] || c.bytes[a] != 4 * c.rows[b]) {
        vt_refuse("tiles of a product do not fit");
    }
}
template <typename A, typename B>
inline void vt_tile_dot8(int to, int a, int b) {
    vt_ready(a), vt_ready(b);
    vt_tiles& t = vt_ready(to);
    vt_check_product(t.config, to, a, b);
    for (int r = 0; r < t.config.rows[to]; r++) {
        for (int c = 0; c < t.config.bytes[to] / 4; c++) {
            int32_t sum;
            std::memcpy(&sum, &t.rows[to][r][4 * c], 4);
            for (int k = 0; k < t.config.bytes[a]; k++) {
                sum += int32_t(A(t.rows[a][r][k])) * int32_t(B(t.rows[b][k / 4][4 * c + k % 4]));
            }
            std::memcpy(&t.rows[to][r][4 * c], &sum, 4);
        }
    }
}
inline void vt_tile_dot16(int to, int a, int b) {
    vt_ready(a), vt_ready(b);
    vt_tiles& t = vt_ready(to);
    vt_check_product(t.config, to, a, b);
    for (int r = 0; r < t.config.rows[to]; r++) {
        for (int c = 0; c < t.config.bytes[to] / 4; c++) {
            float sum;
            std::memcpy(&sum, &t.rows[to][r][4 * c], 4);
            float parts[2] = {0, 0};  // even and odd products apart, as the instruction's pseudocode adds them
            for (int k = 0; k < t.config.bytes[a] / 2; k++) {
                uint16_t x, y;
                std::memcpy(&x, &t.rows[a][r][2 * k], 2);
                std::memcpy(&y, &t.rows[b][k / 2][4 * c + 2 * (k % 2)], 2);
                parts[k % 2] = std::fma(vt_widen_bf16(x), vt_widen_bf16(y), parts[k % 2]);
            }
            sum += parts[0] + parts[1];
            std::memcpy(&t.rows[to][r][4 * c], &sum, 4);
        }
    }
}
#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stream_loadd
#undef _tile_stored
#undef _tile_dpbssd
#undef _tile_dpbsud
#undef _tile_dpbusd
#undef _tile_dpbuud
#undef _tile_dpbf16ps
#define _tile_loadconfig vt_tile_loadconfig
#define _tile_release vt_tile_release
#define _tile_zero vt_tile_zero
#define _tile_loadd(tile, from, stride) vt_tile_load(tile, from, stride)
#define _tile_stream_loadd(tile, from, stride) vt_tile_load(tile, from, stride)
#define _tile_stored(tile, to, stride) vt_tile_store(tile, to, stride)
#define _tile_dpbssd(to, a, b) vt_tile_dot8<int8_t, int8_t>(to, a, b)
#define _tile_dpbsud(to, a, b) vt_tile_dot8<int8_t, uint8_t>(to, a, b)
#define _tile_dpbusd(to, a, b) vt_tile_dot8<uint8_t, int8_t>(to, a, b)
#define _tile_dpbuud(to, a, b) vt_tile_dot8<uint8_t, uint8_t>(to, a, b)
#define _tile_dpbf16ps(to, a, b) vt_tile_dot16(to, a, b)

// What the compiler would define for the real instruction set; only now, so that its headers were read without it.
#define __AVX512F__ 1
#define __AVX512BW__ 1
#define __AVX512VL__ 1
#define __AVX512DQ__ 1
#define __AVX512VNNI__ 1
#if defined(VT_EMULATE_BF16)
#define __AVX512BF16__ 1
#endif
#if defined(VT_EMULATE_AMX)
#define __AMX_TILE__ 1
#define __AMX_INT8__ 1
#define __AMX_BF16__ 1
#endif
