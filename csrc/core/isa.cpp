#include "core/isa.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace sumprod {

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    case Isa::baseline:
      break;
  }
  return "baseline";
}

bool isa_available(Isa isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (isa == Isa::avx512) return __builtin_cpu_supports("x86-64-v4");
  if (isa == Isa::avx2) return __builtin_cpu_supports("x86-64-v3");
#endif
  return isa == Isa::baseline;
}

int vector_bytes(Isa isa) { return isa == Isa::avx512 ? 64 : isa == Isa::avx2 ? 32 : 16; }

namespace {

Isa choose() {
  const Isa levels[] = {Isa::avx512, Isa::avx2, Isa::baseline};
  const char* wanted = std::getenv("SUMPROD_ISA");
  if (wanted == nullptr || *wanted == '\0') {
    for (Isa isa : levels) {
      if (isa_available(isa)) return isa;
    }
    return Isa::baseline;
  }
  for (Isa isa : levels) {
    if (std::strcmp(wanted, isa_name(isa)) != 0) continue;
    if (isa_available(isa)) return isa;
    throw std::runtime_error(std::string("SUMPROD_ISA=") + wanted +
                             " is not supported by this processor; unset it or use a lower level");
  }
  throw std::runtime_error(std::string("SUMPROD_ISA must be baseline, avx2 or avx512, got '") + wanted + "'");
}

}  // namespace

Isa isa_in_use() {
  static const Isa chosen = choose();
  return chosen;
}

}  // namespace sumprod
