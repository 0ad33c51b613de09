// The table of one instruction set, from its Vec.
#pragma once

#include "kernels/generic/activation.h"
#include "kernels/generic/add_levels.h"
#include "kernels/generic/attention.h"
#include "kernels/generic/backend.h"
#include "kernels/generic/coarse.h"
#include "kernels/generic/exp.h"
#include "kernels/generic/kv.h"
#include "kernels/generic/matmul.h"
#include "kernels/generic/matmul_indexed.h"
#include "kernels/generic/matmul_levels.h"
#include "kernels/generic/matmul_packed.h"
#include "kernels/generic/nibbles.h"
#include "kernels/generic/norm.h"
#include "kernels/generic/quantize_rows.h"
#include "kernels/generic/rope.h"
#include "kernels/generic/route.h"
#include "kernels/generic/scale.h"
#include "kernels/generic/unpack.h"
#include "kernels/generic/widen.h"

namespace penstock {
namespace {

// D are the operations on levels (generic/matmul_levels.h).
template <VectorBackend V, LevelBackend<V> D>
constexpr DraftKernels make_draft_kernels() {
  return DraftKernels{
      .quantize_rows = quantize_rows<D>,
      .matmul_coarse = matmul_coarse<V, D>,
      .matmul_nibbles = matmul_nibbles<V, D>,
      .add_levels = add_levels,
      .widen_coarse = widen_coarse<D>,
      .count_classes = count_classes,
      .quantize_nibbles = quantize_nibbles<V>,
  };
}

// G are the operations on groups of packed weights.
template <VectorBackend V, GroupBackend<V> G, LevelBackend<V> D>
constexpr Kernels make_kernels(const char* name) {
  return Kernels{
      .name = name,
      .emulates_fma = V::kEmulatesFma,
      .matmul = matmul<V>,
      .rms_norm = rms_norm<V>,
      .gated = gated<V>,
      .scale = scale<V>,
      .add_rows = add_rows<V>,
      .route = route<V>,
      .rope = rope<V>,
      .widen = widen<V>,
      .exp = exp<V>,
      .store_kv = store_kv<V>,
      .attention = attention<V>,
      .matmul_packed = matmul_packed<V, G>,
      .matmul_indexed = matmul_indexed<V, G>,
      .unpack = unpack<G>,
      .draft = make_draft_kernels<V, D>(),
  };
}

}  // namespace
}  // namespace penstock
