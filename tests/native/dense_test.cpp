// Dense products: each instruction set within the rounding of float32 sums, rows independent of their number, to the bit.
#include "dense.h"

#include "kernel_test.h"

namespace {

struct Case {
    const char* name;
    DenseFormat format;
    int32_t type;
    std::vector<char> codes;
    std::vector<float> map, scales;
};

template <typename T>
std::vector<char> bytes_of(const std::vector<T>& values) {
    std::vector<char> bytes(values.size() * sizeof(T));
    std::memcpy(bytes.data(), values.data(), bytes.size());
    return bytes;
}

std::vector<Case> cases(Random& random, int64_t out, int64_t in, int64_t group) {
    const std::vector<float> map = random.floats(16);
    const std::vector<float> groups = random.floats((out * in + group - 1) / group), rows = random.floats(out);
    const int64_t pairs = (out + 15) / 16 * 16 * ((in + 1) / 2) * 2;
    std::vector<uint16_t> panels = random.bf16(pairs);
    for (size_t i = 0; in % 2 && i < panels.size(); i++) {
        if (int64_t(i / 2 / 16) % ((in + 1) / 2) == in / 2 && i % 2) panels[i] = 0;  // the column that completes a pair
    }
    return {{"float32", kRows, kFloat32, bytes_of(random.floats(out * in)), {}, {}},
            {"bfloat16", kRows, kBFloat16, bytes_of(random.bf16(out * in)), {}, {}},
            {"4-bit map", kMap4, kFloat32, bytes_of(random.integers<uint8_t>((out * in + 1) / 2, 0, 255)), map, groups},
            {"int8", kInt8Rows, kFloat32, bytes_of(random.integers<int8_t>(out * in, -127, 127)), {}, rows},
            {"panels", kPairPanels, kBFloat16, bytes_of(panels), {}, {}}};
}

// Row `row` of a matrix as floats.
std::vector<float> decoded(const DenseMatrix& m, int64_t row) {
    std::vector<float> values(static_cast<size_t>(m.in));
    if (m.format != kPairPanels) {
        vt_dense_decode(&m, row, row + 1, values.data(), kFloat32);
        return values;
    }
    const uint16_t* const pairs = static_cast<const uint16_t*>(m.codes) + row / 16 * ((m.in + 1) / 2) * 32;
    for (int64_t i = 0; i < m.in; i++) values[size_t(i)] = float(widen(pairs[(i / 2 * 16 + row % 16) * 2 + i % 2]));
    return values;
}

std::vector<float> product(const DenseMatrix& matrix, const float* x, int64_t rows) {
    std::vector<float> y(size_t(rows * matrix.out)), scratch(size_t(rows * ((matrix.in + kDenseStep - 1) / kDenseStep * kDenseStep)));
    DenseMatrix to = matrix;
    to.y = y.data();
    vt_dense_linear(x, kFloat32, rows, &to, 1, scratch.data(), rows);
    return y;
}

void check(const Case& one, int64_t out, int64_t in, int64_t group, int64_t rows) {
    Random random(rows);
    const std::vector<float> x = random.floats(rows * in), bias = random.floats(out);
    DenseMatrix matrix = {};
    matrix.codes = one.codes.data(), matrix.map = one.map.data(), matrix.scales = one.scales.data(), matrix.bias = bias.data();
    matrix.out = out, matrix.in = in, matrix.group = group, matrix.format = one.format, matrix.type = one.type;
    if (one.format != kPairPanels) {  // decoded weights are exact
        same_on_every_isa(std::string(one.name) + ", decoded", [&] {
            std::vector<float> all(size_t(out * in));
            vt_dense_decode(&matrix, 0, out, all.data(), kFloat32);
            return all;
        });
    }
    std::vector<double> wanted(size_t(rows * out)), size(wanted.size());
    vt_isa_use(kPortable);
    for (int64_t o = 0; o < out; o++) {
        const std::vector<float> w = decoded(matrix, o);
        for (int64_t row = 0; row < rows; row++) {
            const size_t at = size_t(row * out + o);
            wanted[at] = bias[size_t(o)];
            size[at] = std::fabs(wanted[at]);
            for (int64_t i = 0; i < in; i++) {
                const double part = double(x[size_t(row * in + i)]) * w[size_t(i)];
                wanted[at] += part, size[at] += std::fabs(part);
            }
        }
    }
    const auto close = [&](const std::vector<float>& y, const std::vector<float>&) {
        for (size_t i = 0; i < y.size(); i++) expect(std::fabs(y[i] - wanted[i]) <= 256 * 0x1p-24 * size[i] + 1e-30, "not the decoded matrix's product");
        const std::vector<float> last = product(matrix, x.data() + (rows - 1) * in, 1);
        expect(!std::memcmp(last.data(), y.data() + (rows - 1) * out, last.size() * sizeof(float)), "a row depends on the others");
    };
    const std::string what = std::string(one.name) + ", " + std::to_string(rows) + " rows of " + std::to_string(in);
    on_every_isa(what, [&] { return product(matrix, x.data(), rows); }, close);
}

}  // namespace

int main() {
    for (int64_t in : {1, 77, 192, 640}) {
        Random random(in + 7);
        const int64_t out = 53, group = 64;
        for (const Case& one : cases(random, out, in, group)) {
            for (int64_t rows : {1, 2, 3, 7, 13}) check(one, out, in, group, rows);
        }
    }
}
