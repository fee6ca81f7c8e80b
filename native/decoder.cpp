// All decoder blocks of a step: buffers of the activations, and the order of the kernels.
#include "decoder.h"

#include <algorithm>

#include "align.h"
#include "rows.h"

namespace {

// Byte offsets of the activations in a run's scratch. Attention's and the MLP's share memory.
struct BufferLayout {
    int64_t normed, added, q, k, v, rotated_q, rotated_k, mixed, gate, up, scratch;

    explicit BufferLayout(const DecoderRun& run) {
        const int64_t element = run.rows * size_of(run.type);
        const int64_t heads = run.attend.heads * run.attend.width, groups = run.attend.groups * run.attend.width;
        int64_t end = 0;
        const auto take = [&](int64_t elements) {
            const int64_t begin = end;
            end += aligned(element * elements);
            return begin;
        };
        normed = take(run.width);
        added = take(run.width);
        const int64_t shared = end;
        q = take(heads);
        k = take(groups);
        v = take(groups);
        rotated_q = take(heads);
        rotated_k = take(groups);
        mixed = take(heads);
        const int64_t attention_end = end;
        end = shared;
        gate = take(run.inner);
        up = take(run.inner);
        scratch = std::max(end, attention_end);
    }
};

// Pointers into the run's scratch; used by one block at a time.
struct BlockBuffers {
    char *normed, *added, *q, *k, *v, *rotated_q, *rotated_k, *mixed, *gate, *up, *scratch;

    BlockBuffers(const BufferLayout& at, void* memory) {
        char* const base = static_cast<char*>(memory);
        normed = base + at.normed, added = base + at.added, scratch = base + at.scratch;
        q = base + at.q, k = base + at.k, v = base + at.v;
        rotated_q = base + at.rotated_q, rotated_k = base + at.rotated_k, mixed = base + at.mixed;
        gate = base + at.gate, up = base + at.up;
    }
};

// Floats of one arranged row of a dense product; the same as in ops/cpu/dense.py.
int64_t dense_columns(const Product& product) { return std::max(kDenseStep, round_up(product.columns, kDenseStep)); }

int64_t scratch_of(const DecoderRun& run, const Product& product) {
    if (product.kind) return vt_quant_scratch(run.rows, product.columns, product.group);
    return aligned(run.rows * dense_columns(product) * int64_t(sizeof(float)));
}

int64_t scratch_of(const DecoderRun& run) {
    int64_t most = 0;
    for (int64_t i = 0; i < run.count; i++) {
        const DecoderBlock& block = run.blocks[i];
        for (const Products* products : {&block.qkv, &block.out, &block.gate_up, &block.down}) {
            for (const Product& product : products->parts) {
                if (product.count) most = std::max(most, scratch_of(run, product));
            }
        }
    }
    return most;
}

template <typename Matrix>
const Matrix* with_results(const Product& product, void* const* results, Matrix (&copies)[kMostTogether]) {
    for (int64_t i = 0; i < product.count; i++) {
        copies[i] = static_cast<const Matrix*>(product.matrices)[i];
        copies[i].y = results[i];
    }
    return copies;
}

void multiply(const DecoderRun& run, const Product& product, const void* x, void* const* results, void* scratch) {
    if (product.kind) {
        QuantWeight copies[kMostTogether];
        vt_quant_linear(int32_t(product.kind), x, run.type, run.rows, product.columns, product.group,
                        with_results(product, results, copies), product.count, scratch);
    } else {
        DenseMatrix copies[kMostTogether];
        vt_dense_linear(x, run.type, run.rows, with_results(product, results, copies), product.count,
                        static_cast<float*>(scratch), run.rows);
    }
}

void multiply(const DecoderRun& run, const Products& products, const void* x, void* const* results, void* scratch) {
    for (const Product& product : products.parts) {
        if (product.count) multiply(run, product, x, results, scratch);
        results += product.count;
    }
}

AttentionResult attend(const DecoderRun& run, const DecoderBlock& block, const BlockBuffers& at) {
    const AttentionCall& shape = run.attend;
    vt_rotate(at.q, at.k, run.cos, run.sin, at.rotated_q, at.rotated_k, run.type, run.rows, shape.heads, shape.groups, shape.width);
    if (run.temperature) {
        scale_rows(at.rotated_q, run.temperature, at.rotated_q, run.type, run.rows, shape.heads * shape.width);
    }
    CacheWrite write = run.write;
    write.k = at.rotated_k, write.v = at.v;
    write.keys = block.keys, write.values = block.values, write.scales = block.scales;
    write_checked(write);
    AttentionCall call = shape;
    call.q = at.rotated_q, call.out = at.mixed;
    call.keys = block.keys, call.values = block.values, call.scales = block.scales;
    return AttentionResult(attend_checked(call));
}

AttentionResult run_block(const DecoderRun& run, const DecoderBlock& block, const BlockBuffers& at) {
    vt_rms_norm(run.hidden, block.attention_norm, at.normed, run.type, run.rows, run.width, run.eps);
    void* const projected[] = {at.q, at.k, at.v};
    multiply(run, block.qkv, at.normed, projected, at.scratch);
    const AttentionResult done = attend(run, block, at);
    if (done != kDone) return done;
    void* const added[] = {at.added};
    multiply(run, block.out, at.mixed, added, at.scratch);
    add_rows(run.hidden, at.added, run.hidden, run.type, run.rows, run.width);

    vt_rms_norm(run.hidden, block.mlp_norm, at.normed, run.type, run.rows, run.width, run.eps);
    void* const gated[] = {at.gate, at.up};
    multiply(run, block.gate_up, at.normed, gated, at.scratch);
    vt_silu_gate(at.gate, at.up, at.gate, run.type, run.rows * run.inner);
    multiply(run, block.down, at.gate, added, at.scratch);
    add_rows(run.hidden, at.added, run.hidden, run.type, run.rows, run.width);
    return kDone;
}

}  // namespace

int64_t vt_decoder_room(const DecoderRun* run) { return BufferLayout(*run).scratch + scratch_of(*run); }

int32_t vt_decoder_run(const DecoderRun* run) {
    if (!attention_fits(run->attend) || !slots_fit(run->write)) return kOutside;  // all layers share the indices
    const BlockBuffers at(BufferLayout(*run), run->scratch);
    for (int64_t i = 0; i < run->count; i++) {
        const AttentionResult done = run_block(*run, run->blocks[i], at);
        if (done != kDone) return done;
    }
    return kDone;
}
