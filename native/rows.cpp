// Functions of single rows: divides rows among threads.
#include "rows.h"

#include <algorithm>

#include "pool.h"

namespace {

#if defined(__x86_64__)
const RowKernels* const table[kIsaCount] = {&rows_portable, nullptr, &rows_avx2, &rows_avx512, nullptr};
#elif defined(__aarch64__)
const RowKernels* const table[kIsaCount] = {&rows_portable, &rows_neon, nullptr, nullptr, nullptr};
#else
const RowKernels* const table[kIsaCount] = {&rows_portable, nullptr, nullptr, nullptr, nullptr};
#endif

// Elements that are worth waking another thread for.
constexpr int64_t kGrain = 16384;

template <typename Body>
void by_rows(int64_t rows, int64_t width, Body body) {
    const int64_t together = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, width));
    parallel((rows + together - 1) / together, [&](int64_t chunk) {
        const int64_t last = std::min(rows, (chunk + 1) * together);
        for (int64_t row = chunk * together; row < last; row++) body(row);
    });
}

int64_t bytes_of(int32_t type) { return type == kFloat32 ? 4 : 2; }

}  // namespace

void vt_rms_norm(const void* x, const void* weight, void* y, int32_t type, int64_t rows, int64_t width, float eps) {
    const RowKernels& kernels = choose(table);
    const int64_t stride = width * bytes_of(type);
    by_rows(rows, width, [&](int64_t row) {
        kernels.rms_norm(static_cast<const char*>(x) + row * stride, weight, static_cast<char*>(y) + row * stride, type, width, eps);
    });
}
