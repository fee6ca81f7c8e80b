// The functions of native/attention.h for the instruction set that the including file is compiled for.
//
// Every query row walks blocks of kWalk absolute positions in ascending order. Of each block: the scores, each one chain
// of fused products over the width; the greatest so far; weights 2^(score − greatest); their sum by halves; then, key by
// key, weight · value onto the running output. What a row does is the same in every part that it can be in, so its
// result depends on nothing but its position, its keys and its values. Rows share loads, never sums.
#pragma once

#include <limits>
#include <utility>

#include "attention.h"
#include "attention_cache.h"
#include "attention_tiles.h"
#include "attention_vec.h"

namespace {

constexpr float kLog2E = 1.4426950408889634f, kInfinity = std::numeric_limits<float>::infinity();

// Cache lines that are asked for between two register tiles' columns.
constexpr int64_t kAsked = 24;

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// --- one part ----------------------------------------------------------------------------------------------------

// Running state of the rows of one group of heads; rows are position by position, heads of the group within.
struct Rows {
    float *q, *out;      // (rows, padded)
    float *best, *norm;  // (rows): the greatest score so far; the weights' sum
};

struct Room {
    float* packed;  // keys turned, (width, kWalk), then values, (kWalk, padded): both would not stay near the core
    float* scores;  // (rows, kWalk)
    float *anchor, *fade;  // (rows)
    float* none;  // a key of zeros
    float key_scales[kWalk], value_scales[kWalk];
};

// Query rows that see the keys low … high−1 of a block, counted within the block.
struct Run {
    int64_t first, last, low, high;
};

template <int32_t kType>
inline void widen_typed(const char* from, int64_t width, int64_t padded, float* to) {
    int64_t i = 0;
    for (; i + kWidth <= width; i += kWidth) load_vec<kType>(from, i).store(to + i);
    for (; i < width; i++) to[i] = load_scalar<kType>(from, i);
    for (; i < padded; i++) to[i] = 0.0f;
}

// `width` elements of any type as float32, and zeros up to `padded`.
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

class Part {
  public:
    Part(const AttentionCall& call, const AttentionPart& part, float* room)
        : c_(call), p_(part), heads_(call.heads / call.groups), rows_((part.last - part.first) * heads_),
          padded_(round_up(call.width, kStrip)), length_(call.kv_lengths[part.segment]),
          start_(call.q_offsets[part.segment]), past_(length_ - (call.q_offsets[part.segment + 1] - start_)) {
        lay_out(room);
    }

    AttentionResult run() {
        for (int64_t g = p_.group_first; g < p_.group_last; g++) begin(state(g), g);
        const int64_t end = c_.causal ? past_ + p_.last : length_;
        const int64_t first = c_.window > 0 ? std::max<int64_t>(0, past_ + p_.first - c_.window + 1) : 0;
        int64_t now[kWalk], next[kWalk];
        const int64_t nothing[kWalk] = {-1};
        if (!find(first / kWalk * kWalk, first, end, now)) return kOutside;
        for (int64_t at = first / kWalk * kWalk; at < end; at += kWalk) {
            const bool more = at + kWalk < end;
            if (more && !find(at + kWalk, first, end, next)) return kOutside;
            const int64_t low = std::max(first - at, int64_t(0)), high = std::min(end - at, kWalk);
            for (int64_t g = p_.group_first; g < p_.group_last; g++) {
                expect(more ? next : nothing, g);
                const Rows rows = state(g);
                pack_keys(now, g);
                visit(at, [&](const Run& run) { weigh(run, rows); });
                if (rows_ <= kTileRows && padded_ == c_.width) {
                    visit(at, [&](const Run& run) { gather_stored(run, rows, now, g); });
                } else {
                    pack_values(now, low, high, g);
                    visit(at, [&](const Run& run) { gather(run, rows); });
                }
            }
            std::copy(next, next + kWalk, now);
        }
        for (int64_t g = p_.group_first; g < p_.group_last; g++) finish(state(g), g);
        return kDone;
    }

    static int64_t room(int64_t rows, int64_t groups, int64_t width) {
        const int64_t padded = round_up(width, kStrip), lanes = round_up(rows, 16) + 16;
        return kWalk * padded + lanes * (kWalk + 2) + padded + groups * (2 * rows * padded + 2 * lanes) + 64;
    }

