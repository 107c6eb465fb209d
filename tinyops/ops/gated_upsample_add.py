"""Scale selection (SSPNet, eq. 2 and 3): the top-down step of a pyramid, gated by attention."""

from typing import Any

import torch
from torch import Tensor

from tinyops.ops._glue import (
    check,
    layout_of,
    once_differentiable,
    operator,
    register_autocast,
    register_in_place,
    shape_text,
    share_memory,
)
from tinyops.ops._maps import check_map, check_map_like


def gated_upsample_add(
    low: Tensor,
    high: Tensor,
    gate_low: Tensor | None = None,
    gate_high: Tensor | None = None,
    *,
    self_gate: bool = False,
) -> Tensor:
    """Add the upsampled `high` to `low` where both gates are open.

        out = (1 + s * gate_low) * low + gate_low * up(gate_high) * up(high)

    with s = 1 if `self_gate` else 0. This is SSPNet's scale selection module (eq. 3), with
    `self_gate` fused with its scale enhancement module (eq. 2). Without gates it is the plain
    top-down step of an FPN, `low + up(high)` (EFPN eq. 1).

    `up` is nearest: row y of `low` reads row floor(y * h / H) of `high`, and columns likewise, in
    exact integers, so that odd sizes and any ratio are legal. `F.interpolate` computes the same
    index in float32 and reads a neighbour at a few positions of sizes that do not divide, such as
    26 -> 44 pixels.

    Args:
        low: [N, C, H, W] features of the finer level; float32, float64, float16 or bfloat16.
        high: [N, C, h, w] features of the coarser level.
        gate_low: [N, 1, H, W] attention at the finer level, usually in 0..1.
        gate_high: [N, 1, h, w] attention at the coarser level. Both gates or none.
        self_gate: multiply `low` by 1 + gate_low.

    Returns:
        [N, C, H, W], channels_last if `low` is, otherwise contiguous. Computed in float32 (float64
        for float64) and rounded once. Differentiable once in every tensor, in reverse mode (no
        forward-mode AD, no torch.func.grad).

    Raises:
        RuntimeError: for a wrong rank, size, dtype or device, or one gate alone.
    """
    return torch.ops.tinyops.gated_upsample_add(low, high, gate_low, gate_high, self_gate=self_gate)


def gated_upsample_add_(
    low: Tensor,
    high: Tensor,
    gate_low: Tensor | None = None,
    gate_high: Tensor | None = None,
    *,
    self_gate: bool = False,
) -> Tensor:
    """`gated_upsample_add` written into `low`, for inference: no output is allocated.

    Args and formula are those of `gated_upsample_add`. `low` must be contiguous or channels_last
    and must not share memory with the other tensors.

    Returns:
        `low` itself.

    Raises:
        RuntimeError: as `gated_upsample_add`; also where a gradient would have to be recorded.
    """
    torch.ops.tinyops.gated_upsample_add_(low, high, gate_low, gate_high, self_gate=self_gate)
    return low


def gated_upsample_add_reference(
    low: Tensor,
    high: Tensor,
    gate_low: Tensor | None = None,
    gate_high: Tensor | None = None,
    *,
    self_gate: bool = False,
) -> Tensor:
    """`gated_upsample_add` in plain torch: the definition that every kernel is tested against."""
    (height, width), (h, w) = low.shape[-2:], high.shape[-2:]
    rows = torch.arange(height, device=low.device) * h // max(height, 1)
    columns = torch.arange(width, device=low.device) * w // max(width, 1)

    def up(x: Tensor) -> Tensor:
        return x[:, :, rows][:, :, :, columns]

    if gate_low is None or gate_high is None:
        return low + up(high)
    own = low + gate_low * low if self_gate else low
    return own + gate_low * up(gate_high) * up(high)


