"""3x3 convolution over nearest-upsampled pyramid levels, computed at their own resolution."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def pyramid_conv3x3(levels: Sequence[Tensor], weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """conv3x3(concatenate(upsample(level) for level in levels)), zero padded, without either.

    On a map that was upsampled s times, rows (and columns) of the 3x3 window fall into one pixel
    or two. With s = 2 an output pixel therefore needs 2x2 taps of summed weights; with s >= 3 only
    the first and last row and column of a pixel do, all pixels between share one value. That is 16
    (s = 2) or 9 (s >= 3) products per pixel of the small map instead of 9 s^2, and exact up to
    rounding, borders included. Neither upsampled nor concatenated maps exist, and autograd keeps
    the small maps alone. Differentiable once.

    Levels that do not divide the first one evenly, by one factor for both sides, are upsampled and
    convolved plainly: exact too, but at full cost.

    Args:
        levels: [N, C_k, h_k, w_k] each, the finest first; `upsample` is nearest to the size of the
            first: row y reads row floor(y * h_k / H).
        weight: [O, sum of C_k, 3, 3].
        bias: [O].

    Returns:
        [N, O, H, W] in the layout that conv2d gives the first level.

    Raises:
        ValueError: for a weight that does not fit the channels, or a level larger than the first.
    """
    channels = [x.shape[1] for x in levels]
    if weight.dim() != 4 or weight.shape[1] != sum(channels) or weight.shape[2:] != (3, 3):
        raise ValueError(
            f"weight must be [O, {sum(channels)}, 3, 3] for levels of {channels} channels, "
            f"got {list(weight.shape)}"
        )
    size = levels[0].shape[-2:]
    weights = weight.split(channels, dim=1)
    out = F.conv2d(levels[0], weights[0], bias, padding=1)
    for level, part in zip(levels[1:], weights[1:], strict=True):
        factor = _factor(level.shape[-2:], size)
        if factor is None or factor == 1:
            out = out + F.conv2d(upsample_nearest(level, size), part, padding=1)
        else:
            out = _AddPhases.apply(out, factor, *_phases(level, part, factor))
    return out


def upsample_nearest(x: Tensor, size: Sequence[int]) -> Tensor:
    """[N, C, h, w] to [N, C, *size]: row y is row floor(y * h / H), in exact integers."""
    for dim, new in zip((-2, -1), size, strict=True):
        old = x.shape[dim]
        if old > new or old == 0:
            raise ValueError(
                f"levels must be nonempty and at most {list(size)}, got {list(x.shape[-2:])}"
            )
    factor = _factor(x.shape[-2:], size)
    if factor == 1:
        return x
    if factor is not None:  # F.interpolate computes the same index in float32
        return F.interpolate(x, size=tuple(size), mode="nearest")
    for dim, new in zip((-2, -1), size, strict=True):
        rows = torch.arange(new, device=x.device) * x.shape[dim] // new
        x = x.index_select(dim, rows)
    return x


class PyramidConv(nn.Module):
    """`pyramid_conv3x3` as a layer over `levels` maps of `in_channels` each.

    Args:
        in_channels: of one level.
        out_channels: of the result.
        levels: how many.
        collapse: False computes the plain form: upsample, concatenate, convolve.
    """

    def __init__(
        self, in_channels: int, out_channels: int, levels: int, *, collapse: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(levels * in_channels, out_channels, 3, padding=1)
        self.collapse = collapse

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        if self.collapse:
            return pyramid_conv3x3(levels, self.conv.weight, self.conv.bias)
        size = levels[0].shape[-2:]
        return self.conv(torch.cat([upsample_nearest(x, size) for x in levels], 1))


def _factor(size: Sequence[int], full: Sequence[int]) -> int | None:
    """How many times the height and width fit into the full ones; None unless the same for both."""
    (h, w), (height, width) = size, full
    if h == 0 or w == 0 or height % h or width % w or height // h != width // w:
        return None
    return height // h


def _phases(x: Tensor, weight: Tensor, factor: int) -> list[Tensor]:
    """The values of the output pixels that one pixel, two, or four pixels of `x` decide.

    "Two" is a pair of rows u - 1 and u, 0 <= u <= h, the last and the first row of which (a = 0
    and 1) depend on both; pairs of columns likewise (v, b).

    Returns:
        [N, 4 O, h + 1, w + 1], channels ordered (a, b, O); and unless `factor` is 2
        [N, 2 O, h + 1, w], [N, 2 O, h, w + 1] and [N, O, h, w] of the pixels between.
    """
    if factor == 2:
        corners = torch.cat([kernel for row in _pairs(weight, 2) for kernel in _pairs(row, 3)])
        return [F.conv2d(x, corners, padding=1)]
    # Nine products of a small map are fewer than the 25 of its phases, and their sums are cheap.
    kernels = weight.permute(2, 3, 0, 1).flatten(0, 2)[..., None, None]
    taps = F.conv2d(x, kernels).unflatten(1, (3, 3, -1))  # [N, row, column, O, h, w]
    between = taps.sum(1)  # [N, column, O, h, w]
    ends = _meet(taps, 1, 3)  # [N, 2, column, O, h + 1, w]
    return [
        _meet(ends, 2, 4).flatten(1, 3),
        ends.sum(2).flatten(1, 2),
        _meet(between, 1, 3).flatten(1, 2),
        between.sum(1),
    ]


def _meet(taps: Tensor, dim: int, side: int) -> Tensor:
    """Products of three taps summed where two pixels meet: the last row of one, the first of next.

    Args:
        taps: at `dim` before, here and after.
        dim: becomes last and first.
        side: the dimension of rows or columns once `dim` is gone, n long; becomes n + 1.
    """
    before, here, after = taps.unbind(dim)
    none = torch.zeros_like(before.narrow(side, 0, 1))

    def sums(of_first: Tensor, of_second: Tensor) -> Tensor:
        return torch.cat([none, of_first], side) + torch.cat([of_second, none], side)

    return torch.stack([sums(before + here, after), sums(before, here + after)], dim)


def _pairs(weight: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Three taps collapsed to two: at the last row of a pixel, and at the first of the next."""
    before, here, after = weight.unbind(dim)
    return torch.stack([before + here, after], dim), torch.stack([before, here + after], dim)


