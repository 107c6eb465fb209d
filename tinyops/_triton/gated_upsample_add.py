"""Gated upsample-add (SSPNet, eq. 2-3) in Triton, forward and backward, for every resize ratio.

A program owns a segment of one row for a tile of channels: row arithmetic is scalar, and the gates
are read once per tile. Wide tensors move once: forward low, high, out; backward at ratio 2 grad,
high, d_high (self_gate: low and d_low too); at other ratios the backward reads grad twice.
Sums over channels stay inside one program: no atomics, the same result every time. 8x256x128x160
at ratio 2 then has 2560 (NCHW) or 5120 (NHWC) programs of four warps, 19 or more for each
multiprocessor of an H100: splitting the channels, and the second pass it needs, would gain nothing.
Loops are `while`: under numpy 2.4, Triton 3.6's interpreter wants Python numbers in `range`.
"""
# mypy: allow-untyped-defs
# ruff: noqa: N803, N806 -- sizes are named as in [N, C, H, W], constexprs in capitals

import torch
import triton
import triton.language as tl
from torch import Tensor

from tinyops._triton.tiles import (
    Launch,
    dense,
    empty,
    is_nhwc,
    load_wide,
    offset_of,
    place,
    plan,
    run,
    tile_of,
    tile_size,
    widen,
)


@triton.jit
def _load_pixels(ptr, n, y, x, H, W):
    return load_wide(ptr, (n * H + y) * W + x, x < W)


@triton.jit
def _store_pixels(ptr, value, n, y, x, H, W):
    tl.store(ptr + (n * H + y) * W + x, value, x < W)


# At ratio 2, the columns 2i and 2i + 1 that read cell i are a pair of tiles. NCHW moves both in one
# dense run.


@triton.jit
def _pair_offset(n, c, y, x, C, H, W, COLUMNS: tl.constexpr, NHWC: tl.constexpr):
    columns = tl.arange(0, COLUMNS) * 2 if NHWC else tl.arange(0, COLUMNS * 2)
    i, k = tile_of(x * 2 + columns, c, NHWC)
    return offset_of(n, k, y, i, C, H, W, NHWC), (i < W) & (k < C)


