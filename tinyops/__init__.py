"""Fast operators for tiny-object detection, with CPU, CUDA and Triton kernels."""

import importlib
from typing import TYPE_CHECKING, Any

import torch

from tinyops import _lib

__version__ = "0.1.0"

has_cuda_kernels: bool = _lib.load(__version__, __path__)

from tinyops import ops  # noqa: E402  (the operators must exist before they get their gradients)

if torch.version.cuda is not None and not has_cuda_kernels:
    _lib.require_triton()
    for _module in ops.modules():
        _module.implement_without_cuda("tinyops", "CUDA")

if TYPE_CHECKING:
    from tinyops import inference, models
    from tinyops.inference.detect import detect

__all__ = ["__version__", "detect", "has_cuda_kernels", "inference", "models", "ops"]


def __getattr__(name: str) -> Any:
    # Later than the operators, which need torch alone.
    if name == "detect":
        return importlib.import_module("tinyops.inference.detect").detect
    if name in ("inference", "models"):
        return importlib.import_module(f"tinyops.{name}")
    raise AttributeError(f"module 'tinyops' has no attribute {name!r}")
