// The functions of native/rows.h for the instruction set that the including file is compiled for.
#pragma once

#include "rows.h"
#include "vec.h"

namespace {

inline Vec load_vec(const void* data, int32_t type, int64_t i) {
    if (type == kFloat32) return Vec::load(static_cast<const float*>(data) + i);
    if (type == kBFloat16) return Vec::load_bf16(static_cast<const uint16_t*>(data) + i);
    float lanes[Vec::kWidth];
    for (int64_t j = 0; j < Vec::kWidth; j++) lanes[j] = load_one(data, type, i + j);
    return Vec::load(lanes);
}

void rms_norm(const void* x, const void* weight, void* y, int32_t type, int64_t width, float eps) {
    Vec squares = Vec::zero();
    int64_t i = 0;
    for (; i + Vec::kWidth <= width; i += Vec::kWidth) {
        const Vec v = load_vec(x, type, i);
        squares = fma(v, v, squares);
    }
    float total = sum(squares);
    for (; i < width; i++) total += load_one(x, type, i) * load_one(x, type, i);
    const float factor = 1.0f / std::sqrt(total / float(width) + eps);
    char scaled[4];  // x's own type between the two products, as the models were trained
    for (i = 0; i < width; i++) {
        store_one(scaled, type, 0, load_one(x, type, i) * factor);
        store_one(y, type, i, load_one(scaled, type, 0) * load_one(weight, type, i));
    }
}

constexpr RowKernels kRowKernels = {rms_norm};

}  // namespace
