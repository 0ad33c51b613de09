// penstock._core: checks shapes, releases the GIL, calls the kernels; nothing else. Memory is the caller's.
#include "bindings.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string_view.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "arrays.h"
#include "fp_environment.h"
#include "kernels/attention_scratch.h"
#include "kernels/dispatch.h"
#include "kernels/run.h"
#include "numerics/gumbel.h"
#include "numerics/rope_table.h"
#include "threads.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace penstock {
namespace {

Dtype parse_dtype(std::string_view name) {
  if (name == "BF16") return Dtype::kBF16;
  if (name == "F16") return Dtype::kF16;
  if (name == "F32") return Dtype::kF32;
  throw std::invalid_argument("unknown weight dtype '" + std::string(name) + "', expected BF16, F16 or F32");
}

std::int64_t item_size(Dtype dtype) { return dtype == Dtype::kF32 ? 4 : 2; }

// A KvLayer that owns its table of blocks (not the blocks).
class KvBlocks {
 public:
  KvBlocks(const Vector<const std::uint64_t>& blocks, std::int64_t block_slots, std::int64_t key_offset,
           std::int64_t value_offset, std::int64_t kv_heads, std::int64_t head_dim, std::string_view dtype)
      : blocks_(blocks.shape(0)),
        layer_{nullptr, 0, block_slots, key_offset, value_offset, kv_heads, head_dim, Dtype::kBF16} {
    require(block_slots >= 16 && (block_slots & (block_slots - 1)) == 0,
            "block_slots must be a power of two, 16 or more");
    require(kv_heads > 0 && head_dim > 0, "kv_heads and head_dim must be positive");
    require(key_offset >= 0 && value_offset >= 0, "key_offset and value_offset must not be negative");
    require(dtype == "bf16" || dtype == "f32", "unknown KV dtype '", dtype, "', expected bf16 or f32");
    if (dtype == "f32") layer_.dtype = Dtype::kF32;
    for (std::size_t i = 0; i < blocks_.size(); ++i) blocks_[i] = reinterpret_cast<std::uint8_t*>(blocks(i));
    layer_.blocks = blocks_.data();
    layer_.n_blocks = static_cast<std::int64_t>(blocks_.size());
  }
  KvBlocks(const KvBlocks&) = delete;
  KvBlocks& operator=(const KvBlocks&) = delete;

  const KvLayer& layer() const { return layer_; }
  std::int64_t capacity() const { return layer_.n_blocks * layer_.block_slots; }

  void require_slots(const std::int32_t* slots, std::int64_t n, const char* name) const {
    for (std::int64_t i = 0; i < n; ++i) {
      require(slots[i] >= 0 && slots[i] < capacity(), name, ": slot ", slots[i], " is outside a cache of ", capacity());
    }
  }

