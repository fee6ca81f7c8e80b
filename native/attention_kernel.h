// Attention by online softmax, compiled once per instruction set.
//
// Every query row takes tiles of kKvTile absolute positions in ascending order. For each tile: the scores, one chain of
// FMAs over the head elements each; the running maximum; weights 2^(score − maximum); their sum by halves; then, key by
// key, weight · value added to the running output. A row's arithmetic is the same in every part, so its result depends
// only on its position, its keys and its values. Rows share loads, never sums.
#pragma once

#include <limits>
#include <utility>

#include "attention.h"
#include "attention_cache.h"
#include "attention_tiles.h"
#include "attention_vec.h"

namespace {

constexpr float kLog2E = 1.4426950408889634f, kInfinity = std::numeric_limits<float>::infinity();

// Cache lines prefetched per register tile: more at once than the core has fill buffers would stall it.
constexpr int64_t kPrefetchLines = 24;

// --- one part ----------------------------------------------------------------------------------------------------

// Running state of the rows of one key/value head, in the order (position, query head). Pointers into the thread's scratch.
struct SoftmaxState {
    float *q, *out;            // (rows, padded)
    float *row_max, *row_sum;  // (rows): maximum of the scores so far; sum of the weights
};

// Temporaries of one tile, shared by all key/value heads of the part. Pointers into the thread's scratch.
struct Scratch {
    float* packed;            // transposed keys (width, kKvTile), later reused for values (kKvTile, padded): stays in L1
    float* scores;            // (rows, kKvTile): scores, then weights
    float *anchor, *rescale;  // (rows): row_max, or 0 where it is −∞; factor of the earlier sums
    float* zero_key;
    float key_scales[kKvTile], value_scales[kKvTile];
};

// Query rows first … last−1, which attend to the keys low … high−1 of a tile.
struct KeySpan {
    int64_t first, last, low, high;
};

template <int32_t kType>
inline void widen_typed(const char* from, int64_t width, int64_t padded, float* to) {
    int64_t i = 0;
    for (; i + kWidth <= width; i += kWidth) load_vec<kType>(from, i).store(to + i);
    for (; i < width; i++) to[i] = load_scalar<kType>(from, i);
    for (; i < padded; i++) to[i] = 0.0f;
}

// `width` elements of any type as float32, zeros up to `padded`.
inline void widen_row(const char* from, int32_t type, int64_t width, int64_t padded, float* to) {
    switch (type) {
        case kBFloat16:
            return widen_typed<kBFloat16>(from, width, padded, to);
        case kFloat16:
            return widen_typed<kFloat16>(from, width, padded, to);
        case kInt8:
            return widen_typed<kInt8>(from, width, padded, to);
        default:
            return widen_typed<kFloat32>(from, width, padded, to);
    }
}

// One part's computation, on the stack of one thread.
class Part {
  public:
    Part(const AttentionCall& call, const AttentionPart& part, float* scratch)
        : call_(call), part_(part), heads_(call.heads / call.groups), rows_((part.last - part.first) * heads_),
          padded_(round_up(call.width, kTileColumns)), length_(call.kv_lengths[part.segment]),
          start_(call.q_offsets[part.segment]), past_(length_ - (call.q_offsets[part.segment + 1] - start_)) {
        lay_out(scratch);
    }

    AttentionResult run() {
        for (int64_t g = part_.group_first; g < part_.group_last; g++) begin(state(g), g);
        const int64_t end = call_.causal ? past_ + part_.last : length_;
        const int64_t first = call_.window > 0 ? std::max<int64_t>(0, past_ + part_.first - call_.window + 1) : 0;
        int64_t now[kKvTile], next[kKvTile];
        const int64_t nothing[kKvTile] = {-1};
        if (!find(first / kKvTile * kKvTile, first, end, now)) return kOutside;
        for (int64_t at = first / kKvTile * kKvTile; at < end; at += kKvTile) {
            const bool more = at + kKvTile < end;
            if (more && !find(at + kKvTile, first, end, next)) return kOutside;
            const int64_t low = std::max(first - at, int64_t(0)), high = std::min(end - at, kKvTile);
            for (int64_t g = part_.group_first; g < part_.group_last; g++) {
                prefetch_next(more ? next : nothing, g);
                const SoftmaxState rows = state(g);
                pack_keys(now, g);
                for_each_span(at, [&](const KeySpan& span) { softmax_weights(span, rows); });
                if (rows_ <= kAttentionTileRows && padded_ == call_.width) {
                    for_each_span(at, [&](const KeySpan& span) { accumulate_pv_stored(span, rows, now, g); });
                } else {
                    pack_values(now, low, high, g);
                    for_each_span(at, [&](const KeySpan& span) { accumulate_pv(span, rows); });
                }
            }
            std::copy(next, next + kKvTile, now);
        }
        for (int64_t g = part_.group_first; g < part_.group_last; g++) finish(state(g), g);
        return kDone;
    }

