// Attention over a paged KV cache or packed rows, and writes into that cache. Block allocation is done in Python.
#pragma once

#include "cpu.h"

// Keys and values per step of online softmax (KC). Part of the numeric definition: running sums are rescaled once a tile.
constexpr int64_t kKvTile = 32;

// Register tiles of the two micro-kernels (q·kᵀ and p·v), by instruction set: MR query rows × NR vectors of keys or of head
// elements. As many accumulators as the registers hold; few rows take twice the vectors.
struct AttentionTile {
    int rows, vectors;
};
constexpr AttentionTile kAttentionTiles[kIsaCount] = {
    {4, 2},   // portable, 8 floats per vector
    {5, 4},   // neon, 4
    {6, 2},   // avx2, 8
    {12, 2},  // avx512, 16
    {12, 2},  // amx: as avx512
};

// One call: packed query rows of several segments. Strides are in elements from row to row; heads are contiguous. Owned by
// the caller, read by all threads of the call; only `out` is written, each row by one thread.
struct AttentionCall {
    const void* q;               // (rows, heads, width) of `type`
    const void* keys;            // (rows, groups, width) of `key_type`: the segments' rows, or the cache's slots
    const void* values;          // as keys
    const float* scales;         // int8: (2, slots, groups), first the keys'; else null
    const int32_t* block_table;  // (segments, table_width), or null: keys are the segments' rows
    const int32_t* q_offsets;    // (segments + 1): first row of each segment
    const int32_t* kv_lengths;   // (segments): context length of each segment's last row
    void* out;                   // (rows, heads, width) of `type`, dense
    int64_t rows, segments, heads, groups, width;
    int64_t slots, block, table_width;
    int64_t q_stride, key_stride, value_stride;
    int64_t window;  // keys that a row attends to at most, its own included; 0: all
    int32_t causal, type, key_type;
    float scale;  // of the scores
};

// One call that stores `rows` new keys and values in their cache slots. Owned by the caller; each slot is written by one thread,
// so slots must be distinct.
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

// The work of one thread: query rows first … last−1 of one segment with key/value heads group_first … group_last−1.
struct AttentionPart {
    int64_t segment, first, last, group_first, group_last;
};

// Static and immutable, one per instruction set.
struct AttentionKernels {
    // Floats of scratch for a part of `rows` rows (positions × query heads per key/value head) and `groups` key/value heads.
    int64_t (*scratch_floats)(int64_t rows, int64_t groups, int64_t width);
    // `scratch` belongs to the calling thread.
    AttentionResult (*attend)(const AttentionCall& call, const AttentionPart& part, float* scratch);
    void (*write)(const CacheWrite& call, int64_t row);
    void (*exp2)(const float* x, float* y, int64_t count);
};

extern const AttentionKernels attention_portable, attention_neon, attention_avx2, attention_avx512;

// Whether offsets, lengths, block table and slots are within the tensors: checked once per batch, before the _checked calls.
bool attention_fits(const AttentionCall& call);
bool slots_fit(const CacheWrite& call);
int32_t attend_checked(const AttentionCall& call);
void write_checked(const CacheWrite& call);

// kOutside: an index is out of range; nothing was written.
VT_EXPORT int32_t vt_attention(const AttentionCall* call);
VT_EXPORT int32_t vt_cache_write(const CacheWrite* call);
// 2^x for x ≤ 0 as attention computes it: for tests.
VT_EXPORT void vt_attention_exp2(const float* x, float* y, int64_t count);
