// Row-wise functions, compiled once per instruction set.
#pragma once

#include "rows.h"
#include "rows_vec.h"

namespace {

// body(inputs, output, element) over a row in blocks of kRowLanes elements; a remainder is copied to padded buffers.
template <int32_t kType, int kInputs, typename Body>
inline void by_blocks(const void* const (&inputs)[kInputs], void* output, int64_t width, Body body) {
    constexpr int64_t kBytes = size_of(kType);
    const int64_t whole = width / kRowLanes * kRowLanes, rest = width - whole;
    for (int64_t i = 0; i < whole; i += kRowLanes) {
        for (int64_t j = 0; j < kRowLanes; j += Vec::kWidth) body(inputs, output, i + j);
    }
    if (!rest) return;
    alignas(64) char padded[kInputs + 1][kRowLanes * 4] = {};
    const void* copies[kInputs];
    for (int n = 0; n < kInputs; n++) {
        std::memcpy(padded[n], static_cast<const char*>(inputs[n]) + whole * kBytes, size_t(rest * kBytes));
        copies[n] = padded[n];
    }
    for (int64_t j = 0; j < kRowLanes; j += Vec::kWidth) body(copies, padded[kInputs], j);
    if (output) std::memcpy(static_cast<char*>(output) + whole * kBytes, padded[kInputs], size_t(rest * kBytes));
}

template <int32_t kType>
float mean_of_squares(const void* x, int64_t width) {
    Vec sums[kRowVecs];
    for (Vec& s : sums) s = Vec::zero();
    const void* const inputs[] = {x};
    by_blocks<kType>(inputs, nullptr, width, [&](auto& from, void*, int64_t i) {
        const Vec v = load_as<kType>(from[0], i);
        Vec& s = sums[i % kRowLanes / Vec::kWidth];
        s = s + v * v;
    });
    float lanes[kRowLanes];
    for (int64_t j = 0; j < kRowVecs; j++) sums[j].store(lanes + j * Vec::kWidth);
    for (int64_t half = kRowLanes / 2; half > 0; half /= 2) {
        for (int64_t i = 0; i < half; i++) lanes[i] += lanes[i + half];
    }
    return lanes[0] / float(width);
}

template <int32_t kType>
void rms_norm(const void* x, const void* weight, void* y, int64_t width, float eps) {
    const Vec factor = Vec::all(1.0f / std::sqrt(mean_of_squares<kType>(x, width) + eps));
    const void* const inputs[] = {x, weight};
    by_blocks<kType>(inputs, y, width, [&](auto& from, void* to, int64_t i) {
        const Vec scaled = rounded_as<kType>(load_as<kType>(from[0], i) * factor);
        store_as<kType>(to, i, scaled * load_as<kType>(from[1], i));
    });
}

template <int32_t kType>
void silu_gate(const void* gate, const void* up, void* y, int64_t width) {
    const void* const inputs[] = {gate, up};
    by_blocks<kType>(inputs, y, width, [](auto& from, void* to, int64_t i) {
        // Below −104 silu is 0 in float32; the bound keeps g / e^88 there. A NaN passes: it is the second operand.
        const Vec g = max(Vec::all(-104.0f), load_as<kType>(from[0], i));
        const Vec silu = rounded_as<kType>(g / (Vec::all(1.0f) + exp(Vec::zero() - g)));
        store_as<kType>(to, i, silu * load_as<kType>(from[1], i));
    });
}

// One half of a head: x·cos + other·sin, where `other` is the other half, negated for the first half.
template <int32_t kType>
void rotate_half(const void* x, const void* other, const void* cos, const void* sin, void* y, int64_t width, bool first) {
    const void* const inputs[] = {x, other, cos, sin};
    by_blocks<kType>(inputs, y, width, [&](auto& from, void* to, int64_t i) {
        Vec partner = load_as<kType>(from[1], i);
        if (first) partner = Vec::all(-0.0f) - partner;
        const Vec a = rounded_as<kType>(load_as<kType>(from[0], i) * load_as<kType>(from[2], i));
        const Vec b = rounded_as<kType>(partner * load_as<kType>(from[3], i));
        store_as<kType>(to, i, a + b);
    });
}

template <int32_t kType>
void rotate(const void* x, const void* cos, const void* sin, void* y, int64_t heads, int64_t width) {
    const int64_t half = width / 2 * size_of(kType);
    const char *c = static_cast<const char*>(cos), *s = static_cast<const char*>(sin);
    for (int64_t head = 0; head < heads; head++) {
        const char* from = static_cast<const char*>(x) + head * 2 * half;
        char* to = static_cast<char*>(y) + head * 2 * half;
        rotate_half<kType>(from, from + half, c, s, to, width / 2, true);
        rotate_half<kType>(from + half, from, c + half, s + half, to + half, width / 2, false);
    }
}

template <int32_t kType>
void add(const void* x, const void* other, void* y, int64_t width) {
    const void* const inputs[] = {x, other};
    by_blocks<kType>(inputs, y, width, [](auto& from, void* to, int64_t i) {
        store_as<kType>(to, i, load_as<kType>(from[0], i) + load_as<kType>(from[1], i));
    });
}

template <int32_t kType>
void scale(const void* x, const void* factor, void* y, int64_t width) {
    const Vec by = Vec::all(value_as<kType>(factor));
    const void* const inputs[] = {x};
    by_blocks<kType>(inputs, y, width, [&](auto& from, void* to, int64_t i) {
        store_as<kType>(to, i, load_as<kType>(from[0], i) * by);
    });
}

constexpr RowKernels kRowKernels = {
    {rms_norm<kFloat32>, rms_norm<kBFloat16>, rms_norm<kFloat16>},
    {silu_gate<kFloat32>, silu_gate<kBFloat16>, silu_gate<kFloat16>},
    {rotate<kFloat32>, rotate<kBFloat16>, rotate<kFloat16>},
    {add<kFloat32>, add<kBFloat16>, add<kFloat16>},
    {scale<kFloat32>, scale<kBFloat16>, scale<kFloat16>},
};

}  // namespace
