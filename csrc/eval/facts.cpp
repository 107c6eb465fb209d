// The numpy-facing module. For now: what was built, from what and for what.
#include <pybind11/pybind11.h>

#include "../cpu/isa.h"

namespace py = pybind11;

namespace {

const char* isa_name(tinyops::Isa isa) {
  switch (isa) {
    case tinyops::Isa::kAvx512: return "avx512";
    case tinyops::Isa::kAvx2: return "avx2";
    default: return "baseline";
  }
}

py::dict build_facts() {
  py::dict facts;
  facts["version"] = TINYOPS_VERSION;
  facts["compiler"] = TINYOPS_COMPILER;
  facts["cpu_instruction_sets"] = py::str(TINYOPS_CPU_ISAS).attr("split")();
  facts["cpu_instruction_set_in_use"] = isa_name(tinyops::cpu_isa());
  facts["cuda_architectures"] = py::str(TINYOPS_CUDA_ARCHS).attr("split")();
  facts["cuda_reason"] = TINYOPS_CUDA_REASON;
  facts["nvcc"] = TINYOPS_NVCC;
  return facts;
}

}  // namespace

PYBIND11_MODULE(_eval, m, py::mod_gil_not_used()) {
  m.doc() = "Facts of the build.";
  m.def("build_facts", &build_facts, "What was compiled: a dict of strings and lists of strings.");
}
