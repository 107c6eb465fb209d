"""Fast operators for tiny-object detection, with CPU, CUDA and Triton kernels."""

import torch

from tinyops import _lib

__version__ = "0.1.0"

has_cuda_kernels: bool = _lib.load(__version__, __path__)

from tinyops import ops  # noqa: E402  (the operators must exist before they get their gradients)

if torch.version.cuda is not None and not has_cuda_kernels:
    _lib.require_triton()
    for _module in ops.modules():
        _module.implement_without_cuda("tinyops", "CUDA")

__all__ = ["__version__", "has_cuda_kernels", "ops"]
