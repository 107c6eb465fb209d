"""pixel_shuffle_concat and _add: EFPN's feature texture transfer with 256 channels, P3 to P2."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from harness import Call, Case, Peer
from torch import Tensor

from tinyops.ops import (
    pixel_shuffle_add,
    pixel_shuffle_add_reference,
    pixel_shuffle_concat,
    pixel_shuffle_concat_reference,
)

# [N, C, H, W] of the shuffled content, and of what it is joined to: levels P2 and P3 of a 640x512
# image. "p2r4": from P4, four times up.
SHAPES = {
    "p2": (1, 256, 128, 160, 2),
    "p3": (1, 256, 64, 80, 2),
    "p2r3": (1, 256, 126, 159, 3),
    "p2r4": (1, 256, 128, 160, 4),
    "p2x8": (8, 256, 128, 160, 2),
}
MODES = (
    "concat",
    "add",
    "concat_dcr",
    "add_dcr",
    "concat_forward_backward",
    "add_forward_backward",
)

DEFAULT_SHAPES = {"cpu": ("p2", "p3"), "cuda": ("p2x8", "p2", "p3")}
QUICK_SHAPES = {"cpu": ("p2",), "cuda": ("p2x8", "p3")}
DEFAULT_MODES = ("concat", "add", "concat_forward_backward", "add_forward_backward")
HALF_SHAPES = ("p2", "p2x8")  # by default timed in bfloat16 too

SLOPE = 0.1  # EFPN's leaky ReLU


def concat_eager(content: Tensor, reference: Tensor, *, upscale: int, order: str) -> Tensor:
    return torch.cat([_shuffled(content, upscale, order), reference], 1)


def add_eager(content: Tensor, residual: Tensor, *, upscale: int, order: str) -> Tensor:
    return _shuffled(content, upscale, order) + residual


def _shuffled(content: Tensor, r: int, order: str) -> Tensor:
    if order == "crd":
        return F.leaky_relu(F.pixel_shuffle(content, r), SLOPE)
    n, channels, h, w = content.shape
    parts = content.view(n, r, r, channels // (r * r), h, w).permute(0, 3, 4, 1, 5, 2)
    return F.leaky_relu(parts.reshape(n, -1, h * r, w * r), SLOPE)


FUNCTIONS: dict[str, tuple[Callable[..., Tensor], ...]] = {
    "concat": (concat_eager, pixel_shuffle_concat, pixel_shuffle_concat_reference),
    "add": (add_eager, pixel_shuffle_add, pixel_shuffle_add_reference),
}


def case(shape: str, mode: str, dtype: torch.dtype, layout: torch.memory_format) -> Case:
    n, c, height, width, r = SHAPES[shape]
    numel = n * c * height * width
    form, backward = mode.split("_")[0], mode.endswith("backward")
    order = "dcr" if mode.endswith("dcr") else "crd"
    # Compulsory traffic in elements: every input read once, every result written once. The backward
    # reads what belongs to content of the gradient, and content for its signs, and writes its
    # gradient; that of the other input is (part of) the incoming one.
    elements = (4 if form == "concat" else 3) * numel + (3 * numel if backward else 0)

    def make(generator: torch.Generator) -> tuple[tuple[Tensor, ...], Tensor | None]:
        def random(*size: int) -> Tensor:
            x = torch.randn(size, generator=generator, dtype=dtype, device=generator.device)
            return x.contiguous(memory_format=layout)

        content = random(n, c * r * r, height // r, width // r)
        grad = random(n, 2 * c if form == "concat" else c, height, width) if backward else None
        return (content, random(n, c, height, width)), grad

    eager, ours, reference = FUNCTIONS[form]
    options: dict[str, Any] = {"upscale": r, "order": order}
    slope = {"negative_slope": SLOPE}
    compiled = torch.compile(eager, fullgraph=True, dynamic=False)
    return Case(
        shape=shape,
        mode=mode,
        dtype=dtype,
        layout=layout,
        bytes_moved=elements * dtype.itemsize,
        make=make,
        peers={
            "eager": _peer(eager, options),
            "compiled": _peer(compiled, options),
            "tinyops": _peer(ours, options | slope),
        },
        reference=_peer(reference, options | slope),
        graph=not backward and numel < 1 << 21,
    )


def _peer(function: Any, options: dict[str, Any]) -> Peer:
    def prepare(tensors: tuple[Tensor, ...], grad: Tensor | None) -> Call:
        if grad is None:
            return lambda: (function(*tensors, **options),)
        leaves = [x.requires_grad_() for x in tensors]

        def forward_backward() -> tuple[Tensor, ...]:
            out = function(*leaves, **options)
            return out.detach(), *torch.autograd.grad(out, leaves, grad)

        return forward_backward

    return prepare
