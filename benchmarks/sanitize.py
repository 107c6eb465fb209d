"""Calls every operator on small awkward inputs: the program to run under compute-sanitizer.

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer python benchmarks/sanitize.py

Without its cache, torch gives every tensor an allocation of its own, whose ends are then watched.
Inputs are made and results compared on the CPU, so that hardly a kernel but ours runs on the GPU.
Maps are compared with the reference in float64, results of box operators with those of the CPU
kernels, which must be the same bits.
"""

import argparse
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tinyops.ops import (
    attention_targets,
    avg_max_pool,
    avg_max_pool_reference,
    balanced_l1_sums,
    balanced_l1_sums_reference,
    difference_gate,
    difference_gate_reference,
    difference_map,
    difference_map_reference,
    gated_upsample_add,
    gated_upsample_add_,
    gated_upsample_add_reference,
    max_overlap,
    nms,
    pixel_shuffle_add,
    pixel_shuffle_add_reference,
    pixel_shuffle_concat,
    pixel_shuffle_concat_reference,
    sample_negatives,
    sample_negatives_from_boxes,
    soft_nms,
    stitch_tiles,
    topk_per_target,
)

# Largest error over largest value of the float64 reference.
TOLERANCES = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 1e-2,
}
LAYOUTS = torch.contiguous_format, torch.channels_last


def compare(results: list[Tensor], expected: list[Tensor], what: str) -> None:
    for result, right in zip(results, expected, strict=True):
        error = (result.detach().cpu().double() - right.detach()).abs().max()
        # Not `>`: a NaN must fail.
        if not error <= TOLERANCES[result.dtype] * right.abs().max().clamp(min=1):
            raise SystemExit(f"wrong by {error:.2g}: {what}")


def place(x: Tensor, device: torch.device, offset: int = 0) -> Tensor:
    """A copy of x on `device`, with the same strides, `offset` elements into its memory."""
    memory = torch.empty(x.numel() + offset, dtype=x.dtype)
    memory.as_strided(x.shape, x.stride(), offset).copy_(x)
    return memory.to(device).as_strided(x.shape, x.stride(), offset)


# Channels, size of low, size of high, elements by which the memory is misaligned.
GATED_UPSAMPLE_ADD = (
    # 16-byte vectors in both layouts
    (8, (8, 16), (4, 8), 0),
    (16, (6, 24), (2, 8), 0),  # ratio 3
    (520, (4, 8), (2, 4), 0),  # more channels than a warp keeps in registers
    # one element at a time: odd sizes, odd ratios, shrinking, misaligned memory
    (5, (6, 10), (3, 5), 0),  # ratio 2
    (3, (7, 9), (4, 5), 0),
    (3, (5, 3), (5, 3), 0),
    (3, (2, 3), (5, 7), 0),
    (1, (1, 1), (1, 1), 0),
    (131, (4, 66), (2, 33), 0),
    (8, (8, 16), (4, 8), 1),
    (16, (6, 24), (2, 8), 1),
)


def check_gated_upsample_add(device: torch.device) -> Iterator[str]:
    cases = itertools.product(GATED_UPSAMPLE_ADD, TOLERANCES, LAYOUTS, (None, False, True))
    for (c, large, small, offset), dtype, layout, self_gate in cases:
        what = f"{c} {large} {small} {offset} {dtype} {layout} self_gate={self_gate}"

        def random(
            *size: int, dtype: torch.dtype = dtype, layout: torch.memory_format = layout
        ) -> Tensor:
            return torch.randn(2, *size).to(dtype).contiguous(memory_format=layout)

        tensors = [random(c, *large), random(c, *small)]
        if self_gate is not None:  # None: no gates
            tensors += [random(1, *large), random(1, *small)]
        grad = random(c, *large)
        options = {"self_gate": bool(self_gate)}

        exact = [x.double().requires_grad_() for x in tensors]
        expected = gated_upsample_add_reference(*exact, **options)
        gradients = torch.autograd.grad(expected, exact, grad.double())

        inputs = [place(x, device, offset).requires_grad_() for x in tensors]
        out = gated_upsample_add(*inputs, **options)
        results = torch.autograd.grad(out, inputs, place(grad, device, offset))
        compare([out, *results], [expected, *gradients], what)

        low, *others = (x.detach() for x in inputs)
        gated_upsample_add_(low, *others, **options)
        compare([low], [expected], f"in place {what}")
        yield what


