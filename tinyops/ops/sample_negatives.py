"""Weighted negative sampling (SSPNet, eq. 4): hard negatives, drawn without replacement."""

from collections.abc import Callable

import torch
from torch import Tensor

from tinyops.ops._boxes import (
    check_boxes,
    check_float,
    check_fraction,
    check_per_box,
    check_scores,
    code,
    implement_by_copy,
    register_box_operator,
    unbacked_size,
)
from tinyops.ops._glue import check as require
from tinyops.ops._glue import dtype_text, shape_text

BALANCE_ON = ("confidence", "overlap")
MODES = ("iou", "iof_target", "iof_box")  # the first three of max_overlap; "iou" is not for here


def sample_negatives(
    scores: Tensor,
    overlaps: Tensor,
    candidates: Tensor,
    num_samples: int,
    *,
    balance: float = 0.6,
    balance_on: str = "confidence",
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    check: bool = True,
) -> Tensor:
    """Draw `num_samples` of the candidates without replacement, the harder the likelier.

    Each next item is drawn with probability proportional to exp(logit) among those left,

        logit = (balance * scores + (1 - balance) * overlaps) / temperature

    the weighted negative sampling of SSPNet (eq. 4), whose released code and prose multiply the
    overlap by `balance`: that is `balance_on="overlap"`. The distribution is that of
    `torch.multinomial(exp(logit), num_samples)` without its limit of 2^24 items: items are sorted
    by independent exponential times of rate exp(logit) (Efraimidis and Spirakis, 2006).

    The random numbers are a function of a seed, drawn from `generator`, and the item's index
    (Philox4x32-10), so that the same seed draws the same sample on every device and for any number
    of threads.

    Args:
        scores: [K] confidence of each item; float32, float64, float16 or bfloat16.
        overlaps: [K] overlap of each item with the objects, such as `max_overlap(...)[0]`. Scores
            and overlaps are computed in float32, in float64 if one of them is float64.
        candidates: [K] bool, the items that may be drawn.
        num_samples: how many to draw; where there are fewer candidates, all of them.
        balance: weight in 0..1 of the scores (or the overlaps, see `balance_on`), the other has the
            rest.
        balance_on: "confidence" or "overlap", what `balance` multiplies.
        temperature: small values prefer hard items more, large values draw more evenly; from 1e-30
            to 1e30.
        generator: where the seed comes from, by default torch's generator of the CPU. One of the
            GPU leaves the seed there; a CUDA graph then draws a new sample in every replay.
        check: look at the values (on a GPU that waits for them). Without it an item whose logit is
            NaN is drawn last, as one of logit -inf.

    Returns:
        [min(num_samples, number of candidates)] int64 indices in the order of their drawing.

    Raises:
        RuntimeError: for a wrong shape, dtype or device, a value out of range, or a score or
            overlap of a candidate that is NaN or infinite; the message names the first one.
    """
    return torch.ops.tinyops.sample_negatives(
        scores,
        overlaps,
        candidates,
        num_samples,
        draw_seed(generator),
        balance=balance,
        balance_on=code("sample_negatives", "balance_on", balance_on, BALANCE_ON),
        temperature=temperature,
        check=check,
    )


def sample_negatives_padded(
    scores: Tensor,
    overlaps: Tensor,
    candidates: Tensor,
    num_samples: int,
    *,
    balance: float = 0.6,
    balance_on: str = "confidence",
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    check: bool = True,
) -> tuple[Tensor, Tensor]:
    """`sample_negatives` in a result of fixed size, for export, compilation and CUDA graphs.

    With `check=False` a GPU is never waited for.

    Args:
        scores: [K], this and the others as in `sample_negatives`.
        overlaps: [K].
        candidates: [K] bool.
        num_samples: how many to draw, the size of the result.
        balance: weight of the scores.
        balance_on: "confidence" or "overlap".
        temperature: from 1e-30 to 1e30.
        generator: of the seed.
        check: look at the values.

    Returns:
        indices: [num_samples] int64, the sample in the order of its drawing, then -1.
        count: int64 without dimensions, the size of the sample.

    Raises:
        RuntimeError: as `sample_negatives`.
    """
    return torch.ops.tinyops.sample_negatives_padded(
        scores,
        overlaps,
        candidates,
        num_samples,
        draw_seed(generator),
        balance=balance,
        balance_on=code("sample_negatives_padded", "balance_on", balance_on, BALANCE_ON),
        temperature=temperature,
        check=check,
    )


