// Digests of what every kernel of every table that this CPU offers computes of the same inputs, of awkward sizes.
// Prints a line for each: kernel, table, digest. All tables' digests of a kernel are one, on this CPU and on all
// others.
//
// It needs no Python and can be linked statically, so it runs under an emulator of another CPU, too (scripts/digest).
#include "digest.h"

#include <cinttypes>
#include <cstdio>

#include "fp_environment.h"
#include "kernels/dispatch.h"

namespace penstock {
namespace {

void print(const char* name, const char* table, const Digest& digest) {
  std::printf("%s %s %016" PRIx64 "\n", name, table, digest.value());
  std::fflush(stdout);
}

void print_table(const Kernels& table) {
  for (const auto cases : {product_cases(), packed_cases(), draft_cases(), row_cases(), attention_cases()}) {
    for (const Case& c : cases) {
      Digest digest;
      c.run(table, digest);
      print(c.kernel, table.name, digest);
    }
  }
}

void print_all() {
  const FpEnvironment environment;
  for (const PlainCase& c : plain_cases()) {
    Digest digest;
    c.run(digest);
    print(c.name, "plain", digest);
  }
  for (const Kernels* table : available_kernels()) print_table(*table);
}

}  // namespace
}  // namespace penstock

int main() { penstock::print_all(); }