  private:
    void lay_out(float* room) {
        const int64_t lanes = round_up(rows_, 16) + 16;
        const auto take = [&](int64_t count) { return std::exchange(room, room + count); };
        r_.packed = take(kWalk * padded_);
        r_.scores = take(lanes * kWalk);
        r_.anchor = take(lanes);
        r_.fade = take(lanes);
        r_.none = take(padded_);
        std::fill(r_.none, r_.none + padded_, 0.0f);
        states_ = room;
    }

    Rows state(int64_t g) const {
        const int64_t lanes = round_up(rows_, 16) + 16;
        float* at = states_ + (g - p_.group_first) * (2 * rows_ * padded_ + 2 * lanes);
        return {at, at + rows_ * padded_, at + 2 * rows_ * padded_, at + 2 * rows_ * padded_ + lanes};
    }

    // Queries times scale and log2(e), float32: scores are exponents of two.
    void begin(const Rows& s, int64_t g) const {
        const float factor = c_.scale * kLog2E;
        for (int64_t r = 0; r < rows_; r++) {
            const int64_t from = (start_ + p_.first + r / heads_) * c_.q_stride + (g * heads_ + r % heads_) * c_.width;
            float* to = s.q + r * padded_;
            widen_row(static_cast<const char*>(c_.q) + from * size_of(c_.type), c_.type, c_.width, padded_, to);
            for (int64_t i = 0; i < padded_; i += kWidth) (Vec::load(to + i) * Vec::all(factor)).store(to + i);
        }
        std::fill(s.out, s.out + rows_ * padded_, 0.0f);
        std::fill(s.best, s.best + rows_, -kInfinity);
        std::fill(s.norm, s.norm + rows_, 0.0f);
    }

    // Where each key of the block at position `at` lies: a row, or −1 where no row of this part sees it.
    bool find(int64_t at, int64_t first, int64_t end, int64_t (&found)[kWalk]) const {
        const int32_t* table = c_.block_table ? c_.block_table + p_.segment * c_.table_width : nullptr;
        for (int64_t j = 0; j < kWalk; j++) {
            const int64_t position = at + j;
            found[j] = -1;
            if (position < first || position >= end) continue;
            if (!table) {
                found[j] = start_ + position;
            } else if (j > 0 && found[j - 1] >= 0 && position % c_.block) {
                found[j] = found[j - 1] + 1;
            } else {
                found[j] = int64_t(table[position / c_.block]) * c_.block + position % c_.block;
                if (found[j] < 0 || found[j] + c_.block - position % c_.block > c_.slots) return false;
            }
        }
        return true;
    }

    const char* key_at(int64_t row, int64_t g) const {
        return static_cast<const char*>(c_.keys) + (row * c_.key_stride + g * c_.width) * size_of(c_.key_type);
    }
    const char* value_at(int64_t row, int64_t g) const {
        return static_cast<const char*>(c_.values) + (row * c_.value_stride + g * c_.width) * size_of(c_.key_type);
    }

    // The block's keys, turned; those that no row of this part sees are zero.
    void pack_keys(const int64_t (&found)[kWalk], int64_t g) {
        const char* rows[kWalk];
        for (int64_t j = 0; j < kWalk; j++) {
            rows[j] = found[j] < 0 ? reinterpret_cast<const char*>(r_.none) : key_at(found[j], g);
        }
        turn_keys(rows, c_.key_type, c_.width, r_.packed);
        if (c_.scales) {
            for (int64_t j = 0; j < kWalk; j++) {
                r_.key_scales[j] = found[j] < 0 ? 0.0f : c_.scales[found[j] * c_.groups + g];
                r_.value_scales[j] = found[j] < 0 ? 0.0f : c_.scales[(c_.slots + found[j]) * c_.groups + g];
            }
        }
    }

    // The values of keys low … high−1, in the room where the keys were.
    void pack_values(const int64_t (&found)[kWalk], int64_t low, int64_t high, int64_t g) {
        for (int64_t j = low; j < high; j++) {
            widen_row(value_at(found[j], g), c_.key_type, c_.width, padded_, r_.packed + j * padded_);
        }
    }