def sample_negatives_from_boxes(
    boxes: Tensor,
    targets: Tensor,
    scores: Tensor | None,
    candidates: Tensor,
    num_samples: int,
    *,
    mode: str = "iof_target",
    balance: float = 0.6,
    balance_on: str = "confidence",
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    check: bool = True,
) -> Tensor:
    """`sample_negatives` of the largest overlap of each box with a target, without a K x M matrix.

    The same as `sample_negatives(scores, max_overlap(boxes, targets, mode=mode)[0], ...)`.

    Args:
        boxes: [K, 4] x1 y1 x2 y2 in pixels; float32, float64, float16 or bfloat16.
        targets: [M, 4] objects, of the dtype of `boxes`. Without any, all overlaps are 0.
        scores: [K] confidence of each box; None where there is none yet (anchors): 0.
        candidates: [K] bool, the boxes that may be drawn.
        num_samples: how many to draw, this and the last five as in `sample_negatives`.
        mode: "iof_target", intersection over the area of the target (what SSPNet's code computes),
            or "iof_box", over that of the box (small parts of an object count as hard).
        balance: weight of the scores.
        balance_on: "confidence" or "overlap".
        temperature: from 1e-30 to 1e30.
        generator: of the seed.
        check: look at the values, also those of the boxes.

    Returns:
        [min(num_samples, number of candidates)] int64 indices in the order of their drawing.

    Raises:
        RuntimeError: as `sample_negatives`, and for boxes that are not finite or have x2 < x1 or
            y2 < y1.
    """
    op = "sample_negatives_from_boxes"
    words = MODES[1:]
    return torch.ops.tinyops.sample_negatives_from_boxes(
        boxes,
        targets,
        scores,
        candidates,
        num_samples,
        draw_seed(generator),
        mode=1 + code(op, "mode", mode, words),
        balance=balance,
        balance_on=code(op, "balance_on", balance_on, BALANCE_ON),
        temperature=temperature,
        check=check,
    )


def draw_seed(generator: torch.Generator | None = None) -> Tensor:
    """[1] int64 of 62 random bits, on the device of the generator."""
    device = "cpu" if generator is None else generator.device
    return torch.randint(2**62, (1,), generator=generator, device=device)


