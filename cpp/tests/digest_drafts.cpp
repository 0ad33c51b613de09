// What drafting takes: int8 activations, levels, and what makes them.
#include "packed_input.h"

namespace penstock {
namespace {

struct Shape {
  std::int64_t rows, cols, outputs;
};
constexpr Shape kShapes[] = {{1, 30, 5},  {2, 64, 13},  {3, 520, 9},  {4, 1000, 7},
                             {8, 513, 6}, {9, 2050, 8}, {21, 300, 13}};

// int8 activations; those of rough rows have blocks with NaN.
class Quantized {
 public:
  Quantized(const Kernels& table, const Rows<const float>& x)
      : rows_(x.rows), cols_(x.cols), data_(x.rows * blocks_of(x.cols) * kBlockBytes) {
    __builtin_memset(data_.data(), 0, static_cast<std::size_t>(bytes()));  // groups behind the last are left alone
    run_in_parts(table.draft.quantize_rows, {x, data_.data()}, x.rows * blocks_of(x.cols), data_.scratch());
  }
  QuantizedRows rows() { return {data_.data(), rows_, cols_}; }
  void add(Digest& digest) {
    const std::int64_t blocks = rows_ * blocks_of(cols_);
    for (std::int64_t b = 0; b < blocks; ++b) {
      const std::uint8_t* block = data_.data() + b * kBlockBytes;
      digest.add(block, kBlockScale);
      digest.add(reinterpret_cast<const float*>(block + kBlockScale), 1);
    }
  }

 private:
  std::int64_t bytes() const { return rows_ * blocks_of(cols_) * kBlockBytes; }

  std::int64_t rows_, cols_;
  Aligned data_;
};

void quantize_rows(const Kernels& table, Digest& digest) {
  for (const Shape& shape : kShapes) {
    for (const bool rough : {false, true}) {
      Random random(static_cast<std::uint32_t>(shape.cols));
      Matrix x(shape.rows, shape.cols, random);
      if (rough) x = Matrix(shape.rows, shape.cols, random, true);
      Quantized(table, x).add(digest);
    }
  }
}

struct CoarseInput {
  PackedInput packed;
  std::vector<std::uint8_t> magnitudes;
  std::vector<float> scales;

  CoarseInput(const Shape& shape, Random& random)
      : packed(shape.outputs, shape.cols, 4, random), scales(random.values(shape.outputs)) {
    for (std::int64_t i = 0; i < 4 * shape.outputs; ++i) {
      magnitudes.push_back(static_cast<std::uint8_t>(random.below(80)));
    }
  }
  CoarseMatrix matrix() const { return packed.coarse(magnitudes.data(), scales.data()); }
};

void matmul_coarse(const Kernels& table, Digest& digest) {
  for (const Shape& shape : kShapes) {
    Random random(static_cast<std::uint32_t>(shape.cols + 1));
    const CoarseInput w(shape, random);
    Quantized x(table, Matrix(shape.rows, shape.cols, random));
    const std::vector<float> bias = random.values(shape.outputs);
    Matrix out(shape.rows, shape.outputs, random);
    Aligned scratch(1 << 18);
    const MatmulCoarseArgs args{x.rows(), w.matrix(), shape.rows % 2 == 0 ? bias.data() : nullptr, shape.rows % 3 == 0,
                                out};
    run_in_parts(table.draft.matmul_coarse, args, shape.outputs, scratch.scratch());
    digest.add(out.values());
  }
}

void widen_coarse(const Kernels& table, Digest& digest) {
  for (const Shape& shape : kShapes) {
    Random random(static_cast<std::uint32_t>(shape.cols + 2));
    const CoarseInput w(shape, random);
    std::vector<float> out(static_cast<std::size_t>(shape.outputs * shape.cols));
    run_in_parts(table.draft.widen_coarse, {w.matrix(), out.data()}, shape.outputs, {nullptr, 0});
    digest.add(out);
  }
}

void count_classes(const Kernels& table, Digest& digest) {
  for (const Shape& shape : kShapes) {
    Random random(static_cast<std::uint32_t>(shape.cols + 3));
    const CoarseInput w(shape, random);
    std::vector<std::int32_t> counts(static_cast<std::size_t>(4 * shape.outputs));
    std::vector<std::uint8_t> units(static_cast<std::size_t>(shape.outputs));
    run_in_parts(table.draft.count_classes, {w.matrix(), counts.data(), units.data()}, shape.outputs, {nullptr, 0});
    digest.add(counts);
    digest.add(units);
  }
}

struct NibbleInput {
  std::vector<std::uint8_t> data;
  std::vector<float> scales;

  NibbleInput(const Kernels& table, const Shape& shape, Random& random, bool any)
      : data(static_cast<std::size_t>(shape.outputs * groups_of(shape.cols) * kGroupNibbleBytes)),
        scales(static_cast<std::size_t>(shape.outputs * blocks_of(shape.cols))) {
    const std::vector<std::uint8_t> weights = random.weights(shape.outputs * shape.cols, any);
    run_in_parts(table.draft.quantize_nibbles, {weights.data(), shape.outputs, shape.cols, data.data(), scales.data()},
                 shape.outputs, {nullptr, 0});
  }
};

void quantize_nibbles(const Kernels& table, Digest& digest) {
  for (const Shape& shape : kShapes) {
    for (const bool any : {false, true}) {
      Random random(static_cast<std::uint32_t>(shape.cols + 4));
      const NibbleInput w(table, shape, random, any);
      digest.add(w.data);
      digest.add(w.scales);
    }
  }
}

void matmul_nibbles(const Kernels& table, Digest& digest) {
  for (const Shape& shape : kShapes) {
    Random random(static_cast<std::uint32_t>(shape.cols + 5));
    const NibbleInput w(table, shape, random, false);
    Quantized x(table, Matrix(shape.rows, shape.cols, random));
    Matrix out(shape.rows, shape.outputs, random);
    Aligned scratch(1 << 18);
    const NibbleMatrix matrix{shape.outputs, shape.cols, w.data.data(), w.scales.data()};
    run_in_parts(table.draft.matmul_nibbles, {x.rows(), matrix, nullptr, shape.rows % 2 == 0, out}, shape.outputs,
                 scratch.scratch());
    digest.add(out.values());
  }
}

void add_levels(const Kernels& table, Digest& digest) {
  for (const Shape& shape : kShapes) {
    Random random(static_cast<std::uint32_t>(shape.cols + 6));
    const Matrix factors(shape.rows, shape.outputs, random);
    std::vector<std::int8_t> levels(static_cast<std::size_t>(shape.outputs * shape.cols));
    for (std::int8_t& level : levels) level = static_cast<std::int8_t>(random.bits());
    Matrix out(shape.rows, shape.cols, random);
    Aligned scratch(kMostLevelRows * kSumColumns * 4);
    run_in_parts(table.draft.add_levels, {factors, levels.data(), out}, shape.cols, scratch.scratch());
    digest.add(out.values());
  }
}

constexpr Case kCases[] = {
    {"quantize_rows", quantize_rows},       {"matmul_coarse", matmul_coarse},   {"widen_coarse", widen_coarse},
    {"count_classes", count_classes},       {"matmul_nibbles", matmul_nibbles}, {"add_levels", add_levels},
    {"quantize_nibbles", quantize_nibbles},
};

}  // namespace

std::span<const Case> draft_cases() { return kCases; }

}  // namespace penstock
