// Decoders: rows of a stored matrix as vectors of floats, kDenseStep columns at a time, one class per format.
//
// A source is constructed for one row and a first column (a multiple of kDenseStep), on the stack of one thread. Each call
// of step(use) passes the next step as use(index, vector), in the format's own column order: column(index, lane) is the
// column within the step. kTogether is the number of rows that dots() interleaves, enough to hide the latency of the FMAs.
#pragma once

#include <algorithm>

#include "dense_map4.h"

namespace {

constexpr int64_t kVectors = kDenseStep / Vec::kWidth;  // of a step

constexpr int64_t natural_column(int64_t index, int64_t lane) { return index * Vec::kWidth + lane; }

// Floats of kType, row-major.
template <int32_t kType>
class RowSource {
    using Stored = std::conditional_t<kType == kFloat32, float, uint16_t>;

  public:
    static constexpr int64_t kTogether = 4;
    static constexpr int64_t column(int64_t index, int64_t lane) {
        if (kType != kBFloat16) return natural_column(index, lane);
        return index / 2 * 2 * Vec::kWidth + 2 * lane + index % 2;
    }

    RowSource(const DenseMatrix& m, int64_t row, int64_t first)
        : at_(static_cast<const Stored*>(m.codes) + row * m.in + first), left_(m.in - first) {}

    template <typename Use>
    void step(Use&& use) {
        if (left_ >= kDenseStep) {
            read(at_, use);
        } else {
            Stored tail[kDenseStep] = {};
            std::memcpy(tail, at_, size_t(std::max<int64_t>(0, left_)) * sizeof(Stored));
            read(tail, use);
        }
        at_ += kDenseStep;
        left_ -= kDenseStep;
    }

  private:
    template <typename Use>
    static void read(const Stored* from, Use& use) {
        for (int64_t i = 0; i < kVectors; i++) {
            if constexpr (kType == kFloat32) use(i, Vec::load(from + i * Vec::kWidth));
            if constexpr (kType == kFloat16) use(i, load_f16(from + i * Vec::kWidth));
            if constexpr (kType == kBFloat16) {
                if (i % 2) continue;
                const Pair pair = load_pairs(from + i * Vec::kWidth);
                use(i, pair.even);
                use(i + 1, pair.odd);
            }
        }
    }

    const Stored* at_;
    int64_t left_;
};

// int8 codes with one scale per row; decoded values are rounded to kType.
template <int32_t kType>
class Int8Source {
  public:
    static constexpr int64_t kTogether = 2;
    static constexpr int64_t column(int64_t index, int64_t lane) { return natural_column(index, lane); }

    Int8Source(const DenseMatrix& m, int64_t row, int64_t first)
        : at_(static_cast<const int8_t*>(m.codes) + row * m.in + first),
          left_(m.in - first),
          scale_(Vec::all(static_cast<const float*>(m.scales)[row])) {}

    template <typename Use>
    void step(Use&& use) {
        int8_t tail[kDenseStep] = {};
        if (left_ < kDenseStep) std::memcpy(tail, at_, size_t(std::max<int64_t>(0, left_)));
        const int8_t* const from = left_ < kDenseStep ? tail : at_;
        const Vec unit = Vec::all(7.874015718698502e-3f);  // bitsandbytes' 1/127
        for (int64_t i = 0; i < kVectors; i++) use(i, rounded<kType>(Vec::load_i8(from + i * Vec::kWidth) * scale_ * unit));
        at_ += kDenseStep;
        left_ -= kDenseStep;
    }

  private:
    const int8_t* at_;
    int64_t left_;
    Vec scale_;
};

// The scale of one group of 4-bit codes.
inline float map4_scale(const DenseMatrix& m, int64_t group) {
    if (!m.nested_map) return static_cast<const float*>(m.scales)[group];
    const float product = m.nested_map[static_cast<const uint8_t*>(m.scales)[group]] * m.nested_absmax[group / 256];
    return product + *m.nested_offset;  // two roundings
}

// Whether no step crosses the end of a group or a row.
inline bool whole_steps(const DenseMatrix& m) { return m.in % kDenseStep == 0 && m.group % kDenseStep == 0; }

// 4-bit codes that look up a map, in groups over the flat matrix; decoded values are rounded to kType.
template <int32_t kType>
class Map4Source {
  public:
    static constexpr int64_t kTogether = 2;
    static constexpr int64_t column(int64_t index, int64_t lane) { return map4_column(index, lane); }

