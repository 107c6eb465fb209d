"""difference_gate: 256 channels gated by a map of four times the height and width (SR-TOD)."""

from typing import Any

import torch
import torch.nn.functional as F
from harness import Call, Case, Peer
from torch import Tensor

from tinyops.ops import difference_gate, difference_gate_reference

# [N, C, h, w] of the features: levels P2 and P3 of a 640x512 image.
SHAPES = {
    "p2": (1, 256, 128, 160),
    "p2x2": (2, 256, 128, 160),
    "p3": (1, 256, 64, 80),
    "p2x8": (8, 256, 128, 160),
}
RATIO = 4  # pixels of the map per cell, in each direction
# Forward with each way to resize; the others with "nearest".
MODES = ("forward", "area", "max", "forward_backward", "backward")

DEFAULT_SHAPES = {"cpu": ("p2", "p2x2", "p3"), "cuda": ("p2x8", "p2x2", "p3")}
DEFAULT_MODES = ("forward", "forward_backward")
HALF_SHAPES = ("p2", "p2x8")  # by default timed in bfloat16 too

Tensors = tuple[Tensor, ...]  # features, channel_weight, difference, threshold


def eager(
    features: Tensor,
    channel_weight: Tensor,
    difference: Tensor,
    threshold: Tensor,
    resize: str = "nearest",
) -> Tensor:
    distance = difference - threshold
    sign = distance.sign()
    if torch.is_grad_enabled() and threshold.requires_grad:  # straight through
        sign = distance + (sign - distance).detach()
    mask = 0.5 * (sign + 1)
    if resize == "nearest":
        mask = F.interpolate(mask, size=features.shape[-2:], mode="nearest")
    else:
        mask = {"area": F.avg_pool2d, "max": F.max_pool2d}[resize](mask, RATIO)
    return features * channel_weight * (1 + mask)


def case(shape: str, mode: str, dtype: torch.dtype, layout: torch.memory_format) -> Case:
    n, c, h, w = SHAPES[shape]
    features, cells, pixels = n * c * h * w, n * h * w, n * h * w * RATIO**2
    # Compulsory traffic in elements: every input read once, every result written once. Nearest
    # needs one pixel of the map per cell, as if it could be had without its cache line.
    forward = 2 * features + n * c + (pixels if mode in ("area", "max") else cells)
    # Backward reads grad, features, weights and the map, and writes the gradients of the inputs.
    backward = 3 * features + 2 * n * c + cells + pixels
    elements = {"forward_backward": forward + backward, "backward": backward}.get(mode, forward)

    def make(generator: torch.Generator) -> tuple[Tensors, Tensor | None]:
        def random(*size: int) -> Tensor:
            return torch.rand(size, generator=generator, dtype=dtype, device=generator.device)

        wide = random(n, c, h, w).contiguous(memory_format=layout) - 0.5
        difference = random(n, 1, h * RATIO, w * RATIO)
        tensors = wide, random(n, c, 1, 1), difference, difference.new_tensor(0.125)
        grad = random(n, c, h, w).contiguous(memory_format=layout) - 0.5
        return tensors, grad if "backward" in mode else None

    compiled = torch.compile(eager, fullgraph=True, dynamic=False)
    functions = {"eager": eager, "compiled": compiled, "tinyops": difference_gate}
    return Case(
        shape=shape,
        mode=mode,
        dtype=dtype,
        layout=layout,
        bytes_moved=elements * dtype.itemsize,
        make=make,
        peers={name: _peer(function, mode) for name, function in functions.items()},
        reference=_peer(difference_gate_reference, mode),
        graph="backward" not in mode and features < 1 << 20,
    )


def _peer(function: Any, mode: str) -> Peer:
    options = {"resize": mode} if mode in ("area", "max") else {}

    def prepare(tensors: Tensors, grad: Tensor | None) -> Call:
        if grad is None:
            return lambda: (function(*tensors, **options),)
        leaves = [x.requires_grad_() for x in tensors]

        def forward_backward() -> tuple[Tensor, ...]:
            out = function(*leaves)
            return out.detach(), *torch.autograd.grad(out, leaves, grad)

        if mode == "forward_backward":
            return forward_backward
        # The graph is kept and run again; donated buffers would forbid that.
        with torch._functorch.config.patch(donated_buffer=False):
            out = function(*leaves)
        return lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)

    return prepare