    static int64_t scratch_floats(int64_t rows, int64_t groups, int64_t width) {
        const int64_t padded = round_up(width, kTileColumns), lanes = round_up(rows, 16) + 16;
        return kKvTile * padded + lanes * (kKvTile + 2) + padded + groups * (2 * rows * padded + 2 * lanes) + 64;
    }

  private:
    void lay_out(float* scratch) {
        const int64_t lanes = round_up(rows_, 16) + 16;
        const auto take = [&](int64_t count) { return std::exchange(scratch, scratch + count); };
        scratch_.packed = take(kKvTile * padded_);
        scratch_.scores = take(lanes * kKvTile);
        scratch_.anchor = take(lanes);
        scratch_.rescale = take(lanes);
        scratch_.zero_key = take(padded_);
        std::fill(scratch_.zero_key, scratch_.zero_key + padded_, 0.0f);
        states_ = scratch;
    }

    SoftmaxState state(int64_t g) const {
        const int64_t lanes = round_up(rows_, 16) + 16;
        float* at = states_ + (g - part_.group_first) * (2 * rows_ * padded_ + 2 * lanes);
        return {at, at + rows_ * padded_, at + 2 * rows_ * padded_, at + 2 * rows_ * padded_ + lanes};
    }

    // Initial state. Queries are multiplied by scale · log2(e), so that scores are exponents of two.
    void begin(const SoftmaxState& s, int64_t g) const {
        const float factor = call_.scale * kLog2E;
        for (int64_t r = 0; r < rows_; r++) {
            const int64_t from = (start_ + part_.first + r / heads_) * call_.q_stride + (g * heads_ + r % heads_) * call_.width;
            float* to = s.q + r * padded_;
            widen_row(static_cast<const char*>(call_.q) + from * size_of(call_.type), call_.type, call_.width, padded_, to);
            for (int64_t i = 0; i < padded_; i += kWidth) (Vec::load(to + i) * Vec::all(factor)).store(to + i);
        }
        std::fill(s.out, s.out + rows_ * padded_, 0.0f);
        std::fill(s.row_max, s.row_max + rows_, -kInfinity);
        std::fill(s.row_sum, s.row_sum + rows_, 0.0f);
    }

    // The row or cache slot of each key of the tile at position `at`; −1 where no row of this part attends to it.
    bool find(int64_t at, int64_t first, int64_t end, int64_t (&found)[kKvTile]) const {
        const int32_t* table = call_.block_table ? call_.block_table + part_.segment * call_.table_width : nullptr;
        for (int64_t j = 0; j < kKvTile; j++) {
            const int64_t position = at + j;
            found[j] = -1;
            if (position < first || position >= end) continue;
            if (!table) {
                found[j] = start_ + position;
            } else if (j > 0 && found[j - 1] >= 0 && position % call_.block) {
                found[j] = found[j - 1] + 1;
            } else {
                found[j] = int64_t(table[position / call_.block]) * call_.block + position % call_.block;
                if (found[j] < 0 || found[j] + call_.block - position % call_.block > call_.slots) return false;
            }
        }
        return true;
    }

    const char* key_at(int64_t row, int64_t g) const {
        return static_cast<const char*>(call_.keys) + (row * call_.key_stride + g * call_.width) * size_of(call_.key_type);
    }
    const char* value_at(int64_t row, int64_t g) const {
        return static_cast<const char*>(call_.values) + (row * call_.value_stride + g * call_.width) * size_of(call_.key_type);
    }

    // Transposed keys of the tile; zeros where no row of this part attends.
    void pack_keys(const int64_t (&found)[kKvTile], int64_t g) {
        const char* rows[kKvTile];
        for (int64_t j = 0; j < kKvTile; j++) {
            rows[j] = found[j] < 0 ? reinterpret_cast<const char*>(scratch_.zero_key) : key_at(found[j], g);
        }
        transpose_keys(rows, call_.key_type, call_.width, scratch_.packed);
        if (call_.scales) {
            for (int64_t j = 0; j < kKvTile; j++) {
                scratch_.key_scales[j] = found[j] < 0 ? 0.0f : call_.scales[found[j] * call_.groups + g];
                scratch_.value_scales[j] = found[j] < 0 ? 0.0f : call_.scales[(call_.slots + found[j]) * call_.groups + g];
            }
        }
    }

    // The values of keys low … high−1, over the keys.
    void pack_values(const int64_t (&found)[kKvTile], int64_t low, int64_t high, int64_t g) {
        for (int64_t j = low; j < high; j++) {
            widen_row(value_at(found[j], g), call_.key_type, call_.width, padded_, scratch_.packed + j * padded_);
        }
    }