# Channels, cells, pixels of the map per cell, elements by which the memory is misaligned.
DIFFERENCES = (
    (3, (4, 16), (4, 4), 0),  # 16-byte vectors in NCHW
    (8, (3, 8), (2, 3), 0),
    (40, (9, 16), (1, 1), 0),  # more channels and cells than a block takes at once
    (136, (3, 50), (2, 2), 0),
    (5, (3, 5), (4, 4), 0),  # one element at a time
    (3, (2, 16), (1, 2), 1),
    (1, (1, 1), (1, 1), 0),
)


def check_differences(device: torch.device) -> Iterator[str]:
    cases = itertools.product(DIFFERENCES, TOLERANCES, LAYOUTS)
    for (c, cells, blocks, offset), dtype, layout in cases:
        what = f"{c} {cells} {blocks} {offset} {dtype} {layout}"

        def random(
            *size: int, dtype: torch.dtype = dtype, layout: torch.memory_format = layout
        ) -> Tensor:
            return torch.rand(2, *size).to(dtype).contiguous(memory_format=layout)

        def check(
            operator: Callable[..., Tensor],
            reference: Callable[..., Tensor],
            tensors: list[Tensor],
            grad: Tensor,
            what: str,
            offset: int = offset,
        ) -> str:
            exact = [x.double().requires_grad_() for x in tensors]
            expected = reference(*exact)
            gradients = torch.autograd.grad(expected, exact, grad.double())
            inputs = [place(x, device, offset).requires_grad_() for x in tensors]
            out = operator(*inputs)
            results = torch.autograd.grad(out, inputs, place(grad, device, offset))
            compare([out, *results], [expected, *gradients], what)
            return what

        valid = torch.tensor([[cells[0], cells[1] - 1], [cells[0] - 1, cells[1]]])
        images = [random(c, *cells), random(c, *cells)]
        yield check(
            lambda *x, v=valid: difference_map(*x, v.to(device)),
            lambda *x, v=valid: difference_map_reference(*x, v),
            images,
            random(1, *cells),
            f"difference_map {what}",
        )
        difference = random(1, cells[0] * blocks[0], cells[1] * blocks[1])
        threshold = torch.tensor(0.25, dtype=dtype)
        for resize in ("nearest", "area", "max"):
            yield check(
                functools.partial(difference_gate, resize=resize),
                functools.partial(difference_gate_reference, resize=resize),
                [random(c, *cells), random(c, 1, 1), difference, threshold],
                random(c, *cells),
                f"difference_gate {what} {resize}",
            )


# Channels, size, elements by which the memory is misaligned.
POOLED = ((8, (8, 16), 0), (5, (5, 3), 0), (70, (7, 9), 0), (2, (96, 112), 0), (8, (8, 16), 1))


def check_pools(device: torch.device) -> Iterator[str]:
    cases = itertools.product(POOLED, TOLERANCES, LAYOUTS, (False, True))
    for (c, size, offset), dtype, layout, padded in cases:
        what = f"{c} {size} {offset} {dtype} {layout} padded={padded}"
        valid = torch.tensor([[size[0] - 1, size[1]], [size[0], size[1] - 2]]) if padded else None
        extents = None if valid is None else valid.to(device)
        pair = [torch.randn(2, c, *size).to(dtype).contiguous(memory_format=layout) for _ in "pt"]
        ours = [place(x, device, offset).requires_grad_() for x in pair]
        exact = [x.double().requires_grad_() for x in pair]

        results, expected = avg_max_pool(ours[0], extents), avg_max_pool_reference(exact[0], valid)
        sums = [x.sum() for x in (*results, *expected)]
        found = torch.autograd.grad(sums[0] + sums[1], ours[0])
        right = torch.autograd.grad(sums[2] + sums[3], exact[0])
        compare([*results, *found], [*expected, *right], f"avg_max_pool {what}")

        boxes = torch.rand(9, 4) * 4 * min(size)
        boxes[:, 2:] += boxes[:, :2]
        ids = torch.arange(9) % 3
        results = balanced_l1_sums(*ours, boxes.to(device), ids.to(device), extents, scale=0.25)
        expected = balanced_l1_sums_reference(*exact, boxes, ids, valid, scale=0.25)
        found = torch.autograd.grad(results[0] + results[1], ours)
        right = torch.autograd.grad(expected[0] + expected[1], exact)
        compare([*results[:2], *found], [*expected[:2], *right], f"balanced_l1_sums {what}")
        compare([results[2].double()], [expected[2].double()], f"positive cells {what}")
        yield what


