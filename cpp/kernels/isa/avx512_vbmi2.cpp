// Packed weights with VBMI, VBMI2 and GFNI beside the rest of AVX-512 (Intel since Ice Lake, AMD since Zen 4).
#include "kernels/isa/avx512.h"

namespace penstock {
namespace {

// Depths as exponents, one byte for each weight of class 0, so that vpexpandb puts them to their places. O rows go in
// step, which saves loops that end at unforeseen moments, and gives the CPU several chains of work.
template <int O>
class DepthBytes {
 public:
  static constexpr std::int64_t scratch_bytes(std::int64_t groups) {
    return O * (kLevels * (align_chunk(groups * 7) + 64) + 2 * (align_chunk(groups * kMostClass0) + 128)) + 64;
  }

  // Checks and copies the levels.
  bool find(const PackedRow (&row)[O], RowParts (&parts)[O], std::uint8_t* scratch) {
    scratch = aligned(scratch);
    std::int64_t bits[O];
    const std::uint8_t* next[O];
    bool bad = false;
    for (int o = 0; o < O; ++o) {
      if (row[o].bytes < row[o].groups * kGroupMantissaBytes + 2) return false;
      bool too_many;
      bits[o] = count_class0(row[o], too_many);
      bad |= too_many;
      next[o] = row[o].mantissas(row[o].groups);
    }
    for (int k = 0; k < kLevels; ++k) {
      std::int64_t bytes[O], most = 0, most_bits = 0;
      for (int o = 0; o < O; ++o) {
        bytes[o] = (bits[o] + 7) >> 3;
        most = bytes[o] > most ? bytes[o] : most;
        most_bits = bits[o] > most_bits ? bits[o] : most_bits;
        bad |= bytes[o] > row[o].data + row[o].bytes - next[o];
      }
      if (bad) return false;
      copy_[k] = scratch;
      words_[k] = (most_bits + 63) >> 6;
      stride_[k] = align_chunk(most);
      PENSTOCK_UNROLL
      for (int o = 0; o < O; ++o) {
        bad |= (bits[o] & 7) != 0 && next[o][bits[o] >> 3] >> (bits[o] & 7) != 0;
        __m512i ones = _mm512_setzero_si512();
        for (std::int64_t i = 0; i < stride_[k]; i += 64) {
          const std::int64_t left = bytes[o] - i;
          const __mmask64 some = _bzhi_u64(~std::uint64_t{0}, left < 0 ? 0 : left < 64 ? static_cast<unsigned>(left) : 64);
          const __m512i v = _mm512_maskz_loadu_epi8(some, next[o] + i);
          _mm512_store_si512(scratch + o * stride_[k] + i, v);
          ones = _mm512_add_epi64(ones, _mm512_popcnt_epi64(v));
        }
        next[o] += bytes[o];
        bits[o] = _mm512_reduce_add_epi64(ones);
      }
      scratch += O * stride_[k];
    }
    for (int o = 0; o < O; ++o) bad |= !find_patches(row[o], parts[o], next[o]);
    rest_ = scratch;
    return !bad;
  }

  void expand(const PackedRow (&row)[O]) {
    std::int64_t size = align_chunk(row[0].groups * kMostClass0) + 64;
    std::uint8_t* in = rest_;
    std::uint8_t* out = rest_ + O * size;
    PENSTOCK_UNROLL
    for (int o = 0; o < O; ++o) {
      const __m512i six = _mm512_set1_epi8(exponent(row[o], 6)), seven = _mm512_set1_epi8(exponent(row[o], 7));
      for (std::int64_t i = 0; i < words_[6]; ++i) {
        _mm512_store_si512(in + o * size + 64 * i, _mm512_mask_mov_epi8(six, word(6, o, i), seven));
      }
    }
    for (int k = kLevels - 2; k >= 0; --k) {
      __m512i here[O];
      const std::uint8_t* next[O];
      for (int o = 0; o < O; ++o) {
        here[o] = _mm512_set1_epi8(exponent(row[o], k));
        next[o] = in + o * size;
      }
      for (std::int64_t i = 0; i < words_[k]; ++i) {
        PENSTOCK_UNROLL
        for (int o = 0; o < O; ++o) {
          const std::uint64_t mask = word(k, o, i);
          _mm512_store_si512(out + o * size + 64 * i, _mm512_mask_expand_epi8(here[o], mask, _mm512_loadu_si512(next[o])));
          next[o] += __builtin_popcountll(mask);
        }
      }
      std::uint8_t* const other = in;
      in = out;
      out = other;
    }
    for (int o = 0; o < O; ++o) next_[o] = in + o * size;
  }

  // Gives the exponents of a row, group after group.
  class Reader {
   public:
    Reader(const DepthBytes& depths, const PackedRow& row, int o) : next_(depths.next_[o]) {
      for (int c = 1; c < 4; ++c) class_[c - 1] = _mm512_set1_epi8(static_cast<char>(rotated(row.unit - 2 + c)));
    }
    [[gnu::always_inline]] inline void step(const std::uint8_t* coarse, std::uint8_t* out) {
      const std::uint64_t l = load_word<std::uint64_t>(coarse), h = load_word<std::uint64_t>(coarse + 8);
      const __mmask64 low = _load_mask64((__mmask64*)coarse), high = _load_mask64((__mmask64*)(coarse + 8));
      __m512i v = _mm512_mask_mov_epi8(class_[0], high, class_[1]);
      v = _mm512_mask_mov_epi8(v, _kand_mask64(low, high), class_[2]);
      v = _mm512_mask_expand_epi8(v, _knot_mask64(_kor_mask64(low, high)), _mm512_loadu_si512(next_));
      _mm512_storeu_si512(out, v);
      next_ += 64 - __builtin_popcountll(l | h);
    }

   private:
    const std::uint8_t* next_;
    __m512i class_[3];
  };

 private:
  static std::uint8_t* aligned(std::uint8_t* p) {
    return reinterpret_cast<std::uint8_t*>((reinterpret_cast<std::uintptr_t>(p) + 63) & ~std::uintptr_t{63});
  }
  static char exponent(const PackedRow& row, int depth) { return static_cast<char>(rotated(row.unit - 2 - depth)); }
  std::uint64_t word(int k, int o, std::int64_t i) const { return load_word<std::uint64_t>(copy_[k] + o * stride_[k] + 8 * i); }

  std::uint8_t* copy_[kLevels];
  std::int64_t stride_[kLevels];
  std::int64_t words_[kLevels];
  std::uint8_t* rest_;
  const std::uint8_t* next_[O];
};

struct Vbmi2Ops : GroupOps {
  template <int O>
  using Depths = DepthBytes<O>;
};

}  // namespace

constinit const Kernels kAvx512Vbmi2Kernels = make_kernels<Vec, Vbmi2Ops>("avx512vbmi2");

}  // namespace penstock
