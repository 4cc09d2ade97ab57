// The Python module sumprod._planner. Today it tells how the native code was built; the
// contraction planner will live here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>

#include "core/isa.h"

namespace {

std::map<std::string, std::string> build_info() {
  return {{"version", SUMPROD_VERSION}, {"compiler", SUMPROD_COMPILER}};
}

}  // namespace

PYBIND11_MODULE(_planner, m) {
  m.doc() = "Native planning code of sumprod.";
  m.def("build_info", &build_info, "Version and compiler of this module.");
  m.def(
      "isa", [] { return std::string(sumprod::isa_name(sumprod::isa_in_use())); },
      "The instruction set that the CPU kernels use: 'baseline', 'avx2' or 'avx512'.");
}
