// Writes of keys and values into the cache, converted to its type; int8 with one scale per head.
#pragma once

#include <limits>

#include "attention.h"
#include "attention_vec.h"

namespace {

// Quantize one head to int8: scale = max|x| / 127, codes = rint(x · (1 / scale)). A head that is not finite gets scale NaN
// and codes 0; one below 1e-30 gets scale 0.
void quantize_head(const void* x, int32_t type, int64_t from, int64_t width, int8_t* codes, float* scale) {
    float most = 0.0f, finite = 0.0f;
    for (int64_t i = 0; i < width; i++) {
        const float value = std::fabs(load_one(x, type, from + i));
        most = value > most ? value : most;
        finite += value * 0.0f;  // NaN if any value is infinite or NaN
    }
    const bool known = finite == 0.0f;
    const bool zero = most < 1e-30f;
    *scale = !known ? std::numeric_limits<float>::quiet_NaN() : zero ? 0.0f : most / 127.0f;
    const float inverse = known && !zero ? 1.0f / *scale : 0.0f;
    for (int64_t i = 0; i < width; i++) {
        const float value = known ? load_one(x, type, from + i) * inverse : 0.0f;
        const float rounded = (value + kRoundMagic) - kRoundMagic;
        codes[i] = int8_t(std::max(-127.0f, std::min(127.0f, rounded)));
    }
}

void write_row(const CacheWrite& c, int64_t row) {
    const int64_t slot = c.at[row], size = size_of(c.key_type), elements = c.groups * c.width;
    const void* const from[2] = {c.k, c.v};
    void* const to[2] = {c.keys, c.values};
    const int64_t strides[2] = {c.k_stride, c.v_stride};
    for (int side = 0; side < 2; side++) {
        char* const stored = static_cast<char*>(to[side]) + slot * elements * size;
        const int64_t start = row * strides[side];
        if (c.key_type == kInt8) {
            for (int64_t g = 0; g < c.groups; g++) {
                quantize_head(from[side], c.type, start + g * c.width, c.width, reinterpret_cast<int8_t*>(stored) + g * c.width,
                              c.scales + (side * c.slots + slot) * c.groups + g);
            }
        } else if (c.key_type == c.type) {
            std::memcpy(stored, static_cast<const char*>(from[side]) + start * size, size_t(elements * size));
        } else {
            for (int64_t i = 0; i < elements; i++) store_one(stored, c.key_type, i, load_one(from[side], c.type, start + i));
        }
    }
}

}  // namespace
