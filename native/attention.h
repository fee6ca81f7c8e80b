// Attention over blocks of keys, and writing into the cache that they lie in. Who owns which block is Python's.
#pragma once

#include "cpu.h"

// Absolute positions that one step of the walk takes. Part of the definition: it says where running sums are rescaled.
constexpr int64_t kWalk = 32;

// One call: packed query rows of several segments. Strides are in elements from row to row; heads lie one after another.
struct AttentionCall {
    const void* q;               // (rows, heads, width) of `type`
    const void* keys;            // (rows, groups, width) of `key_type`: the segments' own rows, or the cache's slots
    const void* values;          // as keys
    const float* scales;         // int8: (2, slots, groups), first the keys'; else null
    const int32_t* block_table;  // (segments, table_width), or null: a segment's keys are its own rows
    const int32_t* q_offsets;    // (segments + 1): where each segment's rows begin
    const int32_t* kv_lengths;   // (segments): keys that a segment's last row sees
    void* out;                   // (rows, heads, width) of `type`, dense
    int64_t rows, segments, heads, groups, width;
    int64_t slots, block, table_width;
    int64_t q_stride, key_stride, value_stride;
    int64_t window;  // a row sees at most so many keys, itself included; 0: all
    int32_t causal, type, key_type;
    float scale;  // of the scores
};

// One call that stores `rows` new keys and values at their slots of the cache.
struct CacheWrite {
    const void* k;  // (rows, groups, width) of `type`
    const void* v;
    void* keys;  // (slots, groups, width) of `key_type`
    void* values;
    float* scales;       // int8: (2, slots, groups); else null
    const int64_t* at;   // (rows)
    int64_t rows, groups, width, slots;
    int64_t k_stride, v_stride;
    int32_t type, key_type;
};

enum AttentionResult : int32_t { kDone = 0, kNoMemory = 1, kOutside = 2 };

// Query rows first … last−1 of one segment with the key/value heads group_first … group_last−1.
struct AttentionPart {
    int64_t segment, first, last, group_first, group_last;
};

struct AttentionKernels {
    // Floats of working memory that a part of `rows` rows (positions × query heads of a group) and `groups` needs.
    int64_t (*room)(int64_t rows, int64_t groups, int64_t width);
    AttentionResult (*attend)(const AttentionCall& call, const AttentionPart& part, float* room);
    void (*write)(const CacheWrite& call, int64_t row);
    void (*exp2)(const float* x, float* y, int64_t count);
};

extern const AttentionKernels attention_portable, attention_neon, attention_avx2, attention_avx512;

// Whether offsets, lengths, the table's entries and slots fit the tensors: once a batch, and what `checked` then trusts.
bool attention_fits(const AttentionCall& call);
bool slots_fit(const CacheWrite& call);
int32_t attend_checked(const AttentionCall& call);
void write_checked(const CacheWrite& call);

// kOutside: indices do not fit, and nothing was written.
VT_EXPORT int32_t vt_attention(const AttentionCall* call);
VT_EXPORT int32_t vt_cache_write(const CacheWrite* call);
// 2^x for x ≤ 0 as attention takes it: for tests.
VT_EXPORT void vt_attention_exp2(const float* x, float* y, int64_t count);