    // Set the tile that prefetch() fetches while this one is computed.
    void prefetch_next(const int64_t (&found)[kKvTile], int64_t g) {
        next_keys_ = found;
        next_group_ = g;
        prefetched_ = 0;
    }

    void prefetch() {
        const int64_t bytes = call_.width * size_of(call_.key_type);
        for (int64_t lines = 0; prefetched_ < kKvTile && lines < kPrefetchLines && next_keys_[prefetched_] >= 0; prefetched_++) {
            const char* key = key_at(next_keys_[prefetched_], next_group_);
            const char* value = value_at(next_keys_[prefetched_], next_group_);
            for (int64_t i = 0; i < bytes; i += kCacheLine, lines += 2) {
                __builtin_prefetch(key + i);
                __builtin_prefetch(value + i);
            }
        }
    }

    // body(span) for the rows that attend to the tile at position `at`; consecutive rows with the same keys share a span.
    template <typename Body>
    void for_each_span(int64_t at, Body&& body) {
        for (int64_t t = part_.first; t < part_.last;) {
            KeySpan span = visible(at, t);
            int64_t after = t + 1;
            for (; after < part_.last; after++) {
                const KeySpan other = visible(at, after);
                if (other.low != span.low || other.high != span.high) break;
            }
            span.first = (t - part_.first) * heads_;
            span.last = (after - part_.first) * heads_;
            if (span.low < span.high) body(span);
            t = after;
        }
    }

    KeySpan visible(int64_t at, int64_t t) const {
        const int64_t position = past_ + t;
        const int64_t stop = call_.causal ? position + 1 : length_;
        const int64_t start = call_.window > 0 ? position - call_.window + 1 : 0;
        return {0, 0, std::max<int64_t>(0, start - at), std::min<int64_t>(kKvTile, stop - at)};
    }

    // Leaves the weights of the span's rows in scratch_.scores.
    void softmax_weights(const KeySpan& span, const SoftmaxState& s) {
        qk_scores(span, s);
        update_row_max(span, s);
        exponentiate(span, s);
    }

    void qk_scores(const KeySpan& span, const SoftmaxState& s) {
        for (int64_t at = span.low / kTileColumns * kTileColumns; at < span.high;) {
            prefetch();
            const bool pair = at + 2 * kTileColumns <= round_up(span.high, kTileColumns);
            bool both = false;
            by_tiles(span.last - span.first, [&](auto rows, int64_t first) {
                const float* q = s.q + (span.first + first) * padded_;
                float* to = scratch_.scores + (span.first + first) * kKvTile + at;
                if constexpr (kDoubleWidth<rows>) {
                    if (pair && span.last - span.first == rows) {
                        qk_tile<rows, 2 * kAttentionTileVecs>(q, padded_, scratch_.packed + at, call_.width, to);
                        both = true;
                        return;
                    }
                }
                qk_tile<rows, kAttentionTileVecs>(q, padded_, scratch_.packed + at, call_.width, to);
            });
            at += both ? 2 * kTileColumns : kTileColumns;
        }
    }

    // Apply key scales and the mask to the scores; update row_max and the factor of the earlier sums.
    void update_row_max(const KeySpan& span, const SoftmaxState& s) {
        for (int64_t r = span.first; r < span.last; r++) {
            float* scores = scratch_.scores + r * kKvTile;
            if (call_.scales) {
                for (int64_t j = 0; j < kKvTile; j += kWidth) {
                    (Vec::load(scores + j) * Vec::load(scratch_.key_scales + j)).store(scores + j);
                }
            }
            std::fill(scores, scores + span.low, -kInfinity);
            std::fill(scores + span.high, scores + kKvTile, -kInfinity);
            Vec most = Vec::load(scores);
            for (int64_t j = kWidth; j < kKvTile; j += kWidth) most = max(most, Vec::load(scores + j));
            const float row_max = std::max(s.row_max[r], greatest(most));
            scratch_.rescale[r] = s.row_max[r];
            s.row_max[r] = row_max;
            scratch_.anchor[r] = row_max == -kInfinity ? 0.0f : row_max;
        }
        // Elements that a vector covers beyond the span are overwritten before they are read.
        for (int64_t r = span.first; r < span.last; r += kWidth) {
            exp2_vec(Vec::load(scratch_.rescale + r) - Vec::load(scratch_.anchor + r)).store(scratch_.rescale + r);
        }
    }

