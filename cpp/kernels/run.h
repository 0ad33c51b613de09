// Each operation, split over a pool's threads and run by the active kernels. Arguments must have been checked.
#pragma once

#include "codec/index.h"
#include "kernels/kernels.h"
#include "threads.h"

namespace penstock {

void matmul(ThreadPool& pool, const MatmulArgs& args);
void matmul_packed(ThreadPool& pool, const MatmulPackedArgs& args);
void matmul_indexed(ThreadPool& pool, const MatmulIndexedArgs& args);
// count_exceptions and index_rows (codec/index.h) for all rows.
void count_exceptions(ThreadPool& pool, const IndexArgs& args);
void index_rows(ThreadPool& pool, const IndexArgs& args);
// With int8 activations (kernels/draft.h): any number of rows of x, which replace args.x. `quantized` has room for
// kDraftRows of them, or all if fewer, in kBlockBytes a block, 64-byte aligned.
void matmul_coarse(ThreadPool& pool, const Rows<const float>& x, std::uint8_t* quantized, const MatmulCoarseArgs& args);
void matmul_nibbles(ThreadPool& pool, const Rows<const float>& x, std::uint8_t* quantized,
                    const MatmulNibblesArgs& args);
void add_levels(ThreadPool& pool, const AddLevelsArgs& args);
void widen_coarse(ThreadPool& pool, const WidenCoarseArgs& args);
void count_classes(ThreadPool& pool, const CountClassesArgs& args);
void quantize_nibbles(ThreadPool& pool, const QuantizeNibblesArgs& args);
void rms_norm(ThreadPool& pool, const RmsNormArgs& args);
void gated(ThreadPool& pool, const GatedArgs& args);
void scale(ThreadPool& pool, const ScaleArgs& args);
void add_rows(ThreadPool& pool, const AddRowsArgs& args);
void route(ThreadPool& pool, const RouteArgs& args);
void rope(ThreadPool& pool, const RopeArgs& args);
void widen(ThreadPool& pool, const WidenArgs& args);
void exp(ThreadPool& pool, const ExpArgs& args);
void store_kv(ThreadPool& pool, const StoreKvArgs& args);
void attention(ThreadPool& pool, const AttentionArgs& args);

}  // namespace penstock
