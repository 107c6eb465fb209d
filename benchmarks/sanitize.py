"""Calls every operator on small awkward inputs: the program to run under compute-sanitizer.

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer python benchmarks/sanitize.py

Without its cache, torch gives every tensor an allocation of its own, whose ends are then watched.
Inputs are made and results compared on the CPU, so that hardly a kernel but ours runs on the GPU.
"""

import argparse
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from tinyops.ops import (
    gated_upsample_add,
    gated_upsample_add_,
    gated_upsample_add_reference,
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    device = torch.device(parser.parse_args().device)
    torch.manual_seed(0)
    count = sum(1 for _ in check_gated_upsample_add(device))
    print(f"{count} cases of gated_upsample_add are right on {device}")


if __name__ == "__main__":
    main()
