// Row-wise kernels: the same bits on every instruction set, and close to their formulas in double.
#include "rows.h"

#include "kernel_test.h"

namespace {

template <typename T>
int32_t type_of() {
    return sizeof(T) == 4 ? kFloat32 : kBFloat16;
}

double value(float x) { return x; }
double value(uint16_t x) { return widen(x); }

template <typename T>
std::vector<T> random_of(Random& random, int64_t count) {
    if constexpr (sizeof(T) == 4) return random.floats(count, 4.0f);
    if constexpr (sizeof(T) == 2) return random.bf16(count, 4.0f);
}

// Roundings of the type that a formula may be away: a step is 2^-23 or 2^-8 of the value.
template <typename T>
void expect_near(double got, double wanted, double steps) {
    expect(std::fabs(got - wanted) <= steps * (sizeof(T) == 4 ? 0x1p-23 : 0x1p-8) * (std::fabs(wanted) + 1e-3), "not the formula's value");
}

template <typename T>
void rms_norm(int64_t rows, int64_t width) {
    Random random(1);
    const std::vector<T> x = random_of<T>(random, rows * width), weight = random_of<T>(random, width);
    const auto compute = [&] {
        std::vector<T> y(x.size());
        vt_rms_norm(x.data(), weight.data(), y.data(), type_of<T>(), rows, width, 1e-5f);
        return y;
    };
    same_on_every_isa("rms_norm, width " + std::to_string(width), compute);
    const std::vector<T> y = compute();
    for (int64_t row = 0; row < rows; row++) {
        double squares = 0;
        for (int64_t i = 0; i < width; i++) squares += value(x[size_t(row * width + i)]) * value(x[size_t(row * width + i)]);
        for (int64_t i = 0; i < width; i++) {
            const size_t at = size_t(row * width + i);
            expect_near<T>(value(y[at]), value(x[at]) / std::sqrt(squares / double(width) + 1e-5) * value(weight[size_t(i)]), 8);
        }
    }
}

template <typename T>
void silu_gate(int64_t count) {
    Random random(2);
    const std::vector<T> gate = random_of<T>(random, count), up = random_of<T>(random, count);
    const auto compute = [&] {
        std::vector<T> y(gate.size());
        vt_silu_gate(gate.data(), up.data(), y.data(), type_of<T>(), count);
        return y;
    };
    same_on_every_isa("silu_gate of " + std::to_string(count), compute);
    const std::vector<T> y = compute();
    for (size_t i = 0; i < y.size(); i++) {
        expect_near<T>(value(y[i]), value(gate[i]) / (1 + std::exp(-value(gate[i]))) * value(up[i]), 8);
    }
}

template <typename T>
void rotate(int64_t rows, int64_t q_heads, int64_t k_heads, int64_t width) {
    Random random(3);
    const std::vector<T> q = random_of<T>(random, rows * q_heads * width), k = random_of<T>(random, rows * k_heads * width);
    const std::vector<T> cos = random_of<T>(random, rows * width), sin = random_of<T>(random, rows * width);
    const auto compute = [&] {
        std::vector<T> y(q.size() + k.size());
        vt_rotate(q.data(), k.data(), cos.data(), sin.data(), y.data(), y.data() + q.size(), type_of<T>(), rows, q_heads, k_heads, width);
        return y;
    };
    same_on_every_isa("rotate, width " + std::to_string(width), compute);
    const std::vector<T> y = compute();
    for (int64_t i = 0; i < width; i++) {  // the first head of q
        const double partner = i < width / 2 ? -value(q[size_t(i + width / 2)]) : value(q[size_t(i - width / 2)]);
        const double wanted = value(q[size_t(i)]) * value(cos[size_t(i)]) + partner * value(sin[size_t(i)]);
        expect(std::fabs(value(y[size_t(i)]) - wanted) <= 32 * (sizeof(T) == 4 ? 0x1p-22 : 0x1p-7), "not the formula's value");
    }
}

template <typename T>
void all() {
    for (int64_t width : {1, 15, 16, 64, 100, 1024}) rms_norm<T>(5, width);
    for (int64_t count : {1, 17, 5000}) silu_gate<T>(count);
    for (int64_t width : {2, 10, 64, 128}) rotate<T>(7, 4, 2, width);
}

}  // namespace

int main() {
    all<float>();
    all<uint16_t>();
}
