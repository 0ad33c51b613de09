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
void rms_norm(ThreadPool& pool, const RmsNormArgs& args);
void silu_mul(ThreadPool& pool, const SiluMulArgs& args);
void rope(ThreadPool& pool, const RopeArgs& args);
void widen(ThreadPool& pool, const WidenArgs& args);
void exp(ThreadPool& pool, const ExpArgs& args);
void store_kv(ThreadPool& pool, const StoreKvArgs& args);
void attention(ThreadPool& pool, const AttentionArgs& args);

}  // namespace penstock
