// Whole blocks of a decoder as one call: the other areas' kernels one after another. No arithmetic of its own.
//
// A step of decoding is a dozen small calls a block. Each of them from Python costs more than it computes, because reading
// the weights has pushed the interpreter out of the caches, and leaves the pool's threads without work meanwhile.
#pragma once

#include "attention.h"
#include "dense.h"
#include "quant.h"

// Matrices with the same input that are one call: `count` QuantWeights of a kind and group, or (kind 0) DenseMatrices of a
// format and type. Their `y` are filled in by the call. Count 0: none.
struct Product {
    const void* matrices;
    int64_t count;
    int64_t columns;  // of the input
    int64_t group;
    int64_t kind;  // QuantKind, or 0
};

constexpr int64_t kMostTogether = 3;  // matrices with the same input

// Projections of one input: neighbours of the same layout are one Product.
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

// `rows` positions through all blocks. `attend` and `write` are filled in but for what differs from block to block.
struct DecoderRun {
    const DecoderBlock* blocks;
    int64_t count;
    void* hidden;  // (rows, width) of `type`, in and out
    const void* cos;
    const void* sin;          // (rows, attend.width) of `type`
    const void* temperature;  // (rows) of `type`: factors of the queries; or null
    void* room;               // 64-byte aligned, vt_decoder_room bytes
    AttentionCall attend;
    CacheWrite write;
    int64_t rows, width, inner;
    int32_t type;
    float eps;
};

// Bytes that a run needs beside its tensors. Reads everything but `hidden` and `room`.
VT_EXPORT int64_t vt_decoder_room(const DecoderRun* run);
// An AttentionResult. kOutside: nothing was written; kNoMemory leaves `hidden` and the cache's new positions undefined.
VT_EXPORT int32_t vt_decoder_run(const DecoderRun* run);
