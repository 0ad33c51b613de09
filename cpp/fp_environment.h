// The floating-point control register as IEEE 754 has it, for the lifetime of this object: round to nearest even,
// denormals kept, exceptions masked. Other libraries set flush-to-zero when they are merely imported.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace penstock {

class FpEnvironment {
 public:
  FpEnvironment() : saved_(get()) { set(kIeee); }
  ~FpEnvironment() { set(saved_); }
  FpEnvironment(const FpEnvironment&) = delete;
  FpEnvironment& operator=(const FpEnvironment&) = delete;

 private:
#if defined(__x86_64__)
  using Register = unsigned;
  static constexpr Register kIeee = 0x1f80;
  static Register get() { return _mm_getcsr(); }
  static void set(Register value) { _mm_setcsr(value); }
#elif defined(__aarch64__)
  using Register = std::uint64_t;
  static constexpr Register kIeee = 0;
  static Register get() {
    Register value;
    __asm__ volatile("mrs %0, fpcr" : "=r"(value));
    return value;
  }
  static void set(Register value) { __asm__ volatile("msr fpcr, %0" ::"r"(value) : "memory"); }
#else
#error "Penstock does not know this CPU's floating-point control register"
#endif

  Register saved_;
};

}  // namespace penstock
