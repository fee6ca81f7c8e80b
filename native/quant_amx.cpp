// q4 and q8 products with AMX, in tiles of 16 rows × 16 outputs, from sixteen rows on; fewer rows, and the quantisation of
// activations, use AVX-512. Levels are signed: no offset.
#include "quant_kernel.h"

namespace {

constexpr int64_t kAmxTile = kQuantTileRows[kAmx];

// The operand of `ldtilecfg`, which configures the calling thread.
struct alignas(64) TileShapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};

    // Tiles 0, 1: sums. 4, 5: activations of sixteen rows. 6, 7: weights of a panel, one step of 4 columns per row.
    explicit TileShapes(int64_t columns) {
        for (int i = 0; i < 8; i++) {
            bytes[i] = uint16_t(i == 4 || i == 5 ? columns : 64);
            rows[i] = uint8_t(i < 6 ? kAmxTile : columns / 4);
        }
    }
};

// The lookup of q4's levels, signed.
inline void unpack_signed(const uint8_t* codes, __m512i levels, int64_t columns, uint8_t* to) {
    const __m512i mask = _mm512_set1_epi8(15);
    for (int64_t s = 0; s < columns / 8; s++) {
        const __m512i both = _mm512_loadu_si512(codes + 64 * s);
        const __m512i high = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
        _mm512_storeu_si512(to + 128 * s, _mm512_shuffle_epi8(levels, _mm512_and_si512(both, mask)));
        _mm512_storeu_si512(to + 128 * s + 64, _mm512_shuffle_epi8(levels, high));
    }
}

// A barrier: GCC does not know what the tile instructions read, so stores to `what` must be complete here.
inline void written(const void* what) { __asm__ volatile("" : : "r"(what) : "memory"); }

// Dot products of one group: 16 rows of activations × 16 outputs. Groups alternate between two sets of tiles, so that one
// can start while the previous one is being stored.
inline void dots(bool odd, const int8_t* codes, int64_t stride, const uint8_t* weights, int64_t group, int64_t columns,
                 int32_t* sums) {
    if (odd) {
        _tile_zero(1);
        for (int64_t at = 0; at < group; at += columns) {
            _tile_loadd(5, codes + at, stride);
            _tile_loadd(7, weights + at * kAmxTile, 64);
            _tile_dpbssd(1, 5, 7);
        }
        _tile_stored(1, sums, 64);
    } else {
        _tile_zero(0);
        for (int64_t at = 0; at < group; at += columns) {
            _tile_loadd(4, codes + at, stride);
            _tile_loadd(6, weights + at * kAmxTile, 64);
            _tile_dpbssd(0, 4, 6);
        }
        _tile_stored(0, sums, 64);
    }
    written(sums);
}

// Add one group to 16 rows × 16 outputs.
VT_QUANT_INLINE void add_group(__m512 (&acc)[kAmxTile], const int32_t* sums, __m512 scales, const float* x_scales, int64_t stride) {
    each<int(kAmxTile)>([&](auto r) VT_QUANT_INLINED {
        const __m512 dot = _mm512_cvtepi32_ps(_mm512_load_si512(sums + r * kAmxTile));
        const __m512 part = _mm512_mul_ps(_mm512_mul_ps(dot, scales), _mm512_set1_ps(x_scales[r * stride]));
        acc[r] = _mm512_add_ps(acc[r], part);
    });
}

