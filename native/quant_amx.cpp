// The products of native/quant.h in tiles of 16 rows × 16 outputs, for sixteen rows and more; fewer rows, and rounding,
// are those of AVX-512. Works on the levels as they are: no offset.
#include "quant_kernel.h"

namespace {

constexpr int64_t kTile = 16;

// What `ldtilecfg` reads.
struct alignas(64) TileShapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};

    // Tiles 0 … 3: sums. 4, 5: sixteen activations. 6, 7: the weights of a panel, one step of 4 columns a row.
    explicit TileShapes(int64_t columns) {
        for (int i = 0; i < 8; i++) {
            bytes[i] = uint16_t(i == 4 || i == 5 ? columns : 64);
            rows[i] = uint8_t(i < 6 ? kTile : columns / 4);
        }
    }
};

// q4's levels are signed here.
inline void unpack_signed(const uint8_t* codes, __m512i levels, int64_t columns, uint8_t* to) {
    const __m512i mask = _mm512_set1_epi8(15);
    for (int64_t s = 0; s < columns / 8; s++) {
        const __m512i both = _mm512_loadu_si512(codes + 64 * s);
        const __m512i high = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
        _mm512_storeu_si512(to + 128 * s, _mm512_shuffle_epi8(levels, _mm512_and_si512(both, mask)));
        _mm512_storeu_si512(to + 128 * s + 64, _mm512_shuffle_epi8(levels, high));
    }
}

// The results of 16 rows × 16 outputs so far, and what one group adds to them.
inline void add_group(const int32_t* sums, const Rounded& x, int64_t row, int64_t g, __m512 scales, float* totals) {
    const float* x_scales = x.scales + row * x.groups() + g;
    for (int64_t r = 0; r < kTile; r++) {
        const __m512 dot = _mm512_cvtepi32_ps(_mm512_loadu_si512(sums + r * kTile));
        const __m512 part = _mm512_mul_ps(_mm512_mul_ps(dot, scales), _mm512_set1_ps(x_scales[r * x.groups()]));
        float* const to = totals + r * kTile;
        _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), part));
    }
}

// Two panels (or one), groups first … last-1, and 32 rows (or 16): four tiles of sums that share what they read.
struct Quarter {
    const uint8_t* weights[2];
    const uint16_t* scales[2];
    float* totals[2];  // of the panel, for the first of the rows
    int64_t panels, rows;
};

inline __m512 widened(const uint16_t* scales) { return Vec::load_bf16(scales).v; }

void multiply_quarter(const Rounded& x, const Quarter& q, int64_t row, int64_t first, int64_t last) {
    alignas(64) int32_t sums[4][kTile * kTile];
    const int64_t columns = std::min<int64_t>(x.group, 64);
    for (int64_t g = first; g < last; g++) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int64_t at = 0; at < x.group; at += columns) {
            const int8_t* codes = x.codes + row * x.columns + g * x.group + at;
            const int64_t offset = ((g - first) * x.group + at) * kTile;
            _tile_loadd(4, codes, x.columns);
            _tile_loadd(6, q.weights[0] + offset, 64);
            _tile_dpbssd(0, 4, 6);
            if (q.panels > 1) {
                _tile_loadd(7, q.weights[1] + offset, 64);
                _tile_dpbssd(1, 4, 7);
            }
            if (q.rows > 1) {
                _tile_loadd(5, codes + kTile * x.columns, x.columns);
                _tile_dpbssd(2, 5, 6);
                if (q.panels > 1) _tile_dpbssd(3, 5, 7);
            }
        }
        _tile_stored(0, sums[0], 64);
        if (q.panels > 1) _tile_stored(1, sums[1], 64);
        if (q.rows > 1) _tile_stored(2, sums[2], 64);
        if (q.panels > 1 && q.rows > 1) _tile_stored(3, sums[3], 64);
        for (int64_t p = 0; p < q.panels; p++) {
            const __m512 scales = widened(q.scales[p] + g * kTile);
            for (int64_t half = 0; half < q.rows; half++) {
                add_group(sums[2 * half + p], x, row + half * kTile, g, scales, q.totals[p] + half * kTile * kTile);
            }
        }
    }
}

// As `multiply`, for a multiple of 16 rows.
void multiply_tiles16(const Rounded& x, const QuantWeight& weight, int32_t kind, int32_t type, int64_t first, int64_t last,
                      int64_t begin, int64_t end) {
    const int64_t rows = end - begin, groups = x.groups();
    const int64_t panel_bytes = x.columns * 2 * kind, group_bytes = x.group * 2 * kind;
    alignas(64) float totals[kMostPanels * kMostRows * kPanelRows];
    alignas(64) uint8_t unpacked[2][kUnpackColumns * kPanelRows];
    std::memset(totals, 0, size_t((last - first) * rows * kPanelRows) * sizeof(float));
    __m512i levels = _mm512_setzero_si512();
    if (kind == kQ4) {
        const __m128i sixteen = _mm_loadu_si128(reinterpret_cast<const __m128i*>(weight.levels));
        levels = _mm512_maskz_broadcast_i32x4(0xffff, sixteen);
    }
    const TileShapes shapes(std::min<int64_t>(x.group, 64));
    _tile_loadconfig(&shapes);  // this thread may never have had one
    const int64_t together = kUnpackColumns / x.group;
    for (int64_t g = 0; g < groups; g += together) {
        const int64_t stop = std::min(groups, g + together);
        for (int64_t panel = first; panel < last; panel += 2) {
            Quarter q = {};
            q.panels = std::min<int64_t>(2, last - panel);
            for (int64_t p = 0; p < q.panels; p++) {
                const uint8_t* codes = weight.codes + (panel + p) * panel_bytes + g * group_bytes;
                if (kind == kQ4) unpack_signed(codes, levels, (stop - g) * x.group, unpacked[p]);
                q.weights[p] = kind == kQ4 ? unpacked[p] : codes;
                q.scales[p] = weight.scales + (panel + p) * groups * kPanelRows;
            }
            for (int64_t row = 0; row < rows; row += 2 * kTile) {
                q.rows = std::min<int64_t>(2, (rows - row) / kTile);
                for (int64_t p = 0; p < q.panels; p++) {
                    q.totals[p] = totals + ((panel + p - first) * rows + row) * kPanelRows;
                }
                multiply_quarter(x, q, begin + row, g, stop);
            }
        }
    }
    _tile_release();
    store_panels(totals, weight, type, first, last, begin, end);
}

void multiply_with_tiles(const Rounded& x, const QuantWeight& weight, int32_t kind, int32_t type, int64_t first, int64_t last,
                         int64_t begin, int64_t end) {
    const int64_t whole = begin + (end - begin) / kTile * kTile;
    if (whole > begin) multiply_tiles16(x, weight, kind, type, first, last, begin, whole);
    if (whole < end) multiply(x, weight, kind, type, first, last, whole, end);
}

}  // namespace

extern const QuantKernels quant_amx = {round_activations, multiply_with_tiles};