@triton.jit
def _load_pair(ptr, offset, inside, C, NHWC: tl.constexpr):
    if NHWC:
        return load_wide(ptr, offset, inside), load_wide(ptr, offset + C, inside)
    else:
        run = load_wide(ptr, offset, inside)
        return tl.split(tl.reshape(run, [run.shape[0], run.shape[1] // 2, 2]))


@triton.jit
def _store_pair(ptr, even, odd, offset, inside, C, NHWC: tl.constexpr):
    if NHWC:
        tl.store(ptr + offset, even, inside)
        tl.store(ptr + offset + C, odd, inside)
    else:
        tl.store(ptr + offset, tl.reshape(tl.join(even, odd), offset.shape), inside)


@triton.jit(do_not_specialize=["H", "h"])
def _forward_kernel(
    low, high, gate_low, gate_high, out, C, H, W, h, w, SELF_GATE: tl.constexpr,
    TWICE: tl.constexpr, CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, NHWC: tl.constexpr,
):  # fmt: skip
    n, block, y, x = place(tl.cdiv(C, CHANNELS), H, W, COLUMNS, NHWC)
    x += tl.arange(0, COLUMNS)
    ys, xs = (y >> 1, x >> 1) if TWICE else (y * h // H, x * w // W)
    i, k = tile_of(x, block * CHANNELS + tl.arange(0, CHANNELS), NHWC)
    inside = (i < W) & (k < C)
    offset = offset_of(n, k, y, i, C, H, W, NHWC)
    result = load_wide(low, offset, inside)
    added = load_wide(high, offset_of(n, k, ys, widen(xs, NHWC), C, h, w, NHWC), inside)
    if gate_low is not None:
        gl = _load_pixels(gate_low, n, y, x, H, W)
        gh = _load_pixels(gate_high, n, ys, xs, h, w)
        added *= widen(gl * gh, NHWC)
        if SELF_GATE:
            result *= widen(1 + gl, NHWC)
    tl.store(out + offset, result + added, inside)


@triton.jit
def _backward_row(
    grad, low, d_low, value, gl0, gl1, gate0, gate1, p0, p1, l0, l1, n, c, y, x, C, H, W,
    GATED: tl.constexpr, SELF_GATE: tl.constexpr, COLUMNS: tl.constexpr, NHWC: tl.constexpr,
):  # fmt: skip
    """One output row of a row of source cells: its part of d_high, and the running sums p of
    grad * high and l of grad * low in even (0) and odd (1) columns; gate = gate_low * gate_high."""
    offset, inside = _pair_offset(n, c, y, x, C, H, W, COLUMNS, NHWC)
    g0, g1 = _load_pair(grad, offset, inside, C, NHWC)
    if GATED:
        p0 += g0 * value
        p1 += g1 * value
        if SELF_GATE:
            a0, a1 = _load_pair(low, offset, inside, C, NHWC)
            l0 += g0 * a0
            l1 += g1 * a1
            b0, b1 = g0 * widen(1 + gl0, NHWC), g1 * widen(1 + gl1, NHWC)
            _store_pair(d_low, b0, b1, offset, inside, C, NHWC)
        g0 *= widen(gate0, NHWC)
        g1 *= widen(gate1, NHWC)
    return g0 + g1, p0, p1, l0, l1


@triton.jit(do_not_specialize=["h"])
def _backward_twice_kernel(
    grad, low, high, gate_low, gate_high, d_low, d_high, d_gate_low, d_gate_high,
    C, h, w, channels_per_program, SELF_GATE: tl.constexpr,
    CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, NHWC: tl.constexpr,
):  # fmt: skip
    """All gradients at ratio 2: source cells of one row, four output positions, all channels."""
    GATED: tl.constexpr = gate_low is not None
    T: tl.constexpr = tl.float64 if grad.dtype.element_ty == tl.float64 else tl.float32
    H, W = h * 2, w * 2
    n, part, ys, first = place(tl.cdiv(C, channels_per_program), h, w, COLUMNS, NHWC)
    x, y0, y1 = first + tl.arange(0, COLUMNS), ys * 2, ys * 2 + 1
    value = tl.zeros([COLUMNS, CHANNELS] if NHWC else [CHANNELS, COLUMNS], T)
    p00, p01, p10, p11, l00, l01, l10, l11 = (value,) * 8
    gl00, gl01, gl10, gl11, g00, g01, g10, g11 = (1.0,) * 8
    if GATED:
        gl00 = _load_pixels(gate_low, n, y0, x * 2, H, W)
        gl01 = _load_pixels(gate_low, n, y0, x * 2 + 1, H, W)
        gl10 = _load_pixels(gate_low, n, y1, x * 2, H, W)
        gl11 = _load_pixels(gate_low, n, y1, x * 2 + 1, H, W)
        gh = _load_pixels(gate_high, n, ys, x, h, w)
        g00, g01, g10, g11 = gl00 * gh, gl01 * gh, gl10 * gh, gl11 * gh
    start = part * channels_per_program
    end = tl.minimum(start + channels_per_program, C)
    while start < end:
        c = start + tl.arange(0, CHANNELS)
        i, k = tile_of(x, c, NHWC)
        inside = (i < w) & (k < C)
        offset = offset_of(n, k, ys, i, C, h, w, NHWC)
        if GATED:
            value = load_wide(high, offset, inside)
        s0, p00, p01, l00, l01 = _backward_row(
            grad, low, d_low, value, gl00, gl01, g00, g01, p00, p01, l00, l01,
            n, c, y0, first, C, H, W, GATED, SELF_GATE, COLUMNS, NHWC,
        )  # fmt: skip
        s1, p10, p11, l10, l11 = _backward_row(
            grad, low, d_low, value, gl10, gl11, g10, g11, p10, p11, l10, l11,
            n, c, y1, first, C, H, W, GATED, SELF_GATE, COLUMNS, NHWC,
        )  # fmt: skip
        tl.store(d_high + offset, s0 + s1, inside)
        start += CHANNELS
    if GATED:
        A: tl.constexpr = 1 if NHWC else 0
        p00, p01, p10, p11 = tl.sum(p00, A), tl.sum(p01, A), tl.sum(p10, A), tl.sum(p11, A)
        d_gh = gl00 * p00 + gl01 * p01 + gl10 * p10 + gl11 * p11
        _store_pixels(d_gate_high, d_gh, n, ys, x, h, w)
        p00, p01, p10, p11 = gh * p00, gh * p01, gh * p10, gh * p11
        if SELF_GATE:
            p00, p01 = p00 + tl.sum(l00, A), p01 + tl.sum(l01, A)
            p10, p11 = p10 + tl.sum(l10, A), p11 + tl.sum(l11, A)
        _store_pixels(d_gate_low, p00, n, y0, x * 2, H, W)
        _store_pixels(d_gate_low, p01, n, y0, x * 2 + 1, H, W)
        _store_pixels(d_gate_low, p10, n, y1, x * 2, H, W)
        _store_pixels(d_gate_low, p11, n, y1, x * 2 + 1, H, W)


@triton.jit(do_not_specialize=["H", "h"])
def _backward_low_kernel(
    grad, low, high, gate_low, gate_high, d_low, d_gate_low, product, C, H, W, h, w,
    SELF_GATE: tl.constexpr, CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, NHWC: tl.constexpr,
):  # fmt: skip
    """Any ratio, per output cell: d_low, d_gate_low and product = sum_c grad * up(high)."""
    n, _, y, x = place(1, H, W, COLUMNS, NHWC)
    x += tl.arange(0, COLUMNS)
    ys, xs = y * h // H, x * w // W
    gl = _load_pixels(gate_low, n, y, x, H, W)
    gh = _load_pixels(gate_high, n, ys, xs, h, w)
    sum_high = tl.zeros([COLUMNS, CHANNELS] if NHWC else [CHANNELS, COLUMNS], gl.dtype)
    sum_low = sum_high
    start = 0
    while start < C:
        i, k = tile_of(x, start + tl.arange(0, CHANNELS), NHWC)
        inside = (i < W) & (k < C)
        offset = offset_of(n, k, y, i, C, H, W, NHWC)
        g = load_wide(grad, offset, inside)
        at = offset_of(n, k, ys, widen(xs, NHWC), C, h, w, NHWC)
        sum_high += g * load_wide(high, at, inside)
        if SELF_GATE:
            sum_low += g * load_wide(low, offset, inside)
            tl.store(d_low + offset, g * widen(1 + gl, NHWC), inside)
        start += CHANNELS
    A: tl.constexpr = 1 if NHWC else 0
    p = tl.sum(sum_high, A)
    _store_pixels(product, p, n, y, x, H, W)
    _store_pixels(d_gate_low, tl.sum(sum_low, A) + gh * p, n, y, x, H, W)


@triton.jit(do_not_specialize=["H", "h"])
def _gather_kernel(
    grad, gate_low, gate_high, out, C, H, W, h, w,
    CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, NHWC: tl.constexpr,
):  # fmt: skip
    """Any ratio, per source cell: out = S(gate_low * up(gate_high) * grad); a gate of None is 1."""
    n, block, ys, xs = place(tl.cdiv(C, CHANNELS), h, w, COLUMNS, NHWC)
    xs += tl.arange(0, COLUMNS)
    # floor(x * w / W) == xs  <=>  ceil(xs * W / w) <= x < ceil((xs + 1) * W / w)
    first, last = tl.cdiv(xs * W, w).to(tl.int32), tl.cdiv((xs + 1) * W, w).to(tl.int32)
    i, k = tile_of(xs, block * CHANNELS + tl.arange(0, CHANNELS), NHWC)
    T: tl.constexpr = tl.float64 if grad.dtype.element_ty == tl.float64 else tl.float32
    total = tl.zeros([COLUMNS, CHANNELS] if NHWC else [CHANNELS, COLUMNS], T)
    if gate_high is not None:
        gh = _load_pixels(gate_high, n, ys, xs, h, w)
    y = tl.cdiv(ys * H, h).to(tl.int32)
    while y.to(tl.int64) * h < (ys + 1) * H:
        step = 0
        while step < tl.cdiv(W, w):
            x = first + step
            inside = widen((x < last) & (xs < w), NHWC) & (k < C)
            g = load_wide(grad, offset_of(n, k, y, widen(x, NHWC), C, H, W, NHWC), inside)
            if gate_low is not None:
                gate = _load_pixels(gate_low, n, y, x, H, W)
                if gate_high is not None:
                    gate *= gh
                g *= widen(gate, NHWC)
            total += tl.where(inside, g, 0.0)  # outside, 0 * an infinite gate is NaN
            step += 1
        y += 1
    tl.store(out + offset_of(n, k, ys, i, C, h, w, NHWC), total, (i < w) & (k < C))


def plan_forward(
    low: Tensor, high: Tensor, gate_low: Tensor | None, gate_high: Tensor | None, self_gate: bool,
    out: Tensor,
) -> list[Launch]:  # fmt: skip
    if out.numel() == 0:
        return []
    nhwc = is_nhwc(out)
    tile = tile_size(nhwc, 2048 if low.element_size() == 2 else 1024)  # two 16-byte loads a thread
    size, (h, w) = low.shape, high.shape[-2:]
    low, high = dense(low, nhwc), dense(high, nhwc)
    gate_low, gate_high = dense(gate_low, False), dense(gate_high, False)
    launch = plan(
        _forward_kernel, size, tile, nhwc, low, high, gate_low, gate_high, out, *size[1:], h, w,
        SELF_GATE=self_gate, TWICE=low.shape[-2:] == (2 * h, 2 * w),
    )  # fmt: skip
    return [launch]


def plan_backward(
    grad: Tensor, low: Tensor | None, high: Tensor | None, gate_low: Tensor | None,
    gate_high: Tensor | None, h: int, w: int, self_gate: bool,
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], list[Launch]]:  # fmt: skip
    """The results (d_low, d_high, d_gate_low, d_gate_high), and the launches that fill them."""
    gated = gate_low is not None
    nhwc = is_nhwc(grad if grad.is_contiguous() or is_nhwc(grad) or high is None else high)
    N, C, H, W = grad.shape
    d_low = empty(grad, N, C, H, W, nhwc=nhwc) if self_gate else empty(grad, 0)
    d_high = empty(grad, N, C, h, w, nhwc=nhwc)
    d_gate_low = empty(grad, N, 1, H, W) if gated else empty(grad, 0)
    d_gate_high = empty(grad, N, 1, h, w) if gated else empty(grad, 0)
    results = d_low, d_high, d_gate_low, d_gate_high
    if grad.numel() == 0:
        for result in results:
            result.zero_()
        return results, []
    grad, low, high = dense(grad, nhwc), dense(low, nhwc), dense(high, nhwc)
    gate_low, gate_high = dense(gate_low, False), dense(gate_high, False)

    if grad.shape[-2:] == (2 * h, 2 * w):
        # Small tiles, because registers hold every element at four output positions.
        size = grad.element_size()
        tile = (64 if size < 8 else 32, 8) if nhwc else (32 if size < 4 else 16, 16)
        part = C if gated else tile[0]  # without gates there is no sum over channels
        launch = plan(
            _backward_twice_kernel, (N, 1 if gated else C, h, w), tile, nhwc,
            grad, low, high, gate_low, gate_high, *results, C, h, w, part, SELF_GATE=self_gate,
        )  # fmt: skip
        return results, [launch]

    sizes, tile = (H, W, h, w), tile_size(nhwc, 512)
    gates = gate_low, gate_high
    launches = [plan(_gather_kernel, (N, C, h, w), tile, nhwc, grad, *gates, d_high, C, *sizes)]
    if gated:
        product = torch.empty_like(d_gate_low, dtype=torch.promote_types(grad.dtype, torch.float32))
        tensors = grad, low, high, *gates, d_low, d_gate_low, product
        over, pixels = (N, 1, H, W), (product, gate_low, None, d_gate_high)
        launches += [
            plan(_backward_low_kernel, over, tile, nhwc, *tensors, C, *sizes, SELF_GATE=self_gate),
            plan(_gather_kernel, (N, 1, h, w), (1, 64), False, *pixels, 1, *sizes),
        ]
    return results, launches


def gated_upsample_add(
    low: Tensor, high: Tensor, gate_low: Tensor | None = None, gate_high: Tensor | None = None, *,
    self_gate: bool = False,
) -> Tensor:  # fmt: skip
    out = empty(low, *low.shape, nhwc=is_nhwc(low))
    run(low, plan_forward(low, high, gate_low, gate_high, self_gate, out))
    return out


def gated_upsample_add_(
    low: Tensor, high: Tensor, gate_low: Tensor | None = None, gate_high: Tensor | None = None, *,
    self_gate: bool = False,
) -> None:  # fmt: skip
    run(low, plan_forward(low, high, gate_low, gate_high, self_gate, low))


def _gated_upsample_add_backward(
    grad: Tensor, low: Tensor | None, high: Tensor | None, gate_low: Tensor | None,
    gate_high: Tensor | None, high_height: int, high_width: int, self_gate: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    results, launches = plan_backward(
        grad, low, high, gate_low, gate_high, high_height, high_width, self_gate
    )
    run(grad, launches)
    return results