    // The next block of these heads is asked for while this one is computed with, a few lines at a time: more at once
    // than the core has buffers for would make it wait.
    void expect(const int64_t (&found)[kWalk], int64_t g) {
        coming_ = found;
        coming_group_ = g;
        asked_ = 0;
    }

    void ask() {
        const int64_t bytes = c_.width * size_of(c_.key_type);
        for (int64_t asked = 0; asked_ < kWalk && asked < kAsked && coming_[asked_] >= 0; asked_++) {
            const char *key = key_at(coming_[asked_], coming_group_), *value = value_at(coming_[asked_], coming_group_);
            for (int64_t i = 0; i < bytes; i += 64, asked += 2) {
                __builtin_prefetch(key + i);
                __builtin_prefetch(value + i);
            }
        }
    }

    // body(run) for the rows that see keys of the block at position `at`: neighbours that see the same keys go together.
    template <typename Body>
    void visit(int64_t at, Body&& body) {
        for (int64_t t = p_.first; t < p_.last;) {
            Run run = seen(at, t);
            int64_t after = t + 1;
            for (; after < p_.last; after++) {
                const Run other = seen(at, after);
                if (other.low != run.low || other.high != run.high) break;
            }
            run.first = (t - p_.first) * heads_;
            run.last = (after - p_.first) * heads_;
            if (run.low < run.high) body(run);
            t = after;
        }
    }

    Run seen(int64_t at, int64_t t) const {
        const int64_t position = past_ + t;
        const int64_t stop = c_.causal ? position + 1 : length_;
        const int64_t start = c_.window > 0 ? position - c_.window + 1 : 0;
        return {0, 0, std::max<int64_t>(0, start - at), std::min<int64_t>(kWalk, stop - at)};
    }

    // The weights of the run's rows, in r_.scores.
    void weigh(const Run& run, const Rows& s) {
        score(run, s);
        rescale(run, s);
        exponents(run, s);
    }

    void score(const Run& run, const Rows& s) {
        for (int64_t at = run.low / kStrip * kStrip; at < run.high;) {
            ask();
            const bool pair = at + 2 * kStrip <= round_up(run.high, kStrip);
            bool both = false;
            by_tiles(run.last - run.first, [&](auto rows, int64_t first) {
                const float* q = s.q + (run.first + first) * padded_;
                float* to = r_.scores + (run.first + first) * kWalk + at;
                if constexpr (kTwice<rows>) {
                    if (pair && run.last - run.first == rows) {
                        score_tile<rows, 2 * kTileVecs>(q, padded_, r_.packed + at, c_.width, to);
                        both = true;
                        return;
                    }
                }
                score_tile<rows, kTileVecs>(q, padded_, r_.packed + at, c_.width, to);
            });
            at += both ? 2 * kStrip : kStrip;
        }
    }

    // Scores in their final form, the greatest so far, and what earlier sums are multiplied by.
    void rescale(const Run& run, const Rows& s) {
        for (int64_t r = run.first; r < run.last; r++) {
            float* scores = r_.scores + r * kWalk;
            if (c_.scales) {
                for (int64_t j = 0; j < kWalk; j += kWidth) {
                    (Vec::load(scores + j) * Vec::load(r_.key_scales + j)).store(scores + j);
                }
            }
            std::fill(scores, scores + run.low, -kInfinity);
            std::fill(scores + run.high, scores + kWalk, -kInfinity);
            Vec most = Vec::load(scores);
            for (int64_t j = kWidth; j < kWalk; j += kWidth) most = max(most, Vec::load(scores + j));
            const float best = std::max(s.best[r], greatest(most));
            r_.fade[r] = s.best[r];
            s.best[r] = best;
            r_.anchor[r] = best == -kInfinity ? 0.0f : best;
        }
        // What a vector reaches beyond the run is overwritten before it is read.
        for (int64_t r = run.first; r < run.last; r += kWidth) {
            exp2_vec(Vec::load(r_.fade + r) - Vec::load(r_.anchor + r)).store(r_.fade + r);
        }
    }

