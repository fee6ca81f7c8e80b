// Attention and cache writes: checks indices, partitions the work, calls the kernels of the selected instruction set.
#include "attention.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>
#include <vector>

#include "align.h"
#include "pool.h"

namespace {

#if defined(__x86_64__)
const AttentionKernels* const table[kIsaCount] = {&attention_portable, nullptr, &attention_avx2, &attention_avx512, nullptr};
#elif defined(__aarch64__)
const AttentionKernels* const table[kIsaCount] = {&attention_portable, &attention_neon, nullptr, nullptr, nullptr};
#else
const AttentionKernels* const table[kIsaCount] = {&attention_portable, nullptr, nullptr, nullptr, nullptr};
#endif

// Query rows (positions × heads of a group) that share one pass over the keys; a multiple of every register tile.
constexpr int64_t kPartRows = 240;
// Up to this many rows a part is bound by memory bandwidth. It then takes as many key/value heads as leave one part for
// every thread: their keys are adjacent, which causes fewer TLB misses.
constexpr int64_t kReadBoundRows = 16;

// Scratch memory of one thread (thread_local), reused from call to call.
class ThreadScratch {
  public:
    ~ThreadScratch() { std::free(data_); }

    // `floats` floats, aligned to a cache line, or null if there is no memory.
    float* get(int64_t floats) {
        if (floats > size_) {
            std::free(data_);
            data_ = std::malloc(size_t(floats) * sizeof(float) + kCacheLine);
            size_ = data_ ? floats : 0;
        }
        return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(data_) + kCacheLine - 1) & ~uintptr_t(kCacheLine - 1));
    }

  private:
    void* data_ = nullptr;
    int64_t size_ = 0;
};

// The parts of all segments; within a segment the last positions, which have the most keys, come first.
std::vector<AttentionPart> partition(const AttentionCall& c) {
    const int64_t heads = c.heads / c.groups, positions = std::max<int64_t>(1, kPartRows / heads);
    std::vector<AttentionPart> parts;
    int64_t most = 0;
    for (int64_t n = 0; n < c.segments; n++) {
        const int64_t rows = c.q_offsets[n + 1] - c.q_offsets[n];
        most = std::max(most, std::min(rows, positions));
        for (int64_t tile = divide_up(rows, positions); tile-- > 0;) {
            parts.push_back({n, tile * positions, std::min(rows, (tile + 1) * positions), 0, c.groups});
        }
    }
    int64_t groups_together = 1;
    if (most * heads <= kReadBoundRows) {
        const int64_t all = int64_t(parts.size()) * c.groups;
        groups_together = std::min(c.groups, std::max<int64_t>(1, all / pool_threads()));
    }
    std::vector<AttentionPart> split;
    for (const AttentionPart& part : parts) {
        for (int64_t g = 0; g < c.groups; g += groups_together) {
            split.push_back({part.segment, part.first, part.last, g, std::min(c.groups, g + groups_together)});
        }
    }
    return split;
}

// Estimated cost for the pool: keys read, products with them and exponentials.
double work_of(const AttentionCall& c) {
    double pairs = 0;
    for (int64_t n = 0; n < c.segments; n++) {
        pairs += double(c.q_offsets[n + 1] - c.q_offsets[n]) * double(std::max(1, c.kv_lengths[n]));
    }
    return pairs * double(c.heads) * double(4 + c.width / 4);
}

AttentionResult run(const AttentionCall& c) {
    if (c.rows == 0 || c.width == 0) return kDone;
    const AttentionKernels& kernels = choose(table);
    const std::vector<AttentionPart> parts = partition(c);
    std::atomic<int32_t> result{kDone};
    parallel(int64_t(parts.size()), work_of(c), [&](int64_t chunk) {
        thread_local ThreadScratch memory;
        const AttentionPart& part = parts[size_t(chunk)];
        const int64_t rows = (part.last - part.first) * (c.heads / c.groups);
        float* scratch = memory.get(kernels.scratch_floats(rows, part.group_last - part.group_first, c.width));
        const AttentionResult done = scratch ? kernels.attend(c, part, scratch) : kNoMemory;
        if (done != kDone) result.store(done, std::memory_order_relaxed);
    });
    return AttentionResult(result.load());
}

// Whether all blocks that a segment's rows attend to are in the cache.
bool blocks_fit(const AttentionCall& c, int64_t segment, int64_t rows) {
    const int64_t length = c.kv_lengths[segment], blocks = c.slots / c.block;
    if (length > c.table_width * c.block) return false;
    const int64_t first = c.window > 0 ? std::max<int64_t>(0, length - rows - c.window + 1) : 0;
    const int32_t* const entries = c.block_table + segment * c.table_width;
    for (int64_t at = first / c.block; at * c.block < length; at++) {
        if (entries[at] < 0 || entries[at] >= blocks) return false;
    }
    return true;
}

}  // namespace

bool attention_fits(const AttentionCall& c) {
    if (c.groups < 1 || c.heads < 1 || c.heads % c.groups || (c.block_table && c.block < 1)) return false;
    if (c.q_offsets[0] != 0 || c.q_offsets[c.segments] != c.rows) return false;
    for (int64_t n = 0; n < c.segments; n++) {
        const int64_t rows = int64_t(c.q_offsets[n + 1]) - c.q_offsets[n], length = c.kv_lengths[n];
        if (rows < 0 || length < rows) return false;
        if (c.block_table ? !blocks_fit(c, n, rows) : length != rows) return false;
    }
    return true;
}

bool slots_fit(const CacheWrite& c) {
    return std::all_of(c.at, c.at + c.rows, [&](int64_t slot) { return slot >= 0 && slot < c.slots; });
}

int32_t attend_checked(const AttentionCall& call) {
    try {
        return run(call);
    } catch (const std::bad_alloc&) {
        return kNoMemory;
    }
}

int32_t vt_attention(const AttentionCall* call) { return attention_fits(*call) ? attend_checked(*call) : kOutside; }

void write_checked(const CacheWrite& c) {
    const AttentionKernels& kernels = choose(table);
    const int64_t rows_together = std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, c.groups * c.width));
    parallel(divide_up(c.rows, rows_together), double(c.rows) * double(c.groups) * double(c.width), [&](int64_t chunk) {
        const int64_t last = std::min(c.rows, (chunk + 1) * rows_together);
        for (int64_t row = chunk * rows_together; row < last; row++) kernels.write(c, row);
    });
}

int32_t vt_cache_write(const CacheWrite* call) {
    if (!slots_fit(*call)) return kOutside;
    write_checked(*call);
    return kDone;
}

void vt_attention_exp2(const float* x, float* y, int64_t count) { choose(table).exp2(x, y, count); }
