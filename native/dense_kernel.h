// Dense products in register tiles, compiled once per instruction set.
#pragma once

#include "dense_sources.h"

namespace {

constexpr DenseTile kDenseTile = kDenseTiles[kVecIsa];
static_assert(kDenseTile.rows <= kDenseMostTileRows && kDenseTile.panel_rows <= kDenseMostTileRows, "see kDenseMostTileRows");
static_assert(kDenseOuts % kDenseTile.outs == 0, "tiles divide a unit of work");
constexpr int64_t kVectorsOfPanel = kPanelRows / Vec::kWidth;

struct Arrange {
    const void* x;
    int32_t x_type;
    int64_t columns;
    float* to;

    template <typename Source>
    void run() const {
        for (int64_t start = 0; start < columns; start += kDenseStep) {
            float natural[kDenseStep] = {};
            const int64_t count = std::min(kDenseStep, columns - start);
            for (int64_t i = 0; i < count; i++) natural[i] = load_one(x, x_type, start + i);
            for (int64_t i = 0; i < kVectors; i++) {
                for (int64_t j = 0; j < Vec::kWidth; j++) to[start + i * Vec::kWidth + j] = natural[Source::column(i, j)];
            }
        }
    }
};

void arrange(const void* x, int32_t x_type, const DenseMatrix& like, float* to) {
    if (like.format != kPairPanels) return with_source(like, Arrange{x, x_type, like.in, to});
    const int64_t whole = round_up(like.in, kDenseStep);
    for (int64_t i = 0; i < like.in; i++) to[i] = load_one(x, x_type, i);
    std::fill(to + like.in, to + whole, 0.0f);
}

struct Decode {
    const DenseMatrix& m;
    int64_t row, first, last;
    float* to;

    template <typename Source>
    void run() const {
        Source source(m, row, first);
        float* at = to;
        for (int64_t column = first; column < last; column += kDenseStep, at += kDenseStep) {
            source.step([&](int64_t i, Vec v) { v.store(at + i * Vec::kWidth); });
        }
    }
};

void decode(const DenseMatrix& matrix, int64_t row, int64_t first, int64_t last, float* to) {
    with_source(matrix, Decode{matrix, row, first, last, to});
}

struct Natural {
    const float* arranged;
    float* to;

    template <typename Source>
    void run() const {
        for (int64_t i = 0; i < kVectors; i++) {
            for (int64_t j = 0; j < Vec::kWidth; j++) to[Source::column(i, j)] = arranged[i * Vec::kWidth + j];
        }
    }
};

void natural(const DenseMatrix& like, const float* arranged, float* to) { with_source(like, Natural{arranged, to}); }

// Rows row … row+kCount-1 of a matrix and the sums of their lanes. Nested, not an array, so that they stay in registers.
template <typename Source, int64_t kCount>
struct Chains {
    Source source;
    Vec lanes = Vec::zero();
    Chains<Source, kCount - 1> others;

    Chains(const DenseMatrix& m, int64_t row) : source(m, row, 0), others(m, row + 1) {}

    void step(const float* x) {
        // Each row loads x again: x kept in registers for the next row would spill the lanes.
        __asm__("" : "+r"(x));
        source.step([&](int64_t i, Vec v) { lanes = fma(v, Vec::load(x + i * Vec::kWidth), lanes); });
        others.step(x);
    }

    void add_to(float* sums) {
        *sums += add_lanes(lanes);
        lanes = Vec::zero();
        others.add_to(sums + 1);
    }
};

template <typename Source>
struct Chains<Source, 0> {
    Chains(const DenseMatrix&, int64_t) {}
    void step(const float*) {}
    void add_to(float*) {}
};

struct Dots {
    const DenseMatrix& m;
    int64_t row, count;
    const float* x;
    float* totals;

    template <typename Source>
    void run() const {
        std::fill(totals, totals + count, 0.0f);
        int64_t done = 0;
        for (; done + Source::kTogether <= count; done += Source::kTogether) some<Source, Source::kTogether>(done);
        for (; done < count; done++) some<Source, 1>(done);
    }

