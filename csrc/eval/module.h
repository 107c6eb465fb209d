// The parts of the module tinyops._eval.
#pragma once

#include <pybind11/pybind11.h>

void register_facts(pybind11::module_& m);
void register_match(pybind11::module_& m);
