// What was built, from what and for what.
#include "module.h"

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

void register_facts(py::module_& m) {
  m.def("build_facts", &build_facts, "What was compiled: a dict of strings and lists of strings.");
}