    void exponentiate(const KeySpan& span, const SoftmaxState& s) {
        for (int64_t r = span.first; r < span.last; r++) {
            float* scores = scratch_.scores + r * kKvTile;
            const Vec anchor = Vec::all(scratch_.anchor[r]);
            Vec weights[kKvTile / kWidth];
            for (int64_t j = 0; j < kKvTile / kWidth; j++) weights[j] = exp2_vec(Vec::load(scores + j * kWidth) - anchor);
            s.row_sum[r] = s.row_sum[r] * scratch_.rescale[r] + sum_by_halves(fold(weights));
            for (int64_t j = 0; j < kKvTile / kWidth; j++) {
                if (call_.scales) weights[j] = weights[j] * Vec::load(scratch_.value_scales + j * kWidth);
                weights[j].store(scores + j * kWidth);
            }
        }
    }

    // With packed values, or (few rows: each value is used once) with values read from the cache.
    void accumulate_pv(const KeySpan& span, const SoftmaxState& s) {
        accumulate_pv_from(span, s, [this](int64_t j, int64_t i) { return Vec::load(scratch_.packed + j * padded_ + i); });
    }

    template <int32_t kType>
    void accumulate_pv_stored(const KeySpan& span, const SoftmaxState& s, const int64_t (&found)[kKvTile], int64_t g) {
        const char* rows[kKvTile];
        for (int64_t j = span.low; j < span.high; j++) rows[j] = value_at(found[j], g);
        accumulate_pv_from(span, s, [&rows](int64_t j, int64_t i) { return load_vec<kType>(rows[j], i); });
    }

    void accumulate_pv_stored(const KeySpan& span, const SoftmaxState& s, const int64_t (&found)[kKvTile], int64_t g) {
        switch (call_.key_type) {
            case kBFloat16:
                return accumulate_pv_stored<kBFloat16>(span, s, found, g);
            case kFloat16:
                return accumulate_pv_stored<kFloat16>(span, s, found, g);
            case kInt8:
                return accumulate_pv_stored<kInt8>(span, s, found, g);
            default:
                return accumulate_pv_stored<kFloat32>(span, s, found, g);
        }
    }

    template <typename Value>
    void accumulate_pv_from(const KeySpan& span, const SoftmaxState& s, Value value) {
        for (int64_t at = 0; at < padded_;) {
            prefetch();
            const bool pair = at + 2 * kTileColumns <= padded_;
            bool both = false;
            by_tiles(span.last - span.first, [&](auto rows, int64_t tile) {
                const int64_t first = span.first + tile;
                const float *weights = scratch_.scores + first * kKvTile, *rescale = scratch_.rescale + first;
                float* out = s.out + first * padded_ + at;
                const auto value_of = [&value, at](int64_t j, int64_t n) { return value(j, at + n * kWidth); };
                if constexpr (kDoubleWidth<rows>) {
                    if (pair && span.last - span.first == rows) {
                        pv_tile<rows, 2 * kAttentionTileVecs>(weights, rescale, span.low, span.high, value_of, out, padded_);
                        both = true;
                        return;
                    }
                }
                pv_tile<rows, kAttentionTileVecs>(weights, rescale, span.low, span.high, value_of, out, padded_);
            });
            at += both ? 2 * kTileColumns : kTileColumns;
        }
    }

    void finish(const SoftmaxState& s, int64_t g) const {
        for (int64_t r = 0; r < rows_; r++) {
            const int64_t row = start_ + part_.first + r / heads_;
            const int64_t to = (row * call_.heads + g * heads_ + r % heads_) * call_.width;
            float* out = s.out + r * padded_;
            const Vec row_sum = Vec::all(s.row_sum[r]);
            for (int64_t i = 0; i < padded_; i += kWidth) (Vec::load(out + i) / row_sum).store(out + i);
            for (int64_t i = 0; i < call_.width; i++) store_one(call_.out, call_.type, to + i, out[i]);
        }
    }

    const AttentionCall& call_;
    const AttentionPart& part_;
    const int64_t heads_, rows_, padded_, length_, start_, past_;
    Scratch scratch_;
    float* states_ = nullptr;
    const int64_t* next_keys_ = nullptr;
    int64_t next_group_ = 0, prefetched_ = kKvTile;
};

AttentionResult attend(const AttentionCall& call, const AttentionPart& part, float* scratch) {
    return Part(call, part, scratch).run();
}

void exp2_many(const float* x, float* y, int64_t count) {
    for (int64_t i = 0; i < count; i += kWidth) {
        float lanes[kWidth] = {};
        const int64_t here = std::min(kWidth, count - i);
        std::copy(x + i, x + i + here, lanes);
        exp2_vec(Vec::load(lanes)).store(lanes);
        std::copy(lanes, lanes + here, y + i);
    }
}

constexpr AttentionKernels kAttentionKernels = {Part::scratch_floats, attend, write_row, exp2_many};

}  // namespace
