// Drafting in penstock._core: checks shapes, releases the GIL, calls the kernels; nothing else.
#include "bindings_draft.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <memory>
#include <new>
#include <optional>
#include <vector>

#include "arrays.h"
#include "kernels/run.h"
#include "threads.h"

namespace penstock {
namespace {

using namespace nb::literals;
using Bytes = Vector<const std::uint8_t>;
using Floats = Vector<const float>;

// Memory for the activations of one call as int8.
class Quantized {
 public:
  explicit Quantized(const Rows<const float>& x)
      : data_(static_cast<std::uint8_t*>(::operator new(bytes(x), std::align_val_t(kChunkAlignment)))) {}
  std::uint8_t* data() const { return data_.get(); }

 private:
  static std::size_t bytes(const Rows<const float>& x) {
    return static_cast<std::size_t>(std::min(x.rows, kDraftRows) * blocks_of(x.cols) * kBlockBytes);
  }
  struct Delete {
    void operator()(std::uint8_t* p) const { ::operator delete(p, std::align_val_t(kChunkAlignment)); }
  };
  std::unique_ptr<std::uint8_t, Delete> data_;
};

// Where the coarse chunks of a matrix are, which lie one after the other in each of the arrays.
class Chunks {
 public:
  // Checks that all lie within their arrays.
  Chunks(const std::vector<Bytes>& arrays, std::int64_t rows, std::int64_t cols, std::int64_t rows_per_chunk)
      : rows_(rows), cols_(cols), rows_per_chunk_(std::min(rows_per_chunk, rows)) {
    require_packable(rows, cols);
    require(rows_per_chunk > 0, "rows_per_chunk must be positive");
    const std::int64_t whole = coarse_bytes(rows_per_chunk_, cols), count = divide_up(rows, rows_per_chunk_);
    const std::int64_t last = bare_coarse_bytes(rows - (count - 1) * rows_per_chunk_, cols);
    for (const Bytes& array : arrays) {
      std::int64_t left = static_cast<std::int64_t>(array.shape(0));
      for (const std::uint8_t* chunk = array.data(); left > 0 && this->count() < count; chunk += whole, left -= whole) {
        require(left >= (this->count() < count - 1 ? whole : last), "coarse is too short");
        chunks_.push_back(chunk);
      }
    }
    require(this->count() == count, "coarse is too short");
  }
  CoarseMatrix matrix() const { return {rows_, cols_, rows_per_chunk_, chunks_.data(), nullptr, nullptr}; }

 private:
  std::int64_t count() const { return static_cast<std::int64_t>(chunks_.size()); }

