// The functions of native/encode.h for the instruction set that the including file is compiled for.
#pragma once

#include "encode_vec.h"

namespace {

constexpr int64_t kPanelRows = 16;
constexpr int64_t kMostGroup = 128;  // of q4 and q8
// As in ops/encode.py: where a group's extreme is tried to lie, in half steps of a level.
constexpr float kEnds[] = {-120.0f, -140.0f, -164.0f, 116.0f};
constexpr float kLargestScale = 3.3895313892515355e38f;  // of bfloat16
constexpr uint16_t kNoScale = 0x7fc0;                    // NaN
constexpr int64_t kAhead = 128;                          // columns: so far ahead memory is asked for
constexpr float kTiny = 1e-38f;                          // the divisor of a group of zeros in a map

template <int32_t kType>
inline void load_block(const void* values, int64_t at, Block& x) {
    for (int64_t i = 0; i < kParts; i++) x[i] = load_as<kType>(values, at + i * Vec::kWidth);
}

inline Vec magnitude(Vec x) { return max(x, Vec::zero() - x); }

// x, or 1 where x is 0.
inline Vec divisor(Vec x) { return pick_greater(magnitude(x), Vec::zero(), x, Vec::all(1)); }

// --- q4 and q8: eight groups at once, one of each of eight rows, column by column -----------------------------------------

// Eight numbers, one of each group.
struct Eight {
    Vec v[kHalves];
    static Eight all(float x) {
        Eight r;
        for (Vec& half : r.v) half = Vec::all(x);
        return r;
    }
    static Eight load(const float* p) {
        Eight r;
        for (int64_t i = 0; i < kHalves; i++) r.v[i] = Vec::load(p + i * Vec::kWidth);
        return r;
    }
    void store(float* p) const {
        for (int64_t i = 0; i < kHalves; i++) v[i].store(p + i * Vec::kWidth);
    }
};

template <typename F>
inline Eight of_each(F f) {
    Eight r;
    for (int64_t i = 0; i < kHalves; i++) r.v[i] = f(i);
    return r;
}

struct Tile {
    float values[kMostGroup * kTile];
    Eight extreme;     // each group's first value of the largest magnitude
    bool there[kTile];  // whether there is such a row, and all values of its group are finite; others are zeros
    bool whole;         // all are there
};

// The extremes, and in `wrong` what is 0 for groups of finite values only.
inline void find_extremes(Tile& tile, int64_t group, Eight& wrong) {
    const Eight first = Eight::load(tile.values);
    Eight most = of_each([&](int64_t i) { return magnitude(first.v[i]); });
    tile.extreme = first;
    wrong = of_each([&](int64_t i) { return first.v[i] - first.v[i]; });
    for (int64_t column = 1; column < group; column++) {
        for (int64_t i = 0; i < kHalves; i++) {
            const Vec x = Vec::load(tile.values + column * kTile + i * Vec::kWidth), size = magnitude(x);
            tile.extreme.v[i] = pick_greater(size, most.v[i], x, tile.extreme.v[i]);
            most.v[i] = max(most.v[i], size);
            wrong.v[i] = wrong.v[i] + (x - x);
        }
    }
}

template <int32_t kType>
void open_tile(const void* rows, int64_t at, int64_t stride, int64_t count, int64_t group, Tile& tile) {
    constexpr int64_t kBytes = kType == kFloat32 ? 4 : 2;
    const char* const ahead = static_cast<const char*>(rows) + (at + kAhead) * kBytes;
    for (int64_t row = 0; row < count; row++) __builtin_prefetch(ahead + row * stride * kBytes);
    for (int64_t column = 0; column < group; column += kTile) {
        float square[kTile][kTile];
        for (int64_t row = 0; row < kTile; row++) {
            for (int64_t i = 0; i < kTile; i += Vec::kWidth) {
                const Vec x = row < count ? load_as<kType>(rows, at + row * stride + column + i) : Vec::zero();
                x.store(square[row] + i);
            }
        }
        turn(square, tile.values + column * kTile);
    }
    Eight wrong;
    float found[kTile];
    find_extremes(tile, group, wrong);
    wrong.store(found);
    tile.whole = count == kTile;
    bool finite = true;
    for (int64_t row = 0; row < kTile; row++) {
        tile.there[row] = row < count && found[row] == 0;
        if (found[row] == 0) continue;
        finite = tile.whole = false;
        for (int64_t column = 0; column < group; column++) tile.values[column * kTile + row] = 0;
    }
    if (!finite) find_extremes(tile, group, wrong);
}

// Rounds the scales and stores them; what they are then, each 1 where it is 0.
inline Eight store_scales(const Tile& tile, const Eight& wanted, uint16_t* scales) {
    float scale[kTile];
    of_each([&](int64_t i) { return max(min(wanted.v[i], Vec::all(kLargestScale)), Vec::all(-kLargestScale)); }).store(scale);
    for (int64_t row = 0; row < kTile; row++) {
        const uint16_t bits = round_bf16(scale[row]);
        scale[row] = widen_bf16(bits);
        if (tile.there[row]) scales[row] = bits;
    }
    const Eight rounded = Eight::load(scale);
    return of_each([&](int64_t i) { return divisor(rounded.v[i]); });
}

// What groups get that are not there: codes 0, and NaN for their scale if their row is there.
void clear_missing(const Tile& tile, int64_t count, int64_t steps, uint8_t* codes, uint16_t* scales) {
    for (int64_t row = 0; row < kTile; row++) {
        if (tile.there[row]) continue;
        scales[row] = row < count ? kNoScale : 0;
        for (int64_t step = 0; step < steps; step++) std::memset(codes + step * 64 + row * 4, 0, 4);
    }
}

struct Attempt {
    Eight along, square;  // Σ ratio · level, Σ level²
};

// The nearest levels of the groups' ratios times `factor`, which gives half steps. Sums run as ops/encode.py says: columns
// that lie 32 apart are added first, then those 8 apart, then their eight sums.
template <int64_t kBlocks, bool kWhole>
inline Attempt attempt(const float* ratio, const Eight& factor, const EncodeLevels& levels, uint8_t* codes) {
    Attempt sums;
    for (int64_t half = 0; half < 2; half++) {
        Block along, square;
        for (int64_t i = 0; i < kParts; i++) along[i] = square[i] = Vec::zero();
        for (int64_t eight = 0; eight < 4; eight++) {
            Block added, squares;
            for (int64_t block = 0; block < kBlocks; block++) {
                const int64_t at = (block * 32 + eight * 8 + half * 4) * kTile;
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

// The worth of a level that leaves the least squared error among those tried, for each group.
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
    float ratio[kBlocks * kEncodeBlock * kTile];
    uint8_t scratch[kEncodeBlock];
    const Eight whole = of_each([&](int64_t i) { return divisor(tile.extreme.v[i]); });
    for (int64_t at = 0; at < kBlocks * kEncodeBlock * kTile; at += kTile) {
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
            const Vec value = Vec::load(tile.values + column * kTile + i * Vec::kWidth);
            x[i] = value / step.v[i % kHalves] * Vec::all(2) + Vec::all(256);
        }
        return row_by_row(search(cells(x), levels.tree));
    };
    for (int64_t column = 0; column < kBlocks * kEncodeBlock; column += 8) {
        nibbles(code(column), code(column + 4)).store(codes + column * 8);
    }
}

// body(columns before, row of the panel where eight begin, how many are there) for all tiles of a panel.
template <typename Body>
inline void by_tiles(int64_t count, int64_t columns, int64_t group, Body body) {
    for (int64_t at = 0; at < columns; at += group) {
        for (int64_t row = 0; row < kPanelRows; row += kTile) {
            const int64_t here = count - row;
            body(at, row, here < 0 ? 0 : here < kTile ? here : kTile);
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
                x[i] = Vec::load(tile.values + column * kTile + i * Vec::kWidth) / step.v[i % kHalves] * Vec::all(128);
            }
            row_by_row(nearest_integers(x)).store(to + column * 16);
        }
        if (!tile.whole) clear_missing(tile, here, group / 4, to, scale);
    });
}

template <int64_t kBlocks>
void fit_tiles(const float* ratio, int64_t count, const EncodeLevels& levels, uint8_t* codes, float* scales) {
    constexpr int64_t kGroup = kBlocks * kEncodeBlock;
    for (int64_t n = 0; n < count; n += kTile) {
        Tile tile;
        open_tile<kFloat32>(ratio, n * kGroup, kGroup, count - n < kTile ? count - n : kTile, kGroup, tile);
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

// --- maps of 4 bits -------------------------------------------------------------------------------------------------

// The largest magnitude of whole blocks; NaN if one is.
template <int32_t kType>
inline float largest_of(const void* values, int64_t at, int64_t count) {
    Vec most = Vec::zero(), wrong = Vec::zero();
    for (int64_t i = 0; i < count; i += Vec::kWidth) {
        const Vec x = load_as<kType>(values, at + i);
        most = max(most, magnitude(x));
        wrong = wrong + x * Vec::zero();
    }
    float lanes[Vec::kWidth], found = 0;
    most.store(lanes);
    for (float lane : lanes) found = found > lane ? found : lane;
    if (sum(wrong) == 0) return found;
    for (int64_t i = 0; i < count; i++) {
        const float x = load_one(values, kType, at + i);
        if (x != x) return std::fabs(x);
    }
    return INFINITY;
}

// A last group of fewer values, which divides where whole ones multiply.
template <int32_t kType>
void encode_rest(const void* values, int64_t at, int64_t count, const EncodeMap& map, uint8_t* codes, float* absmax) {
    float most = 0;
    for (int64_t i = 0; i < count; i++) {
        const float x = std::fabs(load_one(values, kType, at + i));
        if (!(x <= most)) most = x;
        if (most != most) break;
    }
    *absmax = most = most < kTiny ? kTiny : most;
    for (int64_t begin = 0; begin < count; begin += kEncodeBlock) {
        const int64_t here = count - begin < kEncodeBlock ? count - begin : kEncodeBlock;
        float padded[kEncodeBlock] = {};
        for (int64_t i = 0; i < here; i++) padded[i] = load_one(values, kType, at + begin + i) / most;
        Block x;
        load_block<kFloat32>(padded, 0, x);
        uint8_t pairs[kEncodeBlock / 2];
        join_pairs(look_up(map.codes, count_below(x, map.bounds)), pairs);
        std::memcpy(codes + begin / 2, pairs, size_t((here + 1) / 2));
    }
}

template <int32_t kType>
void encode_map4(const void* values, int64_t count, int64_t group, const EncodeMap& map, uint8_t* codes, float* absmax) {
    int64_t at = 0;
    for (; at + group <= count; at += group, codes += group / 2) {
        const float most = largest_of<kType>(values, at, group);
        const Vec factor = Vec::all(1.0f / (most < kTiny ? kTiny : most));
        *absmax++ = most;
        for (int64_t i = 0; i < group; i += kEncodeBlock) {
            Block x;
            load_block<kType>(values, at + i, x);
            for (Vec& part : x) part = part * factor;
            join_pairs(look_up(map.codes, count_below(x, map.bounds)), codes + i / 2);
        }
    }
    if (at < count) encode_rest<kType>(values, at, count - at, map, codes, absmax);
}

// --- errors ---------------------------------------------------------------------------------------------------------

// Sums in eight lanes: float32 within a block, beyond that double.
struct Sums {
    double error[kTile] = {}, norm[kTile] = {};

    void add(const Block& decoded, const Block& values) {
        Eight off = Eight::all(0), whole = off;
        for (int64_t i = 0; i < kParts; i++) {
            const Vec difference = decoded[i] - values[i];
            off.v[i % kHalves] = off.v[i % kHalves] + difference * difference;
            whole.v[i % kHalves] = whole.v[i % kHalves] + values[i] * values[i];
        }
        float lanes[2][kTile];
        off.store(lanes[0]);
        whole.store(lanes[1]);
        for (int64_t i = 0; i < kTile; i++) {
            error[i] += double(lanes[0][i]);
            norm[i] += double(lanes[1][i]);
        }
    }
    void into(double* sums) const {
        for (int64_t i = 0; i < kTile; i++) {
            sums[0] += error[i];
            sums[1] += norm[i];
        }
    }
};

// x times a scale, rounded to the type that decoded values have.
inline void scale_block(Block& x, float scale, int32_t rounded) {
    for (Vec& part : x) {
        part = part * Vec::all(scale);
        if (rounded != kFloat32) part = rounded == kBFloat16 ? rounded_as<kBFloat16>(part) : rounded_as<kFloat16>(part);
    }
}

inline void look_up_block(const EncodeTable& table, const uint8_t* codes, Block& x) {
    for (int64_t i = 0; i < kParts; i++) x[i] = look_up(table.values, codes + i * Vec::kWidth);
}

// What 32 columns of a row are before their scale.
template <int32_t kBits>
inline void stored_block(const EncodeTable& table, const uint8_t* codes, Block& x) {
    uint8_t found[kEncodeBlock];
    for (int64_t i = 0; i < kBits; i++) {
        uint32_t four;
        std::memcpy(&four, codes + i * 64, 4);
        if (kBits == 8) {
            std::memcpy(found + 4 * i, &four, 4);
            continue;
        }
        const uint32_t low = four & 0x0f0f0f0fu, high = four >> 4 & 0x0f0f0f0fu;
        std::memcpy(found + 8 * i, &low, 4);
        std::memcpy(found + 8 * i + 4, &high, 4);
    }
    if (kBits == 4) return look_up_block(table, found, x);
    for (int64_t i = 0; i < kParts; i++) {
        x[i] = Vec::load_i8(reinterpret_cast<int8_t*>(found) + i * Vec::kWidth) * Vec::all(0.0078125f);
    }
}

template <int32_t kType>
void panel_error(const void* rows, int64_t stride, int64_t count, int64_t columns, int64_t group, int32_t bits,
                 const EncodeTable& table, const uint8_t* codes, const uint16_t* scales, double* into) {
    const auto stored = bits == 8 ? stored_block<8> : stored_block<4>;
    Sums sums;
    for (int64_t at = 0; at < columns; at += kEncodeBlock) {
        for (int64_t row = 0; row < count; row++) {
            Block decoded, values;
            stored(table, codes + at * bits * 2 + row * 4, decoded);
            scale_block(decoded, widen_bf16(scales[at / group * kPanelRows + row]), table.rounded);
            load_block<kType>(rows, row * stride + at, values);
            sums.add(decoded, values);
        }
    }
    sums.into(into);
}

// The last values, fewer than a block: beyond them is 0 on both sides.
template <int32_t kType>
void add_rest(Sums& sums, const void* values, int64_t at, int64_t count, const EncodeTable& table, const uint8_t* codes,
              float scale) {
    float exact[kEncodeBlock] = {}, decoded[kEncodeBlock] = {};
    for (int64_t i = 0; i < count; i++) {
        exact[i] = load_one(values, kType, at + i);
        decoded[i] = table.values[codes[i / 2] >> (i % 2 ? 0 : 4) & 15];
    }
    Block x, y;
    load_block<kFloat32>(decoded, 0, x);
    load_block<kFloat32>(exact, 0, y);
    scale_block(x, scale, table.rounded);
    sums.add(x, y);
}

template <int32_t kType>
void map_error(const void* values, int64_t count, int64_t group, const EncodeTable& table, const uint8_t* codes,
               const float* absmax, double* into) {
    Sums sums;
    int64_t at = 0;
    for (; at + kEncodeBlock <= count; at += kEncodeBlock) {
        uint8_t found[kEncodeBlock];
        Block decoded, exact;
        split_pairs(codes + at / 2, found);
        look_up_block(table, found, decoded);
        scale_block(decoded, absmax[at / group], table.rounded);
        load_block<kType>(values, at, exact);
        sums.add(decoded, exact);
    }
    if (at < count) add_rest<kType>(sums, values, at, count - at, table, codes + at / 2, absmax[at / group]);
    sums.into(into);
}

constexpr EncodeKernels kEncodeKernels = {
    {encode4<kFloat32>, encode4<kBFloat16>, encode4<kFloat16>},
    {encode8<kFloat32>, encode8<kBFloat16>, encode8<kFloat16>},
    {encode_map4<kFloat32>, encode_map4<kBFloat16>, encode_map4<kFloat16>},
    fit,
    {panel_error<kFloat32>, panel_error<kBFloat16>, panel_error<kFloat16>},
    {map_error<kFloat32>, map_error<kBFloat16>, map_error<kFloat16>},
};

}  // namespace
