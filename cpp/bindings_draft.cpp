// Drafting in penstock._core: checks shapes, releases the GIL, calls the kernels; nothing else.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "arrays.h"
#include "bindings.h"
#include "kernels/run.h"
#include "threads.h"

namespace penstock {
namespace {

using namespace nb::literals;
using Bytes = Vector<const std::uint8_t>;
using Floats = Vector<const float>;

// Of so many rows of activations, as many as int8 as are multiplied at a time.
std::int64_t int8_bytes(std::int64_t rows, std::int64_t cols) {
  return std::min(rows, kDraftRows) * blocks_of(cols) * kBlockBytes;
}

std::int64_t quantized_bytes(std::int64_t rows, std::int64_t cols) { return int8_bytes(rows, cols) + kAlignmentBytes; }

std::uint8_t* room_for(const Rows<const float>& x, const Vector<std::uint8_t>& quantized) {
  return aligned(quantized, int8_bytes(x.rows, x.cols), "quantized");
}

// Where the coarse chunks of a matrix are: one after the other in each of the arrays, which are kept alive.
class CoarseChunks {
 public:
  // Checks that all lie within their arrays.
  CoarseChunks(std::int64_t rows, std::int64_t cols, std::int64_t rows_per_chunk, std::vector<Bytes> arrays)
      : rows_(rows), cols_(cols), rows_per_chunk_(std::min(rows_per_chunk, rows)), arrays_(std::move(arrays)) {
    require_packable(rows, cols);
    require(rows_per_chunk > 0, "rows_per_chunk must be positive");
    const std::int64_t whole = coarse_bytes(rows_per_chunk_, cols), count = divide_up(rows, rows_per_chunk_);
    const std::int64_t last = bare_coarse_bytes(rows - (count - 1) * rows_per_chunk_, cols);
    for (const Bytes& array : arrays_) {
      std::int64_t left = static_cast<std::int64_t>(array.shape(0));
      for (const std::uint8_t* chunk = array.data(); left > 0 && this->count() < count; chunk += whole, left -= whole) {
        require(left >= (this->count() < count - 1 ? whole : last), "coarse is too short");
        chunks_.push_back(chunk);
      }
    }
    require(this->count() == count, "coarse is too short");
  }

  CoarseMatrix matrix() const { return {rows_, cols_, rows_per_chunk_, chunks_.data(), nullptr, nullptr}; }
  std::int64_t rows() const { return rows_; }
  std::int64_t cols() const { return cols_; }
  std::int64_t rows_per_chunk() const { return rows_per_chunk_; }
  const std::vector<Bytes>& arrays() const { return arrays_; }
  std::size_t nbytes() const {
    std::size_t sum = 0;
    for (const Bytes& array : arrays_) sum += array.shape(0);
    return sum;
  }

 private:
  std::int64_t count() const { return static_cast<std::int64_t>(chunks_.size()); }

  std::int64_t rows_;
  std::int64_t cols_;
  std::int64_t rows_per_chunk_;
  std::vector<Bytes> arrays_;
  std::vector<const std::uint8_t*> chunks_;
};

// A CoarseMatrix that keeps its levels alive; whoever binds it, its chunks.
class CoarseRows {
 public:
  CoarseRows(const CoarseChunks& chunks, Matrix<const std::uint8_t> magnitudes, Floats scales)
      : chunks_(chunks), magnitudes_(std::move(magnitudes)), scales_(std::move(scales)), matrix_(chunks.matrix()) {
    const Rows<const std::uint8_t> of_classes = rows_of(magnitudes_, "magnitudes");
    require(of_classes.rows == matrix_.rows && of_classes.cols == 4 && of_classes.stride == 4,
            "magnitudes must be contiguous, four for each row");
    require_equal(scales_.shape(0), matrix_.rows, "length of scales");
    matrix_.magnitudes = magnitudes_.data();
    matrix_.scales = scales_.data();
  }

  const CoarseMatrix& matrix() const { return matrix_; }
  std::int64_t rows() const { return matrix_.rows; }
  std::int64_t cols() const { return matrix_.cols; }
  const CoarseChunks& chunks() const { return chunks_; }
  const Matrix<const std::uint8_t>& magnitudes() const { return magnitudes_; }
  const Floats& scales() const { return scales_; }

