// Dense products: partitions the work among threads. The arithmetic is in dense_kernel.h.
#include "dense.h"

#include <algorithm>

#include "pool.h"
#include "vec.h"

namespace {

#if defined(__x86_64__)
const DenseKernels* const table[kIsaCount] = {&dense_portable, nullptr, &dense_avx2, &dense_avx512, nullptr};
#elif defined(__aarch64__)
const DenseKernels* const table[kIsaCount] = {&dense_portable, &dense_neon, nullptr, nullptr, nullptr};
#else
const DenseKernels* const table[kIsaCount] = {&dense_portable, nullptr, nullptr, nullptr, nullptr};
#endif

// Rows of activations that share one decoding of a block: with their block of columns they fit the L2 cache.
constexpr int64_t kRowsTogether = 96;

int64_t pieces_of(const DenseMatrix& m) {
    const int64_t outs = m.format == kPairPanels ? kPanelRows : kDenseOuts;
    return divide_up(m.out, outs);
}

// Arranged rows of activations, in the caller's scratch: written in parallel by arrange_all, then read by all threads.
struct ArrangedRows {
    const float* data;
    int64_t stride, first, rows;
    int32_t type;
};

void store_row(const DenseMatrix& m, const ArrangedRows& x, int64_t row, int64_t out, int64_t count, const float* totals) {
    for (int64_t i = 0; i < count; i++) {
        const float plus = m.bias ? load_one(m.bias, x.type, out + i) : 0.0f;
        store_one(m.y, x.type, (x.first + row) * m.out + out + i, totals[i] + plus);
    }
}

void panel_piece(const DenseKernels& kernels, const DenseMatrix& m, const ArrangedRows& x, int64_t piece) {
    float totals[kDenseMostTileRows * kPanelRows];
    const int64_t out = piece * kPanelRows, count = std::min(kPanelRows, m.out - out);
    for (int64_t row = 0; row < x.rows; row += kernels.panel_rows) {
        const int64_t rows = std::min(kernels.panel_rows, x.rows - row);
        kernels.panel(m, piece, x.data + row * x.stride, x.stride, rows, totals);
        for (int64_t i = 0; i < rows; i++) store_row(m, x, row + i, out, count, totals + i * kPanelRows);
    }
}

void decoded_piece(const DenseKernels& kernels, const DenseMatrix& m, const ArrangedRows& x, int64_t out, int64_t count) {
    alignas(kCacheLine) float weights[kDenseOuts * kDenseBlock];
    float totals[kRowsTogether * kDenseOuts];
    std::fill(weights, weights + kDenseOuts * kDenseBlock, 0.0f);
    for (int64_t start = 0; start < x.rows; start += kRowsTogether) {
        const int64_t rows = std::min(kRowsTogether, x.rows - start);
        std::fill(totals, totals + rows * kDenseOuts, 0.0f);
        for (int64_t column = 0; column < x.stride; column += kDenseBlock) {
            const int64_t columns = std::min(kDenseBlock, x.stride - column);
            for (int64_t i = 0; i < count; i++) kernels.decode(m, out + i, column, column + columns, weights + i * kDenseBlock);
            for (int64_t row = 0; row < rows; row += kernels.tile_rows) {
                const float* from = x.data + (start + row) * x.stride + column;
                kernels.tile(from, x.stride, std::min(kernels.tile_rows, rows - row), weights, columns, totals + row * kDenseOuts);
            }
        }
        for (int64_t row = 0; row < rows; row++) store_row(m, x, start + row, out, count, totals + row * kDenseOuts);
    }
}

void piece_of(const DenseKernels& kernels, const DenseMatrix& m, const ArrangedRows& x, int64_t piece) {
    if (m.format == kPairPanels) return panel_piece(kernels, m, x, piece);
    const int64_t out = piece * kDenseOuts, count = std::min(kDenseOuts, m.out - out);
    if (x.rows > 1) return decoded_piece(kernels, m, x, out, count);
    float totals[kDenseOuts];
    kernels.dots(m, out, count, x.data, totals);
    store_row(m, x, 0, out, count, totals);
}

void arrange_all(const DenseKernels& kernels, const void* x, const DenseMatrix& like, const ArrangedRows& to, float* scratch) {
    const int64_t together = std::max<int64_t>(1, kGrainElements / to.stride);
    parallel(divide_up(to.rows, together), double(to.rows) * double(to.stride), [&](int64_t chunk) {
        for (int64_t row = chunk * together; row < std::min(to.rows, (chunk + 1) * together); row++) {
            const char* from = static_cast<const char*>(x) + (to.first + row) * like.in * size_of(to.type);
            kernels.arrange(from, to.type, like, scratch + row * to.stride);
        }
    });
}

}  // namespace

void vt_dense_linear(const void* x, int32_t x_type, int64_t rows, const DenseMatrix* matrices, int64_t count, float* scratch,
                     int64_t scratch_rows) {
    const DenseKernels& kernels = choose(table);
    int64_t pieces = 0;
    double outs = 0;
    for (int64_t i = 0; i < count; i++) pieces += pieces_of(matrices[i]), outs += double(matrices[i].out);
    const int64_t stride = std::max(kDenseStep, round_up(matrices[0].in, kDenseStep));
    for (int64_t first = 0; first < rows; first += scratch_rows) {
        const ArrangedRows part = {scratch, stride, first, std::min(scratch_rows, rows - first), x_type};
        arrange_all(kernels, x, matrices[0], part, scratch);
        parallel(pieces, outs * double(stride) * double(1 + part.rows / 8), [&](int64_t piece) {
            const DenseMatrix* matrix = matrices;
            for (; piece >= pieces_of(*matrix); matrix++) piece -= pieces_of(*matrix);
            piece_of(kernels, *matrix, part, piece);
        });
    }
}

void vt_dense_decode(const DenseMatrix* matrix, int64_t first, int64_t last, void* to, int32_t to_type) {
    const DenseKernels& kernels = choose(table);
    const int64_t in = matrix->in, together = std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, in));
    parallel(divide_up(last - first, together), double(last - first) * double(in), [&](int64_t chunk) {
        float arranged[kDenseStep], natural[kDenseStep];
        for (int64_t row = first + chunk * together; row < std::min(last, first + (chunk + 1) * together); row++) {
            for (int64_t column = 0; column < in; column += kDenseStep) {
                kernels.decode(*matrix, row, column, column + kDenseStep, arranged);
                kernels.natural(*matrix, arranged, natural);
                const int64_t at = (row - first) * in + column, count = std::min(kDenseStep, in - column);
                for (int64_t i = 0; i < count; i++) store_one(to, to_type, at + i, natural[i]);
            }
        }
    });
}
