// q4 and q8 in panels: eight groups at a time, one of each of eight rows, column by column.
#pragma once

#include "encode_vec.h"

namespace {

constexpr int64_t kMostGroup = 128;  // of q4 and q8
// As in ops/reference/encode.py: the candidates for a group's extreme, in half steps of a level.
constexpr float kEnds[] = {-120.0f, -140.0f, -164.0f, 116.0f};
constexpr float kLargestScale = 3.3895313892515355e38f;  // of bfloat16
constexpr uint16_t kNoScale = 0x7fc0;                    // NaN
constexpr int64_t kPrefetchColumns = 128;                // prefetch distance

// x, or 1 where x is 0.
inline Vec divisor(Vec x) { return pick_greater(magnitude(x), Vec::zero(), x, Vec::all(1)); }

template <typename F>
inline Eight of_each(F f) {
    Eight r;
    for (int64_t i = 0; i < kHalves; i++) r.v[i] = f(i);
    return r;
}

// One group of each of eight rows, transposed. On the stack of one thread.
struct Tile {
    float values[kMostGroup * kEncodeTileRows];
    Eight extreme;                // each group's first value of the largest magnitude
    bool there[kEncodeTileRows];  // whether the row exists and its group is finite; others are zeros
    bool whole;                   // all rows are there
};

// The extremes; `wrong` is 0 exactly for groups of finite values.
inline void find_extremes(Tile& tile, int64_t group, Eight& wrong) {
    const Eight first = Eight::load(tile.values);
    Eight most = of_each([&](int64_t i) { return magnitude(first.v[i]); });
    tile.extreme = first;
    wrong = of_each([&](int64_t i) { return first.v[i] - first.v[i]; });
    for (int64_t column = 1; column < group; column++) {
        for (int64_t i = 0; i < kHalves; i++) {
            const Vec x = Vec::load(tile.values + column * kEncodeTileRows + i * Vec::kWidth), size = magnitude(x);
            tile.extreme.v[i] = pick_greater(size, most.v[i], x, tile.extreme.v[i]);
            most.v[i] = max(most.v[i], size);
            wrong.v[i] = wrong.v[i] + (x - x);
        }
    }
}

template <int32_t kType>
void open_tile(const void* rows, int64_t at, int64_t stride, int64_t count, int64_t group, Tile& tile) {
    constexpr int64_t kBytes = size_of(kType);
    const char* const ahead = static_cast<const char*>(rows) + (at + kPrefetchColumns) * kBytes;
    for (int64_t row = 0; row < count; row++) __builtin_prefetch(ahead + row * stride * kBytes);
    for (int64_t column = 0; column < group; column += kEncodeTileRows) {
        float square[kEncodeTileRows][kEncodeTileRows];
        for (int64_t row = 0; row < kEncodeTileRows; row++) {
            for (int64_t i = 0; i < kEncodeTileRows; i += Vec::kWidth) {
                const Vec x = row < count ? load_as<kType>(rows, at + row * stride + column + i) : Vec::zero();
                x.store(square[row] + i);
            }
        }
        transpose(square, tile.values + column * kEncodeTileRows);
    }
    Eight wrong;
    float found[kEncodeTileRows];
    find_extremes(tile, group, wrong);
    wrong.store(found);
    tile.whole = count == kEncodeTileRows;
    bool finite = true;
    for (int64_t row = 0; row < kEncodeTileRows; row++) {
        tile.there[row] = row < count && found[row] == 0;
        if (found[row] == 0) continue;
        finite = tile.whole = false;
        for (int64_t column = 0; column < group; column++) tile.values[column * kEncodeTileRows + row] = 0;
    }
    if (!finite) find_extremes(tile, group, wrong);
}

// Round the scales to bfloat16 and store them; returns them with 1 in place of 0.
inline Eight store_scales(const Tile& tile, const Eight& wanted, uint16_t* scales) {
    float scale[kEncodeTileRows];
    of_each([&](int64_t i) { return max(min(wanted.v[i], Vec::all(kLargestScale)), Vec::all(-kLargestScale)); }).store(scale);
    for (int64_t row = 0; row < kEncodeTileRows; row++) {
        const uint16_t bits = round_bf16(scale[row]);
        scale[row] = widen_bf16(bits);
        if (tile.there[row]) scales[row] = bits;
    }
    const Eight rounded = Eight::load(scale);
    return of_each([&](int64_t i) { return divisor(rounded.v[i]); });
}

// Groups without data get codes 0, and scale NaN if their row exists.
void clear_missing(const Tile& tile, int64_t count, int64_t steps, uint8_t* codes, uint16_t* scales) {
    for (int64_t row = 0; row < kEncodeTileRows; row++) {
        if (tile.there[row]) continue;
        scales[row] = row < count ? kNoScale : 0;
        for (int64_t step = 0; step < steps; step++) std::memset(codes + step * 64 + row * 4, 0, 4);
    }
}

struct Attempt {
    Eight along, square;  // Σ ratio · level, Σ level²
};

// The nearest levels of the groups' ratios times `factor`, in half steps. Sums are in the order of ops/reference/encode.py:
// columns 32 apart first, then those 8 apart, then their eight sums.
template <int64_t kBlocks, bool kWhole>
inline Attempt attempt(const float* ratio, const Eight& factor, const EncodeLevels& levels, uint8_t* codes) {
    Attempt sums;
    for (int64_t half = 0; half < 2; half++) {
        Block along, square;
        for (int64_t i = 0; i < kParts; i++) along[i] = square[i] = Vec::zero();
        for (int64_t eight = 0; eight < 4; eight++) {
            Block added, squares;
            for (int64_t block = 0; block < kBlocks; block++) {
                const int64_t at = (block * 32 + eight * 8 + half * 4) * kEncodeTileRows;
                Block x, level;
                for (int64_t i = 0; i < kParts; i++) {
                    x[i] = Vec::load(ratio + at + i * Vec::kWidth) * factor.v[i % kHalves] + Vec::all(256);
                }
                const Bytes found = search(cells(x), levels.tree);
                if (kWhole) {
                    widen(look_up(levels.whole, found), level);
                } else {
                    found.store(codes + at);
                    for (int64_t i = 0; i < kParts; i++) level[i] = look_up(levels.values, codes + at + i * Vec::kWidth);
                }
                for (int64_t i = 0; i < kParts; i++) {
                    const Vec product = Vec::load(ratio + at + i * Vec::kWidth) * level[i], own = level[i] * level[i];
                    added[i] = block ? added[i] + product : product;
                    squares[i] = block ? squares[i] + own : own;
                }
            }
            for (int64_t i = 0; i < kParts; i++) {
                along[i] = along[i] + added[i];
                square[i] = square[i] + squares[i];
            }
        }
        for (int64_t i = 0; i < kParts; i++) {
            const int64_t to = i % kHalves;
            const bool first = half == 0 && i < kHalves;
            sums.along.v[to] = first ? along[i] : sums.along.v[to] + along[i];
            sums.square.v[to] = first ? square[i] : sums.square.v[to] + square[i];
        }
    }
    return sums;
}

// For each group, the scale (value of one level) with the least squared error among the candidates.
template <int64_t kBlocks, bool kWhole>
inline Eight best_scale(const float* ratio, const EncodeLevels& levels, uint8_t* codes) {
    Eight along = Eight::all(0), square = Eight::all(1), gain = Eight::all(-1);
    const auto consider = [&](const Eight& factor) {
        const Attempt tried = attempt<kBlocks, kWhole>(ratio, factor, levels, codes);
        for (int64_t i = 0; i < kHalves; i++) {
            const Vec a = tried.along.v[i], s = max(tried.square.v[i], Vec::all(1e-30f)), won = a * a / s;
            along.v[i] = pick_greater(won, gain.v[i], a, along.v[i]);
            square.v[i] = pick_greater(won, gain.v[i], s, square.v[i]);
            gain.v[i] = pick_greater(won, gain.v[i], won, gain.v[i]);
        }
    };
    for (float end : kEnds) consider(Eight::all(end));
    consider(of_each([&](int64_t i) { return Vec::all(2) / divisor(along.v[i] / square.v[i]); }));
    return of_each([&](int64_t i) { return along.v[i] / square.v[i]; });
}

template <int64_t kBlocks>
void encode_tile4(const Tile& tile, const EncodeLevels& levels, uint8_t* codes, uint16_t* scales) {
    float ratio[kBlocks * kEncodeBlock * kEncodeTileRows];
    uint8_t scratch[kEncodeBlock];
    const Eight whole = of_each([&](int64_t i) { return divisor(tile.extreme.v[i]); });
    for (int64_t at = 0; at < kBlocks * kEncodeBlock * kEncodeTileRows; at += kEncodeTileRows) {
        const Eight x = Eight::load(tile.values + at);
        of_each([&](int64_t i) { return x.v[i] / whole.v[i]; }).store(ratio + at);
    }
    const Eight best = best_scale<kBlocks, true>(ratio, levels, scratch);
    const Eight wanted = of_each([&](int64_t i) { return best.v[i] * tile.extreme.v[i] * Vec::all(64); });
    const Eight scale = store_scales(tile, wanted, scales);
    const Eight step = of_each([&](int64_t i) { return scale.v[i] * Vec::all(0.015625f); });
    const auto code = [&](int64_t column) {
        Block x;
        for (int64_t i = 0; i < kParts; i++) {
            const Vec value = Vec::load(tile.values + column * kEncodeTileRows + i * Vec::kWidth);
            x[i] = value / step.v[i % kHalves] * Vec::all(2) + Vec::all(256);
        }
        return row_by_row(search(cells(x), levels.tree));
    };
    for (int64_t column = 0; column < kBlocks * kEncodeBlock; column += 8) {
        nibbles(code(column), code(column + 4)).store(codes + column * 8);
    }
}

// body(first column, first row, number of rows) for all tiles of a panel.
template <typename Body>
inline void by_tiles(int64_t count, int64_t columns, int64_t group, Body body) {
    for (int64_t at = 0; at < columns; at += group) {
        for (int64_t row = 0; row < kPanelRows; row += kEncodeTileRows) {
            const int64_t here = count - row;
            body(at, row, here < 0 ? 0 : here < kEncodeTileRows ? here : kEncodeTileRows);
        }
    }
}

template <int32_t kType>
void encode4(const void* rows, int64_t stride, int64_t count, int64_t columns, int64_t group, const EncodeLevels& levels,
             uint8_t* codes, uint16_t* scales) {
    const auto encode = group == 32 ? encode_tile4<1> : group == 64 ? encode_tile4<2> : encode_tile4<4>;
    by_tiles(count, columns, group, [&](int64_t at, int64_t row, int64_t here) {
        Tile tile;
        uint8_t* const to = codes + at * 8 + row * 4;
        uint16_t* const scale = scales + at / group * kPanelRows + row;
        open_tile<kType>(rows, row * stride + at, stride, here, group, tile);
        encode(tile, levels, to, scale);
        if (!tile.whole) clear_missing(tile, here, group / 8, to, scale);
    });
}

template <int32_t kType>
void encode8(const void* rows, int64_t stride, int64_t count, int64_t columns, int64_t group, int8_t* codes, uint16_t* scales) {
    by_tiles(count, columns, group, [&](int64_t at, int64_t row, int64_t here) {
        Tile tile;
        uint8_t* const to = reinterpret_cast<uint8_t*>(codes) + at * 16 + row * 4;
        uint16_t* const scale = scales + at / group * kPanelRows + row;
        open_tile<kType>(rows, row * stride + at, stride, here, group, tile);
        const Eight wanted = of_each([&](int64_t i) { return magnitude(tile.extreme.v[i]) * Vec::all(float(128.0 / 127.0)); });
        const Eight step = store_scales(tile, wanted, scale);
        for (int64_t column = 0; column < group; column += 4) {
            Block x;
            for (int64_t i = 0; i < kParts; i++) {
                x[i] = Vec::load(tile.values + column * kEncodeTileRows + i * Vec::kWidth) / step.v[i % kHalves] * Vec::all(128);
            }
            row_by_row(nearest_integers(x)).store(to + column * 16);
        }
        if (!tile.whole) clear_missing(tile, here, group / 4, to, scale);
    });
}

template <int64_t kBlocks>
void fit_tiles(const float* ratio, int64_t count, const EncodeLevels& levels, uint8_t* codes, float* scales) {
    constexpr int64_t kGroup = kBlocks * kEncodeBlock;
    for (int64_t n = 0; n < count; n += kEncodeTileRows) {
        Tile tile;
        open_tile<kFloat32>(ratio, n * kGroup, kGroup, count - n < kEncodeTileRows ? count - n : kEncodeTileRows, kGroup, tile);
        uint8_t* const found = codes + n * kGroup;
        const Eight best = best_scale<kBlocks, false>(tile.values, levels, found);
        const Eight factor = of_each([&](int64_t i) { return Vec::all(2) / divisor(best.v[i]); });
        attempt<kBlocks, false>(tile.values, factor, levels, found);
        best.store(scales + n);
    }
}

void fit(const float* ratio, int64_t count, int64_t group, const EncodeLevels& levels, uint8_t* codes, float* scales) {
    (group == 32 ? fit_tiles<1> : group == 64 ? fit_tiles<2> : fit_tiles<4>)(ratio, count, levels, codes, scales);
}

}  // namespace
