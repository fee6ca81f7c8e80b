// Squared errors of codes against their floats.
#pragma once

#include "encode_vec.h"

namespace {

// Sums in eight lanes: float32 within a block, double across blocks. On the stack of one thread.
struct Sums {
    double error[kEncodeTileRows] = {}, norm[kEncodeTileRows] = {};

    void add(const Block& decoded, const Block& values) {
        Eight off = Eight::all(0), whole = off;
        for (int64_t i = 0; i < kParts; i++) {
            const Vec difference = decoded[i] - values[i];
            off.v[i % kHalves] = off.v[i % kHalves] + difference * difference;
            whole.v[i % kHalves] = whole.v[i % kHalves] + values[i] * values[i];
        }
        float lanes[2][kEncodeTileRows];
        off.store(lanes[0]);
        whole.store(lanes[1]);
        for (int64_t i = 0; i < kEncodeTileRows; i++) {
            error[i] += double(lanes[0][i]);
            norm[i] += double(lanes[1][i]);
        }
    }
    void into(double* sums) const {
        for (int64_t i = 0; i < kEncodeTileRows; i++) {
            sums[0] += error[i];
            sums[1] += norm[i];
        }
    }
};

// x times a scale, rounded to the type of decoded values.
inline void scale_block(Block& x, float scale, int32_t rounded) {
    for (Vec& part : x) {
        part = part * Vec::all(scale);
        if (rounded != kFloat32) part = rounded == kBFloat16 ? rounded_as<kBFloat16>(part) : rounded_as<kFloat16>(part);
    }
}

inline void look_up_block(const EncodeTable& table, const uint8_t* codes, Block& x) {
    for (int64_t i = 0; i < kParts; i++) x[i] = look_up(table.values, codes + i * Vec::kWidth);
}

// The decoded values of 32 columns of a row, before their scale.
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

// The last values, fewer than a block, padded with zeros on both sides.
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

}  // namespace