class _AddPhases(torch.autograd.Function):
    """Add the results of `_phases` to the pixels they belong to: one pass over `out`, in place.

    Autograd of the same slices in plain torch would copy the full gradient for every slice. Under
    torch.compile, which has no in-place functions, `out` is copied.
    """

    @staticmethod
    def forward(out: Tensor, factor: int, *phases: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            out = out.clone()
        for pixels, phase in _places(out, factor, phases):
            pixels += phase
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        out, factor, *phases = inputs
        if not torch.compiler.is_compiling():
            ctx.mark_dirty(out)
        ctx.factor = factor
        ctx.shapes = [phase.shape for phase in phases]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        layout = (
            torch.channels_last
            if grad.is_contiguous(memory_format=torch.channels_last)
            else torch.contiguous_format
        )
        grads = [grad.new_zeros(()).expand(s).contiguous(memory_format=layout) for s in ctx.shapes]
        for pixels, phase in _places(grad, ctx.factor, grads):
            spread = [d for d, n in enumerate(phase.shape) if n == 1 and pixels.shape[d] > 1]
            phase += pixels.sum(spread, keepdim=True) if spread else pixels
        return grad, None, *grads


def _places(out: Tensor, s: int, phases: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Views of pixels of `out` with the part of the phases to be added to them."""
    channels, (h, w) = out.shape[1], (out.shape[2] // s, out.shape[3] // s)
    cells = out.unflatten(3, (w, s)).unflatten(2, (h, s))  # [N, O, h, s, w, s]
    sides = ((s - 1, 1), (0, 0))  # of a pixel: its row, and the first pair of rows it is part of
    corners = phases[0].unflatten(1, (2, 2, channels))
    places = [
        (cells[:, :, :, row, :, column], corners[:, a, b, :, u : u + h, v : v + w])
        for a, (row, u) in enumerate(sides)
        for b, (column, v) in enumerate(sides)
    ]
    if s > 2:
        between = slice(1, s - 1)
        rows, columns = (phase.unflatten(1, (2, channels)) for phase in phases[1:3])
        for k, (side, first) in enumerate(sides):
            places += [
                (cells[:, :, :, side, :, between], rows[:, k, :, first : first + h, :, None]),
                (
                    cells[:, :, :, between, :, side],
                    columns[:, k, :, :, None, first : first + w],
                ),
            ]
        places.append((cells[:, :, :, between, :, between], phases[3][:, :, :, None, :, None]))
    return places