 private:
  std::vector<std::uint8_t*> blocks_;
  KvLayer layer_;
};

void bind_matmul(ThreadPool& pool, const Matrix<const float>& x, const Vector<const std::uint8_t>& w,
                 std::string_view dtype, const Matrix<float>& out, const std::optional<Vector<const float>>& bias,
                 bool accumulate) {
  const MatmulArgs args{
      .x = rows_of(x, "x"),
      .w = w.data(),
      .dtype = parse_dtype(dtype),
      .bias = bias ? bias->data() : nullptr,
      .accumulate = accumulate,
      .out = rows_of(out, "out"),
  };
  require_equal(args.out.rows, args.x.rows, "rows of out");
  require_equal(w.shape(0), args.out.cols * args.x.cols * item_size(args.dtype), "bytes of w");
  if (bias) require_equal(bias->shape(0), args.out.cols, "length of bias");
  const nb::gil_scoped_release release;
  matmul(pool, args);
}

void bind_rms_norm(ThreadPool& pool, const Matrix<const float>& x, const Vector<const float>& weight, float eps,
                   const Matrix<float>& out) {
  const RmsNormArgs args{rows_of(x, "x"), weight.data(), eps, rows_of(out, "out")};
  require_same_shape(args.x, args.out, "x and out");
  require_equal(weight.shape(0), args.x.cols, "length of weight");
  const nb::gil_scoped_release release;
  rms_norm(pool, args);
}

Activation parse_activation(std::string_view name) {
  if (name == "silu") return Activation::kSilu;
  if (name == "gelu_tanh") return Activation::kGeluTanh;
  throw std::invalid_argument("unknown activation '" + std::string(name) + "', expected silu or gelu_tanh");
}

void bind_gated(ThreadPool& pool, const Matrix<const float>& gate, const Matrix<const float>& up,
                std::string_view activation, const Matrix<float>& out) {
  const GatedArgs args{rows_of(gate, "gate"), rows_of(up, "up"), parse_activation(activation), rows_of(out, "out")};
  require_same_shape(args.gate, args.out, "gate and out");
  require_same_shape(args.up, args.out, "up and out");
  const nb::gil_scoped_release release;
  gated(pool, args);
}

void bind_scale(ThreadPool& pool, const Matrix<float>& x, float times, float divisor, float cap) {
  const ScaleArgs args{rows_of(x, "x"), times, divisor, cap};
  require(cap >= 0, "cap must not be negative");
  const nb::gil_scoped_release release;
  scale(pool, args);
}

void bind_add_rows(ThreadPool& pool, const Matrix<const float>& x, const Vector<const float>& factors,
                   const Matrix<float>& out, const std::optional<Vector<const std::int32_t>>& at) {
  const AddRowsArgs args{rows_of(x, "x"), at ? at->data() : nullptr, factors.data(), rows_of(out, "out")};
  require_equal(args.x.cols, args.out.cols, "columns of x");
  require_equal(factors.shape(0), args.x.rows, "length of factors");
  if (at) {
    require_equal(at->shape(0), args.x.rows, "length of at");
    for (std::int64_t r = 0; r < args.x.rows; ++r) {
      require(args.at[r] >= 0 && args.at[r] < args.out.rows, "at: out has no row ", args.at[r]);
    }
  } else {
    require_equal(args.x.rows, args.out.rows, "rows of x");
  }
  const nb::gil_scoped_release release;
  add_rows(pool, args);
}

void bind_route(ThreadPool& pool, const Matrix<const float>& logits, const std::optional<Vector<const float>>& bias,
                bool sigmoid, bool renormalize, float scaling, std::int64_t groups, std::int64_t kept_groups,
                const Matrix<std::int32_t>& ids, const Matrix<float>& weights) {
  const Rows<const float> rows = rows_of(logits, "logits");
  const Rows<std::int32_t> out = rows_of(ids, "ids");
  const Rows<float> out_weights = rows_of(weights, "weights");
  const RouteArgs args{rows,        bias ? bias->data() : nullptr,
                       sigmoid,     renormalize,
                       scaling,     groups,
                       kept_groups, out.cols,
                       out.data,    out_weights.data};
  require(rows.cols >= 1 && rows.cols <= kMostExperts, "experts: 1 to ", kMostExperts, ", not ", rows.cols);
  if (bias) require_equal(bias->shape(0), rows.cols, "length of bias");
  require_equal(out.rows, rows.rows, "rows of ids");
  require_same_shape(out, out_weights, "ids and weights");
  require(out.stride == out.cols && out_weights.stride == out.cols, "ids and weights must be contiguous");
  require(groups >= 1 && rows.cols % groups == 0, "groups must divide the experts");
  require(kept_groups >= 1 && kept_groups <= groups, "kept_groups must be 1 to groups");
  require(out.cols >= 1 && out.cols <= rows.cols / groups * kept_groups, "there are fewer experts than are chosen");
  const nb::gil_scoped_release release;
  route(pool, args);
}

void bind_rope_table(const Vector<const std::int64_t>& positions, const Vector<const float>& inv_freq,
                     const Matrix<float>& cos, const Matrix<float>& sin) {
  const Rows<float> cos_rows = rows_of(cos, "cos"), sin_rows = rows_of(sin, "sin");
  require_same_shape(cos_rows, sin_rows, "cos and sin");
  require_equal(cos_rows.rows, positions.shape(0), "rows of cos");
  require_equal(cos_rows.cols, inv_freq.shape(0), "columns of cos");
  require(cos_rows.stride == cos_rows.cols && sin_rows.stride == sin_rows.cols, "cos and sin must be contiguous");
  const nb::gil_scoped_release release;
  const FpEnvironment environment;
  const bool in_range =
      rope_table(positions.data(), cos_rows.rows, inv_freq.data(), cos_rows.cols, cos.data(), sin.data());
  require(in_range, "an angle is not finite or not below 2^26");
}

void bind_rope(ThreadPool& pool, const Tensor3<float>& x, const Matrix<const float>& cos,
               const Matrix<const float>& sin) {
  const Rows<const float> cos_rows = rows_of(cos, "cos"), sin_rows = rows_of(sin, "sin");
  const RopeArgs args{.x = rows_of(x, "x"),
                      .heads = static_cast<std::int64_t>(x.shape(1)),
                      .dim = static_cast<std::int64_t>(x.shape(2)),
                      .rotary = 2 * cos_rows.cols,
                      .cos = cos.data(),
                      .sin = sin.data()};
  require(args.rotary <= args.dim, "columns of cos are more than half the head dimension");
  require_same_shape(cos_rows, sin_rows, "cos and sin");
  require_equal(cos_rows.rows, args.x.rows, "rows of cos");
  require(cos_rows.stride == cos_rows.cols && sin_rows.stride == sin_rows.cols, "cos and sin must be contiguous");
  const nb::gil_scoped_release release;
  rope(pool, args);
}

void bind_widen(ThreadPool& pool, const Vector<const std::uint8_t>& src, std::string_view dtype,
                const Vector<float>& out) {
  const WidenArgs args{src.data(), parse_dtype(dtype), static_cast<std::int64_t>(out.shape(0)), out.data()};
  require_equal(src.shape(0), args.n * item_size(args.dtype), "bytes of src");
  const nb::gil_scoped_release release;
  widen(pool, args);
}

void bind_exp(ThreadPool& pool, const Vector<const float>& x, const Vector<float>& out) {
  const ExpArgs args{x.data(), static_cast<std::int64_t>(out.shape(0)), out.data()};
  require_equal(x.shape(0), args.n, "length of x");
  const nb::gil_scoped_release release;
  exp(pool, args);
}

void bind_store_kv(ThreadPool& pool, const Tensor3<const float>& k, const Tensor3<const float>& v,
                   const Vector<const std::int32_t>& slots, const KvBlocks& kv) {
  const StoreKvArgs args{rows_of(k, "k"), rows_of(v, "v"), slots.data(), kv.layer()};
  require_equal(k.shape(1), args.kv.kv_heads, "heads of k");
  require_equal(k.shape(2), args.kv.head_dim, "head dimension of k");
  require(v.shape(1) == k.shape(1) && v.shape(2) == k.shape(2), "k and v differ in shape");
  require_same_shape(args.k, args.v, "k and v");
  require_equal(slots.shape(0), args.k.rows, "length of slots");
  kv.require_slots(args.slots, args.k.rows, "slots");
  const nb::gil_scoped_release release;
  store_kv(pool, args);
}

// Checks the rows' paths; returns the length of the longest.
std::int64_t require_paths(const AttentionArgs& args, std::int64_t n_tail_slots, const KvBlocks& kv) {
  std::int64_t longest = 0;
  require(args.tail_offsets[0] == 0, "tail_offsets must start at 0");
  for (std::int64_t r = 0; r < args.q.rows; ++r) {
    const std::int64_t tail = static_cast<std::int64_t>(args.tail_offsets[r + 1]) - args.tail_offsets[r];
    require(args.prefix[r] >= 0 && args.prefix[r] <= kv.capacity(), "prefix lies outside the cache");
    require(tail >= 0, "tail_offsets must not descend");
    require(args.prefix[r] + tail > 0, "row ", r, " sees no slot");
    longest = std::max(longest, args.prefix[r] + tail);
  }
  require_equal(args.tail_offsets[args.q.rows], n_tail_slots, "last of tail_offsets");
  kv.require_slots(args.tail_slots, n_tail_slots, "tail_slots");
  return longest;
}

void bind_attention(ThreadPool& pool, const Tensor3<const float>& q, const Vector<const std::int32_t>& prefix,
                    const Vector<const std::int32_t>& tail_offsets, const Vector<const std::int32_t>& tail_slots,
                    float scale, const KvBlocks& kv, const Tensor3<float>& out, std::int64_t window, float softcap) {
  const AttentionArgs args{.q = rows_of(q, "q"),
                           .heads = static_cast<std::int64_t>(q.shape(1)),
                           .prefix = prefix.data(),
                           .tail_offsets = tail_offsets.data(),
                           .tail_slots = tail_slots.data(),
                           .scale = scale,
                           .softcap = softcap,
                           .window = window,
                           .kv = kv.layer(),
                           .out = rows_of(out, "out")};
  require(window >= 0, "window must not be negative");
  require(softcap >= 0, "softcap must not be negative");
  require(args.heads > 0 && args.heads % args.kv.kv_heads == 0, "heads of q must be a multiple of kv_heads");
  require_equal(q.shape(2), args.kv.head_dim, "head dimension of q");
  require(out.shape(1) == q.shape(1) && out.shape(2) == q.shape(2), "q and out differ in shape");
  require_same_shape(args.q, args.out, "q and out");
  require_equal(prefix.shape(0), args.q.rows, "length of prefix");
  require_equal(tail_offsets.shape(0), args.q.rows + 1, "length of tail_offsets");
  const std::int64_t keys = require_paths(args, tail_slots.shape(0), kv);
  const std::int64_t needed = attention_least_scratch(keys, args.kv.block_slots, args.kv.head_dim);
  require(needed <= static_cast<std::int64_t>(pool.scratch_bytes()), "a path of ", keys, " slots needs ", needed,
          " bytes of scratch");
  const nb::gil_scoped_release release;
  attention(pool, args);
}

void bind_gumbel(std::uint64_t seed, std::uint32_t choice, std::uint32_t position,
                 const Vector<const std::int64_t>& tokens, const Vector<double>& out) {
  require_equal(tokens.shape(0), out.shape(0), "length of tokens");
  const nb::gil_scoped_release release;
  const FpEnvironment environment;
  gumbel(seed, choice, position, tokens.data(), static_cast<std::int64_t>(out.shape(0)), out.data());
}

nb::typed<nb::list, nb::str> isas() {
  nb::list names;
  for (const Kernels* table : available_kernels()) names.append(table->name);
  return names;
}

void set_isa(std::string_view name) {
  if (set_active_kernels(name)) return;
  std::string known;
  for (const Kernels* table : available_kernels()) known += (known.empty() ? "" : ", ") + std::string(table->name);
  throw std::invalid_argument("instruction set '" + std::string(name) +
                              "' is unknown or unsupported here; this CPU runs " + known);
}

}  // namespace

