// Quantisation of weights: prepares levels and maps, partitions panels and groups among threads.
#include "encode.h"

#include <algorithm>
#include <cstring>

#include "align.h"
#include "pool.h"

namespace {

#if defined(__x86_64__)
const EncodeKernels* const table[kIsaCount] = {&encode_portable, nullptr, &encode_avx2, nullptr, nullptr};
#elif defined(__aarch64__)
const EncodeKernels* const table[kIsaCount] = {&encode_portable, &encode_neon, nullptr, nullptr, nullptr};
#else
const EncodeKernels* const table[kIsaCount] = {&encode_portable, nullptr, nullptr, nullptr, nullptr};
#endif

constexpr int64_t kEncodeGrain = 65536;  // elements of a piece, which has at least one panel

// Panels of a piece.
int64_t panels_together(int64_t columns) { return std::max<int64_t>(1, kEncodeGrain / (kPanelRows * std::max<int64_t>(1, columns))); }

// Values of a piece of a map: whole groups, so that pieces never share a byte.
int64_t values_together(int64_t group) { return std::max<int64_t>(1, kEncodeGrain / group) * group; }

// body(panel, number of its rows) for all panels of a piece.
template <typename Body>
void by_panels(int64_t piece, int64_t rows, int64_t columns, Body body) {
    const int64_t together = panels_together(columns), first = piece * together;
    const int64_t last = std::min(divide_up(rows, kPanelRows), first + together);
    for (int64_t panel = first; panel < last; panel++) body(panel, std::min(kPanelRows, rows - panel * kPanelRows));
}

const char* element(const void* base, int32_t type, int64_t at) {
    return static_cast<const char*>(base) + at * size_of(type);
}

EncodeLevels prepare(const float* levels) {
    EncodeLevels found = {};
    int8_t bounds[15];
    for (int i = 0; i < 16; i++) {
        found.values[i] = levels[i];
        found.whole[i] = int8_t(levels[i]);
    }
    for (int i = 0; i < 15; i++) {
        // Cells are half steps: find the first whose middle lies above the middle of two levels.
        const float middle = (levels[i + 1] + levels[i]) / 2;
        int cell = -127;
        while (cell < 128 && !((float(cell) + 0.5f) / 2 > middle)) cell++;
        bounds[i] = int8_t(cell - 1);
    }
    for (int depth = 0; depth < 4; depth++) {
        for (int i = 0; i < 1 << depth; i++) found.tree[depth][i] = bounds[((2 * i + 1) * 8 >> depth) - 1];
    }
    return found;
}

}  // namespace

void vt_encode_own(int32_t bits, const void* matrix, int32_t type, int64_t rows, int64_t stride, int64_t columns, int64_t group,
                   const float* levels, void* codes, void* scales) {
    const EncodeKernels& kernels = choose(table);
    const EncodeLevels prepared = bits == 4 ? prepare(levels) : EncodeLevels{};
    const int64_t pieces = vt_encode_pieces(bits, rows, columns, group);
    parallel(pieces, 8.0 * double(rows) * double(columns), [&](int64_t piece) {
        by_panels(piece, rows, columns, [&](int64_t panel, int64_t count) {
            const char* from = element(matrix, type, panel * kPanelRows * stride);
            uint8_t* to = static_cast<uint8_t*>(codes) + panel * columns * 2 * bits;
            uint16_t* scale = static_cast<uint16_t*>(scales) + panel * columns / group * kPanelRows;
            if (bits == 4) {
                kernels.q4[type](from, stride, count, columns, group, prepared, to, scale);
            } else {
                kernels.q8[type](from, stride, count, columns, group, reinterpret_cast<int8_t*>(to), scale);
            }
        });
    });
}

void vt_encode_fit(const float* ratio, const float* weights, int64_t count, int64_t group, const float* levels, void* codes,
                   float* scales, double* sums) {
    const EncodeKernels& kernels = choose(table);
    const EncodeLevels prepared = prepare(levels);
    uint8_t* const all = static_cast<uint8_t*>(codes);
    const int64_t together = std::max<int64_t>(1, kEncodeGrain / 64 / group) * 8;
    parallel(divide_up(count, together), 8.0 * double(count) * double(group), [&](int64_t piece) {
        const int64_t first = piece * together, here = std::min(together, count - first);
        kernels.fit(ratio + first * group, here, group, prepared, all + first * group, scales + first);
    });
    // On one thread, in the order in which the definition adds.
    double added[16][2] = {};
    for (int64_t n = 0; n < count; n++) {
        const float worth = scales[n] * weights[n], weight = worth * weights[n];
        const double square = double(worth) * double(worth);
        const uint8_t* const found = all + n / 8 * 8 * group + n % 8;
        for (int64_t i = 0; i < group; i++) {
            double* const here = added[found[i * 8]];
            here[0] += double(weight * ratio[n * group + i]);
            here[1] += square;
        }
    }
    for (int code = 0; code < 16; code++) {
        sums[code] = added[code][0];
        sums[16 + code] = added[code][1];
    }
}

void vt_encode_map4(const void* values, int32_t type, int64_t count, int64_t group, const float* bounds, const void* order,
                    void* codes, float* absmax) {
    const auto kernel = choose(table).map4[type];
    EncodeMap map;
    std::memcpy(map.bounds, bounds, sizeof map.bounds);
    std::memcpy(map.codes, order, sizeof map.codes);
    const int64_t together = values_together(group);
    parallel(divide_up(count, together), 8.0 * double(count), [&](int64_t piece) {
        const int64_t first = piece * together, here = std::min(together, count - first);
        uint8_t* const to = static_cast<uint8_t*>(codes) + first / 2;
        kernel(element(values, type, first), here, group, map, to, absmax + first / group);
    });
}

int64_t vt_encode_pieces(int32_t bits, int64_t rows, int64_t columns, int64_t group) {
    if (bits == 0) return divide_up(columns, values_together(group));
    return divide_up(divide_up(rows, kPanelRows), panels_together(columns));
}

void vt_encode_error(int32_t bits, const void* values, int32_t type, int64_t rows, int64_t stride, int64_t columns,
                     int64_t group, const float* decoded, int32_t rounded, const void* codes, const void* scales,
                     double* sums) {
    const EncodeKernels& kernels = choose(table);
    EncodeTable prepared = {{}, rounded};
    if (bits != 8) std::memcpy(prepared.values, decoded, sizeof prepared.values);
    const uint8_t* const all = static_cast<const uint8_t*>(codes);
    parallel(vt_encode_pieces(bits, rows, columns, group), 8.0 * double(rows) * double(columns), [&](int64_t piece) {
        double* const into = sums + 2 * piece;
        into[0] = into[1] = 0;
        if (bits == 0) {
            const int64_t first = piece * values_together(group), here = std::min(values_together(group), columns - first);
            const float* absmax = static_cast<const float*>(scales) + first / group;
            kernels.map_error[type](element(values, type, first), here, group, prepared, all + first / 2, absmax, into);
            return;
        }
        by_panels(piece, rows, columns, [&](int64_t panel, int64_t count) {
            const uint16_t* scale = static_cast<const uint16_t*>(scales) + panel * columns / group * kPanelRows;
            kernels.panel_error[type](element(values, type, panel * kPanelRows * stride), stride, count, columns, group, bits,
                                      prepared, all + panel * columns * 2 * bits, scale, into);
        });
    });
}
