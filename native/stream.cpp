// Reading memory and nothing else: divides a buffer among threads.
#include "stream.h"

#include <algorithm>
#include <atomic>

#include "pool.h"

namespace {

constexpr int64_t kChunk = 1 << 20;  // bytes
constexpr int64_t kLanes = 32;       // words of four cache lines: sums that do not wait for each other
constexpr int64_t kAhead = 512;      // words, 4 KiB: what decoding kernels fetch ahead

uint64_t sum(const uint64_t* words, int64_t count) {
    uint64_t lanes[kLanes] = {};
    int64_t at = 0;
    for (; at + kLanes <= count; at += kLanes) {
#if defined(__GNUC__)
        for (int64_t line = 0; line < kLanes; line += 8) __builtin_prefetch(words + at + kAhead + line);
#endif
        for (int64_t lane = 0; lane < kLanes; lane++) lanes[lane] += words[at + lane];
    }
    for (; at < count; at++) lanes[0] += words[at];
    uint64_t total = 0;
    for (const uint64_t lane : lanes) total += lane;
    return total;
}

}  // namespace

uint64_t vt_stream_read(const void* words, int64_t bytes) {
    const char* first = static_cast<const char*>(words);
    std::atomic<uint64_t> total{0};
    parallel((bytes + kChunk - 1) / kChunk, [&](int64_t chunk) {
        const int64_t here = std::min(kChunk, bytes - chunk * kChunk) / 8;
        total.fetch_add(sum(reinterpret_cast<const uint64_t*>(first + chunk * kChunk), here), std::memory_order_relaxed);
    });
    return total.load();
}
