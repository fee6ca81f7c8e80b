// q4 and q8 products: the same bits on every instruction set for all tile remainders, and close to the decoded matrix's.
#include "quant.h"

#include "kernel_test.h"

namespace {

constexpr int8_t kLevels[16] = {-63, -50, -41, -33, -26, -19, -12, -6, 0, 7, 14, 21, 29, 38, 49, 63};

void product(int32_t kind, int64_t out, int64_t columns, int64_t group, int64_t rows) {
    Random random(rows * 1000 + out);
    const int64_t panels = (out + 15) / 16;
    std::vector<uint8_t> codes = random.integers<uint8_t>(panels * columns * 2 * kind, 0, 255);
    if (kind == kQ8) {
        for (uint8_t& code : codes) code = code == 128 ? 129 : code;  // −127 … 127
    }
    const std::vector<uint16_t> scales = random.bf16(panels * columns / group * 16, 0.5f);
    const std::vector<float> x = random.floats(rows * columns), bias = random.floats(out);
    const QuantWeight weight = {codes.data(), scales.data(), kind == kQ4 ? kLevels : nullptr, bias.data(), nullptr, out, panels};
    const auto compute = [&] {
        std::vector<float> y(size_t(rows * out));
        QuantWeight to = weight;
        to.y = y.data();
        void* const scratch = std::aligned_alloc(64, size_t((vt_quant_scratch(rows, columns, group) + 63) / 64 * 64));
        vt_quant_linear(kind, x.data(), kFloat32, rows, columns, group, &to, 1, scratch);
        std::free(scratch);
        return y;
    };
    same_on_every_isa("q" + std::to_string(kind) + ", " + std::to_string(rows) + " rows", compute);

    // Activations have codes of 7 bits: an error of at most 1/254 of the group's largest, here below 1, per weight.
    const std::vector<float> y = compute();
    std::vector<float> decoded(static_cast<size_t>(columns));
    for (int64_t o = 0; o < out; o++) {
        expect(vt_quant_rows(kind, &weight, columns, group, &o, 1, decoded.data(), kFloat32) == 0, "a row was refused");
        double total = 0;
        for (float w : decoded) total += std::fabs(w);
        for (int64_t row = 0; row < rows; row++) {
            double wanted = bias[size_t(o)];
            for (int64_t i = 0; i < columns; i++) wanted += double(x[size_t(row * columns + i)]) * decoded[size_t(i)];
            expect(std::fabs(y[size_t(row * out + o)] - wanted) <= total / 250 + 1e-4, "far from the decoded matrix's product");
        }
    }
    const int64_t outside = out;
    expect(vt_quant_rows(kind, &weight, columns, group, &outside, 1, decoded.data(), kFloat32) == 1, "a row outside was decoded");
}

// The layout: columns 4s … 4s+3 of row r of q8 are bytes r·4 … r·4+3 of step s.
void layout() {
    where = "q8 layout";
    std::vector<uint8_t> codes(64 * 8, 0);
    codes[size_t(2 * 64 + 5 * 4 + 1)] = 64;                   // row 5, column 9
    const std::vector<uint16_t> scales(16, 0x4000);           // 2
    const QuantWeight weight = {codes.data(), scales.data(), nullptr, nullptr, nullptr, 16, 1};
    float row[32];
    const int64_t id = 5;
    vt_quant_rows(kQ8, &weight, 32, 32, &id, 1, row, kFloat32);
    for (int i = 0; i < 32; i++) expect(row[i] == (i == 9 ? 1.0f : 0.0f), "a code at another place");  // 64 / 128 · 2
}

}  // namespace

int main() {
    layout();
    for (int32_t kind : {kQ4, kQ8}) {
        for (int64_t rows : {1, 2, 3, 5, 8, 15, 16, 17, 33, 130}) product(kind, 37, 256, 32, rows);
        for (int64_t group : {64, 128}) product(kind, 100, 640, group, 9);
    }
}