# Upscale, channels of the shuffled content and of the reference, size of content, elements by which
# the memory is misaligned.
PIXEL_SHUFFLE = (
    (2, 16, 8, (3, 16), 0),  # vectors in both layouts
    (3, 8, 16, (2, 8), 0),
    (4, 8, 8, (2, 8), 0),
    (2, 5, 3, (3, 5), 0),  # one element at a time
    (3, 1, 2, (1, 1), 0),
    (2, 16, 8, (3, 16), 1),
    (4, 8, 8, (2, 33), 1),
)


def check_pixel_shuffle(device: torch.device) -> Iterator[str]:
    forms = {
        "concat": (pixel_shuffle_concat, pixel_shuffle_concat_reference),
        "add": (pixel_shuffle_add, pixel_shuffle_add_reference),
    }
    cases = itertools.product(
        PIXEL_SHUFFLE, TOLERANCES, LAYOUTS, forms, ((1.0, "crd"), (0.1, "crd"), (0.1, "dcr"))
    )
    for (r, c, other, (h, w), offset), dtype, layout, form, (slope, order) in cases:
        what = f"{form} {r} {c} {other} {h}x{w} {offset} {dtype} {layout} {slope} {order}"

        def random(
            *size: int, dtype: torch.dtype = dtype, layout: torch.memory_format = layout
        ) -> Tensor:
            return torch.randn(2, *size).to(dtype).contiguous(memory_format=layout)

        content, joined = random(c * r * r, h, w), other if form == "concat" else c
        tensors = [content, random(joined, r * h, r * w)]
        options: dict[str, Any] = {"upscale": r, "negative_slope": slope, "order": order}
        function, reference = forms[form]

        exact = [x.double().requires_grad_() for x in tensors]
        expected = reference(*exact, **options)
        grad = random(*expected.shape[1:])
        gradients = torch.autograd.grad(expected, exact, grad.double())

        inputs = [place(x, device, offset).requires_grad_() for x in tensors]
        out = function(*inputs, **options)
        results = torch.autograd.grad(out, inputs, place(grad, device, offset))
        compare([out, *results], [expected, *gradients], what)
        yield what


# Numbers of boxes: none, one, about a warp, more than a block.
COUNTS = (0, 1, 31, 33, 130, 1100)
SIDE = 120.0  # pixels of the image: crowded


def random_boxes(n: int, dtype: torch.dtype) -> Tensor:
    """Tiny ones, and a few that are as large as the image or have no area."""
    size = 2 + 18 * torch.rand(n, 2)
    size[::50] = SIDE
    size[7::50] = 0
    corner = (SIDE - size).clamp(min=0) * torch.rand(n, 2)
    return torch.cat([corner, corner + size], dim=1).to(dtype)


def random_scores(n: int) -> Tensor:
    return (40 * torch.rand(n)).round() / 40  # with ties


def same(
    function: Callable[..., Any], device: torch.device, what: str, *tensors: Tensor, **options: Any
) -> str:
    """Compare `function` on `device`, of tensors that begin one element into memory, with CPU."""

    def there(x: Any) -> Any:
        return place(x, device, 1) if isinstance(x, Tensor) else x

    expected = function(*tensors, **options)
    results = function(*map(there, tensors), **{k: there(x) for k, x in options.items()})
    for result, right in zip(_flat(results), _flat(expected), strict=True):
        if not torch.equal(result.cpu(), right):
            raise SystemExit(f"not the result of the CPU: {what}")
    return what


def _flat(x: Any) -> list[Tensor]:
    return [x] if isinstance(x, Tensor) else list(x)


