// The Python module sumprod._planner: contraction plans, and how the native code was built.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>

#include "core/isa.h"
#include "planner/plan.h"

namespace py = pybind11;
namespace planner = sumprod::planner;

namespace {

std::map<std::string, std::string> build_info() {
  return {{"version", SUMPROD_VERSION}, {"compiler", SUMPROD_COMPILER}};
}

// Plain numbers and lists: the Python face gives them names.
py::tuple plan(const std::vector<std::int64_t>& sizes, const std::vector<bool>& is_plate,
               const std::vector<std::string>& names, const std::vector<planner::Dims>& factors,
               const planner::Dims& kept, bool keep_common_plates) {
  planner::Graph graph{sizes, is_plate, names, factors, kept, keep_common_plates};
  planner::Plan made;
  {
    py::gil_scoped_release release;
    made = planner::make_plan(graph);
  }
  py::list steps;
  for (const planner::Step& step : made.steps) {
    steps.append(py::make_tuple(step.inputs, step.variables, step.plates, step.dims));
  }
  return py::make_tuple(steps, made.results, made.flops, made.peak_elements);
}

}  // namespace

PYBIND11_MODULE(_planner, m) {
  m.doc() = "Native planning code of sumprod.";
  m.def("build_info", &build_info, "Version and compiler of this module.");
  m.def(
      "isa", [] { return std::string(sumprod::isa_name(sumprod::isa_in_use())); },
      "The instruction set that the CPU kernels use: 'baseline', 'avx2' or 'avx512'.");
  py::register_exception<planner::NotTreeStructured>(m, "NotTreeStructured", PyExc_NotImplementedError);
  m.def("plan", &plan, py::arg("sizes"), py::arg("is_plate"), py::arg("names"), py::arg("factors"), py::arg("kept"),
        py::arg("keep_common_plates"), "Steps (inputs, variables, plates, dims), result slots, flops, peak elements.");
}