  std::int64_t rows_;
  std::int64_t cols_;
  std::int64_t rows_per_chunk_;
  std::vector<const std::uint8_t*> chunks_;
};

template <typename Args>
void require_product(const Rows<const float>& x, const Args& args, const std::optional<Floats>& bias) {
  require_equal(args.out.rows, x.rows, "rows of out");
  if (bias) require_equal(bias->shape(0), args.out.cols, "length of bias");
}

void bind_matmul_coarse(ThreadPool& pool, const Matrix<const float>& x, std::int64_t rows_per_chunk,
                        const std::vector<Bytes>& coarse, const Matrix<const std::uint8_t>& magnitudes,
                        const Floats& scales, const Matrix<float>& out, const std::optional<Floats>& bias,
                        bool accumulate) {
  const Rows<const float> x_rows = rows_of(x, "x");
  const Rows<float> out_rows = rows_of(out, "out");
  const Rows<const std::uint8_t> of_classes = rows_of(magnitudes, "magnitudes");
  const Chunks chunks(coarse, out_rows.cols, x_rows.cols, rows_per_chunk);
  MatmulCoarseArgs args{
      .x = {},
      .w = chunks.matrix(),
      .bias = bias ? bias->data() : nullptr,
      .accumulate = accumulate,
      .out = out_rows,
  };
  require_product(x_rows, args, bias);
  require(of_classes.rows == args.w.rows && of_classes.cols == 4 && of_classes.stride == 4,
          "magnitudes must be contiguous, four for each row");
  require_equal(scales.shape(0), args.w.rows, "length of scales");
  args.w.magnitudes = of_classes.data;
  args.w.scales = scales.data();
  const nb::gil_scoped_release release;
  matmul_coarse(pool, x_rows, Quantized(x_rows).data(), args);
}

void require_nibbles(const NibbleMatrix& w, std::size_t data, std::size_t scales) {
  require_packable(w.rows, w.cols);
  require_equal(static_cast<std::int64_t>(data), w.rows * groups_of(w.cols) * kGroupNibbleBytes, "bytes of nibbles");
  require_equal(static_cast<std::int64_t>(scales), w.rows * blocks_of(w.cols), "length of scales");
}

void bind_matmul_nibbles(ThreadPool& pool, const Matrix<const float>& x, const Bytes& data, const Floats& scales,
                         const Matrix<float>& out, const std::optional<Floats>& bias, bool accumulate) {
  const Rows<const float> x_rows = rows_of(x, "x");
  const Rows<float> out_rows = rows_of(out, "out");
  const MatmulNibblesArgs args{
      .x = {},
      .w = {out_rows.cols, x_rows.cols, data.data(), scales.data()},
      .bias = bias ? bias->data() : nullptr,
      .accumulate = accumulate,
      .out = out_rows,
  };
  require_product(x_rows, args, bias);
  require_nibbles(args.w, data.shape(0), scales.shape(0));
  const nb::gil_scoped_release release;
  matmul_nibbles(pool, x_rows, Quantized(x_rows).data(), args);
}

void bind_count_classes(ThreadPool& pool, const std::vector<Bytes>& coarse, std::int64_t cols,
                        std::int64_t rows_per_chunk, const Matrix<std::int32_t>& counts,
                        const Vector<std::uint8_t>& units) {
  const Rows<std::int32_t> out = rows_of(counts, "counts");
  require(out.cols == 4 && out.stride == 4, "counts must be contiguous, four for each row");
  require_equal(units.shape(0), out.rows, "length of units");
  const Chunks chunks(coarse, out.rows, cols, rows_per_chunk);
  const CountClassesArgs args{chunks.matrix(), out.data, units.data()};
  const nb::gil_scoped_release release;
  count_classes(pool, args);
}

void bind_quantize_nibbles(ThreadPool& pool, const Bytes& weights, std::int64_t rows, std::int64_t cols,
                           const Vector<std::uint8_t>& data, const Vector<float>& scales) {
  const QuantizeNibblesArgs args{weights.data(), rows, cols, data.data(), scales.data()};
  require_nibbles({rows, cols, data.data(), scales.data()}, data.shape(0), scales.shape(0));
  require_equal(weights.shape(0), 2 * rows * cols, "bytes of weights");
  const nb::gil_scoped_release release;
  quantize_nibbles(pool, args);
}

}  // namespace

void bind_draft(nb::module_& m) {
  m.def(
      "matmul_coarse", &bind_matmul_coarse, "pool"_a, nb::arg("x").noconvert(), "rows_per_chunk"_a, "coarse"_a,
      nb::arg("magnitudes").noconvert(), nb::arg("scales").noconvert(), nb::arg("out").noconvert(),
      nb::arg("bias").noconvert() = nb::none(), "accumulate"_a = false,
      "As matmul, with x as int8 and the coarse chunks of packed weights alone: scales[i] times magnitudes[i][class],\n"
      "uint8 up to 63.");
  m.def("matmul_nibbles", &bind_matmul_nibbles, "pool"_a, nb::arg("x").noconvert(), nb::arg("data").noconvert(),
        nb::arg("scales").noconvert(), nb::arg("out").noconvert(), nb::arg("bias").noconvert() = nb::none(),
        "accumulate"_a = false, "As matmul, with x as int8 and what quantize_nibbles wrote.");
  m.def("count_classes", &bind_count_classes, "pool"_a, "coarse"_a, "cols"_a, "rows_per_chunk"_a,
        nb::arg("counts").noconvert(), nb::arg("units").noconvert(),
        "counts int32[rows, 4] = weights of each class in coarse chunks; units uint8[rows] = their rows' unit bytes.");
  m.def("quantize_nibbles", &bind_quantize_nibbles, "pool"_a, nb::arg("weights").noconvert(), "rows"_a, "cols"_a,
        nb::arg("data").noconvert(), nb::arg("scales").noconvert(),
        "BF16 weights to 16 levels: data, 32 bytes for each 64 weights of a row, and a scale for each 512.");
}

}  // namespace penstock
