// Packed and indexed weights in penstock._core: checks shapes, releases the GIL, calls the kernels; nothing else.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <utility>

#include "arrays.h"
#include "bindings.h"
#include "codec/encode.h"
#include "codec/index.h"
#include "codec/layout.h"
#include "kernels/dispatch.h"
#include "kernels/packed_scratch.h"
#include "kernels/run.h"
#include "threads.h"

namespace penstock {
namespace {

using namespace nb::literals;
using Bytes = Vector<const std::uint8_t>;
using Offsets = Vector<const std::int64_t>;

// A PackedMatrix that keeps its arrays alive.
class PackedRows {
 public:
  // Checks that the chunks lie within the arrays; what is in them is for the kernels to check.
  PackedRows(std::int64_t rows, std::int64_t cols, std::int64_t rows_per_chunk, Bytes coarse, Bytes fine,
             Offsets fine_offsets)
      : coarse_(std::move(coarse)),
        fine_(std::move(fine)),
        fine_offsets_(std::move(fine_offsets)),
        matrix_{rows, cols, std::min(rows_per_chunk, rows), coarse_.data(), fine_.data(), fine_offsets_.data()} {
    require_packable(rows, cols);
    require(rows_per_chunk > 0, "rows_per_chunk must be positive");
    const std::int64_t step = matrix_.rows_per_chunk, chunks = divide_up(rows, step);
    const std::int64_t last_rows = rows - (chunks - 1) * step;
    const std::int64_t coarse_end = (chunks - 1) * coarse_bytes(step, cols) + bare_coarse_bytes(last_rows, cols);
    require(static_cast<std::int64_t>(coarse_.shape(0)) >= coarse_end, "coarse is too short");
    require_equal(fine_offsets_.shape(0), chunks + 1, "length of fine_offsets");
    require(fine_offsets_(0) >= 0, "fine_offsets must not be negative");
    for (std::int64_t i = 0; i < chunks; ++i) {
      require(fine_offsets_(i) <= fine_offsets_(i + 1), "fine_offsets must not descend");
    }
    require(fine_offsets_(chunks) <= static_cast<std::int64_t>(fine_.shape(0)), "fine_offsets end past fine");
  }

  const PackedMatrix& matrix() const { return matrix_; }
  std::int64_t rows() const { return matrix_.rows; }
  std::int64_t cols() const { return matrix_.cols; }
  std::int64_t rows_per_chunk() const { return matrix_.rows_per_chunk; }
  const Bytes& coarse() const { return coarse_; }
  const Bytes& fine() const { return fine_; }
  const Offsets& fine_offsets() const { return fine_offsets_; }

