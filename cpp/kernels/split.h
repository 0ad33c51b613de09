// A kernel's units as a job for a pool.
#pragma once

#include "kernels/kernels.h"
#include "threads.h"

namespace penstock {

template <typename Args>
using Kernel = void (*)(const Args&, std::int64_t, std::int64_t, Scratch);

// Runs the kernel for [0, units) in ranges of `grain`. The pool must have been acquired.
template <typename Args>
void split(ThreadPool& pool, Kernel<Args> kernel, const Args& args, std::int64_t units, std::int64_t grain,
           std::size_t shared_bytes = 0) {
  struct Call {
    Kernel<Args> kernel;
    const Args& args;
  };
  const Call call{kernel, args};
  const auto task = [](const void* context, std::int64_t begin, std::int64_t end, Scratch scratch) {
    const Call& c = *static_cast<const Call*>(context);
    c.kernel(c.args, begin, end, scratch);
  };
  pool.run(units, grain, task, &call, shared_bytes);
}

}  // namespace penstock
