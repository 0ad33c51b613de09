// The arguments of every kernel and the table that each instruction set fills.
//
// A kernel is pure: it reads its arguments, writes its outputs, and neither allocates, prints, throws nor knows of
// threads. It is called for a range [begin, end) of units that may be split anywhere; the split never changes a bit of
// the result.
//
// This header is included by files compiled for different instruction sets, so it must hold nothing that emits code.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/draft.h"
#include "kernels/rows.h"

namespace penstock {

enum class Dtype { kBF16, kF16, kF32 };

// Working memory of one thread, 64-byte aligned, undefined at the start of a task.
struct Scratch {
  std::byte* data;
  std::size_t bytes;
};

// out[r, i] = dot(x[r], w[i]) (+ bias[i]) (+ out[r, i]); w is [out.cols][x.cols], row-major, at any
// alignment; out must not overlap x.
struct MatmulArgs {
  Rows<const float> x;  // at most kMatmulRows
  const std::uint8_t* w;
  Dtype dtype;
  const float* bias;  // or null
  bool accumulate;
  Rows<float> out;
};

// Chunks of a packed matrix (docs/format.md), its coarse and its fine ones each one after the other. Whatever the bytes
// say, nothing outside them is read.
struct PackedMatrix {
  std::int64_t rows;
  std::int64_t cols;  // 1 to kMostColumns
  std::int64_t rows_per_chunk;
  const std::uint8_t* coarse;
  const std::uint8_t* fine;
  const std::int64_t* fine_offsets;  // where each chunk begins in `fine`, and where the last one ends
};

// Rows [first_row, first_row + units) as BF16, row-major, to any address. A row that breaks the format becomes zeros,
// and the least of their numbers is kept in *malformed, if it is below what that holds.
struct UnpackArgs {
  PackedMatrix w;
  std::int64_t first_row;
  std::uint8_t* out;
  std::int64_t* malformed;
};

// As MatmulArgs, with packed weights and any number of rows of x; w.cols == x.cols. The outputs of a row that breaks
// the format are those of zeros; see UnpackArgs.
struct MatmulPackedArgs {
  Rows<const float> x;
  PackedMatrix w;
  const float* bias;  // or null
  bool accumulate;
  Rows<float> out;
  std::int64_t* malformed;
};

// Indexed rows (codec/index.h), written by index_rows.
struct IndexedMatrix {
  const std::uint8_t* data;
  std::int64_t rows;
  std::int64_t cols;
};

// As MatmulArgs, with indexed weights and any number of rows of x; w.cols == x.cols.
struct MatmulIndexedArgs {
  Rows<const float> x;
  IndexedMatrix w;
  const float* bias;  // or null
  bool accumulate;
  Rows<float> out;
};

// So many rows of x are multiplied at a time: enough to hide the cost of the weights, few enough to stay in the cache.
inline constexpr std::int64_t kMatmulRows = 64;

// The least scratch that every kernel can work with.
inline constexpr std::size_t kLeastScratch = 64 << 10;

// out = weight * (x * (1 / sqrt(dot(x, x) / cols + eps))), row by row; out may be x.
struct RmsNormArgs {
  Rows<const float> x;
  const float* weight;
  float eps;
  Rows<float> out;
};

// kGeluTanh: GELU with tanh for the error function, x * sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)) (arXiv 1606.08415).
enum class Activation { kSilu, kGeluTanh };

// out = (gate / (1 + exp(-z))) * up with z = gate, or of kGeluTanh gate * fma(gate * gate, 0.07135482, 1.5957691); out
// may be gate or up.
struct GatedArgs {
  Rows<const float> gate;
  Rows<const float> up;
  Activation activation;
  Rows<float> out;
};

// x *= times; x /= divisor; x = cap * tanh(x / cap), unless cap is 0.
struct ScaleArgs {
  Rows<float> x;
  float times;
  float divisor;
  float cap;
};

// out[at[r]] += factors[r] * x[r], the product rounded before the sum, r ascending. Without `at`, row r is for row r.
struct AddRowsArgs {
  Rows<const float> x;
  const std::int32_t* at;  // or null
  const float* factors;
  Rows<float> out;
};

// Which `chosen` of the experts, the columns of `logits`, each row goes to: those with the highest score (a softmax
// over all, or sigmoids) plus bias, of the `kept_groups` of `groups` groups of experts whose two best choices have the
// largest sum; ties go to the lower number. Told by ascending number: ids and weights [logits.rows][chosen], the scores
// without bias, divided by their sum in the order of choice if `renormalize`, times scaling.
struct RouteArgs {
  Rows<const float> logits;  // cols: at most kMostExperts
  const float* bias;         // or null
  bool sigmoid;
  bool renormalize;
  float scaling;
  std::int64_t groups;
  std::int64_t kept_groups;
  std::int64_t chosen;
  std::int32_t* ids;
  float* weights;
};

// Their scores fit the least scratch.
inline constexpr std::int64_t kMostExperts = 4096;

// Rotates the first `rotary` dimensions of each of `heads` heads of x in place: row r, head h starts at
// x.data + r * x.stride + h * dim. cos and sin are [rows][rotary / 2].
struct RopeArgs {
  Rows<float> x;  // cols = heads * dim
  std::int64_t heads;
  std::int64_t dim;
  std::int64_t rotary;
  const float* cos;
  const float* sin;
};

struct WidenArgs {
  const std::uint8_t* src;  // any alignment
  Dtype dtype;
  std::int64_t n;
  float* out;
};

struct ExpArgs {
  const float* x;
  std::int64_t n;
  float* out;
};

// The keys and values of one layer. Slot s is entry s % block_slots of block s / block_slots. Within a block, keys are
// [kv_heads][block_slots][head_dim] at byte key_offset; values are the same shape at byte value_offset.
struct KvLayer {
  std::uint8_t* const* blocks;
  std::int64_t n_blocks;
  std::int64_t block_slots;
  std::int64_t key_offset;
  std::int64_t value_offset;
  std::int64_t kv_heads;
  std::int64_t head_dim;
  Dtype dtype;  // kBF16 or kF32
};

// Rounds row r of k and v (each [rows][kv_heads * head_dim]) to the cache's type, to nearest even, into slots[r].
struct StoreKvArgs {
  Rows<const float> k;
  Rows<const float> v;
  const std::int32_t* slots;
  KvLayer kv;
};

// Row r sees slots 0 .. prefix[r] - 1, then tail_slots[tail_offsets[r] .. tail_offsets[r + 1]), in this order: these
// are its logical positions 0, 1, 2, ... Query head h reads kv head h / (heads / kv_heads). With a window, it sees only
// the last `window` of its positions. With a softcap, scores are softcap * tanh(score / softcap).
struct AttentionArgs {
  Rows<const float> q;  // cols = heads * head_dim
  std::int64_t heads;
  const std::int32_t* prefix;
  const std::int32_t* tail_offsets;
  const std::int32_t* tail_slots;
  float scale;
  float softcap;        // or 0
  std::int64_t window;  // or 0
  KvLayer kv;
  Rows<float> out;
};

// One table an instruction set. The comment names the unit of [begin, end).
struct DraftKernels {
  void (*quantize_rows)(const QuantizeRowsArgs&, std::int64_t begin, std::int64_t end,
                        Scratch);  // row * blocks + block
  void (*matmul_coarse)(const MatmulCoarseArgs&, std::int64_t begin, std::int64_t end, Scratch);    // outputs
  void (*matmul_nibbles)(const MatmulNibblesArgs&, std::int64_t begin, std::int64_t end, Scratch);  // outputs
  void (*add_levels)(const AddLevelsArgs&, std::int64_t begin, std::int64_t end,
                     Scratch);  // columns, each for all rows
  void (*widen_coarse)(const WidenCoarseArgs&, std::int64_t begin, std::int64_t end, Scratch);          // rows
  void (*count_classes)(const CountClassesArgs&, std::int64_t begin, std::int64_t end, Scratch);        // rows
  void (*quantize_nibbles)(const QuantizeNibblesArgs&, std::int64_t begin, std::int64_t end, Scratch);  // rows
};

struct Kernels {
  const char* name;
  bool emulates_fma;
  void (*matmul)(const MatmulArgs&, std::int64_t begin, std::int64_t end, Scratch);        // outputs (rows of w)
  void (*rms_norm)(const RmsNormArgs&, std::int64_t begin, std::int64_t end, Scratch);     // rows
  void (*gated)(const GatedArgs&, std::int64_t begin, std::int64_t end, Scratch);          // columns, each for all rows
  void (*scale)(const ScaleArgs&, std::int64_t begin, std::int64_t end, Scratch);          // columns, each for all rows
  void (*add_rows)(const AddRowsArgs&, std::int64_t begin, std::int64_t end, Scratch);     // columns, each for all rows
  void (*route)(const RouteArgs&, std::int64_t begin, std::int64_t end, Scratch);          // rows
  void (*rope)(const RopeArgs&, std::int64_t begin, std::int64_t end, Scratch);            // rows
  void (*widen)(const WidenArgs&, std::int64_t begin, std::int64_t end, Scratch);          // elements
  void (*exp)(const ExpArgs&, std::int64_t begin, std::int64_t end, Scratch);              // elements
  void (*store_kv)(const StoreKvArgs&, std::int64_t begin, std::int64_t end, Scratch);     // rows
  void (*attention)(const AttentionArgs&, std::int64_t begin, std::int64_t end, Scratch);  // kv_head * rows + row
  void (*matmul_packed)(const MatmulPackedArgs&, std::int64_t begin, std::int64_t end, Scratch);    // outputs
  void (*matmul_indexed)(const MatmulIndexedArgs&, std::int64_t begin, std::int64_t end, Scratch);  // outputs
  void (*unpack)(const UnpackArgs&, std::int64_t begin, std::int64_t end, Scratch);                 // rows
  DraftKernels draft;
};

extern const Kernels kScalarKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;

// Faster packed weights for CPUs with more than that table asks for: all else is the same.
struct PackedKernels {
  void (*matmul_packed)(const MatmulPackedArgs&, std::int64_t begin, std::int64_t end, Scratch);
  void (*unpack)(const UnpackArgs&, std::int64_t begin, std::int64_t end, Scratch);
};
extern const PackedKernels kAvx512Vbmi2PackedKernels;

// Likewise for drafting, with VNNI.
extern const DraftKernels kAvx2VnniDraftKernels;
extern const DraftKernels kAvx512VnniDraftKernels;
#elif defined(__aarch64__)
extern const Kernels kNeonKernels;
extern const DraftKernels kNeonDotprodDraftKernels;  // likewise, with SDOT
#endif

}  // namespace penstock