    template <typename Source, int64_t kCount>
    void some(int64_t done) const {
        Chains<Source, kCount> chains(m, row + done);
        for (int64_t block = 0; block < m.in; block += kDenseBlock) {
            const int64_t end = std::min(m.in, block + kDenseBlock);
            for (int64_t column = block; column < end; column += kDenseStep) chains.step(x + column);
            chains.add_to(totals + done);
        }
    }
};

void dots(const DenseMatrix& matrix, int64_t row, int64_t count, const float* x, float* totals) {
    with_source(matrix, Dots{matrix, row, count, x, totals});
}

// kRowCount rows of activations × kDenseTile.outs rows of weights over one block. Adds in the same order as `dots`.
template <int64_t kRowCount>
void one_tile(const float* x, int64_t x_stride, const float* weights, int64_t columns, float* totals) {
    Vec lanes[kRowCount][kDenseTile.outs];
    for (auto& row : lanes) {
        for (Vec& lane : row) lane = Vec::zero();
    }
#pragma GCC unroll 2
    for (int64_t i = 0; i < columns; i += Vec::kWidth) {
        Vec a[kRowCount];
        for (int64_t r = 0; r < kRowCount; r++) a[r] = Vec::load(x + r * x_stride + i);
        for (int64_t n = 0; n < kDenseTile.outs; n++) {
            const Vec b = Vec::load(weights + n * kDenseBlock + i);
            for (int64_t r = 0; r < kRowCount; r++) lanes[r][n] = fma(b, a[r], lanes[r][n]);
        }
    }
    for (int64_t r = 0; r < kRowCount; r++) {
        for (int64_t n = 0; n < kDenseTile.outs; n++) totals[r * kDenseOuts + n] += add_lanes(lanes[r][n]);
    }
}

// one_tile for `rows` ≤ kMost.
template <int64_t kMost>
void tiles(const float* x, int64_t x_stride, int64_t rows, const float* weights, int64_t columns, float* totals) {
    if (rows == kMost) return one_tile<kMost>(x, x_stride, weights, columns, totals);
    if constexpr (kMost > 1) tiles<kMost - 1>(x, x_stride, rows, weights, columns, totals);
}

void tile(const float* x, int64_t x_stride, int64_t rows, const float* weights, int64_t columns, float* totals) {
    for (int64_t n = 0; n < kDenseOuts; n += kDenseTile.outs) {
        tiles<kDenseTile.rows>(x, x_stride, rows, weights + n * kDenseBlock, columns, totals + n);
    }
}

// Each output's columns in turn, without lanes. Stored values are bfloat16 already, so rounding to it is left out.
template <int32_t kType, int64_t kRowCount>
void panel_rows(const uint16_t* pairs, int64_t steps, const float* x, int64_t x_stride, float* totals) {
    Vec sums[kRowCount][kVectorsOfPanel];
    for (auto& row : sums) {
        for (Vec& sum : row) sum = Vec::zero();
    }
    for (int64_t s = 0; s < steps; s++) {
        for (int64_t n = 0; n < kVectorsOfPanel; n++) {
            const Pair pair = load_pairs(pairs + (s * kPanelRows + n * Vec::kWidth) * 2);
            const Vec even = kType == kBFloat16 ? pair.even : rounded<kType>(pair.even);
            const Vec odd = kType == kBFloat16 ? pair.odd : rounded<kType>(pair.odd);
            for (int64_t r = 0; r < kRowCount; r++) {
                sums[r][n] = fma(even, Vec::all(x[r * x_stride + 2 * s]), sums[r][n]);
                sums[r][n] = fma(odd, Vec::all(x[r * x_stride + 2 * s + 1]), sums[r][n]);
            }
        }
    }
    for (int64_t r = 0; r < kRowCount; r++) {
        for (int64_t n = 0; n < kVectorsOfPanel; n++) sums[r][n].store(totals + r * kPanelRows + n * Vec::kWidth);
    }
}

template <int32_t kType, int64_t kMost>
void panels(const uint16_t* pairs, int64_t steps, const float* x, int64_t x_stride, int64_t rows, float* totals) {
    if (rows == kMost) return panel_rows<kType, kMost>(pairs, steps, x, x_stride, totals);
    if constexpr (kMost > 1) panels<kType, kMost - 1>(pairs, steps, x, x_stride, rows, totals);
}

void panel(const DenseMatrix& matrix, int64_t index, const float* x, int64_t x_stride, int64_t rows, float* totals) {
    const int64_t steps = (matrix.in + 1) / 2;
    const uint16_t* const pairs = static_cast<const uint16_t*>(matrix.codes) + index * steps * kPanelRows * 2;
    const auto run = matrix.type == kBFloat16  ? panels<kBFloat16, kDenseTile.panel_rows>
                     : matrix.type == kFloat16 ? panels<kFloat16, kDenseTile.panel_rows>
                                               : panels<kFloat16ThenBFloat16, kDenseTile.panel_rows>;
    run(pairs, steps, x, x_stride, rows, totals);
}

constexpr DenseKernels kDenseKernels = {kDenseTile.rows, kDenseTile.panel_rows, arrange, decode, natural, dots, tile, panel};

}  // namespace
