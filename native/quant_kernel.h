// q4 and q8 products: quantisation of activations and the micro-kernels, compiled once per instruction set.
#pragma once

#include <algorithm>
#include <type_traits>
#include <utility>

#include "quant.h"
#include "quant_unit.h"

namespace {

// --- quantisation of activations ----------------------------------------------------------------------------------

// The group's largest magnitude as the bits of a float; beyond 0x7f7fffff if a value is not finite.
inline uint32_t largest_bits(const float* x, int64_t n) {
    uint32_t most = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        std::memcpy(&bits, x + i, sizeof bits);
        bits &= 0x7fffffffu;
        most = bits > most ? bits : most;
    }
    return most;
}

// Codes of one group, and their sum.
inline int32_t codes_of(const float* x, int64_t n, float inverse, int8_t* codes) {
    int32_t sum = 0;
    for (int64_t i = 0; i < n; i++) {
        const float shifted = x[i] * inverse + kRoundMagic;
        int32_t bits;
        std::memcpy(&bits, &shifted, sizeof bits);
        const int32_t code = bits - kRoundMagicBits;
        codes[i] = int8_t(code);
        sum += code;
    }
    return sum;
}

template <typename Read>
void quantize_row(Read read, int64_t row, int32_t kind, const Rounded& to) {
    const float step = kind == kQ4 ? 0.015625f : 0.0078125f;
    const int32_t offset = kind == kQ4 ? kOffset4 : kOffset8;
    float wide[128];
    for (int64_t g = 0; g < to.groups(); g++) {
        for (int64_t i = 0; i < to.group; i++) wide[i] = read(g * to.group + i);
        const uint32_t bits = largest_bits(wide, to.group);
        float largest;
        std::memcpy(&largest, &bits, sizeof largest);
        int8_t* codes = to.codes + row * to.columns + g * to.group;
        float scale = 0;
        int32_t sum = 0;
        if (bits < 0x7f800000u && largest >= 1e-30f) {
            sum = codes_of(wide, to.group, 127.0f / largest, codes);
            scale = largest / 127.0f * step;
        } else {
            std::memset(codes, 0, size_t(to.group));
            if (bits >= 0x7f800000u) scale = NAN;
        }
        to.scales[row * to.groups() + g] = scale;
        to.starts[row * to.groups() + g] = -offset * sum;
    }
}

void round_activations(const void* x, int32_t type, int64_t row, int32_t kind, const Rounded& to) {
    const int64_t at = row * to.columns;
    const float* floats = static_cast<const float*>(x) + at;
    const uint16_t* halves = static_cast<const uint16_t*>(x) + at;
    if (type == kFloat32) {
        quantize_row([=](int64_t i) { return floats[i]; }, row, kind, to);
    } else if (type == kBFloat16) {
        quantize_row([=](int64_t i) { return widen_bf16(halves[i]); }, row, kind, to);
    } else {
        quantize_row([=](int64_t i) { return widen_f16(halves[i]); }, row, kind, to);
    }
}

// --- products -----------------------------------------------------------------------------------------------------

// GCC does not inline some of the innermost steps by itself.
#define VT_QUANT_INLINED __attribute__((always_inline))
#define VT_QUANT_INLINE VT_QUANT_INLINED inline

// body(0) … body(N-1), unrolled with constant indices: arrays that body indexes stay in registers.
template <typename Body, int... I>
VT_QUANT_INLINE void each(Body body, std::integer_sequence<int, I...>) {
    (body(std::integral_constant<int, I>{}), ...);
}
template <int N, typename Body>
VT_QUANT_INLINE void each(Body body) {
    each(body, std::make_integer_sequence<int, N>{});
}

// Sources of the weights of 32 columns. Packed4: q4 codes as they are stored.
struct Packed4 {
    static constexpr int64_t kBytes = 256;
    static constexpr bool kStreams = true;
    template <int R>
    static VT_QUANT_INLINE void add32(Sums (&sums)[R], const uint8_t* w, const Levels& levels, const int8_t* x, int64_t stride) {
        each<4>([&](auto s) VT_QUANT_INLINED {
            __builtin_prefetch(w + 64 * s + 3072);
            Bytes low, high;
            split(Bytes::load(w + 64 * s), levels, low, high);
            each<R>([&](auto r) VT_QUANT_INLINED { sums[r].template add4<(R > 2)>(low, x + r * stride + 8 * s); });
            each<R>([&](auto r) VT_QUANT_INLINED { sums[r].template add4<(R > 2)>(high, x + r * stride + 8 * s + 4); });
        });
    }
};