 private:
  Bytes coarse_;
  Bytes fine_;
  Offsets fine_offsets_;
  PackedMatrix matrix_;
};

// The least malformed row that a kernel reported, or none.
constexpr std::int64_t kNoRow = std::numeric_limits<std::int64_t>::max();

std::optional<std::int64_t> malformed_row(std::int64_t least) {
  if (least == kNoRow) return std::nullopt;
  return least;
}

std::int64_t bind_encode_chunk(const Bytes& weights, std::int64_t rows, std::int64_t cols,
                               const Vector<std::uint8_t>& coarse, const Vector<std::uint8_t>& fine) {
  require_packable(rows, cols);
  require(rows * cols <= kMostChunkWeights, "a chunk has at most ", kMostChunkWeights, " weights");
  require_equal(weights.shape(0), 2 * rows * cols, "bytes of weights");
  require(static_cast<std::int64_t>(coarse.shape(0)) >= coarse_bytes(rows, cols), "coarse is too small");
  require(static_cast<std::int64_t>(fine.shape(0)) >= most_fine_bytes(rows, cols), "fine is too small");
  const nb::gil_scoped_release release;
  return encode_chunk(weights.data(), rows, cols, coarse.data(), fine.data());
}

std::int64_t decoder_scratch_bytes(std::int64_t cols) { return decoder_scratch(cols, kPackedRows) + kAlignmentBytes; }

std::optional<std::int64_t> bind_decode_rows(const PackedRows& packed, std::int64_t begin, std::int64_t end,
                                             const Vector<std::uint8_t>& out, const Vector<std::uint8_t>& scratch) {
  std::int64_t malformed = kNoRow;
  const UnpackArgs args{packed.matrix(), begin, out.data(), &malformed};
  require(0 <= begin && begin <= end && end <= packed.rows(), "rows to decode lie outside the matrix");
  require_equal(out.shape(0), 2 * (end - begin) * packed.cols(), "bytes of out");
  const std::int64_t bytes = decoder_scratch(packed.cols(), kPackedRows);
  std::uint8_t* const memory = aligned(scratch, bytes, "scratch");
  const nb::gil_scoped_release release;
  active_kernels().unpack(args, 0, end - begin,
                          {reinterpret_cast<std::byte*>(memory), static_cast<std::size_t>(bytes)});
  return malformed_row(malformed);
}

std::optional<std::int64_t> bind_matmul_packed(ThreadPool& pool, const Matrix<const float>& x, const PackedRows& packed,
                                               const Matrix<float>& out, const std::optional<Vector<const float>>& bias,
                                               bool accumulate) {
  std::int64_t malformed = kNoRow;
  const MatmulPackedArgs args{
      .x = rows_of(x, "x"),
      .w = packed.matrix(),
      .bias = bias ? bias->data() : nullptr,
      .accumulate = accumulate,
      .out = rows_of(out, "out"),
      .malformed = &malformed,
  };
  require_product("packed", packed.rows(), packed.cols(), args.x, args.out);
  require_equal(args.out.rows, args.x.rows, "rows of out");
  if (bias) require_equal(bias->shape(0), args.out.cols, "length of bias");
  const std::int64_t needed = least_packed_scratch(args.x.cols);
  require(needed <= static_cast<std::int64_t>(pool.scratch_bytes()), "packed rows of ", args.x.cols, " weights need ",
          needed, " bytes of scratch");
  const nb::gil_scoped_release release;
  matmul_packed(pool, args);
  return malformed_row(malformed);
}

// Returns how many bytes index_rows will write, and leaves the running sum of the rows' exceptions behind.
std::int64_t bind_indexed_bytes(ThreadPool& pool, const Bytes& weights, std::int64_t cols,
                                const Vector<std::int64_t>& exceptions) {
  const std::int64_t rows = exceptions.shape(0);
  require_packable(rows, cols);
  require_equal(weights.shape(0), 2 * rows * cols, "bytes of weights");
  const nb::gil_scoped_release release;
  count_exceptions(pool, {weights.data(), rows, cols, exceptions.data(), nullptr});
  std::int64_t sum = 0;
  for (std::int64_t r = 0; r < rows; ++r) sum += std::exchange(exceptions.data()[r], sum);
  return rows * indexed_row_bytes(cols) + sum * kExceptionBytes;
}

void bind_index_rows(ThreadPool& pool, const Bytes& weights, std::int64_t cols, const Vector<std::int64_t>& exceptions,
                     const Vector<std::uint8_t>& out) {
  const std::int64_t rows = exceptions.shape(0);
  require_packable(rows, cols);
  require_equal(weights.shape(0), 2 * rows * cols, "bytes of weights");
  require(static_cast<std::int64_t>(out.shape(0)) >= rows * indexed_row_bytes(cols), "out is too small");
  const nb::gil_scoped_release release;
  index_rows(pool, {weights.data(), rows, cols, exceptions.data(), out.data()});
}

void bind_matmul_indexed(ThreadPool& pool, const Matrix<const float>& x, const Bytes& w, const Matrix<float>& out,
                         const std::optional<Vector<const float>>& bias, bool accumulate) {
  const auto x_rows = rows_of(x, "x");
  const auto out_rows = rows_of(out, "out");
  require_packable(out_rows.cols, x_rows.cols);
  const MatmulIndexedArgs args{
      .x = x_rows,
      .w = {w.data(), out_rows.cols, x_rows.cols},
      .bias = bias ? bias->data() : nullptr,
      .accumulate = accumulate,
      .out = out_rows,
  };
  require_equal(args.out.rows, args.x.rows, "rows of out");
  require(static_cast<std::int64_t>(w.shape(0)) >= args.w.rows * indexed_row_bytes(args.w.cols), "w is too short");
  if (bias) require_equal(bias->shape(0), args.out.cols, "length of bias");
  const std::int64_t needed = least_packed_scratch(args.x.cols);
  require(needed <= static_cast<std::int64_t>(pool.scratch_bytes()), "too little scratch for such rows");
  const nb::gil_scoped_release release;
  matmul_indexed(pool, args);
}

}  // namespace

void bind_packed(nb::module_& m) {
  nb::class_<PackedRows>(
      m, "PackedRows",
      "A run of whole chunks of one packed matrix, in memory, which it keeps alive. `coarse` and `fine` hold the\n"
      "chunks' bytes one after the other; the last coarse one's padding may be absent. fine_offsets int64 [chunks + "
      "1]:\n"
      "where each chunk begins in `fine`, and where the last one ends; it must not change afterwards.")
      .def(nb::init<std::int64_t, std::int64_t, std::int64_t, Bytes, Bytes, Offsets>(), "rows"_a, "cols"_a,
           "rows_per_chunk"_a, nb::arg("coarse").noconvert(), nb::arg("fine").noconvert(),
           nb::arg("fine_offsets").noconvert(), "ValueError if the chunks would not lie within the arrays.")
      .def_prop_ro("rows", &PackedRows::rows)
      .def_prop_ro("cols", &PackedRows::cols)
      .def_prop_ro("rows_per_chunk", &PackedRows::rows_per_chunk, "At most `rows`.")
      .def_prop_ro("coarse", &PackedRows::coarse)
      .def_prop_ro("fine", &PackedRows::fine)
      .def_prop_ro("fine_offsets", &PackedRows::fine_offsets);

  m.def("matmul_packed", &bind_matmul_packed, "pool"_a, nb::arg("x").noconvert(), "packed"_a,
        nb::arg("out").noconvert(), nb::arg("bias").noconvert() = nb::none(), "accumulate"_a = false,
        "As matmul, with packed BF16 weights; returns the first of their rows that breaks the format, or None.");
  m.def("encode_chunk", &bind_encode_chunk, nb::arg("weights").noconvert(), "rows"_a, "cols"_a,
        nb::arg("coarse").noconvert(), nb::arg("fine").noconvert(),
        "Packs rows * cols BF16 weights, bytes at any alignment; returns the bytes of fine that it filled.");
  m.def("decoder_scratch_bytes", &decoder_scratch_bytes, "cols"_a, "Bytes of scratch that decode_rows takes.");
  m.def("decode_rows", &bind_decode_rows, "packed"_a, "begin"_a, "end"_a, nb::arg("out").noconvert(),
        nb::arg("scratch").noconvert(),
        "Rows [begin, end) of a packed matrix as BF16 bytes; returns the first row that breaks the format, or None.\n"
        "Such a row becomes zeros.");
  m.def("indexed_row_bytes", &indexed_row_bytes, "cols"_a, "Bytes of an indexed row, without its exceptions.");
  m.def("indexed_bytes", &bind_indexed_bytes, "pool"_a, nb::arg("weights").noconvert(), "cols"_a,
        nb::arg("exceptions").noconvert(),
        "Bytes that index_rows will write for BF16 weights [rows, cols]; fills exceptions int64[rows] for it.");
  m.def("index_rows", &bind_index_rows, "pool"_a, nb::arg("weights").noconvert(), "cols"_a,
        nb::arg("exceptions").noconvert(), nb::arg("out").noconvert(),
        "Writes BF16 weights in the form that matmul_indexed takes; `out` must have indexed_bytes.");
  m.def("matmul_indexed", &bind_matmul_indexed, "pool"_a, nb::arg("x").noconvert(), nb::arg("w").noconvert(),
        nb::arg("out").noconvert(), nb::arg("bias").noconvert() = nb::none(), "accumulate"_a = false,
        "As matmul, with all that index_rows wrote for as many weights; it is not checked.");
}

}  // namespace penstock
