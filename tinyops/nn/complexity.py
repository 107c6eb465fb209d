"""Parameters and multiply-accumulates of a model, as the detection papers count them."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import tinyops.ops  # noqa: F401 -- defines torch.ops.tinyops

aten = torch.ops.aten


@dataclass(frozen=True)
class Complexity:
    """What a model costs for one input.

    Attributes:
        parameters: all of them, trained or frozen.
        macs: multiply-accumulates.
        by_operator: `macs` split by the name of the operator, the largest first.
    """

    parameters: int
    macs: int
    by_operator: Mapping[str, int]


def complexity(model: nn.Module, *inputs: Any) -> Complexity:
    """Run the model on the inputs in eval mode and count what it computes.

    The convention is that of mmcv's counter, which the papers call FLOPs: products of convolutions
    and matrices (with one per output for a bias of a convolution), 2 per element of a
    normalisation, 1 per element of a ReLU, of the input of a pooling and of an upsampled map;
    element-wise arithmetic (thus `FrozenBatchNorm2d`), sigmoids, RoIAlign and NMS are free.
    `gated_upsample_add` counts as an upsampling. Other than mmcv's, it counts operators that run,
    whatever module or function calls them.

    Args:
        model: any module; its mode is restored afterwards.
        inputs: what its forward takes, such as zeros of [1, 3, H, W].
    """
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), _Counter() as counter:
            model(*inputs)
    finally:
        for module, mode in was_training.items():
            module.training = mode
    parameters = sum(p.numel() for p in model.parameters())
    counts = dict(counter.macs.most_common())
    return Complexity(parameters, sum(counts.values()), counts)


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.macs: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        if packet in _COSTS:
            self.macs[packet.__name__.rstrip("_")] += _COSTS[packet](args, out)
        return out


def _convolution(args: tuple[Any, ...], out: Tensor) -> int:
    x, weight, bias, transposed = args[0], args[1], args[2], args[6]
    positions = (x if transposed else out).numel() // (x if transposed else out).shape[1]
    return positions * weight.numel() + (0 if bias is None else out.numel())


def _product(first: int) -> Callable[[tuple[Any, ...], Tensor], int]:
    """Of matrices, the left one of which is argument `first`."""
    return lambda args, out: out.numel() * args[first].shape[-1]


def _input(times: int) -> Callable[[tuple[Any, ...], Any], int]:
    return lambda args, out: times * args[0].numel()


def _output(args: tuple[Any, ...], out: Tensor) -> int:
    return out.numel()


_COSTS: dict[Any, Callable[[tuple[Any, ...], Any], int]] = {
    aten.convolution: _convolution,
    aten.mm: _product(0),
    aten.bmm: _product(0),
    aten.addmm: _product(1),
    aten.baddbmm: _product(1),
    aten.native_batch_norm: _input(2),
    aten._native_batch_norm_legit: _input(2),
    aten._native_batch_norm_legit_no_training: _input(2),
    aten.cudnn_batch_norm: _input(2),
    aten.miopen_batch_norm: _input(2),
    aten.native_group_norm: _input(2),
    aten.native_layer_norm: _input(2),
    aten.relu: _input(1),
    aten.relu_: _input(1),
    aten.max_pool2d_with_indices: _input(1),
    aten.avg_pool2d: _input(1),
    aten._adaptive_avg_pool2d: _input(1),
    aten.upsample_nearest2d: _output,
    aten.upsample_bilinear2d: _output,
    torch.ops.tinyops.gated_upsample_add: _output,
    torch.ops.tinyops.gated_upsample_add_: _output,
}
