// The numpy-facing module.
#include "module.h"

PYBIND11_MODULE(_eval, m, pybind11::mod_gil_not_used()) {
  m.doc() = "Facts of the build, and the matcher behind every metric.";
  register_facts(m);
  register_match(m);
}
