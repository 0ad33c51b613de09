// A fixed set of threads that share one job at a time, and the working memory of the kernels.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "kernels/kernels.h"

namespace penstock {

class ThreadPool {
 public:
  // Does [begin, end) of a job; must not throw.
  using Task = void (*)(const void* context, std::int64_t begin, std::int64_t end, Scratch scratch);

  // `threads` counts the caller's. The scratch of tasks is allocated here: scratch_bytes for each thread.
  ThreadPool(int threads, std::size_t scratch_bytes);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }
  std::size_t scratch_bytes() const { return scratch_bytes_; }  // of each thread
  // Whoever calls run() must hold this.
  [[nodiscard]] std::unique_lock<std::mutex> acquire() { return std::unique_lock(exclusive_); }

  // Calls task for ranges of `grain` units that cover [0, units) once, in any thread and order, each under an
  // FpEnvironment; returns when all are done. A job of one range runs in the calling thread.
  void run(std::int64_t units, std::int64_t grain, Task task, const void* context);

 private:
  struct Job {
    Task task;
    const void* context;
    std::int64_t units;
    std::int64_t grain;
  };

  void leave_caller_alone();
  void work(int thread);
  void worker_loop(int thread);
  template <typename Condition>
  void wait(std::condition_variable& signal, Condition ready);

  std::size_t scratch_bytes_;
  std::byte* scratch_;
  std::mutex exclusive_;

  Job job_{};
  std::atomic<std::int64_t> next_{0};     // first unit that nobody has taken
  std::atomic<int> busy_{0};              // workers that have not finished the job
  std::atomic<std::uint64_t> posted_{0};  // jobs posted so far
  std::atomic<bool> stop_{false};
  std::mutex mutex_;  // orders changes of posted_, busy_ == 0 and stop_ with the sleepers' tests
  std::condition_variable work_posted_;
  std::condition_variable work_done_;
  int caller_cpu_ = -1;  // which the workers avoid
  std::vector<std::thread> workers_;
};

}  // namespace penstock
