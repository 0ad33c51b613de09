// Matrix products, with weights as they are and with indexed ones.
#include "codec/index.h"
#include "digest.h"

namespace penstock {
namespace {

struct Shape {
  std::int64_t rows, cols, outputs;
};
// Few rows and more than any tile has, whole and ragged steps of 16, more than one block of 1024 terms.
constexpr Shape kShapes[] = {{1, 37, 5}, {2, 64, 7}, {3, 1, 3}, {4, 100, 9}, {6, 48, 4}, {7, 1040, 6}, {19, 2065, 5}};

constexpr std::int64_t kScratch = 1 << 20;

void matmul_as(const Kernels& table, Digest& digest, Dtype dtype, const Shape& shape, bool rough) {
  Random random(static_cast<std::uint32_t>(shape.rows * 64 + static_cast<int>(dtype)));
  const std::int64_t items = shape.cols * shape.outputs;
  const Matrix x(shape.rows, shape.cols, random, rough);
  std::vector<std::uint8_t> w(1);  // an odd address
  if (dtype == Dtype::kBF16) {
    const std::vector<std::uint8_t> weights = random.weights(items, rough);
    w.insert(w.end(), weights.begin(), weights.end());
  } else if (dtype == Dtype::kF16) {
    // Exponents up to that of 1; where rough, any 16 bits, so that denormals, infinities and NaNs are among them.
    for (std::int64_t i = 0; i < items; ++i) {
      const std::uint32_t half = random.bits() & (rough ? 0xffff : 0xbfff);
      w.push_back(static_cast<std::uint8_t>(half));
      w.push_back(static_cast<std::uint8_t>(half >> 8));
    }
  } else {
    const std::vector<float> weights = random.values(items, rough);
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(weights.data());
    w.insert(w.end(), bytes, bytes + 4 * items);
  }
  const std::vector<float> bias = random.values(shape.outputs);
  Matrix out(shape.rows, shape.outputs, random);
  Aligned scratch(kScratch);
  const MatmulArgs args{x, w.data() + 1, dtype, shape.rows % 2 == 0 ? bias.data() : nullptr, shape.rows % 3 == 0, out};
  run_in_parts(table.matmul, args, shape.outputs, scratch.scratch());
  digest.add(out.values());
}

void matmul(const Kernels& table, Digest& digest) {
  for (const Dtype dtype : {Dtype::kBF16, Dtype::kF16, Dtype::kF32}) {
    for (const Shape& shape : kShapes) matmul_as(table, digest, dtype, shape, false);
    for (const Shape& shape : {Shape{2, 19, 40}, Shape{5, 3, 60}}) matmul_as(table, digest, dtype, shape, true);
  }
}

void matmul_indexed(const Kernels& table, Digest& digest) {
  for (const Shape& shape : kShapes) {
    Random random(static_cast<std::uint32_t>(shape.cols));
    const Matrix x(shape.rows, shape.cols, random);
    const std::vector<std::uint8_t> weights = random.weights(shape.cols * shape.outputs);
    std::vector<std::int64_t> exceptions(static_cast<std::size_t>(shape.outputs));
    IndexArgs index{weights.data(), shape.outputs, shape.cols, exceptions.data(), nullptr};
    count_exceptions(index, 0, shape.outputs);
    std::int64_t total = 0;
    for (std::int64_t& count : exceptions) {
      const std::int64_t own = count;
      count = total;
      total += own;
    }
    Aligned rows(shape.outputs * indexed_row_bytes(shape.cols) + total * kExceptionBytes);
    index.out = rows.data();
    index_rows(index, 0, shape.outputs);
    Matrix out(shape.rows, shape.outputs, random);
    Aligned scratch(kScratch);
    const MatmulIndexedArgs args{x, {rows.data(), shape.outputs, shape.cols}, nullptr, shape.rows % 2 == 1, out};
    run_in_parts(table.matmul_indexed, args, shape.outputs, scratch.scratch());
    digest.add(out.values());
  }
}

constexpr Case kCases[] = {{"matmul", matmul}, {"matmul_indexed", matmul_indexed}};

}  // namespace

std::span<const Case> product_cases() { return kCases; }

}  // namespace penstock
