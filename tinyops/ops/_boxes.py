"""What the box operators share: checks, registration, and the way out without CUDA kernels."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tinyops.ops._glue import FLOAT_DTYPES, check, dtype_text, operator, shape_text


def check_boxes(op: str, name: str, boxes: Tensor) -> None:
    """The checks of csrc/ops/boxes_check.h, for fake tensors."""
    check(
        boxes.dim() == 2 and boxes.shape[1] == 4,
        f"{op}: {name} must be [K, 4], got {shape_text(boxes.shape)}",
    )
    check_float(op, name, boxes)


def check_float(op: str, name: str, x: Tensor) -> None:
    check(
        x.dtype in FLOAT_DTYPES,
        f"{op}: {name} must be float32, float64, float16 or bfloat16, got {dtype_text(x.dtype)}",
    )


def check_per_box(op: str, name: str, x: Tensor, leader: str, boxes: Tensor) -> None:
    """One value per box, on the device of the boxes."""
    check(
        x.dim() == 1 and x.shape[0] == boxes.shape[0],
        f"{op}: {name} must be [{boxes.shape[0]}] like {leader}, got {shape_text(x.shape)}",
    )
    check(
        x.device == boxes.device,
        f"{op}: {name} must be on {boxes.device} like {leader}, got {x.device}",
    )


def check_scores(op: str, name: str, scores: Tensor, leader: str, boxes: Tensor) -> None:
    check_per_box(op, name, scores, leader, boxes)
    check_float(op, name, scores)


def check_ids(op: str, name: str, ids: Tensor | None, leader: str, boxes: Tensor) -> None:
    if ids is None:
        return
    check_per_box(op, name, ids, leader, boxes)
    check(ids.dtype == torch.int64, f"{op}: {name} must be int64, got {dtype_text(ids.dtype)}")


def check_fraction(op: str, name: str, x: float) -> None:
    check(0 <= x <= 1, f"{op}: {name} must be in [0, 1], got {x:g}")


def code(op: str, name: str, value: str, known: Sequence[str]) -> int:
    """The integer that a schema takes for a word; the stable ABI leaks strings."""
    if value not in known:
        words = ", ".join(map(repr, known))
        raise RuntimeError(f"tinyops: {op}: {name} must be one of {words}, got {value!r}")
    return known.index(value)


def unbacked_size(most: int | torch.SymInt) -> torch.SymInt:
    """A size that a fake kernel cannot know, between 0 and `most`."""
    size: torch.SymInt = torch.library.get_ctx().new_dynamic_size()
    torch._check(size <= most)
    return size


def register_box_operator(name: str, fake: Callable[..., Any]) -> None:
    """Register `fake` for operator "namespace::name", and that it has no gradient."""
    torch.library.register_fake(name, fake)
    # Without a kernel there, results of inputs that require a gradient would claim to have one.
    torch.library.impl(name, "Autograd")(torch.library.fallthrough_kernel)


def implement_by_copy(name: str, key: str) -> None:
    """Implement operator "namespace::name" for `key` by the CPU kernel on copies of the tensors.

    The way of an irregular operator on a GPU where no CUDA kernels were built: right, but slow.
    """
    stem = name.partition("::")[2]
    op = stem.removesuffix("_padded")  # in messages
    on_cpu = operator(f"tinyops::{stem}")
    names = [argument.name for argument in on_cpu._schema.arguments]

    def run(*args: Any, **kwargs: Any) -> Any:
        named = {**dict(zip(names, args, strict=False)), **kwargs}
        tensors = {k: x for k, x in named.items() if isinstance(x, Tensor) and k != "seed"}
        leader, first = next(iter(tensors.items()))
        for k, x in tensors.items():
            check(
                x.device == first.device,
                f"{op}: {k} must be on {first.device} like {leader}, got {x.device}",
            )

        def move(x: Any, to: torch.device | str) -> Any:
            if isinstance(x, list | tuple):
                return type(x)(move(y, to) for y in x)
            return x.to(to) if isinstance(x, Tensor) else x

        return move(on_cpu(**{k: move(x, "cpu") for k, x in named.items()}), first.device)

    torch.library.impl(name, key)(run)