// Unpacked4: q4 after the lookup of levels.
struct Unpacked4 {
    static constexpr int64_t kBytes = 512;
    template <int R>
    static VT_QUANT_INLINE void add32(Sums (&sums)[R], const uint8_t* w, const Levels&, const int8_t* x, int64_t stride) {
        each<8>([&](auto s) VT_QUANT_INLINED {
            const Bytes weights = Bytes::load(w + 64 * s);
            each<R>([&](auto r) VT_QUANT_INLINED { sums[r].template add4<(R > 2)>(weights, x + r * stride + 4 * s); });
        });
    }
};

// Stored8: q8 codes as they are stored.
struct Stored8 {
    static constexpr int64_t kBytes = 512;
    template <int R>
    static VT_QUANT_INLINE void add32(Sums (&sums)[R], const uint8_t* w, const Levels&, const int8_t* x, int64_t stride) {
        each<8>([&](auto s) VT_QUANT_INLINED {
            __builtin_prefetch(w + 64 * s + 2048);
            const Bytes weights = ready8(Bytes::load(w + 64 * s));
            each<R>([&](auto r) VT_QUANT_INLINED { sums[r].template add8<(R > 2)>(weights, x + r * stride + 4 * s); });
        });
    }
};

// Groups first … last-1 of one panel, that is of 16 rows of the matrix. A view, on the stack of one thread.
struct RowTile {
    const uint8_t* weights;  // of group `first`
    const uint16_t* scales;  // of group 0
    const Levels& levels;
    int64_t first, last;
};

// Add the products of R rows, from `row` on, to `totals` (R, 16). With one or two rows totals stay in registers; with more
// the sums need those. kParts: a group's columns / 32, or 0 to read it from x.
template <typename Source, int R, int kParts>
void multiply_rows(const Rounded& x, const RowTile& tile, int64_t row, float* totals) {
    constexpr bool kInMemory = R > 2;
    const int64_t groups = x.groups(), parts = kParts ? kParts : x.group / 32;
    Floats acc[kInMemory ? 1 : R];
    if constexpr (!kInMemory) each<R>([&](auto r) VT_QUANT_INLINED { acc[r] = Floats::load(totals + r * kPanelRows); });
    const uint8_t* w = tile.weights;
    for (int64_t g = tile.first; g < tile.last; g++) {
        Sums sums[R];
        each<R>([&](auto r) VT_QUANT_INLINED { sums[r] = Sums::start(x.starts[(row + r) * groups + g]); });
        const int8_t* codes = x.codes + row * x.columns + g * x.group;
        for (int64_t part = 0; part < parts; part++, w += Source::kBytes) {
            Source::template add32<R>(sums, w, tile.levels, codes + 32 * part, x.columns);
        }
        const Floats scales = Floats::load_bf16(tile.scales + g * kPanelRows);
        each<R>([&](auto r) VT_QUANT_INLINED {
            const float x_scale = x.scales[(row + r) * groups + g];
            if constexpr (kInMemory) {
                Floats now = Floats::load(totals + r * kPanelRows);
                now.add_group(sums[r], scales, x_scale);
                now.store(totals + r * kPanelRows);
            } else {
                acc[r].add_group(sums[r], scales, x_scale);
            }
        });
    }
    if constexpr (!kInMemory) each<R>([&](auto r) VT_QUANT_INLINED { acc[r].store(totals + r * kPanelRows); });
}

// multiply_rows for any number of rows: full tiles, then the remainder.
template <typename Source, int R = kUnitTileRows>
void multiply_tiles(const Rounded& x, const RowTile& tile, int64_t begin, int64_t end, float* totals) {
    int64_t row = begin;
    for (; row + R <= end; row += R) {
        float* const to = totals + (row - begin) * kPanelRows;
        // The common group size and row counts have specialised code.
        if ((R == kUnitTileRows || R <= 2) && x.group == 32) {
            multiply_rows<Source, R, (R == kUnitTileRows || R <= 2) ? 1 : 0>(x, tile, row, to);
        } else {
            multiply_rows<Source, R, 0>(x, tile, row, to);
        }
    }
    if constexpr (R > 1) {
        if (row < end) multiply_tiles<Source, R - 1>(x, tile, row, end, totals + (row - begin) * kPanelRows);
    }
}