def check_nms(device: torch.device) -> Iterator[str]:
    variants: tuple[dict[str, Any], ...] = (
        {},
        {"metric": "ios"},
        {"offset": 1},
        {"max_outputs": 50},
        {"check": False, "max_outputs": 2000},
    )
    for n, dtype, options in itertools.product(COUNTS, TOLERANCES, variants):
        what = f"nms {n} {dtype} {options}"
        inputs, labels = (random_boxes(n, dtype), random_scores(n)), torch.arange(n) % 3
        ids = {"labels": labels, "image_ids": labels // 2}
        yield same(nms, device, what, *inputs, iou_threshold=0.0, **options)
        yield same(nms, device, what, *inputs, iou_threshold=0.5, **options)
        yield same(nms, device, f"{what} ids", *inputs, iou_threshold=0.5, **ids, **options)


def check_soft_nms(device: torch.device) -> Iterator[str]:
    for n, dtype, method in itertools.product(COUNTS[:5], TOLERANCES, ("linear", "gaussian")):
        what = f"soft_nms {n} {dtype} {method}"
        inputs, labels = (random_boxes(n, dtype), random_scores(n)), torch.arange(n) % 2
        yield same(soft_nms, device, what, *inputs, method=method, labels=labels)


def check_stitch_tiles(device: torch.device) -> Iterator[str]:
    windows = torch.tensor([(x, y, x + 120, y + 120) for y in (0, 90) for x in (0, 90, 180)])
    sizes = torch.tensor([[210, 300]])
    variants: tuple[dict[str, Any], ...] = (
        {},
        {"class_agnostic": True, "edge": 0.0},
        {"merge": "union"},
        {"max_outputs": 40},
    )
    for n, dtype, options in itertools.product(COUNTS, TOLERANCES, variants):
        what = f"stitch_tiles {n} {dtype} {options}"
        labels, tile_ids = torch.arange(n) % 2, torch.randint(len(windows), (n,))
        several = random_boxes(n, dtype), random_scores(n), labels, tile_ids, windows, sizes
        yield same(stitch_tiles, device, what, *several, **options)


def check_overlaps(device: torch.device) -> Iterator[str]:
    modes = ("iou", "iof_target", "iof_box", "ios", "giou", "nwd", "rfd_kl", "rfd_w")
    kinds = [("iou", dtype) for dtype in TOLERANCES] + [(mode, torch.float32) for mode in modes[1:]]
    for n, m, (mode, dtype) in itertools.product(COUNTS, (0, 1, 40, 700), kinds):
        what = f"{n} {m} {dtype} {mode}"
        inputs = random_boxes(n, dtype), random_boxes(m, dtype)
        ids = {"image_ids": torch.arange(n) % 2, "target_image_ids": torch.arange(m) % 2}
        ids["target_mask"] = torch.arange(m) % 5 > 0
        k = min(3, n)
        yield same(max_overlap, device, f"max_overlap {what}", *inputs, mode=mode)
        yield same(max_overlap, device, f"max_overlap ids {what}", *inputs, mode=mode, **ids)
        yield same(topk_per_target, device, f"topk_per_target {what}", *inputs, k=k, mode=mode)


def check_sampling(device: torch.device) -> Iterator[str]:
    def seeded(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *x, **options: function(
            *x, **options, generator=torch.Generator().manual_seed(3)
        )

    given, from_boxes = seeded(sample_negatives), seeded(sample_negatives_from_boxes)
    for n, wanted, dtype in itertools.product(COUNTS, (0, 1, 40, 600), TOLERANCES):
        what = f"{n} {wanted} {dtype}"
        scores, candidates = random_scores(n), torch.rand(n) < 0.9
        inputs = scores, random_scores(n), candidates
        boxes = random_boxes(n, dtype), random_boxes(30, dtype), scores, candidates
        yield same(given, device, f"sample_negatives {what}", *inputs, num_samples=wanted)
        yield same(
            from_boxes, device, f"sample_negatives_from_boxes {what}", *boxes, num_samples=wanted
        )


def check_attention_targets(device: torch.device) -> Iterator[str]:
    for n, dtype, size in itertools.product(COUNTS, TOLERANCES, (1, 33, 120)):
        what = f"attention_targets {n} {dtype} {size}"
        inputs = random_boxes(n, dtype), torch.arange(n) % 2
        yield same(attention_targets, device, what, *inputs, sizes=(2, size, size))


CHECKS = {
    "gated_upsample_add": check_gated_upsample_add,
    "pixel_shuffle": check_pixel_shuffle,
    "pools": check_pools,
    "differences": check_differences,
    "nms": check_nms,
    "soft_nms": check_soft_nms,
    "stitch_tiles": check_stitch_tiles,
    "overlaps": check_overlaps,
    "sampling": check_sampling,
    "attention_targets": check_attention_targets,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checks", nargs="*", metavar="check", help=f"of {', '.join(CHECKS)}")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    options = parser.parse_args()
    device = torch.device(options.device)
    for name in options.checks or CHECKS:
        torch.manual_seed(0)
        count = sum(1 for _ in CHECKS[name](device))
        print(f"{count} cases of {name} are right on {device}", flush=True)


if __name__ == "__main__":
    main()