def sample_negatives_reference(
    scores: Tensor,
    overlaps: Tensor,
    candidates: Tensor,
    num_samples: int,
    *,
    balance: float = 0.6,
    balance_on: str = "confidence",
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The same distribution in plain torch; other draws, and at most 2^24 items."""
    first, second = (scores, overlaps) if balance_on == "confidence" else (overlaps, scores)
    logit = (balance * first.double() + (1 - balance) * second.double()) / temperature
    items = candidates.nonzero().flatten()
    if num_samples >= len(items):
        return items
    weights = (logit[items] - logit[items].max()).exp()
    return items[torch.multinomial(weights, num_samples, generator=generator)]


def _check_options(
    op: str, num_samples: int, balance: float, balance_on: int, temperature: float
) -> None:
    require(num_samples >= 0, f"{op}: num_samples must be at least 0, got {num_samples}")
    check_fraction(op, "balance", balance)
    require(balance_on in (0, 1), f"{op}: balance_on must be 0 or 1, got {balance_on}")
    require(
        1e-30 <= temperature <= 1e30,
        f"{op}: temperature must be positive, from 1e-30 to 1e30, got {temperature:g}",
    )


def _check_candidates(
    op: str, candidates: Tensor, seed: Tensor, leader_name: str, leader: Tensor
) -> None:
    check_per_box(op, "candidates", candidates, leader_name, leader)
    require(
        candidates.dtype == torch.bool,
        f"{op}: candidates must be bool, got {dtype_text(candidates.dtype)}",
    )
    require(
        seed.dtype == torch.int64 and seed.numel() == 1,
        f"{op}: seed must be int64 with 1 element, got {dtype_text(seed.dtype)} "
        f"{shape_text(seed.shape)}",
    )
    require(
        seed.device.type == "cpu" or seed.device == leader.device,
        f"{op}: seed must be on cpu or on {leader.device} like {leader_name}, got {seed.device}",
    )


def _check_arguments(
    op: str,
    scores: Tensor,
    overlaps: Tensor,
    candidates: Tensor,
    num_samples: int,
    seed: Tensor,
    balance: float,
    balance_on: int,
    temperature: float,
) -> None:
    """The checks of csrc/ops/sample_negatives_check.h."""
    require(scores.dim() == 1, f"{op}: scores must be [K], got {shape_text(scores.shape)}")
    check_float(op, "scores", scores)
    check_scores(op, "overlaps", overlaps, "scores", scores)
    _check_candidates(op, candidates, seed, "scores", scores)
    _check_options(op, num_samples, balance, balance_on, temperature)


def _fake(
    scores: Tensor,
    overlaps: Tensor,
    candidates: Tensor,
    num_samples: int,
    seed: Tensor,
    *,
    balance: float = 0.6,
    balance_on: int = 0,
    temperature: float = 1.0,
    check: bool = True,
) -> Tensor:
    op = "sample_negatives"
    options = num_samples, seed, balance, balance_on, temperature
    _check_arguments(op, scores, overlaps, candidates, *options)
    return scores.new_empty(unbacked_size(num_samples), dtype=torch.int64)


def _padded_fake(
    scores: Tensor,
    overlaps: Tensor,
    candidates: Tensor,
    num_samples: int,
    seed: Tensor,
    *,
    balance: float = 0.6,
    balance_on: int = 0,
    temperature: float = 1.0,
    check: bool = True,
) -> tuple[Tensor, Tensor]:
    op = "sample_negatives_padded"
    options = num_samples, seed, balance, balance_on, temperature
    _check_arguments(op, scores, overlaps, candidates, *options)
    indices = scores.new_empty(num_samples, dtype=torch.int64)
    return indices, scores.new_empty((), dtype=torch.int64)


def _from_boxes_fake(
    boxes: Tensor,
    targets: Tensor,
    scores: Tensor | None,
    candidates: Tensor,
    num_samples: int,
    seed: Tensor,
    *,
    mode: int = 1,
    balance: float = 0.6,
    balance_on: int = 0,
    temperature: float = 1.0,
    check: bool = True,
) -> Tensor:
    op = "sample_negatives_from_boxes"
    check_boxes(op, "boxes", boxes)
    check_boxes(op, "targets", targets)
    require(
        targets.device == boxes.device,
        f"{op}: targets must be on {boxes.device} like boxes, got {targets.device}",
    )
    require(
        targets.dtype == boxes.dtype,
        f"{op}: targets must be {dtype_text(boxes.dtype)} like boxes, "
        f"got {dtype_text(targets.dtype)}",
    )
    if scores is not None:
        check_scores(op, "scores", scores, "boxes", boxes)
    _check_candidates(op, candidates, seed, "boxes", boxes)
    require(mode in (1, 2), f"{op}: mode must be 1 or 2, got {mode}")
    _check_options(op, num_samples, balance, balance_on, temperature)
    return boxes.new_empty(unbacked_size(num_samples), dtype=torch.int64)


_FAKES: dict[str, Callable[..., Tensor | tuple[Tensor, Tensor]]] = {
    "sample_negatives": _fake,
    "sample_negatives_padded": _padded_fake,
    "sample_negatives_from_boxes": _from_boxes_fake,
}


def register(namespace: str) -> None:
    """Register the fake kernels of "namespace::sample_negatives*"; none has a gradient."""
    for name, fake in _FAKES.items():
        register_box_operator(f"{namespace}::{name}", fake)


def implement_without_cuda(namespace: str, key: str) -> None:
    """Implement the operators of `namespace` by the CPU kernels on copies."""
    for name in _FAKES:
        implement_by_copy(f"{namespace}::{name}", key)


register("tinyops")
