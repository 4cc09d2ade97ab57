// What this binary is: read by `python -m sumprod.doctor` and by the tests.
#include <string>
#include <tuple>

#include <torch/csrc/stable/library.h>

#include "core/isa.h"

namespace sumprod {

namespace {

std::string join(const std::string& list, const std::string& item) { return list.empty() ? item : list + "," + item; }

// "key=value" lines: a dictionary that needs no Python.
std::string build_info() {
  std::string available;
  for (Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512}) {
    if (isa_available(isa)) available = join(available, isa_name(isa));
  }
  return std::string("isa=") + isa_name(isa_in_use()) + "\nisa_available=" + available +
         "\ncompiler=" SUMPROD_COMPILER "\nversion=" SUMPROD_VERSION "\ncuda=" SUMPROD_CUDA_INFO;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(sumprod, m) { m.def("_build_info() -> str"); }
STABLE_TORCH_LIBRARY_IMPL(sumprod, CompositeExplicitAutograd, m) { m.impl("_build_info", TORCH_BOX(&build_info)); }

}  // namespace sumprod
