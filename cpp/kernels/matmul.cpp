// The matrix product over a pool: chunks of rows, their activations packed, their outputs shared out among the threads.
#include <algorithm>
#include <cstring>

#include "kernels/dispatch.h"
#include "kernels/run.h"
#include "kernels/split.h"

namespace penstock {
namespace {

// Rows of a packed block lie this far apart: a power of two would put them all into the same sets of the caches.
constexpr std::int64_t kPackedStride = kMatmulBlock + 16;
constexpr std::int64_t kMostRows = 64;
constexpr std::int64_t kMostOutputs = 64;  // of a task

struct PackArgs {
  const MatmulArgs& from;
  float* panel;
};

std::int64_t blocks_of(std::int64_t k) { return (k + kMatmulBlock - 1) / kMatmulBlock; }

void pack_rows(const PackArgs& args, std::int64_t begin, std::int64_t end, Scratch) {
  const MatmulArgs& from = args.from;
  for (std::int64_t row = begin; row < end; ++row) {
    for (std::int64_t start = 0; start < from.k; start += kMatmulBlock) {
      float* to = args.panel + (start / kMatmulBlock * from.rows + row) * kPackedStride;
      const std::int64_t terms = std::min(kMatmulBlock, from.k - start);
      std::memcpy(to, from.x + row * from.row_stride + start, terms * sizeof(float));
    }
  }
}

std::size_t panel_bytes(std::int64_t rows, std::int64_t k) {
  return rows * blocks_of(k) * kPackedStride * sizeof(float);
}

// Copies the activations of `args` into the pool's scratch, block after block.
void pack(ThreadPool& pool, MatmulArgs& args) {
  float* panel = reinterpret_cast<float*>(pool.scratch().data);
  split(pool, pack_rows, PackArgs{args, panel}, args.rows, args.rows / (4 * pool.threads()) + 1,
        panel_bytes(args.rows, args.k));
  args.x = panel;
  args.row_stride = kPackedStride;
  args.block_stride = args.rows * kPackedStride;
}

// The rows to take at a time, in nearly equal chunks, so that the packed panel and what each thread needs beside it
// fit.
std::int64_t chunk_rows(const ThreadPool& pool, const MatmulArgs& args) {
  constexpr std::int64_t kTileBytes = 32 << 10;
  constexpr std::int64_t kLaneBytes = 16 * 16 * sizeof(float);  // a row's lanes for 16 outputs
  const std::int64_t room = static_cast<std::int64_t>(pool.scratch().bytes) - pool.threads() * kTileBytes;
  const std::int64_t row_bytes = static_cast<std::int64_t>(panel_bytes(1, args.k)) + pool.threads() * kLaneBytes;
  const std::int64_t most = std::clamp<std::int64_t>(room / row_bytes, 1, kMostRows);
  const std::int64_t chunks = (args.rows + most - 1) / most;
  return (args.rows + chunks - 1) / chunks;
}

void multiply(ThreadPool& pool, const Kernels& kernels, MatmulArgs args) {
  const std::int64_t least = 32768 / (args.rows * std::max<std::int64_t>(args.k, 1)) + 1;
  const std::int64_t shared = args.out.cols / (8 * pool.threads()) / 4 * 4;
  const std::int64_t grain = std::max(least, std::clamp<std::int64_t>(shared, 4, kMostOutputs));
  std::size_t packed_bytes = 0;
  if (args.rows > kernels.matmul_rows) {
    packed_bytes = panel_bytes(args.rows, args.k);
    pack(pool, args);
  }
  split(pool, kernels.matmul, args, args.out.cols, grain, packed_bytes);
}

}  // namespace

void matmul(ThreadPool& pool, const MatmulArgs& args) {
  if (args.rows == 0) return;
  const auto lock = pool.acquire();
  const Kernels& kernels = active_kernels();
  const std::int64_t chunk = std::max(chunk_rows(pool, args), kernels.matmul_rows);
  for (std::int64_t row = 0; row < args.rows; row += chunk) {
    MatmulArgs part = args;
    part.rows = std::min(chunk, args.rows - row);
    part.x += row * args.row_stride;
    part.out.data += row * args.out.stride;
    part.out.rows = part.rows;
    multiply(pool, kernels, part);
  }
}

}  // namespace penstock