    void exponents(const Run& run, const Rows& s) {
        for (int64_t r = run.first; r < run.last; r++) {
            float* scores = r_.scores + r * kWalk;
            const Vec anchor = Vec::all(r_.anchor[r]);
            Vec weights[kWalk / kWidth];
            for (int64_t j = 0; j < kWalk / kWidth; j++) weights[j] = exp2_vec(Vec::load(scores + j * kWidth) - anchor);
            s.norm[r] = s.norm[r] * r_.fade[r] + sum_by_halves(fold(weights));
            for (int64_t j = 0; j < kWalk / kWidth; j++) {
                if (c_.scales) weights[j] = weights[j] * Vec::load(r_.value_scales + j * kWidth);
                weights[j].store(scores + j * kWidth);
            }
        }
    }

    // With values as pack_values left them, or (few rows: each value is used once) as they are stored.
    void gather(const Run& run, const Rows& s) {
        gather_from(run, s, [this](int64_t j, int64_t i) { return Vec::load(r_.packed + j * padded_ + i); });
    }

    template <int32_t kType>
    void gather_stored(const Run& run, const Rows& s, const int64_t (&found)[kWalk], int64_t g) {
        const char* rows[kWalk];
        for (int64_t j = run.low; j < run.high; j++) rows[j] = value_at(found[j], g);
        gather_from(run, s, [&rows](int64_t j, int64_t i) { return load_vec<kType>(rows[j], i); });
    }

    void gather_stored(const Run& run, const Rows& s, const int64_t (&found)[kWalk], int64_t g) {
        switch (c_.key_type) {
            case kBFloat16:
                return gather_stored<kBFloat16>(run, s, found, g);
            case kFloat16:
                return gather_stored<kFloat16>(run, s, found, g);
            case kInt8:
                return gather_stored<kInt8>(run, s, found, g);
            default:
                return gather_stored<kFloat32>(run, s, found, g);
        }
    }

    template <typename Value>
    void gather_from(const Run& run, const Rows& s, Value value) {
        for (int64_t at = 0; at < padded_;) {
            ask();
            const bool pair = at + 2 * kStrip <= padded_;
            bool both = false;
            by_tiles(run.last - run.first, [&](auto rows, int64_t tile) {
                const int64_t first = run.first + tile;
                const float *weights = r_.scores + first * kWalk, *fade = r_.fade + first;
                float* out = s.out + first * padded_ + at;
                const auto value_of = [&value, at](int64_t j, int64_t n) { return value(j, at + n * kWidth); };
                if constexpr (kTwice<rows>) {
                    if (pair && run.last - run.first == rows) {
                        value_tile<rows, 2 * kTileVecs>(weights, fade, run.low, run.high, value_of, out, padded_);
                        both = true;
                        return;
                    }
                }
                value_tile<rows, kTileVecs>(weights, fade, run.low, run.high, value_of, out, padded_);
            });
            at += both ? 2 * kStrip : kStrip;
        }
    }

    void finish(const Rows& s, int64_t g) const {
        for (int64_t r = 0; r < rows_; r++) {
            const int64_t to = (start_ + p_.first + r / heads_) * c_.heads * c_.width + (g * heads_ + r % heads_) * c_.width;
            float* out = s.out + r * padded_;
            const Vec norm = Vec::all(s.norm[r]);
            for (int64_t i = 0; i < padded_; i += kWidth) (Vec::load(out + i) / norm).store(out + i);
            for (int64_t i = 0; i < c_.width; i++) store_one(c_.out, c_.type, to + i, out[i]);
        }
    }

    const AttentionCall& c_;
    const AttentionPart& p_;
    const int64_t heads_, rows_, padded_, length_, start_, past_;
    Room r_;
    float* states_ = nullptr;
    const int64_t* coming_ = nullptr;
    int64_t coming_group_ = 0, asked_ = kWalk;
};

AttentionResult attend(const AttentionCall& call, const AttentionPart& part, float* room) { return Part(call, part, room).run(); }

void exp2_many(const float* x, float* y, int64_t count) {
    for (int64_t i = 0; i < count; i += kWidth) {
        float lanes[kWidth] = {};
        const int64_t here = std::min(kWidth, count - i);
        std::copy(x + i, x + i + here, lanes);
        exp2_vec(Vec::load(lanes)).store(lanes);
        std::copy(lanes, lanes + here, y + i);
    }
}

constexpr AttentionKernels kAttentionKernels = {Part::room, attend, write_row, exp2_many};

}  // namespace
