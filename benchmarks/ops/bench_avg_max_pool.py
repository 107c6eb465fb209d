"""avg_max_pool: what channel attention looks at, of the levels P2 to P4 with 256 channels."""

from typing import Any

import torch
from harness import Call, Case, Peer
from torch import Tensor

from tinyops.ops import avg_max_pool, avg_max_pool_reference

# [N, C, H, W]: levels P2, P3 and P4 of a 640x512 image.
SHAPES = {
    "p2": (1, 256, 128, 160),
    "p3": (1, 256, 64, 80),
    "p4": (1, 256, 32, 40),
    "p2x8": (8, 256, 128, 160),
}
MODES = ("forward", "forward_backward")

DEFAULT_SHAPES = {"cpu": ("p2", "p3", "p4"), "cuda": ("p2x8", "p2", "p4")}
QUICK_SHAPES = {"cpu": ("p2",), "cuda": ("p2x8", "p4")}
DEFAULT_MODES = MODES
HALF_SHAPES = ("p2", "p2x8")  # by default timed in bfloat16 too


def eager(features: Tensor) -> tuple[Tensor, Tensor]:
    return features.mean((2, 3), keepdim=True), features.amax((2, 3), keepdim=True)


def case(shape: str, mode: str, dtype: torch.dtype, layout: torch.memory_format) -> Case:
    n, c, height, width = SHAPES[shape]
    # Compulsory traffic: forward reads the features, backward writes their gradient.
    elements = n * c * height * width * (1 if mode == "forward" else 2)

    def make(generator: torch.Generator) -> tuple[Tensor, ...]:
        def random(*size: int) -> Tensor:
            return torch.randn(size, generator=generator, dtype=dtype, device=generator.device)

        features = random(n, c, height, width)
        features[:, :, height // 3, width // 3] = 8  # no ties, which amax shares the gradient among
        features = features.contiguous(memory_format=layout)
        return features, random(n, c, 1, 1), random(n, c, 1, 1)

    functions = {
        "eager": eager,
        "compiled": torch.compile(eager, fullgraph=True, dynamic=False),
        "tinyops": avg_max_pool,
    }
    return Case(
        shape=shape,
        mode=mode,
        dtype=dtype,
        layout=layout,
        bytes_moved=elements * dtype.itemsize,
        make=make,
        peers={name: _peer(function, mode) for name, function in functions.items()},
        reference=_peer(avg_max_pool_reference, mode),
        graph=mode == "forward" and elements < 1 << 20,
    )


def _peer(function: Any, mode: str) -> Peer:
    def prepare(features: Tensor, *grads: Tensor) -> Call:
        if mode == "forward":
            return lambda: function(features)
        leaf = features.requires_grad_()

        def forward_backward() -> tuple[Tensor, ...]:
            results = function(leaf)
            return *(x.detach() for x in results), *torch.autograd.grad(results, leaf, grads)

        return forward_backward

    return prepare