NB_MODULE(_core, m) {
  m.doc() = "Penstock's arithmetic. Arrays are float32 unless stated; rows may lie at any distance from one another.";

  m.def("isas", &isas, "Instruction sets that this CPU can run, best first.");
  m.def("isa", [] { return active_kernels().name; }, "The instruction set in use.");
  m.def("set_isa", &set_isa, "name"_a, "Use the named instruction set; ValueError if unknown or unsupported.");
  m.def(
      "emulates_fma", [] { return active_kernels().emulates_fma; },
      "Whether the kernels in use emulate fused multiply-add, which is slow.");

  nb::class_<ThreadPool>(m, "ThreadPool", "Threads for the kernels, and all of the kernels' working memory.")
      .def(
          "__init__",
          [](ThreadPool* self, int threads, std::size_t scratch_bytes) {
            require(threads > 0, "threads must be positive");
            require(scratch_bytes >= kLeastScratch, "scratch_bytes must be at least ", kLeastScratch);
            new (self) ThreadPool(threads, scratch_bytes);
          },
          "threads"_a, "scratch_bytes"_a, "scratch_bytes of working memory for each of the threads.")
      .def_prop_ro("threads", &ThreadPool::threads);

  nb::class_<KvBlocks>(m, "KvLayer", "Where one layer's keys and values lie; the caller keeps the blocks alive.")
      .def(nb::init<const Vector<const std::uint64_t>&, std::int64_t, std::int64_t, std::int64_t, std::int64_t,
                    std::int64_t, std::string_view>(),
           nb::arg("blocks").noconvert(), "block_slots"_a, "key_offset"_a, "value_offset"_a, "kv_heads"_a, "head_dim"_a,
           "dtype"_a,
           "blocks: uint64 addresses. Slot s is entry s % block_slots of block s // block_slots, which holds keys\n"
           "[kv_heads][block_slots][head_dim] at byte key_offset and values, the same shape, at byte value_offset.");

  m.def("matmul", &bind_matmul, "pool"_a, nb::arg("x").noconvert(), nb::arg("w").noconvert(), "dtype"_a,
        nb::arg("out").noconvert(), nb::arg("bias").noconvert() = nb::none(), "accumulate"_a = false,
        "out[rows, n] = x[rows, k] @ w[n, k].T (+ bias) (+ out). w: bytes of BF16, F16 or F32 at any alignment.");
  m.def("rms_norm", &bind_rms_norm, "pool"_a, nb::arg("x").noconvert(), nb::arg("weight").noconvert(), "eps"_a,
        nb::arg("out").noconvert(), "out = weight * x / sqrt(mean(x * x) + eps), row by row; out may be x.");
  m.def("gated", &bind_gated, "pool"_a, nb::arg("gate").noconvert(), nb::arg("up").noconvert(), "activation"_a,
        nb::arg("out").noconvert(), "out = activation(gate) * up, of silu or gelu_tanh; out may be gate or up.");
  m.def("scale", &bind_scale, "pool"_a, nb::arg("x").noconvert(), "times"_a = 1.0f, "divisor"_a = 1.0f, "cap"_a = 0.0f,
        "x *= times; x /= divisor; then x = cap * tanh(x / cap), unless cap is 0.");
  m.def("add_rows", &bind_add_rows, "pool"_a, nb::arg("x").noconvert(), nb::arg("factors").noconvert(),
        nb::arg("out").noconvert(), nb::arg("at").noconvert() = nb::none(),
        "out[at[r]] += factors[r] * x[r], r ascending; at: int32, or None for every row in order.");
  m.def("route", &bind_route, "pool"_a, nb::arg("logits").noconvert(), nb::arg("bias").noconvert().none(), "sigmoid"_a,
        "renormalize"_a, "scaling"_a, "groups"_a, "kept_groups"_a, nb::arg("ids").noconvert(),
        nb::arg("weights").noconvert(),
        "The experts ids[rows, k], int32, ascending, that rows of logits [rows, experts] go to, and their weights.");
  m.def("rope_table", &bind_rope_table, nb::arg("positions").noconvert(), nb::arg("inv_freq").noconvert(),
        nb::arg("cos").noconvert(), nb::arg("sin").noconvert(),
        "cos, sin [rows, d/2] of the float32 angles position * inv_freq; positions: int64.");
  m.def("rope", &bind_rope, "pool"_a, nb::arg("x").noconvert(), nb::arg("cos").noconvert(), nb::arg("sin").noconvert(),
        "Rotates the first 2 n dimensions of each head of x [rows, heads, d] in place; cos, sin [rows, n].");
  m.def("widen", &bind_widen, "pool"_a, nb::arg("src").noconvert(), "dtype"_a, nb::arg("out").noconvert(),
        "out[n] = src, bytes of n BF16, F16 or F32 values, exactly.");
  m.def("exp", &bind_exp, "pool"_a, nb::arg("x").noconvert(), nb::arg("out").noconvert(), "out[n] = e ** x[n].");
  m.def("store_kv", &bind_store_kv, "pool"_a, nb::arg("k").noconvert(), nb::arg("v").noconvert(),
        nb::arg("slots").noconvert(), "kv"_a,
        "Rounds k and v [rows, kv_heads, head_dim] to the cache's type, into slots int32[rows].");
  m.def("attention", &bind_attention, "pool"_a, nb::arg("q").noconvert(), nb::arg("prefix").noconvert(),
        nb::arg("tail_offsets").noconvert(), nb::arg("tail_slots").noconvert(), "scale"_a, "kv"_a,
        nb::arg("out").noconvert(), "window"_a = 0, "softcap"_a = 0.0f,
        "Softmax attention of q [rows, heads, head_dim]. Row r sees slots 0 .. prefix[r] - 1, then\n"
        "tail_slots[tail_offsets[r] : tail_offsets[r + 1]]; all three are int32. Of them it sees only the last\n"
        "`window`, unless that is 0. With a softcap, scores are softcap * tanh(score / softcap).");
  bind_packed(m);
  bind_draft(m);
  m.def("gumbel", &bind_gumbel, "seed"_a, "choice"_a, "position"_a, nb::arg("tokens").noconvert(),
        nb::arg("out").noconvert(), "out[n] float64 = Gumbel noise keyed by (seed, choice, position, tokens[n]).");
}

}  // namespace penstock
