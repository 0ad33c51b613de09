#include "threads.h"

#include <algorithm>
#include <chrono>
#include <new>

#include "fp_environment.h"

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

namespace penstock {
namespace {

constexpr std::size_t kAlignment = 64;
// Longer than the gap between two kernels of a layer, far shorter than a wait for the disk.
constexpr std::chrono::microseconds kSpin{100};

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

}  // namespace

ThreadPool::ThreadPool(int threads, std::size_t scratch_bytes)
    : scratch_bytes_((scratch_bytes + kAlignment - 1) / kAlignment * kAlignment),
      scratch_(static_cast<std::byte*>(::operator new(scratch_bytes_* threads, std::align_val_t(kAlignment)))) {
  workers_.reserve(threads - 1);
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { worker_loop(i); });
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  work_posted_.notify_all();
  for (std::thread& worker : workers_) worker.join();
  ::operator delete(scratch_, std::align_val_t(kAlignment));
}

void ThreadPool::run(std::int64_t units, std::int64_t grain, Task task, const void* context) {
  if (units <= 0) return;
  job_ = {task, context, units, grain};
  next_ = 0;
  if (workers_.empty() || units <= grain) return work(0);

  leave_caller_alone();
  busy_ = static_cast<int>(workers_.size());
  {
    const std::lock_guard lock(mutex_);
    ++posted_;
  }
  work_posted_.notify_all();
  work(0);
  wait(work_done_, [this] { return busy_ == 0; });
}

// Keeps the workers off the caller's CPU. Linux may wake a thread on the CPU of its waker although another is idle, in
// virtual machines above all, and leave it waiting there for milliseconds.
void ThreadPool::leave_caller_alone() {
#if defined(__linux__)
  const int cpu = sched_getcpu();
  if (cpu < 0 || cpu == caller_cpu_) return;
  cpu_set_t others;
  if (sched_getaffinity(0, sizeof(others), &others) != 0) return;
  CPU_CLR(cpu, &others);
  if (CPU_COUNT(&others) == 0) return;
  for (std::thread& worker : workers_) pthread_setaffinity_np(worker.native_handle(), sizeof(others), &others);
  caller_cpu_ = cpu;
#endif
}

void ThreadPool::work(int thread) {
  const FpEnvironment environment;
  const Scratch scratch{scratch_ + thread * scratch_bytes_, scratch_bytes_};
  for (;;) {
    const std::int64_t begin = next_.fetch_add(job_.grain, std::memory_order_relaxed);
    if (begin >= job_.units) return;
    job_.task(job_.context, begin, std::min(begin + job_.grain, job_.units), scratch);
  }
}

void ThreadPool::worker_loop(int thread) {
  for (std::uint64_t done = 0;; ++done) {
    wait(work_posted_, [&] { return posted_ != done || stop_; });
    if (posted_ == done) return;  // stopped
    work(thread);
    if (--busy_ == 0) {
      const std::lock_guard lock(mutex_);
      work_done_.notify_one();
    }
  }
}

// Spins for a while, then sleeps.
template <typename Condition>
void ThreadPool::wait(std::condition_variable& signal, Condition ready) {
  const auto deadline = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 64; ++i) {
      if (ready()) return;
      pause();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  std::unique_lock lock(mutex_);
  signal.wait(lock, ready);
}

}  // namespace penstock
