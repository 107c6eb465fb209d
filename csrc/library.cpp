// Every operator's schema: the table of contents. The backends register their kernels elsewhere.
#include "torch_util.h"

// cudasim registers the same operators once more, under another name (csrc/tests/cudasim).
#ifndef TINYOPS_NAMESPACE
#define TINYOPS_NAMESPACE tinyops
#endif

STABLE_TORCH_LIBRARY(TINYOPS_NAMESPACE, m) {
  m.def(
      "gated_upsample_add(Tensor low, Tensor high, Tensor? gate_low=None, Tensor? gate_high=None, "
      "*, bool self_gate=False) -> Tensor");
  m.def(
      "gated_upsample_add_(Tensor(a!) low, Tensor high, Tensor? gate_low=None, "
      "Tensor? gate_high=None, *, bool self_gate=False) -> ()");
  m.def(
      "_gated_upsample_add_backward(Tensor grad, Tensor? low, Tensor? high, Tensor? gate_low, "
      "Tensor? gate_high, SymInt high_height, SymInt high_width, bool self_gate) "
      "-> (Tensor d_low, Tensor d_high, Tensor d_gate_low, Tensor d_gate_high)");
}
