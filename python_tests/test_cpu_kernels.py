"""The CPU kernels in every instruction set: the same results, exactly rounded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tinyops.ops import gated_upsample_add

CAPABILITIES = ("default", "avx2", "avx512")

# Prints the outputs of one run. torch.rand and not randn, whose bits depend on the capability.
PROGRAM = """
import hashlib, torch, tinyops
from tinyops._eval import build_facts
torch.manual_seed(0)
for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
    for layout in (torch.contiguous_format, torch.channels_last):
        for size in ((4, 40), (4, 27)):
            low = (torch.rand(1, 37, *size) - 0.5).to(dtype).to(memory_format=layout)
            high = (torch.rand(1, 37, 2, size[1] // 2) - 0.5).to(dtype)
            gates = [torch.rand(1, 1, *x.shape[2:]).to(dtype) for x in (low, high)]
            tensors = [x.requires_grad_() for x in (low, high, *gates)]
            out = tinyops.ops.gated_upsample_add(*tensors, self_gate=True)
            print(out.double().flatten().tolist())
            if layout == torch.contiguous_format:  # in NHWC sums run across the lanes of a vector
                for d in torch.autograd.grad(out, tensors, low.detach()):
                    print(d.double().flatten().tolist())
            for r in (2, 3, 4):
                content = (torch.rand(1, 18 * r * r, *size) - 0.5).to(dtype)
                content = content.to(memory_format=layout).requires_grad_()
                other = torch.rand(1, 18, r * size[0], r * size[1]).to(dtype)
                out = tinyops.ops.pixel_shuffle_add(content, other, upscale=r, negative_slope=0.1)
                (d,) = torch.autograd.grad(out, content, other.to(memory_format=layout))
                for x in (out.detach(), d):
                    print(hashlib.sha256(x.contiguous().view(torch.uint8).numpy()).hexdigest())
print(build_facts()["cpu_instruction_set_in_use"])
"""


def run(capability, program=PROGRAM):
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    *lines, used = done.stdout.splitlines()
    return lines, used


def supports(capability):
    flags = Path("/proc/cpuinfo").read_text().split()
    return {"avx2": "avx2", "avx512": "avx512vl"}[capability] in flags


def test_every_instruction_set_gives_the_same_bits():
    (expected, used), *others = [run(capability) for capability in CAPABILITIES]
    assert used == "baseline"
    for (lines, used), capability in zip(others, CAPABILITIES[1:], strict=True):
        assert lines == expected
        if supports(capability):
            assert used == capability


# Every float16 and bfloat16 as low, and sums whose rounding is hard: exact ties and neighbours.
ROUNDING = """
import torch, tinyops
for dtype in (torch.float16, torch.bfloat16):
    every = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(dtype)
    every = every[every.isfinite()]
    for partner in (0.0, 1.0, 2.0**-9, 3 * 2.0**-12, 2.0**-24, -1.5, 448.0):
        for width in (16, 7):
            low = every[: len(every) // width * width].view(1, 1, -1, width)
            high = torch.full((1, 1, 1, 1), partner, dtype=dtype)
            out = tinyops.ops.gated_upsample_add(low, high)
            expected = (low.float() + high.float()).to(dtype)
            assert torch.equal(out, expected), (dtype, partner, width)
    low = torch.tensor([float("nan"), float("inf"), -float("inf")] * 16, dtype=dtype)
    zero = torch.zeros(1, 1, 1, 1, dtype=dtype)
    out = tinyops.ops.gated_upsample_add(low.view(1, 1, 1, -1), zero)
    assert torch.equal(out.flatten().isnan(), low.isnan())
    assert torch.equal(out.flatten().isposinf(), low.isposinf())
print("done")
"""


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_sixteen_bit_floats_are_widened_and_rounded_exactly(capability):
    assert run(capability, ROUNDING) == ([], "done")


def test_concurrent_calls_do_not_disturb_each_other():
    from concurrent.futures import ThreadPoolExecutor

    low, high = torch.randn(2, 16, 32, 40), torch.randn(2, 16, 16, 20)
    gates = torch.rand(2, 1, 32, 40), torch.rand(2, 1, 16, 20)
    expected = gated_upsample_add(low, high, *gates)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: gated_upsample_add(low, high, *gates), range(64)))
    assert all(torch.equal(out, expected) for out in results)
