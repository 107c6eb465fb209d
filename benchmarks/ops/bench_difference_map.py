"""difference_map: a reconstructed image against the original (SR-TOD)."""

from typing import Any

import torch
from harness import Call, Case, Peer
from torch import Tensor

from tinyops.ops import difference_map, difference_map_reference

# [N, C, H, W]: the tile size of TinyPerson.
SHAPES = {"tile": (1, 3, 512, 640), "tilex2": (2, 3, 512, 640), "tilex8": (8, 3, 512, 640)}
MODES = ("forward", "forward_backward")

DEFAULT_SHAPES = {"cpu": ("tile", "tilex2"), "cuda": ("tilex8", "tile")}
DEFAULT_MODES = MODES
HALF_SHAPES = ("tile", "tilex8")  # by default timed in bfloat16 too


def eager(reconstruction: Tensor, image: Tensor) -> Tensor:
    return (reconstruction - image).abs().mean(1, keepdim=True)


def case(shape: str, mode: str, dtype: torch.dtype, layout: torch.memory_format) -> Case:
    n, c, h, w = SHAPES[shape]
    images, pixels = n * c * h * w, n * h * w
    # Compulsory traffic in elements: every input read once, every result written once. Backward
    # reads grad and both images and writes the gradient of the reconstruction.
    elements = 2 * images + pixels
    if mode == "forward_backward":
        elements += 3 * images + pixels

    def make(generator: torch.Generator) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
        def random(channels: int) -> Tensor:
            size = n, channels, h, w
            x = torch.rand(size, generator=generator, dtype=dtype, device=generator.device)
            return x.contiguous(memory_format=layout)

        return (random(c), random(c)), random(1) if "backward" in mode else None

    compiled = torch.compile(eager, fullgraph=True, dynamic=False)
    functions = {"eager": eager, "compiled": compiled, "tinyops": difference_map}
    return Case(
        shape=shape,
        mode=mode,
        dtype=dtype,
        layout=layout,
        bytes_moved=elements * dtype.itemsize,
        make=make,
        peers={name: _peer(function) for name, function in functions.items()},
        reference=_peer(difference_map_reference),
        graph="backward" not in mode and images < 1 << 20,
    )


def _peer(function: Any) -> Peer:
    def prepare(images: tuple[Tensor, Tensor], grad: Tensor | None) -> Call:
        reconstruction, image = images
        if grad is None:
            return lambda: (function(reconstruction, image),)
        reconstruction.requires_grad_()

        def forward_backward() -> tuple[Tensor, ...]:
            out = function(reconstruction, image)
            return out.detach(), *torch.autograd.grad(out, reconstruction, grad)

        return forward_backward

    return prepare
