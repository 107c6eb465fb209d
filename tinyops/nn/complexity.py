"""Parameters and multiply-accumulates of a model, as the detection papers count them."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import FrozenBatchNorm2d


@dataclass(frozen=True)
class Complexity:
    """What a model costs for one input.

    Attributes:
        parameters: all of them, trained or frozen.
        macs: multiply-accumulates.
        by_operator: `macs` by kind (convolution, matrices, names of layers), the largest first.
    """

    parameters: int
    macs: int
    by_operator: Mapping[str, int]


def complexity(model: nn.Module, *inputs: Any) -> Complexity:
    """Run the model on the inputs in eval mode and count what it computes.

    The convention is that of mmcv's counter, which the papers call FLOPs. Of whatever runs, layers
    or functions: the products of convolutions and matrices, and 1 per output of a convolution for
    its bias. Of layers (nn.Module) alone: 2 per element of a normalisation (1 without weights), 1
    per element of a ReLU, of the input of a pooling and of the output of an nn.Upsample. All else
    is free: the same as functions (F.relu, F.interpolate, gated_upsample_add), element-wise
    arithmetic, RoIAlign and NMS.

    Args:
        model: any module; its mode is restored afterwards.
        inputs: what its forward takes, such as zeros of [1, 3, H, W].
    """
    macs: Counter[str] = Counter()

    def count_layer(layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        for kinds, cost in _LAYERS.items():
            if isinstance(layer, kinds):
                macs[type(layer).__name__] += cost(layer, args[0], out)

    was_training = {module: module.training for module in model.modules()}
    hooks = [module.register_forward_hook(count_layer) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), _ProductCounter(macs):
            model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in was_training.items():
            module.training = mode
    parameters = sum(p.numel() for p in model.parameters())
    return Complexity(parameters, sum(macs.values()), dict(macs.most_common()))


class _ProductCounter(TorchDispatchMode):
    def __init__(self, macs: Counter[str]) -> None:
        super().__init__()
        self.macs = macs

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        if packet == aten.convolution:
            self.macs["convolution"] += _convolution(*args[:3], transposed=args[6], out=out)
        elif packet in _LEFT_MATRIX:
            self.macs["matrices"] += out.numel() * args[_LEFT_MATRIX[packet]].shape[-1]
        return out


def _convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, transposed: bool, out: Tensor
) -> int:
    pixels = x if transposed else out  # each of which is multiplied with the weights of its channel
    products = pixels.numel() * weight[0].numel()
    return products + (0 if bias is None else out.numel())


aten = torch.ops.aten
_LEFT_MATRIX = {aten.mm: 0, aten.bmm: 0, aten.addmm: 1, aten.baddbmm: 1}  # index of the argument


def _normalisation(layer: nn.Module, x: Tensor, out: Tensor) -> int:
    return x.numel() * (1 if getattr(layer, "weight", None) is None else 2)


def _input(layer: nn.Module, x: Tensor, out: Tensor) -> int:
    return x.numel()


def _output(layer: nn.Module, x: Tensor, out: Tensor) -> int:
    return out.numel()


_LAYERS: dict[Any, Callable[[nn.Module, Tensor, Tensor], int]] = {
    (
        nn.modules.batchnorm._BatchNorm,
        nn.modules.instancenorm._InstanceNorm,
        nn.GroupNorm,
        nn.LayerNorm,
        FrozenBatchNorm2d,
    ): _normalisation,
    (nn.ReLU, nn.PReLU, nn.ELU, nn.LeakyReLU, nn.ReLU6): _output,
    (
        nn.modules.pooling._MaxPoolNd,
        nn.modules.pooling._AvgPoolNd,
        nn.modules.pooling._AdaptiveMaxPoolNd,
        nn.modules.pooling._AdaptiveAvgPoolNd,
    ): _input,
    (nn.Upsample,): _output,
}
