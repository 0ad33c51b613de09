// Packed weights, sound and damaged: a row that breaks the format is zeros, and told.
#include "kernels/packed_scratch.h"
#include "packed_input.h"

namespace penstock {
namespace {

struct Shape {
  std::int64_t rows, cols, outputs, rows_per_chunk;
  int damage;
};
constexpr Shape kShapes[] = {{1, 1, 3, 2, 0},     {1, 63, 9, 9, 0},    {2, 64, 11, 4, 0},    {3, 200, 10, 8, 0},
                             {1, 1000, 13, 7, 0}, {9, 517, 12, 5, 0},  {2, 4099, 9, 9, 0},   {4, 2048, 6, 6, 0},
                             {1, 70, 40, 40, 30}, {2, 640, 40, 8, 50}, {3, 130, 60, 60, 40}, {5, 3000, 16, 16, 5}};

void matmul_packed(const Kernels& table, Digest& digest) {
  for (const Shape& shape : kShapes) {
    Random random(static_cast<std::uint32_t>(shape.cols));
    PackedInput w(shape.outputs, shape.cols, shape.rows_per_chunk, random, shape.damage);
    const Matrix x(shape.rows, shape.cols, random);
    const std::vector<float> bias = random.values(shape.outputs);
    for (const std::int64_t bytes : {std::int64_t{1} << 20, least_packed_scratch(shape.cols)}) {
      std::int64_t malformed = 1 << 30;
      Matrix out(shape.rows, shape.outputs, random);
      Aligned scratch(bytes);
      const MatmulPackedArgs args{x,   w.matrix(), shape.rows % 2 == 0 ? bias.data() : nullptr, shape.rows % 3 == 0,
                                  out, &malformed};
      run_in_parts(table.matmul_packed, args, shape.outputs, scratch.scratch());
      digest.add(out.values());
      digest.add(&malformed, 1);
    }
  }
}

void unpack(const Kernels& table, Digest& digest) {
  for (const Shape& shape : kShapes) {
    Random random(static_cast<std::uint32_t>(shape.cols + 1));
    PackedInput w(shape.outputs, shape.cols, shape.rows_per_chunk, random, shape.damage);
    std::int64_t malformed = 1 << 30;
    const std::int64_t first = shape.outputs / 4, count = shape.outputs - first;
    std::vector<std::uint8_t> out(static_cast<std::size_t>(2 * count * shape.cols + 2), 0x5a);
    Aligned scratch(decoder_scratch(shape.cols, kPackedRows));
    run_in_parts(table.unpack, {w.matrix(), first, out.data() + 1, &malformed}, count, scratch.scratch());
    digest.add(out);
    digest.add(&malformed, 1);
  }
}

constexpr Case kCases[] = {{"matmul_packed", matmul_packed}, {"unpack", unpack}};

}  // namespace

std::span<const Case> packed_cases() { return kCases; }

}  // namespace penstock
