// bitsandbytes' 4-bit maps: groups of consecutive values of the flat matrix.
#pragma once

#include "encode_vec.h"

namespace {

constexpr float kTiny = 1e-38f;  // the divisor of a group of zeros in a map

// The largest magnitude of whole blocks; NaN if a value is NaN.
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

// A short last group, which divides by its extreme where whole groups multiply by the reciprocal, as bitsandbytes does.
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

}  // namespace
