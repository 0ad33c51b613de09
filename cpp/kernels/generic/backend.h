// What an instruction set must give to the generic kernels. Files in kernels/isa/ assert that their types do; the plain
// C++ of isa/scalar.cpp shows what each operation computes.
//
// Of every operation, all instruction sets give the same bits, except that a NaN may be any NaN. Floats are rounded to
// nearest even, and denormals kept.
#pragma once

#include <concepts>
#include <cstdint>
#include <type_traits>

#include "kernels/generic/packed_row.h"
#include "kernels/packed_scratch.h"

namespace penstock {

// Sixteen float32 lanes, the unit of the numerics contract, in kParts registers: part p has lanes 16 / kParts * p on.
template <class V>
concept VectorShape = std::is_trivially_copyable_v<V> && requires(V v) {
  typename V::Part;
  typename V::Mask;  // a choice for each lane
  { v.part[0] } -> std::same_as<typename V::Part&>;
  requires sizeof(v.part) == V::kParts * sizeof(typename V::Part);
  requires V::kParts * sizeof(typename V::Part) == 16 * sizeof(float);
  // The matrix product's register tile: rows of activations, and of weights.
  requires V::kTileRows > 0 && V::kTileOutputs > 0;
  requires V::kRegisters > 0;  // for Parts, all that the CPU has
  // Whether, of many rows, the first keeps widened weights for the others.
  requires std::same_as<decltype(V::kWidensOnce), const bool>;
  requires std::same_as<decltype(V::kEmulatesFma), const bool>;
};

// With `count`, 0 to 16, so many lanes of memory are touched, and a load leaves +0 in the others. Bytes are
// little-endian and at any address.
template <class V>
concept VectorMemory = requires(V v, typename V::Part part, const float* from, float* to, const std::uint8_t* source,
                                std::uint8_t* bytes, int count) {
  { V::load(from) } -> std::same_as<V>;
  { V::load(from, count) } -> std::same_as<V>;
  { V::load_part(from) } -> std::same_as<typename V::Part>;
  { V::store(to, v) } -> std::same_as<void>;
  { V::store(to, v, count) } -> std::same_as<void>;
  { V::store_part(to, part) } -> std::same_as<void>;
  // Widening is exact.
  { V::load_f32(source) } -> std::same_as<V>;
  { V::load_f32(source, count) } -> std::same_as<V>;
  { V::part_f32(source) } -> std::same_as<typename V::Part>;
  { V::load_bf16(source) } -> std::same_as<V>;
  { V::load_bf16(source, count) } -> std::same_as<V>;
  { V::part_bf16(source) } -> std::same_as<typename V::Part>;
  { V::load_f16(source) } -> std::same_as<V>;
  { V::load_f16(source, count) } -> std::same_as<V>;
  { V::part_f16(source) } -> std::same_as<typename V::Part>;
  { V::store_f32(bytes, v, count) } -> std::same_as<void>;
  { V::store_bf16(bytes, v, count) } -> std::same_as<void>;  // to nearest even; a NaN becomes 0x7fc0
};

// Lane by lane, each result rounded once, where nothing else is said.
template <class V>
concept VectorArithmetic =
    requires(V v, typename V::Part part, typename V::Mask mask, const V (&sixteen)[16], float x, int count) {
      { V::zero() } -> std::same_as<V>;  // +0
      { V::broadcast(x) } -> std::same_as<V>;
      { V::add(v, v) } -> std::same_as<V>;
      { V::sub(v, v) } -> std::same_as<V>;
      { V::mul(v, v) } -> std::same_as<V>;
      { V::div(v, v) } -> std::same_as<V>;
      { V::sqrt(v) } -> std::same_as<V>;
      { V::neg(v) } -> std::same_as<V>;
      // fma(a, b, c) is a * b + c with one rounding; accumulate(a, b, sum) the same, in the register of `sum`.
      { V::fma(v, v, v) } -> std::same_as<V>;
      { V::fma(part, part, part) } -> std::same_as<typename V::Part>;
      { V::accumulate(part, part, part) } -> std::same_as<typename V::Part>;
      // The same value, in a register: the compiler will not load it again for every use.
      { V::pinned(part) } -> std::same_as<typename V::Part>;
      // max(a, b) is a > b ? a : b, so b if either is NaN or both are zero; min(a, b) is a < b ? a : b.
      { V::max(v, v) } -> std::same_as<V>;
      { V::min(v, v) } -> std::same_as<V>;
      // All lanes in the fixed tree: lanes j and j + 8, then j + 4, j + 2, j + 1. Lane i of sums(v) is sum(v[i]).
      { V::sum(v) } -> std::same_as<float>;
      { V::sums(sixteen) } -> std::same_as<V>;
      { V::reduce_max(v) } -> std::same_as<float>;  // in the same tree
      // To the nearest integer, ties to even, for |a| <= 2^22; the same (a + 3 * 2^22) - 3 * 2^22 everywhere.
      { V::round(v) } -> std::same_as<V>;
      { V::pow2(v) } -> std::same_as<V>;                      // 2^a for integers a from -126 to 127
      { V::less(v, v) } -> std::same_as<typename V::Mask>;    // false where an operand is NaN
      { V::first(count) } -> std::same_as<typename V::Mask>;  // the first `count` lanes
      { V::select(mask, v, v) } -> std::same_as<V>;           // the first vector's lanes where the mask is set
    };

template <class V>
concept VectorBackend = VectorShape<V> && VectorMemory<V> && VectorArithmetic<V>;

// Groups of 64 packed weights (docs/format.md), whose bits and bytes are in the order of positions (codec/layout.h).
template <class G>
concept GroupBits = requires(std::uint8_t* out, std::int64_t size, const std::uint8_t* source) {
  // copy_and_count(to, stride, from, bytes, readable_end): copies `bytes` bytes and fills up with zeros to `stride`, a
  // multiple of 64; returns the bits set. Bytes up to readable_end may be read.
  { G::copy_and_count(out, size, source, size, source) } -> std::same_as<std::int64_t>;
};

// What exponents are found with, where bits are quick to deposit (depth_planes.h).
template <class G>
concept GroupDeposit = GroupBits<G> && requires(std::uint8_t* out, std::uint64_t word,
                                                const std::uint8_t (&sixteen)[16], typename G::Table table) {
  // deposit(bits, mask): the lowest bits of `bits`, put where `mask` has ones.
  { G::deposit(word, word) } -> std::same_as<std::uint64_t>;
  // For each of 64 positions, the entry of a table of 16 whose number the four words' bits are, the lowest first.
  { G::table_of(sixteen) } -> std::same_as<typename G::Table>;
  { G::store_entries(out, table, word, word, word, word) } -> std::same_as<void>;
};

// And where bytes are (depth_bytes.h): 64 bytes are stored to `out`.
template <class G>
concept GroupExpansion = GroupBits<G> && requires(std::uint8_t* out, std::uint64_t word, const std::uint8_t* next,
                                                  std::uint8_t byte, typename G::Exponents same) {
  { G::splat(byte) } -> std::same_as<typename G::Exponents>;  // 64 times the same
  // choose(out, mask, yes, no): by the mask's bits.
  { G::choose(out, word, same, same) } -> std::same_as<void>;
  // expand(out, mask, next, no): the bytes from `next` on where the mask has ones, `no` where not; how many it has. 72
  // bytes may be read.
  { G::expand(out, word, next, same) } -> std::same_as<std::int64_t>;
  // expand_classes(out, low, high, next, one, two, three): likewise where both words have zeros; of the others, `one`
  // where low has a one, `two` where high has, `three` where both have.
  { G::expand_classes(out, word, word, next, same, same, same) } -> std::same_as<std::int64_t>;
};

// A group's 64 BF16 weights in registers: word 16 h + j of 32 bits has weight 32 h + j in its low half and weight
// 32 h + 16 + j in its high half, so that 16 words are two steps of the 16 lanes. part[h] has words 16 h on.
template <class G>
concept GroupWeights =
    requires(std::uint8_t* out, const std::uint8_t* bytes, std::uint64_t word, const typename G::Pairs& pairs) {
      { pairs.part[0][0] } -> std::same_as<const typename G::Words&>;
      requires sizeof(pairs.part) == 2 * kGroupWeights;
      // compose(exponents, mantissas, sign): rotated exponents (rotated.h), and mantissas as they are stored.
      { G::compose(bytes, bytes, word) } -> std::same_as<typename G::Pairs>;
      // indexed(table, halves, bytes): rotated exponents by two indices a byte; sign and mantissa (codec/index.h).
      { G::indexed(bytes, bytes, bytes) } -> std::same_as<typename G::Pairs>;
      // From weights in their own order, and back.
      { G::pairs_of(bytes) } -> std::same_as<typename G::Pairs>;
      { G::store_weights(out, pairs) } -> std::same_as<void>;
      { G::store_pairs(out, pairs) } -> std::same_as<void>;  // word after word
    };

namespace {
template <GroupBits G, int O>
class Levels;
}

// Depths<O>(rows, levels, scratch) finds how deep the weights of class 0 of O rows lie, in depth_bytes() of scratch a
// row; exponents(row, o, out) then writes the rotated exponents of row o, 64 bytes a group.
template <class G, int O>
concept GroupDepths =
    std::constructible_from<typename G::template Depths<O>, const PackedRow (&)[O], const Levels<G, O>&,
                            std::uint8_t*> &&
    requires(const PackedRow& row, const typename G::template Depths<O>& depths, int o, std::uint8_t* out) {
      { depths.exponents(row, o, out) } -> std::same_as<void>;
    };

template <class G>
concept GroupCodec = GroupBits<G> && GroupWeights<G> && GroupDepths<G, 1> && GroupDepths<G, kPackedRows>;

// Widening is exact: the halves of one register's words, or of as many in memory, as floats.
template <class G, class V>
concept GroupBackend =
    VectorBackend<V> && GroupCodec<G> && requires(typename G::Words words, const std::uint8_t* bytes) {
      requires sizeof(typename G::Words) == sizeof(typename V::Part);
      { G::low_halves(words) } -> std::same_as<typename V::Part>;
      { G::high_halves(words) } -> std::same_as<typename V::Part>;
      { G::part_low_halves(bytes) } -> std::same_as<typename V::Part>;
      { G::part_high_halves(bytes) } -> std::same_as<typename V::Part>;
    };

// Bytes of 64 levels or int8 activations in the order of positions, and their products (kernels/draft.h). All of it is
// integer arithmetic, and exact.
template <class D>
concept LevelProducts =
    requires(std::uint8_t* out, const std::uint8_t* source, std::uint8_t value, const std::uint8_t (&sixteen)[16],
             typename D::Bytes bytes, typename D::Sums sums, typename D::Table table) {
      // So many rows of x take weights from registers, with so many sums in a tile; and the tile of kept weights.
      requires D::kDirectRows > 0 && D::kDirectSums > 0;
      requires D::kTileRows > 0 && D::kTileOutputs > 0;
      { D::load(source) } -> std::same_as<typename D::Bytes>;
      { D::store(out, bytes) } -> std::same_as<void>;
      { D::splat(value) } -> std::same_as<typename D::Bytes>;
      // Sums are 16 lanes of int32; lane j has bytes 4 j to 4 j + 3.
      { D::zero_sums() } -> std::same_as<typename D::Sums>;
      { D::load_sums(source) } -> std::same_as<typename D::Sums>;
      { D::store_negated(out, sums) } -> std::same_as<void>;
      // dot(sums, weights, x): adds products of unsigned weights, up to 127, with signed x.
      { D::dot(sums, bytes, bytes) } -> std::same_as<typename D::Sums>;
      { D::table_of(sixteen) } -> std::same_as<typename D::Table>;
      // coarse(table, words): entry low + 2 high + 4 sign, by the three words of a group.
      { D::coarse(table, source) } -> std::same_as<typename D::Bytes>;
      // nibbles(table, halves): entries by 4 bits, position p's the low ones of byte p, p + 32's its high ones.
      { D::nibbles(table, source) } -> std::same_as<typename D::Bytes>;
    };

template <class D, class V>
concept LevelBackend = VectorBackend<V> && LevelProducts<D> && requires(typename D::Sums sums) {
  { D::to_floats(sums) } -> std::same_as<V>;  // rounded, where a sum has more than 24 bits
};

}  // namespace penstock
