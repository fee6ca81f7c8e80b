// Attention: each instruction set near softmax(q·kᵀ)·v in double; a cached row equal to the same row of a prefill, to the bit.
#include "attention.h"

#include "kernel_test.h"

namespace {

constexpr int64_t kHeads = 6, kGroups = 2, kBlock = 16, kBlocks = 24;

struct Inputs {
    int64_t rows, width, window;
    int32_t key_type;
    std::vector<float> q, k, v;
    Inputs(int64_t rows, int64_t width, int64_t window, int32_t key_type)
        : rows(rows), width(width), window(window), key_type(key_type) {
        Random random(rows * 100 + width);
        q = random.floats(rows * kHeads * width, 3.0f);
        k = random.floats(rows * kGroups * width);
        v = random.floats(rows * kGroups * width);
    }
};

// The last `count` of all rows, with every key in a cache of blocks in reverse order.
std::vector<float> attend(const Inputs& in, int64_t count) {
    const int64_t stride = kGroups * in.width, slots = kBlocks * kBlock;
    std::vector<char> keys(size_t(slots * stride * 4)), values(keys.size());
    std::vector<float> scales(size_t(2 * slots * kGroups)), out(size_t(count * kHeads * in.width));
    std::vector<int64_t> at(static_cast<size_t>(in.rows));
    std::vector<int32_t> table(static_cast<size_t>(kBlocks));
    for (int64_t i = 0; i < kBlocks; i++) table[size_t(i)] = int32_t(kBlocks - 1 - i);
    for (int64_t i = 0; i < in.rows; i++) at[size_t(i)] = table[size_t(i / kBlock)] * kBlock + i % kBlock;
    CacheWrite write = {};
    write.k = in.k.data(), write.v = in.v.data(), write.keys = keys.data(), write.values = values.data();
    write.scales = in.key_type == kInt8 ? scales.data() : nullptr, write.at = at.data();
    write.rows = in.rows, write.groups = kGroups, write.width = in.width, write.slots = slots;
    write.k_stride = write.v_stride = stride, write.type = kFloat32, write.key_type = in.key_type;
    expect(vt_cache_write(&write) == kDone, "the cache was not written");

    const int32_t offsets[] = {0, int32_t(count)}, lengths[] = {int32_t(in.rows)};
    AttentionCall call = {};
    call.q = in.q.data() + (in.rows - count) * kHeads * in.width, call.keys = keys.data(), call.values = values.data();
    call.scales = write.scales, call.block_table = table.data(), call.q_offsets = offsets, call.kv_lengths = lengths;
    call.out = out.data(), call.rows = count, call.segments = 1, call.heads = kHeads, call.groups = kGroups, call.width = in.width;
    call.slots = slots, call.block = kBlock, call.table_width = kBlocks, call.q_stride = kHeads * in.width;
    call.key_stride = call.value_stride = stride, call.window = in.window, call.causal = 1, call.type = kFloat32;
    call.key_type = in.key_type, call.scale = 0.3f;
    expect(vt_attention(&call) == kDone, "attention was refused");
    call.slots = kBlock;
    expect(vt_attention(&call) == kOutside, "a block outside the cache was read");
    return out;
}

std::vector<double> formula(const Inputs& in) {
    std::vector<double> out(in.q.size());
    for (int64_t row = 0; row < in.rows; row++) {
        for (int64_t head = 0; head < kHeads; head++) {
            const int64_t group = head / (kHeads / kGroups), first = in.window ? std::max<int64_t>(0, row - in.window + 1) : 0;
            double sum = 0;
            double* const to = &out[size_t((row * kHeads + head) * in.width)];
            for (int64_t j = first; j <= row; j++) {
                double score = 0;
                for (int64_t i = 0; i < in.width; i++) {
                    score += double(in.q[size_t((row * kHeads + head) * in.width + i)]) * in.k[size_t((j * kGroups + group) * in.width + i)];
                }
                const double weight = std::exp(score * 0.3f);
                sum += weight;
                for (int64_t i = 0; i < in.width; i++) to[i] += weight * in.v[size_t((j * kGroups + group) * in.width + i)];
            }
            for (int64_t i = 0; i < in.width; i++) to[i] /= sum;
        }
    }
    return out;
}

void check(int64_t rows, int64_t width, int64_t window, int32_t key_type) {
    const Inputs in(rows, width, window, key_type);
    const std::vector<double> wanted = formula(in);
    // What the cache's type rounds keys and values by, times the sensitivity of the softmax; float32: sums alone.
    const double bound = key_type == kFloat32 ? 2e-5 : key_type == kFloat16 ? 1e-2 : 8e-2;
    const auto close = [&](const std::vector<float>& out, const std::vector<float>&) {
        for (size_t i = 0; i < out.size(); i++) expect(std::fabs(out[i] - wanted[i]) <= bound, "not softmax(q·k)·v");
        const std::vector<float> last = attend(in, 1);
        expect(!std::memcmp(last.data(), &out[out.size() - last.size()], last.size() * sizeof(float)), "a cached row differs from prefill");
    };
    const std::string what = std::to_string(rows) + " rows of " + std::to_string(width) + ", window " + std::to_string(window) +
                             ", cache type " + std::to_string(key_type);
    on_every_isa(what, [&] { return attend(in, rows); }, close);
}

}  // namespace

int main() {
    for (int32_t key_type : {kFloat32, kBFloat16, kFloat16, kInt8}) {
        for (int64_t width : {10, 64, 88}) {
            for (int64_t rows : {1, 31, 33, 100}) check(rows, width, 0, key_type);
            check(150, width, 40, key_type);
        }
    }
}
