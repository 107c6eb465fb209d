"""Theoretical receptive fields: how many pixels of the image a cell of a feature map sees."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten


@dataclass(frozen=True)
class _Field:
    """Width of what a cell sees, and step from cell to cell, in pixels of the image."""

    width: int = 1
    step: int = 1

    def through(self, kernel: int, stride: int = 1, dilation: int = 1) -> "_Field":
        return _Field(self.width + (kernel - 1) * dilation * self.step, self.step * stride)


def receptive_field(layers: Sequence[Sequence[int]]) -> int:
    """Pixels along a side that an output of these layers, one after the other, depends on.

        r = 1 + sum over k of (kernel_k - 1) * dilation_k * (stride_1 * ... * stride_(k-1))

    Args:
        layers: (kernel, stride) or (kernel, stride, dilation) of each.

    Raises:
        ValueError: for numbers that are not two or three, or below 1.
    """
    field = _Field()
    for layer in layers:
        if not 2 <= len(layer) <= 3 or min(layer) < 1:
            raise ValueError(f"layers must be kernel, stride[, dilation] from 1 on, got {layer}")
        field = field.through(*layer)
    return field.width


def receptive_fields(backbone: nn.Module, strides: Sequence[int]) -> tuple[int, ...]:
    """The receptive fields of a pyramid's levels, along the width of the image, as RFLA has them.

    The backbone runs once on the meta device, where nothing is computed, and every operator is
    seen: 2d convolutions and poolings widen the field as in `receptive_field`; where branches meet,
    the widest counts. All else is taken to be local. So are global pooling, squeeze and excitation,
    normalisation over the image and attention, which would make every field infinite. Upsampled
    maps do not count where they meet others, and neither does the pyramid: a level sees what the
    map of the backbone does that has its stride.

    A further level of stride s adds 2 s, a 3x3 convolution on its own cells. With it P2..P7 of
    ResNet-50 are those of the released code (Xu et al. 2022): 35, 91, 267, 427, 555, 811. By
    arithmetic a 3x3 convolution of stride 2 adds s, and a pooling of single cells nothing.

    Args:
        backbone: [N, 3, H, W] to maps, finest first. It is not changed, and nothing random is
            drawn.
        strides: of the levels, those of the backbone's maps first.

    Raises:
        ValueError: where a map has another stride by what was seen, as after shifted windows, or
            comes from an upsampled map alone.
    """
    follower = _Follower()
    tensors = {
        name: x.detach().to("meta")
        for name, x in (*backbone.named_parameters(), *backbone.named_buffers())
    }
    dtype = next((x.dtype for x in tensors.values() if x.is_floating_point()), torch.float32)
    side = 4 * max(strides)
    image = torch.empty(1, 3, side, side, dtype=dtype, device="meta")
    modes = {module: module.training for module in backbone.modules()}
    backbone.eval()
    try:
        with torch.no_grad(), follower:
            follower.fields[image] = _Field()
            levels = torch.func.functional_call(backbone, tensors, (image,))
    finally:
        for module, mode in modes.items():
            module.training = mode
    fields = [follower.fields.get(x, _Field(0, 0)) for x in levels]
    found = [field.step for field in fields]
    if found != list(strides[: len(found)]):
        raise ValueError(
            f"backbone must have maps of strides {list(strides[: len(found)])} by convolutions "
            f"and poolings, but following these gives {found}"
        )
    widths = [field.width for field in fields]
    for stride in strides[len(widths) :]:
        widths.append(widths[-1] + 2 * stride)
    return tuple(widths)


class _Follower(TorchDispatchMode):
    """Takes every tensor's field along from operator to operator."""

    def __init__(self) -> None:
        super().__init__()
        self.fields: dict[Tensor, _Field] = {}  # by identity; keeps them, meta tensors are empty

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        seen = [self.fields[x] for x in tensors if x in self.fields]
        if not seen or _upsamples(func.overloadpacket, args):
            return out
        field = max(seen, key=lambda field: field.width)
        results = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        if window := _window(func.overloadpacket, args, results[0]):
            field = field.through(*window)
        self.fields.update(dict.fromkeys(results, field))
        return out


def _upsamples(operator: Any, args: tuple[Any, ...]) -> bool:
    """Also in the form that torch.use_deterministic_algorithms gives it: pixels by their index."""
    if operator == aten.convolution:
        return bool(args[6])  # transposed
    return "upsample" in str(operator) or operator in (
        aten.index,
        aten._unsafe_index,
        aten.pixel_shuffle,
    )


def _window(operator: Any, args: tuple[Any, ...], out: Tensor) -> tuple[int, int, int] | None:
    """Kernel, stride and dilation along the width, of a convolution or a pooling of windows."""
    if operator == aten.convolution and args[1].dim() == 4:
        return args[1].shape[3], args[3][-1], args[5][-1]
    if operator in (aten.max_pool2d_with_indices, aten.avg_pool2d) and out.shape[-1] > 1:
        kernel, stride = args[1], (args[2] if len(args) > 2 else []) or args[1]
        dilation = args[4] if operator == aten.max_pool2d_with_indices and len(args) > 4 else [1]
        return kernel[-1], stride[-1], dilation[-1]
    return None
