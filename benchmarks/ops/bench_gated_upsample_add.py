"""gated_upsample_add: the top-down step of a pyramid with 256 channels, `high` at half the size."""

from typing import Any

import torch
import torch.nn.functional as F
from harness import Call, Case, Peer
from torch import Tensor

from tinyops.ops import (
    gated_upsample_add,
    gated_upsample_add_,
    gated_upsample_add_reference,
)

# [N, C, H, W] of `low`: levels P2, P3 and P4 of a 640x512 image, the tile size of TinyPerson.
SHAPES = {
    "p2": (1, 256, 128, 160),
    "p2x2": (2, 256, 128, 160),
    "p3": (1, 256, 64, 80),
    "p3x2": (2, 256, 64, 80),
    "p4": (1, 256, 32, 40),
    "p4x2": (2, 256, 32, 40),
    "p2x8": (8, 256, 128, 160),
}
MODES = ("forward", "self_gate", "plain", "in_place", "forward_backward", "backward")

DEFAULT_SHAPES = {
    "cpu": ("p2", "p2x2", "p3", "p3x2", "p4", "p4x2"),
    "cuda": ("p2x8", "p2x2", "p4"),
}
DEFAULT_MODES = ("forward", "in_place", "forward_backward")
HALF_SHAPES = ("p2", "p2x8")  # by default timed in bfloat16 too

Tensors = tuple[Tensor | None, ...]  # low, high, gate_low, gate_high


def eager(
    low: Tensor,
    high: Tensor,
    gate_low: Tensor | None,
    gate_high: Tensor | None,
    self_gate: bool = False,
) -> Tensor:
    """The fastest eager form: addcmul saves the two temporaries of `low + gate * up(high)`."""

    def up(x: Tensor) -> Tensor:
        return F.interpolate(x, size=low.shape[-2:], mode="nearest")

    if gate_low is None or gate_high is None:
        return low + up(high)
    own = torch.addcmul(low, gate_low, low) if self_gate else low
    return torch.addcmul(own, gate_low * up(gate_high), up(high))


def eager_(low: Tensor, high: Tensor, gate_low: Tensor, gate_high: Tensor) -> Tensor:
    def up(x: Tensor) -> Tensor:
        return F.interpolate(x, size=low.shape[-2:], mode="nearest")

    return low.addcmul_(gate_low * up(gate_high), up(high))


def case(shape: str, mode: str, dtype: torch.dtype, layout: torch.memory_format) -> Case:
    n, c, height, width = SHAPES[shape]
    low, high, pixels = n * c * height * width, n * c * height * width // 4, n * height * width
    gates = 0 if mode == "plain" else pixels + pixels // 4
    # Compulsory traffic in elements: every input read once, every result written once.
    # Forward reads low, high and the gates, and writes low's size.
    forward = 2 * low + high + gates
    # Backward reads grad, high and the gates, and writes d_high and the gates' gradients.
    # d_low is grad itself: no traffic. (Without self_gate; it is not timed backward.)
    backward = low + 2 * high + 2 * gates
    elements = {"forward_backward": forward + backward, "backward": backward}.get(mode, forward)

    def make(generator: torch.Generator) -> tuple[Tensors, Tensor | None]:
        def random(channels: int, scale: int) -> Tensor:
            size = (n, channels, height // scale, width // scale)
            x = torch.randn(size, generator=generator, dtype=dtype, device=generator.device)
            return x.contiguous(memory_format=layout)

        features = random(c, 1), random(c, 2)
        gated = (random(1, 1).sigmoid(), random(1, 2).sigmoid()) if gates else (None, None)
        return (*features, *gated), random(c, 1) if "backward" in mode else None

    compile_options: dict[str, Any] = {"fullgraph": True, "dynamic": False}
    functions = {"eager": eager, "compiled": eager, "tinyops": gated_upsample_add}
    reference = gated_upsample_add_reference
    if mode == "in_place":
        functions = {"eager": eager_, "compiled": eager_, "tinyops": gated_upsample_add_}
    functions["compiled"] = torch.compile(functions["compiled"], **compile_options)
    peers = {name: _peer(function, mode) for name, function in functions.items()}
    return Case(
        shape=shape,
        mode=mode,
        dtype=dtype,
        layout=layout,
        bytes_moved=elements * dtype.itemsize,
        make=make,
        peers=peers,
        reference=_peer(reference, mode),
        graph="backward" not in mode and low < 1 << 20,
    )


def _peer(function: Any, mode: str) -> Peer:
    options = {"self_gate": True} if mode == "self_gate" else {}

    def prepare(tensors: Tensors, grad: Tensor | None) -> Call:
        if grad is None:
            return lambda: (function(*tensors, **options),)
        leaves = [x.requires_grad_() for x in tensors if x is not None]

        def forward_backward() -> tuple[Tensor | None, ...]:
            # Not backward() into .grad: it would clone the gradient of low for every peer alike,
            # which a network, where low is an activation, does not do.
            out = function(*leaves)
            return out.detach(), *torch.autograd.grad(out, leaves, grad)

        if mode == "forward_backward":
            return forward_backward
        # The graph is kept and run again; donated buffers would forbid that.
        with torch._functorch.config.patch(donated_buffer=False):
            out = function(*leaves)
        return lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)

    return prepare