    Map4Source(const DenseMatrix& m, int64_t row, int64_t first) : m_(m), table_(m.map) {
        const int64_t element = row * m.in + first;
        codes_ = static_cast<const uint8_t*>(m.codes) + element / 2;
        ahead_ = kTogether * m.in / 2;  // the next rows: the hardware prefetcher stops at a page's end
        group_ = element / m.group;
        left_ = (group_ + 1) * m.group - element;
        table_.build(map4_scale(m, group_));
    }

    template <typename Use>
    void step(Use&& use) {
        if (left_ == 0) {
            table_.build(map4_scale(m_, ++group_));
            left_ = m_.group;
        }
        __builtin_prefetch(codes_ + ahead_);
        table_.lookup(codes_, use);
        codes_ += kDenseStep / 2;
        left_ -= kDenseStep;
    }

  private:
    const DenseMatrix& m_;
    Table<kType> table_;
    const uint8_t* codes_;
    int64_t group_, left_, ahead_;
};

// The same, code by code, for groups that end anywhere and rows that start within a byte.
template <int32_t kType>
class RaggedMap4Source {
  public:
    static constexpr int64_t kTogether = 1;
    static constexpr int64_t column(int64_t index, int64_t lane) { return map4_column(index, lane); }

    RaggedMap4Source(const DenseMatrix& m, int64_t row, int64_t first)
        : m_(m), element_(row * m.in + first), column_(first), group_(element_ / m.group) {
        left_ = (group_ + 1) * m.group - element_;
    }

    template <typename Use>
    void step(Use&& use) {
        float values[kDenseStep] = {}, lanes[Vec::kWidth];
        const int64_t count = std::min(kDenseStep, m_.in - column_);
        float scale = count > 0 ? map4_scale(m_, group_) : 0.0f;
        for (int64_t i = 0; i < count; i++, element_++, left_--) {
            if (left_ == 0) {
                scale = map4_scale(m_, ++group_);
                left_ = m_.group;
            }
            const uint8_t both = static_cast<const uint8_t*>(m_.codes)[element_ / 2];
            values[i] = rounded<kType>(m_.map[element_ % 2 ? both & 15 : both >> 4] * scale);
        }
        column_ += kDenseStep;
        for (int64_t i = 0; i < kVectors; i++) {
            for (int64_t j = 0; j < Vec::kWidth; j++) lanes[j] = values[column(i, j)];
            use(i, Vec::load(lanes));
        }
    }

  private:
    const DenseMatrix& m_;
    int64_t element_, column_, group_, left_;
};

// work.run<Source>() with the source class of a type.
template <template <int32_t> class Source, typename Work>
void with_type(int32_t type, Work&& work) {
    if (type == kBFloat16) return work.template run<Source<kBFloat16>>();
    if (type == kFloat16) return work.template run<Source<kFloat16>>();
    work.template run<Source<kFloat32>>();
}

// The same for a format whose decoded values are rounded.
template <template <int32_t> class Source, typename Work>
void with_rounding(int32_t type, Work&& work) {
    if (type == kFloat16ThenBFloat16) return work.template run<Source<kFloat16ThenBFloat16>>();
    if (type == kBFloat16ThenFloat16) return work.template run<Source<kBFloat16ThenFloat16>>();
    with_type<Source>(type, work);
}

// The same for a matrix's format and type; panels have no source.
template <typename Work>
void with_source(const DenseMatrix& like, Work&& work) {
    if (like.format == kRows) return with_type<RowSource>(like.type, work);
    if (like.format == kInt8Rows) return with_rounding<Int8Source>(like.type, work);
    if (like.format != kMap4) return;
    whole_steps(like) ? with_rounding<Map4Source>(like.type, work) : with_rounding<RaggedMap4Source>(like.type, work);
}

}  // namespace
