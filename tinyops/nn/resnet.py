"""ResNets that return their stages, and the bottom-heavy form of them."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torchvision.models import (
    ResNet18_Weights,
    ResNet50_Weights,
    ResNet101_Weights,
    ResNeXt101_32X8D_Weights,
    WeightsEnum,
)
from torchvision.models.resnet import BasicBlock, Bottleneck, conv1x1

from tinyops.nn.weights import load_weights, read_weights

Weights = str | Path | Mapping[str, Tensor] | None


class ResNet(nn.Module):
    """C2..C5 of a residual network; parameters are named as torchvision's, without fc.

    Args:
        block: torchvision's BasicBlock or Bottleneck.
        depths: blocks of each stage.
        widths: channels of each stage before a bottleneck multiplies them by 4; the stem has the
            first.
        strides: of the first block of each stage.
        stem_kernel, stem_stride: of the first convolution.
        stem_pool: end the stem in a max pooling of stride 2.
        groups, width_per_group: of the 3x3 convolutions of bottlenecks (ResNeXt).
        norm_layer: makes a normalisation from a number of channels.
        frozen_stages: 1 freezes the stem and the first stage, and so on: no gradient, and always
            in eval mode; 0 freezes nothing.
        norm_eval: batch normalisations keep their running statistics in train mode, too.

    Raises:
        ValueError: for stages that do not agree in number, or a frozen_stages beyond them.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        *,
        widths: Sequence[int] = (64, 128, 256, 512),
        strides: Sequence[int] = (1, 2, 2, 2),
        stem_kernel: int = 7,
        stem_stride: int = 2,
        stem_pool: bool = True,
        groups: int = 1,
        width_per_group: int = 64,
        norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
        frozen_stages: int = 0,
        norm_eval: bool = False,
    ) -> None:
        super().__init__()
        if not len(depths) == len(widths) == len(strides):
            raise ValueError(
                f"depths, widths and strides must have one number per stage, got {list(depths)}, "
                f"{list(widths)} and {list(strides)}"
            )
        if not 0 <= frozen_stages <= len(depths):
            raise ValueError(f"frozen_stages must be in 0..{len(depths)}, got {frozen_stages}")
        self.frozen_stages, self.norm_eval, self.stem_pool = frozen_stages, norm_eval, stem_pool
        self.channels = tuple(width * block.expansion for width in widths)
        stem = stem_stride * (2 if stem_pool else 1)
        self.strides = tuple(accumulate(strides, lambda a, b: a * b, initial=stem))[1:]

        self.conv1 = nn.Conv2d(
            3, widths[0], stem_kernel, stem_stride, padding=stem_kernel // 2, bias=False
        )
        self.bn1 = norm_layer(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if stem_pool else nn.Identity()
        self.stages = len(depths)
        before = widths[0]
        for k, (depth, width, stride) in enumerate(zip(depths, widths, strides, strict=True)):
            blocks = []
            for first in [True] + [False] * (depth - 1):
                after, step = width * block.expansion, stride if first else 1
                shortcut = None
                if step != 1 or before != after:
                    shortcut = nn.Sequential(conv1x1(before, after, step), norm_layer(after))
                blocks.append(
                    block(
                        before,
                        width,
                        step,
                        shortcut,
                        groups,
                        width_per_group,
                        norm_layer=norm_layer,
                    )
                )
                before = after
            setattr(self, f"layer{k + 1}", nn.Sequential(*blocks))

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for module in self._frozen():
            module.requires_grad_(False)
        self.train()

    def _layers(self) -> list[nn.Module]:
        return [getattr(self, f"layer{k + 1}") for k in range(self.stages)]

    def _frozen(self) -> list[nn.Module]:
        # Looked up anew, since norms are replaced: GlobalBatchNorm2d, SyncBatchNorm.
        if not self.frozen_stages:
            return []
        return [self.conv1, self.bn1, *self._layers()[: self.frozen_stages]]

    def forward(self, pixels: Tensor, extended: bool = False) -> list[Tensor]:
        """[N, 3, H, W] normalised pixels to [N, channels[k], H / strides[k], W / strides[k]].

        Args:
            pixels: of the images.
            extended: put C2' before the others: the first stage, with the same weights, on the stem
                before its pooling; like C2, at twice its resolution (EFPN, table I).

        Raises:
            ValueError: for `extended` where the stem does not end in a pooling.
        """
        if extended and not self.stem_pool:
            raise ValueError("extended must be False for a stem without pooling, got True")
        x = self.relu(self.bn1(self.conv1(pixels)))
        levels = [self._layers()[0](x)] if extended else []
        x = self.maxpool(x)
        for layer in self._layers():
            x = layer(x)
            levels.append(x)
        return levels

    def train(self, mode: bool = True) -> "ResNet":
        """Set the mode, except of what is frozen or keeps its statistics."""
        super().train(mode)
        for module in self._frozen():
            module.eval()
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self


_PUBLISHED = {"imagenet": "IMAGENET1K_V1", "imagenet_v2": "IMAGENET1K_V2"}


def _build(
    block: type[BasicBlock] | type[Bottleneck],
    depths: Sequence[int],
    weights: Weights,
    published: type[WeightsEnum] | None,
    frozen_stages: int,
    options: dict[str, Any],
) -> ResNet:
    """A ResNet with weights; with them it is partly frozen, unless options say otherwise."""
    state, source = weights, "the given state dict"
    if isinstance(weights, str) and weights in _PUBLISHED:
        entry = getattr(published, _PUBLISHED[weights], None)
        if entry is None:
            offered = [k for k, v in _PUBLISHED.items() if hasattr(published, v)]
            raise ValueError(
                f"weights must be {' or '.join([*map(repr, offered), 'a file', 'None'])}: "
                f"no {weights!r} weights are published for this backbone"
            )
        state, source = entry.get_state_dict(progress=True, check_hash=True), weights
        state = {name: x for name, x in state.items() if not name.startswith("fc.")}
    elif isinstance(weights, (str, Path)):
        if not Path(weights).is_file():
            raise ValueError(
                f"weights must be 'imagenet', 'imagenet_v2', a file or None, got {str(weights)!r}"
            )
        state, source = read_weights(weights), str(weights)
    if weights is not None:
        options = {"frozen_stages": frozen_stages, "norm_eval": True} | options
    model = ResNet(block, depths, **options)
    if isinstance(state, Mapping):
        load_weights(model, state, source)
    return model


def resnet18(*, weights: Weights = None, **options: Any) -> ResNet:
    """ResNet-18.

    Args:
        weights: "imagenet" downloads torchvision's IMAGENET1K_V1, a path names a local file, see
            `tinyops.nn.weights.read_weights`, a dict has the tensors by name; None: random. With
            weights, frozen_stages is 1 and norm_eval True by default.
        options: of `ResNet`.
    """
    return _build(BasicBlock, (2, 2, 2, 2), weights, ResNet18_Weights, 1, options)


def resnet50(*, weights: Weights = None, **options: Any) -> ResNet:
    """ResNet-50, the backbone of most papers; 23,508,032 parameters, 26.905 GMAC at 640x512.

    Args:
        weights: "imagenet" (torchvision's IMAGENET1K_V1, the papers' one) or "imagenet_v2"
            (IMAGENET1K_V2) download; otherwise as of `resnet18`. With weights, frozen_stages is 1
            and norm_eval True by default, as in the papers.
        options: of `ResNet`.
    """
    return _build(Bottleneck, (3, 4, 6, 3), weights, ResNet50_Weights, 1, options)


def resnet101(*, weights: Weights = None, **options: Any) -> ResNet:
    """ResNet-101; arguments as of `resnet50`."""
    return _build(Bottleneck, (3, 4, 23, 3), weights, ResNet101_Weights, 1, options)


def resnext101(*, weights: Weights = None, **options: Any) -> ResNet:
    """ResNeXt-101 32x8d (EFPN); arguments as of `resnet50`."""
    options = {"groups": 32, "width_per_group": 8} | options
    return _build(Bottleneck, (3, 4, 23, 3), weights, ResNeXt101_32X8D_Weights, 1, options)


def bh_resnet50(*, weights: Weights = None, **options: Any) -> ResNet:
    """The bottom-heavy ResNet-50 (Ning et al., table 4); 10,948,160 parameters, 27.115 GMAC.

    Its stem keeps the resolution, every stage halves it, and blocks move from the last stages to
    the first.

    Args:
        weights: as of `resnet18`, but torchvision publishes none; see `tinyops.models.recipes`.
            With weights norm_eval is True by default; no stage is frozen, as in the released
            configuration.
        options: of `ResNet`.
    """
    return _build(Bottleneck, (7, 6, 2, 1), weights, None, 0, BOTTOM_HEAVY | options)


def resnet_nano(*, weights: Weights = None, **options: Any) -> ResNet:
    """A ResNet for small data and a CPU: 961,112 parameters, group normalisation.

    Args:
        weights: a file, or None.
        options: of `ResNet`.
    """
    return _build(BasicBlock, (2, 2, 2, 2), weights, None, 0, NANO | options)


def bh_resnet_nano(*, weights: Weights = None, **options: Any) -> ResNet:
    """The bottom-heavy form of `resnet_nano`, with as many multiply-accumulates.

    As in `bh_resnet50` the stem is a 3x3 convolution of stride 1 and every stage halves the size.
    A block of any of the first three stages costs the same (half as many pixels per side, twice
    the channels), one of the last less than half of that. Moving one block from each of the last
    two stages to each of the first two makes 350.0 MMAC at 256x256, 4.9 % more than `resnet_nano`;
    without either of the two blocks it would be 8 % less.

    Args:
        weights: a file, or None.
        options: of `ResNet`.
    """
    return _build(BasicBlock, (3, 3, 1, 1), weights, None, 0, NANO | BOTTOM_HEAVY | options)


def bh_resnet_fine(*, weights: Weights = None, **options: Any) -> ResNet:
    """A small ResNet for objects of a few pixels; 1,048,608 parameters.

    The stem keeps the full resolution; levels have strides 2, 4, 8 and 16.

    Args:
        weights: a file, or None.
        options: of `ResNet`.
    """
    fine = {"widths": (32, 64, 96, 128), "stem_pool": False}
    return _build(BasicBlock, (2, 2, 2, 2), weights, None, 0, BOTTOM_HEAVY | fine | options)


BOTTOM_HEAVY: dict[str, Any] = {"stem_kernel": 3, "stem_stride": 1, "strides": (2, 2, 2, 2)}
NANO: dict[str, Any] = {"widths": (24, 48, 96, 128), "norm_layer": partial(nn.GroupNorm, 8)}
