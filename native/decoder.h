// All decoder blocks of a step as one call, which runs the other areas' kernels in turn.
//
// A decoding step is a dozen small calls per block. Made from Python, each would cost more than it computes, because reading
// the weights evicts the interpreter from the caches, and the pool's threads would be idle meanwhile.
#pragma once

#include "attention.h"
#include "dense.h"
#include "quant.h"

// Matrices with one input that are multiplied in one call: `count` QuantWeights of one kind and group, or (kind 0)
// DenseMatrices of one format and type. The call copies them and sets `y` in the copies. Count 0: none. This and the
// following structures are owned by the caller and read by the calling thread.
struct Product {
    const void* matrices;
    int64_t count;
    int64_t columns;  // of the input
    int64_t group;
    int64_t kind;  // QuantKind, or 0
};

constexpr int64_t kMostTogether = 3;  // matrices with the same input

// Projections of one input; adjacent ones with the same layout form one Product.
struct Products {
    Product parts[kMostTogether];
};

// One block, x + attention(norm(x)), then x + mlp(norm(x)); norms are (width) of the activations' type.
struct DecoderBlock {
    const void* attention_norm;
    const void* mlp_norm;
    Products qkv, out, gate_up, down;
    void* keys;  // the cache's, as in AttentionCall
    void* values;
    float* scales;
};

// `rows` positions through all blocks. `attend` and `write` lack only what differs between blocks: activations and cache.
// `hidden`, `scratch` and the cache are written; no other thread may use them during the call.
struct DecoderRun {
    const DecoderBlock* blocks;
    int64_t count;
    void* hidden;  // (rows, width) of `type`, in and out
    const void* cos;
    const void* sin;          // (rows, attend.width) of `type`
    const void* temperature;  // (rows) of `type`: factors of the queries; or null
    void* scratch;            // 64-byte aligned, vt_decoder_room bytes
    AttentionCall attend;
    CacheWrite write;
    int64_t rows, width, inner;
    int32_t type;
    float eps;
};

// Bytes of scratch that a run needs. Reads everything but `hidden` and `scratch`.
VT_EXPORT int64_t vt_decoder_room(const DecoderRun* run);
// Returns an AttentionResult. kOutside: nothing was written; kNoMemory: `hidden` and the cache's new positions are undefined.
VT_EXPORT int32_t vt_decoder_run(const DecoderRun* run);
