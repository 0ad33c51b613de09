#include "kernels/dispatch.h"

#include <atomic>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace penstock {
namespace {

// Another table with other kernels for drafting.
[[maybe_unused]] Kernels with_draft(const Kernels& table, const char* name, const DraftKernels& draft) {
  Kernels t = table;
  t.name = name;
  t.draft = draft;
  return t;
}

#if defined(__x86_64__)

struct Cpuid {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Cpuid cpuid(unsigned leaf, unsigned subleaf = 0) {
  Cpuid r;
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);  // leaves zeros where the CPU has no such leaf
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

bool runs_avx2_vnni() {
  constexpr unsigned kAvxVnni = 1u << 4;
  return runs_avx2() && cpuid(7).eax >= 1 && has_bits(cpuid(7, 1).eax, kAvxVnni);
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

const Kernels& avx2_vnni_kernels() {
  static const Kernels table = with_draft(kAvx2Kernels, "avx2vnni", kAvx2VnniDraftKernels);
  return table;
}

const Kernels& avx512_vbmi2_kernels() {
  static const Kernels table = [] {
    Kernels t = with_draft(kAvx512Kernels, "avx512vbmi2", kAvx512VnniDraftKernels);
    t.matmul_packed = kAvx512Vbmi2PackedKernels.matmul_packed;
    t.unpack = kAvx512Vbmi2PackedKernels.unpack;
    return t;
  }();
  return table;
}

#elif defined(__aarch64__)

// What a program may use is the operating system's to tell.
bool runs_dotprod() {
#if defined(__linux__)
  constexpr unsigned long kAsimdDp = 1ul << 20;
  return (getauxval(AT_HWCAP) & kAsimdDp) != 0;
#elif defined(__APPLE__)
  int has = 0;
  std::size_t size = sizeof(has);
  return sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &size, nullptr, 0) == 0 && has != 0;
#else
  return false;
#endif
}

const Kernels& neon_dotprod_kernels() {
  static const Kernels table = with_draft(kNeonKernels, "neondotprod", kNeonDotprodDraftKernels);
  return table;
}

#endif

struct Tables {
  const Kernels* table[5];
  std::size_t count = 0;

  Tables() {
#if defined(__x86_64__)
    if (runs_avx512_vbmi2()) add(avx512_vbmi2_kernels());
    if (runs_avx512()) add(kAvx512Kernels);
    if (runs_avx2_vnni()) add(avx2_vnni_kernels());
    if (runs_avx2()) add(kAvx2Kernels);
#elif defined(__aarch64__)
    if (runs_dotprod()) add(neon_dotprod_kernels());
    add(kNeonKernels);
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
