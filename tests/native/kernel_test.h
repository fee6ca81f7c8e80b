// What the kernels' C++ tests share: random tensors with fixed seeds, comparison by bits, a loop over instruction sets.
//
// Each area's test calls the library's exported functions, so it links against libvitrail:
//   g++ -std=c++17 -Inative tests/native/rows_test.cpp -Lsrc/vitrail/ops/_kernels -lvitrail -Wl,-rpath,$PWD/src/vitrail/ops/_kernels
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cpu.h"
#include "pool.h"

inline const char* const kIsaNames[kIsaCount] = {"portable", "neon", "avx2", "avx512", "amx"};
inline std::string where;  // the case that runs, for messages

inline void expect(bool right, const std::string& what) {
    if (right) return;
    std::printf("%s: %s with %s\n", where.c_str(), what.c_str(), kIsaNames[vt_isa_current()]);
    std::exit(1);
}

// std::mt19937 gives the same numbers everywhere, the standard distributions do not.
class Random {
  public:
    explicit Random(int64_t seed) : bits_(uint32_t(seed)) {}
    // lowest … highest.
    int64_t integer(int64_t lowest, int64_t highest) { return lowest + int64_t(bits_() % uint64_t(highest - lowest + 1)); }
    // −1 … 1.
    float uniform() { return float(bits_()) * 0x1p-31f - 1.0f; }
    std::vector<float> floats(int64_t count, float size = 1.0f) {
        std::vector<float> values(static_cast<size_t>(count));
        for (float& value : values) value = uniform() * size;
        return values;
    }
    // The upper halves of floats: bfloat16 without rounding.
    std::vector<uint16_t> bf16(int64_t count, float size = 1.0f) {
        std::vector<uint16_t> values(static_cast<size_t>(count));
        for (uint16_t& value : values) {
            const float wide = uniform() * size;
            std::memcpy(&value, reinterpret_cast<const char*>(&wide) + 2, sizeof value);
        }
        return values;
    }
    template <typename T>
    std::vector<T> integers(int64_t count, int64_t lowest, int64_t highest) {
        std::vector<T> values(static_cast<size_t>(count));
        for (T& value : values) value = T(integer(lowest, highest));
        return values;
    }

  private:
    std::mt19937 bits_;
};

inline double widen(uint16_t bf16) {
    const uint32_t word = uint32_t(bf16) << 16;
    float value;
    std::memcpy(&value, &word, sizeof value);
    return value;
}

template <typename T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

// compute() on every instruction set of this machine, with one thread and with three; check(result, portable result) of each.
// Results must not depend on the number of threads.
template <typename Compute, typename Check>
void on_every_isa(const std::string& what, Compute compute, Check check) {
    where = what;
    expect(vt_isa_use(kPortable) == 1, "no portable kernels");
    vt_set_threads(1);
    const auto portable = compute();
    for (int32_t isa = 0; isa < kIsaCount; isa++) {
        if (!vt_isa_use(isa)) continue;
        vt_set_threads(1);
        const auto result = compute();
        vt_set_threads(3);
        expect(same_bits(result, compute()), "the result depends on the number of threads");
        check(result, portable);
    }
}

// The same for kernels that must give the portable bits.
template <typename Compute>
void same_on_every_isa(const std::string& what, Compute compute) {
    on_every_isa(what, compute, [](const auto& result, const auto& portable) {
        expect(same_bits(result, portable), "other bits than the portable kernel's");
    });
}
