"""Fast operators for tiny-object detection, with CPU, CUDA and Triton kernels."""

from tinyops import _lib

__version__ = "0.1.0"

has_cuda_kernels: bool = _lib.load(__version__, __path__)

from tinyops import ops  # noqa: E402  (the operators must exist before they get their gradients)

__all__ = ["__version__", "has_cuda_kernels", "ops"]