def check_arguments(
    low: Tensor,
    high: Tensor,
    gate_low: Tensor | None = None,
    gate_high: Tensor | None = None,
    *,
    self_gate: bool = False,
) -> None:
    """The checks of csrc/ops/gated_upsample_add_check.h, for fake tensors and Triton."""
    check_map(_OP, "low", low)
    _check_mode(gate_low, gate_high, self_gate)
    check_map_like(_OP, "high", high, "low", low)
    (n, c, height, width), (h, w) = low.shape, high.shape[-2:]
    check(
        high.shape[0] == n and high.shape[1] == c,
        f"{_STEM}high must be [{n}, {c}, h, w], got {shape_text(high.shape)}",
    )
    _check_pixels((height, width), (h, w))
    if gate_low is not None and gate_high is not None:
        check_map_like(_OP, "gate_low", gate_low, "low", low, (n, 1, height, width))
        check_map_like(_OP, "gate_high", gate_high, "low", low, (n, 1, h, w))


def check_backward_arguments(
    grad: Tensor,
    low: Tensor | None,
    high: Tensor | None,
    gate_low: Tensor | None,
    gate_high: Tensor | None,
    high_height: int,
    high_width: int,
    self_gate: bool,
) -> None:
    """`check_arguments` for the tensors of the backward operator."""
    check_map(_OP, "grad", grad)
    _check_mode(gate_low, gate_high, self_gate)
    (n, c, height, width), (h, w) = grad.shape, (high_height, high_width)
    _check_pixels((height, width), (h, w))
    gated = gate_low is not None
    check((high is not None) == gated, f"{_STEM}the backward needs high with gates and only then")
    check(
        (low is not None) == self_gate,
        f"{_STEM}the backward needs low with self_gate=True and only then",
    )
    for name, x, size in (
        ("high", high, (n, c, h, w)),
        ("gate_low", gate_low, (n, 1, height, width)),
        ("gate_high", gate_high, (n, 1, h, w)),
        ("low", low, (n, c, height, width)),
    ):
        if x is not None:
            check_map_like(_OP, name, x, "grad", grad, size)


_OP = "gated_upsample_add"
_STEM = f"{_OP}: "


def _check_mode(gate_low: Tensor | None, gate_high: Tensor | None, self_gate: bool) -> None:
    check(
        (gate_low is None) == (gate_high is None),
        f"{_STEM}expected both gates or none, got "
        f"{'gate_high' if gate_low is None else 'gate_low'} alone",
    )
    check(
        gate_low is not None or not self_gate,
        f"{_STEM}self_gate=True needs gate_low and gate_high, got None",
    )


def _check_pixels(low: tuple[int, int], high: tuple[int, int]) -> None:
    for size in (*low, *high):
        check(
            0 <= size < 2**31,
            f"{_STEM}height and width must be at least 0 and below 2^31, got {size}",
        )
    check(
        (high[0] > 0 or low[0] == 0) and (high[1] > 0 or low[1] == 0),
        f"{_STEM}high must have pixels to give to low of {low[0]}x{low[1]}, got "
        f"{high[0]}x{high[1]}",
    )


def check_in_place(low: Tensor, *others: Tensor | None) -> None:
    """What the in-place form asks for besides: low is dense and shares its memory with nobody."""
    dense = low.is_contiguous() or low.is_contiguous(memory_format=torch.channels_last)
    check(
        dense,
        f"{_STEM}low must be contiguous or channels_last to be written in place, got a view of "
        f"{shape_text(low.shape)}",
    )
    for name, x in zip(("high", "gate_low", "gate_high"), others, strict=False):
        check(
            x is None or not share_memory(low, x),
            f"{_STEM}{name} must not share memory with low, which is written in place",
        )


def _fake(
    low: Tensor,
    high: Tensor,
    gate_low: Tensor | None = None,
    gate_high: Tensor | None = None,
    *,
    self_gate: bool = False,
) -> Tensor:
    check_arguments(low, high, gate_low, gate_high, self_gate=self_gate)
    return torch.empty_like(low, memory_format=layout_of(low))