// Unpack `columns` columns of q4 codes to levels for add4.
inline void unpack4(const uint8_t* codes, const Levels& levels, int64_t columns, uint8_t* to) {
    for (int64_t s = 0; s < columns / 8; s++) {
        __builtin_prefetch(codes + 64 * s + 4096);
        Bytes low, high;
        split(Bytes::load(codes + 64 * s), levels, low, high);
        low.store(to + 128 * s);
        high.store(to + 128 * s + 64);
    }
}

// Store sixteen results of one row: add the bias, round to the result's type.
inline void store_results(const float* totals, const QuantWeight& weight, int32_t type, int64_t row, int64_t panel) {
    const int64_t at = panel * kPanelRows, count = std::min(kPanelRows, weight.out - at), to = row * weight.out + at;
    float values[kPanelRows];
    std::memcpy(values, totals, sizeof values);
    if (weight.bias) {
        for (int64_t i = 0; i < count; i++) values[i] += weight.bias[at + i];
    }
    if (type == kFloat32) {
        std::memcpy(static_cast<float*>(weight.y) + to, values, size_t(count) * sizeof(float));
    } else if (type == kBFloat16) {
        for (int64_t i = 0; i < count; i++) static_cast<uint16_t*>(weight.y)[to + i] = round_bf16(values[i]);
    } else {
        for (int64_t i = 0; i < count; i++) static_cast<uint16_t*>(weight.y)[to + i] = round_f16(values[i]);
    }
}

// Rows begin … end-1 times groups first … last-1 of one panel.
inline void multiply_panel(const Rounded& x, const QuantWeight& weight, int32_t kind, int64_t panel, const Levels& levels,
                           int64_t first, int64_t last, int64_t begin, int64_t end, float* totals) {
    const uint8_t* codes = weight.codes + (panel * x.columns + first * x.group) * 2 * kind;
    RowTile tile = {codes, weight.scales + panel * x.groups() * kPanelRows, levels, first, last};
    if (kind == kQ8) {
        multiply_tiles<Stored8>(x, tile, begin, end, totals);
    } else if (end - begin <= kUnitTileRows) {
        multiply_tiles<Packed4>(x, tile, begin, end, totals);
    } else {
        alignas(64) uint8_t unpacked[kUnpackColumns * kPanelRows];
        unpack4(codes, levels, (last - first) * x.group, unpacked);
        tile.weights = unpacked;
        multiply_tiles<Unpacked4>(x, tile, begin, end, totals);
    }
}

inline void store_panels(const float* totals, const QuantWeight& weight, int32_t type, int64_t first, int64_t last, int64_t begin,
                         int64_t end) {
    for (int64_t panel = first; panel < last; panel++) {
        for (int64_t row = begin; row < end; row++, totals += kPanelRows) store_results(totals, weight, type, row, panel);
    }
}

void multiply(const Rounded& x, const QuantWeight& weight, int32_t kind, int32_t type, int64_t first, int64_t last, int64_t begin,
              int64_t end) {
    const int64_t rows = end - begin, groups = x.groups();
    const int8_t no_levels[16] = {};
    const Levels levels(kind == kQ4 ? weight.levels : no_levels);
    alignas(64) float totals[kMostPanels * kMostRows * kPanelRows];
    std::memset(totals, 0, size_t((last - first) * rows * kPanelRows) * sizeof(float));
    // Few rows: panels in the order of memory. Many: the codes of a column block are reused for all panels.
    const int64_t side_by_side = rows <= kQuantFewRows ? 1 : last - first;
    const int64_t together = rows <= kUnitTileRows ? groups : kUnpackColumns / x.group;
    for (int64_t set = first; set < last; set += side_by_side) {
        for (int64_t g = 0; g < groups; g += together) {
            for (int64_t panel = set; panel < set + side_by_side; panel++) {
                float* const to = totals + (panel - first) * rows * kPanelRows;
                multiply_panel(x, weight, kind, panel, levels, g, std::min(groups, g + together), begin, end, to);
            }
        }
    }
    store_panels(totals, weight, type, first, last, begin, end);
}

constexpr QuantKernels kQuantKernels = {round_activations, multiply};

}  // namespace
