#include "kernels/run.h"

#include <algorithm>

#include "kernels/dispatch.h"

namespace penstock {
namespace {

// Below about this many floats a second thread costs more than it saves.
constexpr std::int64_t kWorthwhileFloats = 16384;
// Up to about so many rows, a product takes the time of its weights' way from memory.
constexpr std::int64_t kFewRows = 6;

template <typename Args>
using Kernel = void (*)(const Args&, std::int64_t, std::int64_t, Scratch);

// Runs the kernel for [0, units) in ranges of `grain`. The pool must have been acquired.
template <typename Args>
void split(ThreadPool& pool, Kernel<Args> kernel, const Args& args, std::int64_t units, std::int64_t grain) {
  struct Call {
    Kernel<Args> kernel;
    const Args& args;
  };
  const Call call{kernel, args};
  const auto task = [](const void* context, std::int64_t begin, std::int64_t end, Scratch scratch) {
    const Call& c = *static_cast<const Call*>(context);
    c.kernel(c.args, begin, end, scratch);
  };
  pool.run(units, grain, task, &call);
}

// Units for a task when each costs about `floats`: a few tasks a thread, none of them tiny.
std::int64_t grain_of(const ThreadPool& pool, std::int64_t units, std::int64_t floats) {
  const std::int64_t least = kWorthwhileFloats / std::max<std::int64_t>(floats, 1) + 1;
  return std::max(least, units / (4 * pool.threads()) + 1);
}

// Runs the kernel for columns [0, columns), each of which costs about `floats`. Acquires the pool.
template <typename Args>
void split_columns(ThreadPool& pool, Kernel<Args> kernel, const Args& args, std::int64_t columns, std::int64_t floats) {
  const auto lock = pool.acquire();
  split(pool, kernel, args, columns, (grain_of(pool, columns, floats) + 15) / 16 * 16);
}

// Outputs for a task of a matrix product with so many rows of x: adjacent rows of weights, the more the steadier their
// stream, in multiples of 4; even shares matter where there are few.
std::int64_t product_grain(const ThreadPool& pool, std::int64_t rows, std::int64_t cols, std::int64_t outputs,
                           std::int64_t tasks = 8, std::int64_t most = 64) {
  const std::int64_t share = std::clamp<std::int64_t>(outputs / (tasks * pool.threads()), 4, most) / 4 * 4;
  return std::max(share, kWorthwhileFloats / std::max<std::int64_t>(rows * cols, 1) + 1);
}

}  // namespace

void matmul(ThreadPool& pool, const MatmulArgs& args) {
  const auto lock = pool.acquire();
  const std::int64_t outputs = args.out.cols;
  for (std::int64_t row = 0; row < args.x.rows; row += kMatmulRows) {
    MatmulArgs chunk = args;
    chunk.x.rows = std::min(kMatmulRows, args.x.rows - row);
    chunk.x.data += row * args.x.stride;
    chunk.out.data += row * args.out.stride;
    split(pool, active_kernels().matmul, chunk, outputs, product_grain(pool, chunk.x.rows, args.x.cols, outputs));
  }
}

void matmul_packed(ThreadPool& pool, const MatmulPackedArgs& args) {
  const auto lock = pool.acquire();
  const std::int64_t outputs = args.out.cols;
  const std::int64_t grain = product_grain(pool, args.x.rows, args.x.cols, outputs);
  split(pool, active_kernels().matmul_packed, args, outputs, grain);
}

void matmul_indexed(ThreadPool& pool, const MatmulIndexedArgs& args) {
  const auto lock = pool.acquire();
  const std::int64_t outputs = args.out.cols;
  // A few rows take what memory takes, and its stream breaks where a task ends; more rows are arithmetic.
  const bool few = args.x.rows <= kFewRows;
  const std::int64_t grain = product_grain(pool, args.x.rows, args.x.cols, outputs, few ? 4 : 8, few ? 256 : 64);
  split(pool, active_kernels().matmul_indexed, args, outputs, grain);
}

void count_exceptions(ThreadPool& pool, const IndexArgs& args) {
  const auto lock = pool.acquire();
  const auto kernel = [](const IndexArgs& a, std::int64_t begin, std::int64_t end, Scratch) {
    count_exceptions(a, begin, end);
  };
  split<IndexArgs>(pool, kernel, args, args.rows, grain_of(pool, args.rows, args.cols));
}

void index_rows(ThreadPool& pool, const IndexArgs& args) {
  const auto lock = pool.acquire();
  const auto kernel = [](const IndexArgs& a, std::int64_t begin, std::int64_t end, Scratch) {
    index_rows(a, begin, end);
  };
  split<IndexArgs>(pool, kernel, args, args.rows, grain_of(pool, args.rows, args.cols));
}

namespace {

// Products with int8 activations, kDraftRows rows of x at a time.
template <typename Args>
void draft_product(ThreadPool& pool, Kernel<Args> kernel, const Rows<const float>& x, std::uint8_t* quantized,
                   const Args& args) {
  const auto lock = pool.acquire();
  const std::int64_t blocks = blocks_of(x.cols), outputs = args.out.cols;
  for (std::int64_t row = 0; row < x.rows; row += kDraftRows) {
    const std::int64_t rows = std::min(kDraftRows, x.rows - row);
    const QuantizeRowsArgs source{{x.data + row * x.stride, rows, x.cols, x.stride}, quantized};
    const std::int64_t quantize_grain = grain_of(pool, rows * blocks, kBlockColumns / 4);
    split(pool, active_kernels().draft.quantize_rows, source, rows * blocks, quantize_grain);
    Args chunk = args;
    chunk.x = {quantized, rows, x.cols};
    chunk.out.data += row * args.out.stride;
    chunk.out.rows = rows;
    const std::int64_t share = std::clamp<std::int64_t>(outputs / (8 * pool.threads()), 12, 96) / 12 * 12;
    const std::int64_t least = 8 * kWorthwhileFloats / (rows * x.cols) + 1;
    split(pool, kernel, chunk, outputs, std::max(share, least));
  }
}

}  // namespace

void matmul_coarse(ThreadPool& pool, const Rows<const float>& x, std::uint8_t* quantized,
                   const MatmulCoarseArgs& args) {
  draft_product(pool, active_kernels().draft.matmul_coarse, x, quantized, args);
}

void matmul_nibbles(ThreadPool& pool, const Rows<const float>& x, std::uint8_t* quantized,
                    const MatmulNibblesArgs& args) {
  draft_product(pool, active_kernels().draft.matmul_nibbles, x, quantized, args);
}

void add_levels(ThreadPool& pool, const AddLevelsArgs& args) {
  const auto lock = pool.acquire();
  const std::int64_t grain = grain_of(pool, args.out.cols, args.out.rows * args.factors.cols / 4 + 1);
  split(pool, active_kernels().draft.add_levels, args, args.out.cols,
        (grain + kSumColumns - 1) / kSumColumns * kSumColumns);
}

void widen_coarse(ThreadPool& pool, const WidenCoarseArgs& args) {
  const auto lock = pool.acquire();
  split(pool, active_kernels().draft.widen_coarse, args, args.w.rows, grain_of(pool, args.w.rows, args.w.cols));
}

void count_classes(ThreadPool& pool, const CountClassesArgs& args) {
  const auto lock = pool.acquire();
  split(pool, active_kernels().draft.count_classes, args, args.w.rows, grain_of(pool, args.w.rows, args.w.cols / 16));
}

void quantize_nibbles(ThreadPool& pool, const QuantizeNibblesArgs& args) {
  const auto lock = pool.acquire();
  split(pool, active_kernels().draft.quantize_nibbles, args, args.rows, grain_of(pool, args.rows, args.cols));
}

void rms_norm(ThreadPool& pool, const RmsNormArgs& args) {
  const auto lock = pool.acquire();
  split(pool, active_kernels().rms_norm, args, args.x.rows, grain_of(pool, args.x.rows, args.x.cols));
}

void gated(ThreadPool& pool, const GatedArgs& args) {
  split_columns(pool, active_kernels().gated, args, args.out.cols, args.out.rows * 8);
}

void scale(ThreadPool& pool, const ScaleArgs& args) {
  split_columns(pool, active_kernels().scale, args, args.x.cols, args.x.rows * (args.cap == 0.0f ? 1 : 8));
}

void add_rows(ThreadPool& pool, const AddRowsArgs& args) {
  split_columns(pool, active_kernels().add_rows, args, args.x.cols, args.x.rows);
}

void route(ThreadPool& pool, const RouteArgs& args) {
  const auto lock = pool.acquire();
  split(pool, active_kernels().route, args, args.logits.rows,
        grain_of(pool, args.logits.rows, args.logits.cols * (args.chosen + 8)));
}

void rope(ThreadPool& pool, const RopeArgs& args) {
  const auto lock = pool.acquire();
  split(pool, active_kernels().rope, args, args.x.rows, grain_of(pool, args.x.rows, args.x.cols));
}

void widen(ThreadPool& pool, const WidenArgs& args) {
  const auto lock = pool.acquire();
  split(pool, active_kernels().widen, args, args.n, (grain_of(pool, args.n, 1) + 15) / 16 * 16);
}

void exp(ThreadPool& pool, const ExpArgs& args) {
  const auto lock = pool.acquire();
  split(pool, active_kernels().exp, args, args.n, (grain_of(pool, args.n, 8) + 15) / 16 * 16);
}

void store_kv(ThreadPool& pool, const StoreKvArgs& args) {
  const auto lock = pool.acquire();
  split(pool, active_kernels().store_kv, args, args.k.rows, grain_of(pool, args.k.rows, 2 * args.k.cols));
}

void attention(ThreadPool& pool, const AttentionArgs& args) {
  const auto lock = pool.acquire();
  const std::int64_t units = args.kv.kv_heads * args.q.rows;
  split(pool, active_kernels().attention, args, units, std::clamp<std::int64_t>(units / (4 * pool.threads()), 1, 64));
}

}  // namespace penstock
