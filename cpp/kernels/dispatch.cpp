#include "kernels/dispatch.h"

#include <atomic>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace penstock {
namespace {

#if defined(__x86_64__)

struct Cpuid {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Cpuid cpuid(unsigned leaf) {
  Cpuid r;
  __get_cpuid_count(leaf, 0, &r.eax, &r.ebx, &r.ecx, &r.edx);  // leaves zeros where the CPU has no such leaf
  return r;
}

bool has_bits(std::uint64_t value, std::uint64_t bits) { return (value & bits) == bits; }

// The register states that the operating system saves and restores.
std::uint64_t saved_states() {
  constexpr unsigned kOsxsave = 1u << 27;
  if (!has_bits(cpuid(1).ecx, kOsxsave)) return 0;
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<std::uint64_t>(high) << 32 | low;
}

bool runs_avx2() {
  constexpr std::uint64_t kSseAvx = 0x6;
  constexpr unsigned kFma = 1u << 12, kAvx = 1u << 28, kF16c = 1u << 29;
  constexpr unsigned kBmi1 = 1u << 3, kAvx2 = 1u << 5, kBmi2 = 1u << 8;
  return has_bits(saved_states(), kSseAvx) && has_bits(cpuid(1).ecx, kFma | kAvx | kF16c) &&
         has_bits(cpuid(7).ebx, kBmi1 | kAvx2 | kBmi2);
}

bool runs_avx512() {
  constexpr std::uint64_t kOpmaskZmm = 0xe0;
  constexpr unsigned kF = 1u << 16, kDq = 1u << 17, kBw = 1u << 30, kVl = 1u << 31;
  return runs_avx2() && has_bits(saved_states(), kOpmaskZmm) && has_bits(cpuid(7).ebx, kF | kDq | kBw | kVl);
}

bool runs_avx512_vbmi2() {
  constexpr unsigned kVbmi2 = 1u << 6, kVnni = 1u << 11, kVpopcntdq = 1u << 14;
  return runs_avx512() && has_bits(cpuid(7).ecx, kVbmi2 | kVnni | kVpopcntdq);
}

const Kernels& avx512_vbmi2_kernels() {
  static const Kernels table = [] {
    Kernels t = kAvx512Kernels;
    t.name = "avx512vbmi2";
    t.matmul_packed = kAvx512Vbmi2PackedKernels.matmul_packed;
    t.unpack = kAvx512Vbmi2PackedKernels.unpack;
    t.draft = kAvx512VnniDraftKernels;
    return t;
  }();
  return table;
}

#endif

struct Tables {
  const Kernels* table[4];
  std::size_t count = 0;

  Tables() {
#if defined(__x86_64__)
    if (runs_avx512_vbmi2()) add(avx512_vbmi2_kernels());
    if (runs_avx512()) add(kAvx512Kernels);
    if (runs_avx2()) add(kAvx2Kernels);
#endif
    add(kScalarKernels);
  }
  void add(const Kernels& kernels) { table[count++] = &kernels; }
};

std::atomic<const Kernels*>& active() {
  static std::atomic<const Kernels*> table = available_kernels().front();
  return table;
}

}  // namespace

std::span<const Kernels* const> available_kernels() {
  static const Tables tables;
  return {tables.table, tables.count};
}

const Kernels& active_kernels() { return *active().load(std::memory_order_relaxed); }

bool set_active_kernels(std::string_view name) {
  for (const Kernels* table : available_kernels()) {
    if (name == table->name) {
      active().store(table, std::memory_order_relaxed);
      return true;
    }
  }
  return false;
}

}  // namespace penstock
