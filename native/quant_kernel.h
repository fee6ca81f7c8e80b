// The functions of native/quant.h for the instruction set that the including file is compiled for.
#pragma once

#include <algorithm>

#include "quant.h"
#include "quant_unit.h"

namespace {

// ---- rounding activations

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

// Codes of one group, and their sum. Adding 1.5·2^23 leaves the nearest whole number, ties to even, in the low bits.
inline int32_t codes_of(const float* x, int64_t n, float inverse, int8_t* codes) {
    int32_t sum = 0;
    for (int64_t i = 0; i < n; i++) {
        const float shifted = x[i] * inverse + 12582912.0f;
        int32_t bits;
        std::memcpy(&bits, &shifted, sizeof bits);
        const int32_t code = bits - 0x4b400000;
        codes[i] = int8_t(code);
        sum += code;
    }
    return sum;
}

template <typename Read>
void round_row(Read read, int64_t row, int32_t kind, const Rounded& to) {
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
        round_row([=](int64_t i) { return floats[i]; }, row, kind, to);
    } else if (type == kBFloat16) {
        round_row([=](int64_t i) { return widen_bf16(halves[i]); }, row, kind, to);
    } else {
        round_row([=](int64_t i) { return widen_f16(halves[i]); }, row, kind, to);
    }
}

// ---- products

// Where the weights of 32 columns come from: q4 codes as they are stored,
struct Packed4 {
    static constexpr int64_t kBytes = 256;
    static constexpr bool kStreams = true;
    template <int R>
    static void add32(Sums (&sums)[R], const uint8_t* w, const Levels& levels, const int8_t* x, int64_t stride) {
        for (int s = 0; s < 4; s++) {
            __builtin_prefetch(w + 64 * s + 4096);
            Bytes low, high;
            split(Bytes::load(w + 64 * s), levels, low, high);
            for (int r = 0; r < R; r++) sums[r].add4(low, x + r * stride + 8 * s);
            for (int r = 0; r < R; r++) sums[r].add4(high, x + r * stride + 8 * s + 4);
        }
    }
};

// q4 after looking up the levels,
struct Unpacked4 {
    static constexpr int64_t kBytes = 512;
    template <int R>
    static void add32(Sums (&sums)[R], const uint8_t* w, const Levels&, const int8_t* x, int64_t stride) {
        for (int s = 0; s < 8; s++) {
            const Bytes weights = Bytes::load(w + 64 * s);
            for (int r = 0; r < R; r++) sums[r].add4(weights, x + r * stride + 4 * s);
        }
    }
};

// and q8 codes as they are stored.
struct Stored8 {
    static constexpr int64_t kBytes = 512;
    template <int R>
    static void add32(Sums (&sums)[R], const uint8_t* w, const Levels&, const int8_t* x, int64_t stride) {
        for (int s = 0; s < 8; s++) {
            __builtin_prefetch(w + 64 * s + 4096);
            const Bytes weights = ready8(Bytes::load(w + 64 * s));
            for (int r = 0; r < R; r++) sums[r].add8(weights, x + r * stride + 4 * s);
        }
    }
};

// One panel's weights for groups first … last-1, and which activations they meet.
struct Strip {
    const uint8_t* weights;  // of group `first`
    const uint16_t* scales;  // of group 0
    const Levels& levels;
    int64_t first, last;
};

// sums of R rows from `row` on; `totals` are R times 16 float32.
template <typename Source, int R>
void multiply_rows(const Rounded& x, const Strip& strip, int64_t row, float* totals) {
    const int64_t groups = x.groups(), parts = x.group / 32;
    Floats acc[R];
    for (int r = 0; r < R; r++) acc[r] = Floats::load(totals + r * kPanelRows);
    const uint8_t* w = strip.weights;
    for (int64_t g = strip.first; g < strip.last; g++) {
        Sums sums[R];
        for (int r = 0; r < R; r++) sums[r] = Sums::start(x.starts[(row + r) * groups + g]);
        const int8_t* codes = x.codes + row * x.columns + g * x.group;
        for (int64_t part = 0; part < parts; part++, w += Source::kBytes) {
            Source::template add32<R>(sums, w, strip.levels, codes + 32 * part, x.columns);
        }
        const Floats scales = Floats::load_bf16(strip.scales + g * kPanelRows);
        for (int r = 0; r < R; r++) acc[r].add_group(sums[r], scales, x.scales[(row + r) * groups + g]);
    }
    for (int r = 0; r < R; r++) acc[r].store(totals + r * kPanelRows);
}

// As above for any number of rows: full tiles, then what is left.
template <typename Source, int R = kTileRows>
void multiply_tiles(const Rounded& x, const Strip& strip, int64_t begin, int64_t end, float* totals) {
    int64_t row = begin;
    for (; row + R <= end; row += R) multiply_rows<Source, R>(x, strip, row, totals + (row - begin) * kPanelRows);
    if constexpr (R > 1) {
        if (row < end) multiply_tiles<Source, R - 1>(x, strip, row, end, totals + (row - begin) * kPanelRows);
    }
}

// Levels of `columns` columns of q4 codes, ready for add4.
inline void unpack4(const uint8_t* codes, const Levels& levels, int64_t columns, uint8_t* to) {
    for (int64_t s = 0; s < columns / 8; s++) {
        Bytes low, high;
        split(Bytes::load(codes + 64 * s), levels, low, high);
        low.store(to + 128 * s);
        high.store(to + 128 * s + 64);
    }
}

// Sixteen results of one row: plus bias, rounded to the result's type.
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

void multiply(const Rounded& x, const QuantWeight& weight, int32_t kind, int32_t type, int64_t first, int64_t last, int64_t begin,
              int64_t end) {
    const int64_t rows = end - begin, groups = x.groups();
    const int64_t panel_bytes = x.columns * 2 * kind, group_bytes = x.group * 2 * kind;
    const int8_t no_levels[16] = {};
    const Levels levels(kind == kQ4 ? weight.levels : no_levels);
    alignas(64) float totals[kMostPanels * kMostRows * kPanelRows];
    alignas(64) uint8_t unpacked[kUnpackColumns * kPanelRows];
    std::memset(totals, 0, size_t((last - first) * rows * kPanelRows) * sizeof(float));
    // Few rows read a panel to its end; many rows reuse their own codes for all panels before they go on.
    const int64_t together = rows <= kTileRows ? groups : kUnpackColumns / x.group;
    for (int64_t g = 0; g < groups; g += together) {
        const int64_t stop = std::min(groups, g + together);
        for (int64_t panel = first; panel < last; panel++) {
            const uint8_t* codes = weight.codes + panel * panel_bytes + g * group_bytes;
            float* sums = totals + (panel - first) * rows * kPanelRows;
            Strip strip = {codes, weight.scales + panel * groups * kPanelRows, levels, g, stop};
            if (kind == kQ8) {
                multiply_tiles<Stored8>(x, strip, begin, end, sums);
            } else if (rows <= kTileRows) {
                multiply_tiles<Packed4>(x, strip, begin, end, sums);
            } else {
                unpack4(codes, levels, (stop - g) * x.group, unpacked);
                strip.weights = unpacked;
                multiply_tiles<Unpacked4>(x, strip, begin, end, sums);
            }
        }
    }
    for (int64_t panel = first; panel < last; panel++) {
        for (int64_t row = 0; row < rows; row++) {
            const float* sums = totals + ((panel - first) * rows + row) * kPanelRows;
            store_results(sums, weight, type, begin + row, panel);
        }
    }
}

constexpr QuantKernels kQuantKernels = {round_activations, multiply};

}  // namespace
