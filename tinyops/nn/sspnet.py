"""SSPNet: a pyramid the levels of which are gated by attention to the scales of objects."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyops.nn.attention_loss import AttentionLoss
from tinyops.nn.batch import GroundTruth, ImageBatch
from tinyops.nn.collapsed_conv import PyramidConv
from tinyops.nn.composed_conv import composed_conv
from tinyops.nn.fpn import initialise_convolutions, pyramid_strides
from tinyops.ops import gated_upsample_add


class ContextAttention(nn.Module):
    """Logits of an attention map per level from all levels together (CAM; SSPNet, eq. 1).

    All levels at the size of the first -> 3x3 convolution -> four branches that see 1x1, 3x3 with
    dilations 2 and 5, and the mean of the map -> 3x3 convolution, normalisation, ReLU -> gates.

    Args:
        channels: of every level, a multiple of 4.
        levels: how many; each has half the size of the one before.
        attention: the gates. "chain", the released code: 3x3 convolutions one after the other
            without activation, all but the first of stride 2, and a 3x3 convolution to one channel
            on each. "parallel", eq. 1 as printed: one 3x3 convolution of stride 2^k for level k.
        collapse: compute the first convolution at the resolution of the levels, and the first of
            the chain together with those that follow it (exact, cheaper).
        norm_layer: makes a normalisation from a number of channels.

    Raises:
        ValueError: for channels that are no multiple of 4, or another `attention`.
    """

    def __init__(
        self,
        channels: int = 256,
        levels: int = 4,
        *,
        attention: str = "chain",
        collapse: bool = True,
        norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        if channels % 4 or channels <= 0:
            raise ValueError(f"channels must be a positive multiple of 4, got {channels}")
        if attention not in ("chain", "parallel"):
            raise ValueError(f"attention must be 'chain' or 'parallel', got {attention!r}")
        self.collapse = collapse
        self.fuse = PyramidConv(channels, channels, levels, collapse=collapse)
        self.branches = nn.ModuleList(
            [
                nn.Conv2d(channels, channels // 4, 1),
                nn.Conv2d(channels, channels // 4, 3, padding=2, dilation=2),
                nn.Conv2d(channels, channels // 4, 3, padding=5, dilation=5),
                nn.Conv2d(channels, channels // 4, 1),
            ]
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.context_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.context_norm = norm_layer(channels)
        self.relu = nn.ReLU(inplace=True)
        chain = attention == "chain"
        self.down_convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, stride=2 if k else 1, padding=1)
            for k in range(levels if chain else 0)
        )
        self.attention_convs = nn.ModuleList(
            nn.Conv2d(channels, 1, 3, stride=1 if chain else 2**k, padding=1) for k in range(levels)
        )
        initialise_convolutions(self)

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """[N, channels, h_k, w_k] per level, the finest first, to [N, 1, h_k, w_k] logits."""
        x = self.fuse(levels)
        *local, whole = self.branches
        parts = [conv(x) for conv in local]
        parts.append(whole(self.pool(x)).expand_as(parts[0]))
        x = F.relu_(torch.cat(parts, 1))
        x = self.relu(self.context_norm(self.context_conv(x)))
        if not self.down_convs:
            return [conv(x) for conv in self.attention_convs]
        first, *others = self.down_convs
        if self.collapse and others:  # nobody needs the first map itself
            logits = [_composed(x, first, self.attention_convs[0])]
            x = _composed(x, first, others[0])
        else:
            x = first(x)
            logits = [self.attention_convs[0](x)]
            x = others[0](x) if others else x
        for k, conv in enumerate(self.attention_convs[1:]):
            x = others[k](x) if k else x
            logits.append(conv(x))
        return logits


def _composed(x: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
    assert isinstance(first, nn.Conv2d)
    assert isinstance(second, nn.Conv2d)
    return composed_conv(x, first, second)


class SSPNet(nn.Module):
    """P2..P6 of C2..C5, by default as in SSPNet's released code.

    With attention A_k from the laterals L_k (1x1 convolutions of C_k):

        P'_5 = (1 + A_5) L_5
        P'_k = (1 + A_k) L_k + A_k up(A_k+1) up(P'_k+1)     (SEM, eq. 2, and SSM, eq. 3, in one)
        P_k = (1 + A_k) conv3x3(P'_k)                       (SEM once more)

    and P6, every second pixel of P5. `up` is nearest.

    Args:
        in_channels: of the levels of the backbone, finest first.
        channels: of every level of the pyramid.
        strides: pixels of the image per cell of each level of the backbone.
        attention: "chain" or "parallel", see `ContextAttention`.
        enhance_outputs: the last SEM, which the paper does not mention.
        collapse: see `ContextAttention`.
        norm_layer: of the attention, makes a normalisation from a number of channels.
        dice: "positives" or "full", see `AttentionLoss`.
        strict_bands: see `AttentionLoss`.

    Raises:
        ValueError: as `ContextAttention` and `AttentionLoss`, and for in_channels and strides that
            are not one number per level.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int = 256,
        strides: Sequence[int] = (4, 8, 16, 32),
        *,
        attention: str = "chain",
        enhance_outputs: bool = True,
        collapse: bool = True,
        norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
        dice: str = "positives",
        strict_bands: bool = True,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.strides = pyramid_strides(in_channels, strides)
        self.enhance_outputs = enhance_outputs
        self.lateral_convs = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in in_channels)
        self.attention = ContextAttention(
            channels,
            len(in_channels),
            attention=attention,
            collapse=collapse,
            norm_layer=norm_layer,
        )
        self.output_convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels
        )
        self.attention_loss = AttentionLoss(strides, strict_bands=strict_bands, dice=dice)
        initialise_convolutions(self)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
        """Levels and attention.

        Args:
            features: [N, C_k, h_k, w_k] per level of the backbone.

        Returns:
            [N, channels, h_k, w_k] per level and one more; {"attention_logits": [N, 1, h_k, w_k]
            per level of the backbone}.
        """
        merged = [conv(x) for conv, x in zip(self.lateral_convs, features, strict=True)]
        logits = self.attention(merged)
        gates = [x.sigmoid() for x in logits]
        merged[-1] = torch.addcmul(merged[-1], merged[-1], gates[-1])
        for k in range(len(merged) - 1, 0, -1):
            merged[k - 1] = gated_upsample_add(
                merged[k - 1], merged[k], gates[k - 1], gates[k], self_gate=True
            )
        levels = [conv(x) for conv, x in zip(self.output_convs, merged, strict=True)]
        if self.enhance_outputs:
            levels = [torch.addcmul(x, x, gate) for x, gate in zip(levels, gates, strict=True)]
        levels.append(F.max_pool2d(levels[-1], 1, stride=2))
        return levels, {"attention_logits": logits}

    def losses(
        self, aux: dict[str, list[Tensor]], batch: ImageBatch, truth: GroundTruth
    ) -> dict[str, Tensor]:
        """The attention loss of what `forward` returned, see `AttentionLoss`."""
        return self.attention_loss(aux["attention_logits"], batch, truth)
