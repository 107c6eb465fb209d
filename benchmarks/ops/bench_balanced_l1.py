"""balanced_l1: EFPN's distillation loss on a level of stride 4 with 256 channels, 100 tiny objects.

The peers in torch get the mask of positive cells for nothing; tinyops makes it from the boxes.
"""

import functools
from typing import Any

import torch
from harness import Call, Case, Peer
from torch import Tensor

from tinyops.ops import balanced_l1

# [N, C, H, W] of prediction and target: levels P2 and P3 of a 640x512 image.
SHAPES = {
    "p2": (1, 256, 128, 160),
    "p3": (1, 256, 64, 80),
    "p2x8": (8, 256, 128, 160),
}
MODES = ("forward", "forward_backward")

DEFAULT_SHAPES = {"cpu": ("p2", "p3"), "cuda": ("p2x8", "p2", "p3")}
QUICK_SHAPES = {"cpu": ("p2",), "cuda": ("p2x8", "p3")}
DEFAULT_MODES = MODES
HALF_SHAPES = ("p2", "p2x8")  # by default timed in bfloat16 too

OBJECTS, LARGEST, SCALE = 100, 20, 0.25  # per image; pixels; cells per pixel


@functools.cache
def objects(shape: str, device: torch.device) -> tuple[Tensor, Tensor]:
    n, _, height, width = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)
    sides = 2 + (LARGEST - 2) * torch.rand(n * OBJECTS, 2, generator=generator)
    room = torch.tensor([width, height]) / SCALE - sides
    corner = room * torch.rand(n * OBJECTS, 2, generator=generator)
    boxes = torch.cat([corner, corner + sides], 1)
    return boxes.to(device), torch.arange(n).repeat_interleave(OBJECTS).to(device)


@functools.cache
def mask(shape: str, device: torch.device) -> Tensor:
    """[N, 1, H, W] bool: the cells under boxes."""
    n, _, height, width = SHAPES[shape]
    boxes, ids = objects(shape, torch.device("cpu"))
    under = torch.zeros(n, 1, height, width, dtype=torch.bool)
    low, high = (boxes[:, :2] * SCALE).floor().int(), (boxes[:, 2:] * SCALE).ceil().int()
    for image, (left, top), (right, bottom) in zip(ids, low, high, strict=True):
        under[image, 0, top:bottom, left:right] = True
    return under.to(device)


def eager(prediction: Tensor, target: Tensor, positive: Tensor) -> Tensor:
    d = (prediction - target).abs()
    under = (d * positive).sum(dtype=torch.promote_types(d.dtype, torch.float32))
    return d.mean() + under / (positive.sum() * d.shape[1])


def case(shape: str, mode: str, dtype: torch.dtype, layout: torch.memory_format) -> Case:
    n, c, height, width = SHAPES[shape]
    # Compulsory traffic in maps: forward reads two; backward reads two and writes one.
    elements = n * c * height * width * (2 if mode == "forward" else 5)

    def make(generator: torch.Generator) -> tuple[Tensor, ...]:
        def random() -> Tensor:
            size = n, c, height, width
            x = torch.randn(size, generator=generator, dtype=dtype, device=generator.device)
            return x.contiguous(memory_format=layout)

        return random(), random()

    def ours(prediction: Tensor, target: Tensor, _: Tensor) -> Tensor:
        return balanced_l1(prediction, target, *objects(shape, target.device), scale=SCALE)

    functions = {
        "eager": eager,
        "compiled": torch.compile(eager, fullgraph=True, dynamic=False),
        "tinyops": ours,
    }
    return Case(
        shape=shape,
        mode=mode,
        dtype=dtype,
        layout=layout,
        bytes_moved=elements * dtype.itemsize,
        make=make,
        peers={name: _peer(function, shape, mode) for name, function in functions.items()},
        reference=_peer(eager, shape, mode),
    )


def _peer(function: Any, shape: str, mode: str) -> Peer:
    def prepare(prediction: Tensor, target: Tensor) -> Call:
        positive = mask(shape, target.device)
        if mode == "forward":
            return lambda: (function(prediction, target, positive),)
        leaf = prediction.requires_grad_()

        def forward_backward() -> tuple[Tensor, ...]:
            loss = function(leaf, target, positive)
            return loss.detach(), *torch.autograd.grad(loss, leaf)

        return forward_backward

    return prepare
