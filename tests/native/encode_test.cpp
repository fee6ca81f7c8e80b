// Quantisation of weights: the same codes, scales and errors on every instruction set, and decoded values near the floats.
#include "encode.h"

#include "kernel_test.h"
#include "quant.h"

namespace {

constexpr float kLevels[16] = {-63, -50, -41, -33, -26, -19, -12, -6, 0, 7, 14, 21, 29, 38, 49, 63};

void panels(int32_t bits, int64_t rows, int64_t columns, int64_t group, bool hostile) {
    Random random(bits + rows);
    std::vector<float> matrix = random.floats(rows * columns);
    for (size_t i = 0; i < size_t(columns) * 3; i++) matrix[i] = std::round(matrix[i] * 8) / 8;  // groups with several extremes
    if (hostile) matrix[3] = INFINITY, matrix[size_t(columns)] = NAN;
    const int64_t count = (rows + 15) / 16;
    const size_t code_bytes = size_t(count * columns * 2 * bits), scale_bytes = size_t(count * columns / group * 16 * 2);
    const auto compute = [&] {
        std::vector<char> both(code_bytes + scale_bytes);
        vt_encode_own(bits, matrix.data(), kFloat32, rows, columns, columns, group, kLevels, both.data(), both.data() + code_bytes);
        return both;
    };
    const std::string what = std::to_string(bits) + " bits, " + std::to_string(rows) + " rows, groups of " + std::to_string(group);
    same_on_every_isa(what + (hostile ? ", not finite" : ""), compute);
    if (hostile) return;

    const std::vector<char> both = compute();
    const char* const scales = both.data() + code_bytes;
    float table[16];
    for (int i = 0; i < 16; i++) table[i] = kLevels[i] / 64;
    same_on_every_isa(what + ", errors", [&] {
        std::vector<double> sums(size_t(2 * vt_encode_pieces(bits, rows, columns, group)));
        vt_encode_error(bits, matrix.data(), kFloat32, rows, columns, columns, group, table, kFloat32, both.data(), scales, sums.data());
        return sums;
    });
    std::vector<int8_t> levels(kLevels, kLevels + 16);
    const QuantWeight weight = {reinterpret_cast<const uint8_t*>(both.data()), reinterpret_cast<const uint16_t*>(scales),
                                bits == 4 ? levels.data() : nullptr, nullptr, nullptr, rows, count};
    std::vector<float> decoded(static_cast<size_t>(columns));
    for (int64_t row = 0; row < rows; row++) {
        vt_quant_rows(bits, &weight, columns, group, &row, 1, decoded.data(), kFloat32);
        for (int64_t i = 0; i < columns; i++) {
            const float error = std::fabs(decoded[size_t(i)] - matrix[size_t(row * columns + i)]);
            expect(error <= (bits == 8 ? 0.01f : 0.2f), "a decoded value far from its float");
        }
    }
}

void map4(int64_t count, int64_t group) {
    Random random(count);
    const std::vector<float> values = random.floats(count);
    float bounds[15];
    int8_t order[16];
    for (int i = 0; i < 15; i++) bounds[i] = float(2 * i - 14) / 16;  // the levels are (2·rank − 15) / 16
    for (int i = 0; i < 16; i++) order[i] = int8_t(15 - i);
    const size_t code_bytes = size_t((count + 1) / 2), groups = size_t((count + group - 1) / group);
    const auto compute = [&] {
        std::vector<char> both(code_bytes + groups * 4);
        std::vector<float> absmax(groups);
        vt_encode_map4(values.data(), kFloat32, count, group, bounds, order, both.data(), absmax.data());
        std::memcpy(both.data() + code_bytes, absmax.data(), groups * 4);
        return both;
    };
    same_on_every_isa("map of " + std::to_string(count), compute);
    const std::vector<char> both = compute();
    for (int64_t i = 0; i < count; i++) {
        float absmax;
        std::memcpy(&absmax, both.data() + code_bytes + size_t(i / group) * 4, 4);
        const int code = uint8_t(both[size_t(i / 2)]) >> (i % 2 ? 0 : 4) & 15;
        const float decoded = float(2 * (15 - code) - 15) / 16 * absmax;
        expect(std::fabs(decoded - values[size_t(i)]) <= absmax * 0.0626f, "a decoded value far from its float");
    }
}

void fit(int64_t count, int64_t group) {
    Random random(group);
    std::vector<float> ratio = random.floats(count * group), weights(size_t(count), 1.0f);
    for (int64_t n = 0; n < count; n++) ratio[size_t(n * group)] = 1;  // the extreme
    const int64_t whole = (count + 7) / 8 * 8;
    same_on_every_isa("fit of groups of " + std::to_string(group), [&] {
        std::vector<char> codes(size_t(whole * group));
        std::vector<float> scales(static_cast<size_t>(whole));
        std::vector<double> sums(32);
        vt_encode_fit(ratio.data(), weights.data(), count, group, kLevels, codes.data(), scales.data(), sums.data());
        for (int64_t n = 0; n < count; n++) expect(std::isfinite(scales[size_t(n)]), "no scale");
        return sums;
    });
}

}  // namespace

int main() {
    for (int32_t bits : {4, 8}) {
        for (int64_t group : {32, 64, 128}) panels(bits, 37, 256, group, false);
        panels(bits, 16, 128, 32, true);
    }
    for (int64_t count : {64, 640, 1000, 33}) map4(count, 64);
    for (int64_t group : {32, 64, 128}) fit(19, group);
}