// Sixteen rows from `row` on; `totals` is (16, 16) float32. The next group's tiles are computed while this one's results are
// scaled and added.
void multiply_tile(const Rounded& x, const RowTile& tile, int64_t row, float* totals) {
    alignas(64) int32_t sums[2][kAmxTile * kAmxTile];
    const int64_t groups = x.groups(), columns = std::min<int64_t>(x.group, 64);
    const int8_t* const codes = x.codes + row * x.columns;
    const float* const x_scales = x.scales + row * groups;
    const auto begin = [&](int64_t g) {
        const int64_t at = g - tile.first;
        dots(at % 2, codes + g * x.group, x.columns, tile.weights + at * x.group * kAmxTile, x.group, columns, sums[at % 2]);
    };
    __m512 acc[kAmxTile];
    each<int(kAmxTile)>([&](auto r) VT_QUANT_INLINED { acc[r] = _mm512_load_ps(totals + r * kAmxTile); });
    begin(tile.first);
    for (int64_t g = tile.first; g < tile.last; g++) {
        if (g + 1 < tile.last) begin(g + 1);
        const __m512 scales = Vec::load_bf16(tile.scales + g * kAmxTile).v;
        add_group(acc, sums[(g - tile.first) % 2], scales, x_scales + g, groups);
    }
    each<int(kAmxTile)>([&](auto r) VT_QUANT_INLINED { _mm512_store_ps(totals + r * kAmxTile, acc[r]); });
}

// `multiply` for a multiple of 16 rows.
void multiply_tiles16(const Rounded& x, const QuantWeight& weight, int32_t kind, int32_t type, int64_t first, int64_t last,
                      int64_t begin, int64_t end) {
    const int64_t rows = end - begin, groups = x.groups();
    alignas(64) float totals[kMostPanels * kMostRows * kPanelRows];
    alignas(64) uint8_t unpacked[kUnpackColumns * kPanelRows];
    std::memset(totals, 0, size_t((last - first) * rows * kPanelRows) * sizeof(float));
    const int8_t no_levels[16] = {};
    const Levels unused(no_levels);
    __m512i levels = _mm512_setzero_si512();
    if (kind == kQ4) {
        const __m128i sixteen = _mm_loadu_si128(reinterpret_cast<const __m128i*>(weight.levels));
        levels = _mm512_maskz_broadcast_i32x4(0xffff, sixteen);
    }
    const TileShapes shapes(std::min<int64_t>(x.group, 64));
    written(&shapes);
    _tile_loadconfig(&shapes);  // the calling thread may have no configuration
    const int64_t together = kUnpackColumns / x.group;
    const int64_t panel_bytes = x.columns * 2 * kind, block_bytes = kUnpackColumns * 2 * kind;
    for (int64_t g = 0; g < groups; g += together) {
        const int64_t stop = std::min(groups, g + together);
        for (int64_t panel = first; panel < last; panel++) {
            const uint8_t* codes = weight.codes + panel * panel_bytes + g * x.group * 2 * kind;
            if (kind == kQ4) unpack_signed(codes, levels, (stop - g) * x.group, unpacked);
            written(unpacked);
            // Prefetch the same columns of the next panel, or the next columns of the first.
            const uint8_t* next = panel + 1 < last ? codes + panel_bytes : codes - (panel - first) * panel_bytes + block_bytes;
            const int64_t share = aligned(block_bytes / (rows / kAmxTile));
            const RowTile tile = {kind == kQ4 ? unpacked : codes, weight.scales + panel * groups * kPanelRows, unused, g, stop};
            for (int64_t row = 0; row < rows; row += kAmxTile, next += share) {
                for (int64_t at = 0; at < share; at += 64) __builtin_prefetch(next + at, 0, 2);
                multiply_tile(x, tile, begin + row, totals + ((panel - first) * rows + row) * kPanelRows);
            }
        }
    }
    _tile_release();
    store_panels(totals, weight, type, first, last, begin, end);
}

void multiply_with_tiles(const Rounded& x, const QuantWeight& weight, int32_t kind, int32_t type, int64_t first, int64_t last,
                         int64_t begin, int64_t end) {
    const int64_t whole = begin + (end - begin) / kAmxTile * kAmxTile;
    if (whole > begin) multiply_tiles16(x, weight, kind, type, first, last, begin, whole);
    if (whole < end) multiply(x, weight, kind, type, first, last, whole, end);
}

}  // namespace

extern const QuantKernels quant_amx = {round_activations, multiply_with_tiles};
