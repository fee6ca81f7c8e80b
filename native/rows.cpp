// Row-wise functions: partitions rows among threads.
#include "rows.h"

#include <algorithm>

#include "align.h"
#include "pool.h"

namespace {

#if defined(__x86_64__)
const RowKernels* const table[kIsaCount] = {&rows_portable, nullptr, &rows_avx2, &rows_avx512, nullptr};
#elif defined(__aarch64__)
const RowKernels* const table[kIsaCount] = {&rows_portable, &rows_neon, nullptr, nullptr, nullptr};
#else
const RowKernels* const table[kIsaCount] = {&rows_portable, nullptr, nullptr, nullptr, nullptr};
#endif

template <typename Body>
void by_rows(int64_t rows, int64_t width, Body body) {
    const int64_t together = std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, width));
    parallel(divide_up(rows, together), double(rows) * double(width), [&](int64_t chunk) {
        const int64_t last = std::min(rows, (chunk + 1) * together);
        for (int64_t row = chunk * together; row < last; row++) body(row);
    });
}

const char* at(const void* base, int64_t offset) { return static_cast<const char*>(base) + offset; }
char* at(void* base, int64_t offset) { return static_cast<char*>(base) + offset; }

}  // namespace

void vt_rms_norm(const void* x, const void* weight, void* y, int32_t type, int64_t rows, int64_t width, float eps) {
    const auto kernel = choose(table).rms_norm[type];
    const int64_t stride = width * size_of(type);
    by_rows(rows, width, [&](int64_t row) { kernel(at(x, row * stride), weight, at(y, row * stride), width, eps); });
}

void vt_silu_gate(const void* gate, const void* up, void* y, int32_t type, int64_t count) {
    const auto kernel = choose(table).silu_gate[type];
    constexpr int64_t kPart = 4096;  // elements of a chunk: an exponential and a division each, so fewer than kGrainElements
    parallel(divide_up(count, kPart), 4.0 * double(count), [&](int64_t part) {
        const int64_t offset = part * kPart * size_of(type), width = std::min(kPart, count - part * kPart);
        kernel(at(gate, offset), at(up, offset), at(y, offset), width);
    });
}

void vt_rotate(const void* q, const void* k, const void* cos, const void* sin, void* q_out, void* k_out, int32_t type,
               int64_t rows, int64_t q_heads, int64_t k_heads, int64_t width) {
    const auto kernel = choose(table).rotate[type];
    const int64_t head = width * size_of(type);
    by_rows(rows, (q_heads + k_heads) * width, [&](int64_t row) {
        const char *c = at(cos, row * head), *s = at(sin, row * head);
        kernel(at(q, row * q_heads * head), c, s, at(q_out, row * q_heads * head), q_heads, width);
        kernel(at(k, row * k_heads * head), c, s, at(k_out, row * k_heads * head), k_heads, width);
    });
}

void add_rows(const void* x, const void* other, void* y, int32_t type, int64_t rows, int64_t width) {
    const auto kernel = choose(table).add[type];
    const int64_t stride = width * size_of(type);
    by_rows(rows, width, [&](int64_t row) { kernel(at(x, row * stride), at(other, row * stride), at(y, row * stride), width); });
}

void scale_rows(const void* x, const void* factors, void* y, int32_t type, int64_t rows, int64_t width) {
    const auto kernel = choose(table).scale[type];
    const int64_t size = size_of(type), stride = width * size;
    by_rows(rows, width, [&](int64_t row) { kernel(at(x, row * stride), at(factors, row * size), at(y, row * stride), width); });
}