def _backward_fake(
    grad: Tensor,
    low: Tensor | None,
    high: Tensor | None,
    gate_low: Tensor | None,
    gate_high: Tensor | None,
    high_height: int,
    high_width: int,
    self_gate: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_backward_arguments(
        grad, low, high, gate_low, gate_high, high_height, high_width, self_gate
    )
    layout = backward_layout(grad, high)
    size = (*grad.shape[:2], high_height, high_width)
    none = grad.new_empty(0)
    if gate_low is None or gate_high is None:
        return none, _empty(grad, size, layout), grad.new_empty(0), grad.new_empty(0)
    return (
        _empty(grad, grad.shape, layout) if self_gate else none,
        _empty(grad, size, layout),
        torch.empty_like(gate_low, memory_format=torch.contiguous_format),
        torch.empty_like(gate_high, memory_format=torch.contiguous_format),
    )


def backward_layout(grad: Tensor, high: Tensor | None) -> torch.memory_format:
    """The layout that the backward works in: that of a dense gradient, otherwise that of `high`."""
    layout = layout_of(grad)
    if high is None or grad.is_contiguous(memory_format=layout):
        return layout
    return layout_of(high)


def _empty(like: Tensor, size: tuple[int, ...], layout: torch.memory_format) -> Tensor:
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=layout)


def register(namespace: str) -> None:
    """Give the operators of `namespace` their fakes, gradients and autocast rules."""
    name = f"{namespace}::gated_upsample_add"
    backward_operator = operator(f"{namespace}::_gated_upsample_add_backward")

    def setup_context(ctx: Any, inputs: Any, keyword_only_inputs: Any, output: Any) -> None:
        low, high, gate_low, gate_high = inputs
        ctx.self_gate = keyword_only_inputs["self_gate"]
        ctx.high_size = high.shape[-2:]
        gated = gate_low is not None
        ctx.save_for_backward(
            low if ctx.self_gate else None, high if gated else None, gate_low, gate_high
        )

    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        low, high, gate_low, gate_high = ctx.saved_tensors
        d_low, d_high, d_gate_low, d_gate_high = backward_operator(
            grad, low, high, gate_low, gate_high, *ctx.high_size, ctx.self_gate
        )
        if gate_low is None:
            return grad, d_high, None, None
        return (d_low if ctx.self_gate else grad), d_high, d_gate_low, d_gate_high

    torch.library.register_fake(name, _fake)
    torch.library.register_fake(f"{namespace}::gated_upsample_add_", _fake_in_place)
    torch.library.register_fake(f"{namespace}::_gated_upsample_add_backward", _backward_fake)
    torch.library.register_autograd(name, backward, setup_context=setup_context)
    register_in_place(name + "_")
    register_autocast(name)
    register_autocast(name + "_", in_place=True)


def _fake_in_place(*args: Any, **kwargs: Any) -> None:
    check_arguments(*args, **kwargs)


def implement_without_cuda(namespace: str, key: str) -> None:
    """Make the Triton kernels the implementation of the operators of `namespace` for `key`."""
    from tinyops._triton import gated_upsample_add as kernels

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        check_arguments(*args, **kwargs)
        return kernels.gated_upsample_add(*args, **kwargs)

    def forward_in_place(*args: Any, **kwargs: Any) -> None:
        check_arguments(*args, **kwargs)
        check_in_place(*args)
        kernels.gated_upsample_add_(*args, **kwargs)

    def backward(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        check_backward_arguments(*args)
        return kernels._gated_upsample_add_backward(*args)

    torch.library.impl(f"{namespace}::gated_upsample_add", key)(forward)
    torch.library.impl(f"{namespace}::gated_upsample_add_", key)(forward_in_place)
    torch.library.impl(f"{namespace}::_gated_upsample_add_backward", key)(backward)


register("tinyops")
