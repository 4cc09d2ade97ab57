// Which instruction set the CPU kernels use. Chosen once, at first use, from CPUID; the
// environment variable SUMPROD_ISA (baseline, avx2, avx512) lowers or pins it for tests.
#pragma once

namespace sumprod {

enum class Isa { baseline = 0, avx2 = 1, avx512 = 2 };

// The level in use. Throws std::runtime_error when SUMPROD_ISA is unknown or not supported here.
Isa isa_in_use();

const char* isa_name(Isa isa);

// True when this processor can run `isa` and this binary contains it.
bool isa_available(Isa isa);

// Bytes of one vector register at `isa`; kernels put this many bytes' worth of lanes side by side.
int vector_bytes(Isa isa);

}  // namespace sumprod

// Kernels exist once per level, in a namespace named after it. SUMPROD_DECLARE_KERNEL declares
// all of them; SUMPROD_KERNEL(f) is a pointer to the one for this processor.
#if defined(__x86_64__)
#define SUMPROD_DECLARE_KERNEL(result, name, parameters) \
  namespace baseline {                                   \
  result name parameters;                                \
  }                                                      \
  namespace avx2 {                                       \
  result name parameters;                                \
  }                                                      \
  namespace avx512 {                                     \
  result name parameters;                                \
  }
#define SUMPROD_KERNEL(name)                                         \
  (::sumprod::isa_in_use() == ::sumprod::Isa::avx512 ? &avx512::name \
   : ::sumprod::isa_in_use() == ::sumprod::Isa::avx2 ? &avx2::name   \
                                                     : &baseline::name)
#else
#define SUMPROD_DECLARE_KERNEL(result, name, parameters) \
  namespace baseline {                                   \
  result name parameters;                                \
  }
#define SUMPROD_KERNEL(name) (&baseline::name)
#endif