 private:
  const CoarseChunks& chunks_;
  Matrix<const std::uint8_t> magnitudes_;
  Floats scales_;
  CoarseMatrix matrix_;
};

template <typename Args>
void require_outputs(const Rows<const float>& x, const Args& args, const std::optional<Floats>& bias) {
  require_equal(args.out.rows, x.rows, "rows of out");
  if (bias) require_equal(bias->shape(0), args.out.cols, "length of bias");
}

void bind_matmul_coarse(ThreadPool& pool, const Matrix<const float>& x, const CoarseRows& coarse,
                        const Matrix<float>& out, const Vector<std::uint8_t>& quantized,
                        const std::optional<Floats>& bias, bool accumulate) {
  const Rows<const float> x_rows = rows_of(x, "x");
  const MatmulCoarseArgs args{
      .x = {},
      .w = coarse.matrix(),
      .bias = bias ? bias->data() : nullptr,
      .accumulate = accumulate,
      .out = rows_of(out, "out"),
  };
  require_product("coarse", coarse.rows(), coarse.cols(), x_rows, args.out);
  require_outputs(x_rows, args, bias);
  std::uint8_t* const room = room_for(x_rows, quantized);
  const nb::gil_scoped_release release;
  matmul_coarse(pool, x_rows, room, args);
}

void require_nibbles(const NibbleMatrix& w, std::size_t data, std::size_t scales) {
  require_packable(w.rows, w.cols);
  require_equal(static_cast<std::int64_t>(data), w.rows * groups_of(w.cols) * kGroupNibbleBytes, "bytes of nibbles");
  require_equal(static_cast<std::int64_t>(scales), w.rows * blocks_of(w.cols), "length of scales");
}

void bind_matmul_nibbles(ThreadPool& pool, const Matrix<const float>& x, const Bytes& data, const Floats& scales,
                         const Matrix<float>& out, const Vector<std::uint8_t>& quantized,
                         const std::optional<Floats>& bias, bool accumulate) {
  const Rows<const float> x_rows = rows_of(x, "x");
  const Rows<float> out_rows = rows_of(out, "out");
  const MatmulNibblesArgs args{
      .x = {},
      .w = {out_rows.cols, x_rows.cols, data.data(), scales.data()},
      .bias = bias ? bias->data() : nullptr,
      .accumulate = accumulate,
      .out = out_rows,
  };
  require_outputs(x_rows, args, bias);
  require_nibbles(args.w, data.shape(0), scales.shape(0));
  std::uint8_t* const room = room_for(x_rows, quantized);
  const nb::gil_scoped_release release;
  matmul_nibbles(pool, x_rows, room, args);
}

void bind_widen_coarse(ThreadPool& pool, const CoarseRows& coarse, const Matrix<float>& out) {
  const Rows<float> rows = rows_of(out, "out");
  require_equal(rows.rows, coarse.rows(), "rows of out");
  require_equal(rows.cols, coarse.cols(), "columns of out");
  require(rows.stride == rows.cols || rows.rows <= 1, "out must be contiguous");
  const WidenCoarseArgs args{coarse.matrix(), rows.data};
  const nb::gil_scoped_release release;
  widen_coarse(pool, args);
}

void bind_add_levels(ThreadPool& pool, const Matrix<const float>& factors, const Matrix<const std::int8_t>& levels,
                     const Matrix<float>& out) {
  const AddLevelsArgs args{rows_of(factors, "factors"), rows_of(levels, "levels").data, rows_of(out, "out")};
  require_equal(args.factors.rows, args.out.rows, "rows of factors");
  require_equal(static_cast<std::int64_t>(levels.shape(0)), args.factors.cols, "rows of levels");
  require_equal(static_cast<std::int64_t>(levels.shape(1)), args.out.cols, "columns of levels");
  require(levels.stride(0) == args.out.cols || levels.shape(0) <= 1, "levels must be contiguous");
  require(args.factors.cols <= kMostLevelRows, "too many rows of levels");
  const std::int64_t needed = args.factors.cols * kSumColumns * static_cast<std::int64_t>(sizeof(float));
  require(needed <= static_cast<std::int64_t>(pool.scratch_bytes()), "needs ", needed, " bytes of scratch");
  const nb::gil_scoped_release release;
  add_levels(pool, args);
}

void bind_count_classes(ThreadPool& pool, const CoarseChunks& chunks, const Matrix<std::int32_t>& counts,
                        const Vector<std::uint8_t>& units) {
  const Rows<std::int32_t> out = rows_of(counts, "counts");
  require(out.cols == 4 && out.stride == 4, "counts must be contiguous, four for each row");
  require_equal(out.rows, chunks.rows(), "rows of counts");
  require_equal(units.shape(0), out.rows, "length of units");
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
  nb::class_<CoarseChunks>(m, "CoarseChunks",
                           "The coarse chunks of a packed matrix, in memory, which it keeps alive. Each of the arrays\n"
                           "holds whole ones, one after the other; the last one's padding may be absent.")
      .def(nb::init<std::int64_t, std::int64_t, std::int64_t, std::vector<Bytes>>(), "rows"_a, "cols"_a,
           "rows_per_chunk"_a, "arrays"_a, "ValueError if the chunks would not lie within the arrays.")
      .def_prop_ro("rows", &CoarseChunks::rows)
      .def_prop_ro("cols", &CoarseChunks::cols)
      .def_prop_ro("rows_per_chunk", &CoarseChunks::rows_per_chunk, "At most `rows`.")
      .def_prop_ro("arrays", &CoarseChunks::arrays)
      .def_prop_ro("nbytes", &CoarseChunks::nbytes, "Of all arrays.");

  nb::class_<CoarseRows>(
      m, "CoarseRows",
      "A packed matrix by its coarse tier alone: weight [i, j] stands for scales[i] times\n"
      "magnitudes[i, class], negative where its sign bit is set; magnitudes uint8 [rows, 4], of which\n"
      "those above 63 count as that, scales [rows].")
      .def(nb::init<const CoarseChunks&, Matrix<const std::uint8_t>, Floats>(), "chunks"_a,
           nb::arg("magnitudes").noconvert(), nb::arg("scales").noconvert(), nb::keep_alive<1, 2>())
      .def_prop_ro("rows", &CoarseRows::rows)
      .def_prop_ro("cols", &CoarseRows::cols)
      .def_prop_ro("chunks", &CoarseRows::chunks, nb::rv_policy::reference)
      .def_prop_ro("magnitudes", &CoarseRows::magnitudes)
      .def_prop_ro("scales", &CoarseRows::scales);

  m.def("quantized_bytes", &quantized_bytes, "rows"_a, "cols"_a,
        "Bytes that the products with int8 activations take as `quantized`.");
  m.def("matmul_coarse", &bind_matmul_coarse, "pool"_a, nb::arg("x").noconvert(), "coarse"_a,
        nb::arg("out").noconvert(), nb::arg("quantized").noconvert(), nb::arg("bias").noconvert() = nb::none(),
        "accumulate"_a = false, "As matmul, with x as int8 and the coarse tier of packed weights alone.");
  m.def("matmul_nibbles", &bind_matmul_nibbles, "pool"_a, nb::arg("x").noconvert(), nb::arg("data").noconvert(),
        nb::arg("scales").noconvert(), nb::arg("out").noconvert(), nb::arg("quantized").noconvert(),
        nb::arg("bias").noconvert() = nb::none(), "accumulate"_a = false,
        "As matmul, with x as int8 and what quantize_nibbles wrote.");
  m.def("widen_coarse", &bind_widen_coarse, "pool"_a, "coarse"_a, nb::arg("out").noconvert(),
        "out[rows, cols] = what the weights stand for.");
  m.def("add_levels", &bind_add_levels, "pool"_a, nb::arg("factors").noconvert(), nb::arg("levels").noconvert(),
        nb::arg("out").noconvert(), "out[rows, n] += factors[rows, k] @ levels[k, n], of int8, k at most 256.");
  m.def("count_classes", &bind_count_classes, "pool"_a, "chunks"_a, nb::arg("counts").noconvert(),
        nb::arg("units").noconvert(),
        "counts int32[rows, 4] = weights of each class in coarse chunks; units uint8[rows] = their rows' unit bytes.");
  m.def("quantize_nibbles", &bind_quantize_nibbles, "pool"_a, nb::arg("weights").noconvert(), "rows"_a, "cols"_a,
        nb::arg("data").noconvert(), nb::arg("scales").noconvert(),
        "BF16 weights to 16 levels: data, 32 bytes for each 64 weights of a row, and a scale for each 512.");
}

}  // namespace penstock
