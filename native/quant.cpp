// q4 and q8 products: quantises the activations once, partitions panels and rows among threads.
#include "quant.h"

#include <algorithm>

#include "align.h"
#include "pool.h"
#include "vec.h"

namespace {

#if defined(__x86_64__)
const QuantKernels* const table[kIsaCount] = {&quant_portable, nullptr, &quant_avx2, &quant_avx512, &quant_amx};
#elif defined(__aarch64__)
const QuantKernels* const table[kIsaCount] = {&quant_portable, &quant_neon, nullptr, nullptr, nullptr};
#else
const QuantKernels* const table[kIsaCount] = {&quant_portable, nullptr, nullptr, nullptr, nullptr};
#endif

// Bytes of codes per chunk, at least and at most, when rows are few: each chunk starts with a stall on memory, and the last
// one leaves the other threads idle.
constexpr int64_t kLeastBytes = 96 * 1024, kMostBytes = 1024 * 1024;
// Chunks per thread, if they are large enough.
constexpr int64_t kChunksPerThread = 16;
// Elements of one chunk of rounding or decoding.
constexpr int64_t kQuantGrain = 32768;

// The partition of one call: each weight into pieces of `panels` panels, x into pieces of `rows` rows. Immutable.
struct Partition {
    int64_t panels, rows, pieces = 0;

    Partition(int32_t kind, int64_t all_rows, int64_t columns, const QuantWeight* weights, int64_t count) {
        // Pieces of nearly equal size, multiples of sixteen rows.
        const int64_t row_pieces = std::max<int64_t>(1, divide_up(all_rows, kMostRows));
        rows = round_up(std::max<int64_t>(1, divide_up(all_rows, row_pieces)), 16);
        int64_t all_panels = 0;
        for (int64_t i = 0; i < count; i++) all_panels += weights[i].panels;
        const int64_t wanted = all_rows <= kQuantFewRows ? panels_for_few_rows(all_panels, columns * 2 * kind)
                                                         : all_panels / (4 * pool_threads());
        panels = std::max<int64_t>(1, std::min(kMostPanels, wanted));
        for (int64_t i = 0; i < count; i++) pieces += pieces_of(weights[i]);
    }
    // Panels, of `bytes` each, per chunk when rows are few.
    static int64_t panels_for_few_rows(int64_t all_panels, int64_t bytes) {
        const int64_t share = all_panels * bytes / (kChunksPerThread * pool_threads());
        return std::max(kLeastBytes, std::min(kMostBytes, share)) / std::max<int64_t>(1, bytes);
    }
    int64_t pieces_of(const QuantWeight& weight) const { return divide_up(weight.panels, panels); }
};

// Decode columns first … first+count-1 of one row to float32: integer · step (exact) · scale.
void decode_columns(int32_t kind, const QuantWeight& weight, int64_t columns, int64_t group, int64_t id, int64_t first,
                    int64_t count, float* to) {
    const int64_t panel = id / kPanelRows, row = id % kPanelRows;
    const uint8_t* codes = weight.codes + panel * columns * 2 * kind;
    const uint16_t* scales = weight.scales + panel * (columns / group) * kPanelRows;
    for (int64_t i = first; i < first + count; i++) {
        float value;
        if (kind == kQ8) {
            value = float(int8_t(codes[(i / 4 * kPanelRows + row) * 4 + i % 4])) * 0.0078125f;
        } else {
            const uint8_t both = codes[(i / 8 * kPanelRows + row) * 4 + i % 4];
            value = float(weight.levels[i % 8 < 4 ? both & 15 : both >> 4]) * 0.015625f;
        }
        to[i - first] = value * widen_bf16(scales[i / group * kPanelRows + row]);
    }
}

void store_columns(const float* from, int64_t count, void* y, int32_t type, int64_t at) {
    if (type == kFloat32) {
        std::memcpy(static_cast<float*>(y) + at, from, size_t(count) * sizeof(float));
        return;
    }
    uint16_t* const to = static_cast<uint16_t*>(y) + at;
    for (int64_t i = 0; i < count; i++) to[i] = type == kBFloat16 ? round_bf16(from[i]) : round_f16(from[i]);
}

}  // namespace

int64_t vt_quant_scratch(int64_t rows, int64_t columns, int64_t group) {
    return aligned(rows * columns) + 2 * aligned(rows * (columns / group) * 4);
}

void vt_quant_linear(int32_t kind, const void* x, int32_t type, int64_t rows, int64_t columns, int64_t group,
                     const QuantWeight* weights, int64_t count, void* scratch) {
    const QuantKernels& kernels = choose(table);
    char* const base = static_cast<char*>(scratch);
    const int64_t codes_bytes = aligned(rows * columns), scales_bytes = aligned(rows * (columns / group) * 4);
    const Rounded rounded = {reinterpret_cast<int8_t*>(base), reinterpret_cast<float*>(base + codes_bytes),
                             reinterpret_cast<int32_t*>(base + codes_bytes + scales_bytes), rows, columns, group};
    const int64_t together = std::max<int64_t>(1, kQuantGrain / std::max<int64_t>(1, columns));
    parallel(divide_up(rows, together), double(rows) * double(columns), [&](int64_t chunk) {
        const int64_t last = std::min(rows, (chunk + 1) * together);
        for (int64_t row = chunk * together; row < last; row++) kernels.round(x, type, row, kind, rounded);
    });

    const Partition split(kind, rows, columns, weights, count);
    // Rows are the outer loop: consecutive chunks read the same activations.
    double outs = 0;
    for (int64_t i = 0; i < count; i++) outs += double(weights[i].out);
    parallel(divide_up(rows, split.rows) * split.pieces, outs * double(columns) * double(1 + rows / 32), [&](int64_t chunk) {
        const int64_t begin = chunk / split.pieces * split.rows;
        int64_t piece = chunk % split.pieces;
        const QuantWeight* weight = weights;
        for (; piece >= split.pieces_of(*weight); weight++) piece -= split.pieces_of(*weight);
        const int64_t first = piece * split.panels;
        kernels.multiply(rounded, *weight, kind, type, first, std::min(first + split.panels, weight->panels), begin,
                         std::min(begin + split.rows, rows));
    });
}

int32_t vt_quant_rows(int32_t kind, const QuantWeight* weight, int64_t columns, int64_t group, const int64_t* ids, int64_t count,
                      void* y, int32_t type) {
    for (int64_t i = 0; i < count; i++) {
        if (ids[i] < 0 || ids[i] >= weight->out) return 1;
    }
    const int64_t together = std::max<int64_t>(1, kQuantGrain / std::max<int64_t>(1, columns));
    parallel(divide_up(count, together), double(count) * double(columns), [&](int64_t chunk) {
        float part[kUnpackColumns];
        for (int64_t i = chunk * together; i < std::min(count, (chunk + 1) * together); i++) {
            for (int64_t first = 0; first < columns; first += kUnpackColumns) {
                const int64_t some = std::min(kUnpackColumns, columns - first);
                decode_columns(kind, *weight, columns, group, ids[i], first, some, part);
                store_columns(part, some, y, type, i * columns + first);
            }
        }
    });
    return 0;
}
