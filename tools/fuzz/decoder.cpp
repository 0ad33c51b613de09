// libFuzzer's target: decodes any bytes, by every instruction set that this CPU has, and multiplies with them. All must
// find the same rows malformed and the same bits in the others, and read and write nothing that is not theirs.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "kernels/dispatch.h"
#include "kernels/packed_scratch.h"
#include "packed_case.h"

namespace penstock {
namespace {

struct Result {
  std::int64_t malformed = std::numeric_limits<std::int64_t>::max();
  std::vector<std::uint8_t> bytes;

  bool operator==(const Result&) const = default;
};

using Memory = std::unique_ptr<std::byte[]>;

Scratch scratch_of(Memory& memory, std::int64_t bytes) {
  memory.reset(new std::byte[static_cast<std::size_t>(bytes)]);
  return {memory.get(), static_cast<std::size_t>(bytes)};
}

Result unpack(const Kernels& kernels, const PackedMatrix& w) {
  Result result;
  Memory memory;
  result.bytes.resize(static_cast<std::size_t>(2 * w.rows * w.cols));
  kernels.unpack({w, 0, result.bytes.data(), &result.malformed}, 0, w.rows,
                 scratch_of(memory, decoder_scratch(w.cols, kPackedRows)));
  return result;
}

Result multiply(const Kernels& kernels, const PackedMatrix& w, std::int64_t rows, std::int64_t scratch_bytes) {
  Result result;
  Memory memory;
  std::vector<float> x(static_cast<std::size_t>(rows * w.cols)), out(static_cast<std::size_t>(rows * w.rows));
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = 0.25f * static_cast<float>(i % 7) - 0.5f;
  const MatmulPackedArgs args{
      {x.data(), rows, w.cols, w.cols}, w, nullptr, false, {out.data(), rows, w.rows, w.rows}, &result.malformed};
  kernels.matmul_packed(args, 0, w.rows, scratch_of(memory, scratch_bytes));
  for (float& value : out) {
    if (value != value) value = 0;  // which NaN it is may differ
  }
  result.bytes.resize(out.size() * sizeof(float));
  std::memcpy(result.bytes.data(), out.data(), result.bytes.size());
  return result;
}

// Enough for several rows at a time.
std::int64_t roomy_scratch(std::int64_t cols) {
  return decoder_scratch(cols, kPackedRows) + 8 * pair_bytes(cols) + product_scratch(8);
}

void require_equal(const Result& a, const Result& b, const Kernels& kernels, const char* what) {
  if (a == b) return;
  std::fprintf(stderr, "%s: %s differs from %s\n", what, kernels.name, kScalarKernels.name);
  std::abort();
}

void test(const PackedMatrix& w) {
  const Result weights = unpack(kScalarKernels, w);
  for (const std::int64_t rows : {1, 9}) {
    for (const std::int64_t scratch : {least_packed_scratch(w.cols), roomy_scratch(w.cols)}) {
      const Result product = multiply(kScalarKernels, w, rows, scratch);
      for (const Kernels* kernels : available_kernels()) {
        require_equal(multiply(*kernels, w, rows, scratch), product, *kernels, "product");
      }
      if (product.malformed != weights.malformed) std::abort();
    }
  }
  for (const Kernels* kernels : available_kernels()) require_equal(unpack(*kernels, w), weights, *kernels, "weights");
}

}  // namespace
}  // namespace penstock

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  penstock::test(penstock::PackedCase(data, size).matrix());
  return 0;
}
