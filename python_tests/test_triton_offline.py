"""Every Triton kernel, as its launcher would launch it, compiles without a GPU and without spills.

The kernels are compiled in a process of their own: under TRITON_INTERPRET, which the other tests
set, @triton.jit makes objects that cannot be compiled.
"""

import functools
import importlib.util
import os
import re
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURES = 80, 90, 120
DTYPES = torch.float32, torch.float64, torch.float16, torch.bfloat16
LAYOUTS = torch.contiguous_format, torch.channels_last
POINTERS = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.uint8: "*u8",
}


@functools.cache
def load(name):
    """The module by its path: the package itself would load the compiled libraries."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"tinyops/_triton/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def gated_upsample_add_launches():
    module = load("gated_upsample_add")
    layouts = torch.contiguous_format, torch.channels_last
    # Channels and widths are multiples of 16, which compiles to vector accesses. Others compile to
    # scalar ones; with an odd number of channels the self-gated backward in NHWC then spills.
    for dtype, layout, ratio in product(DTYPES, layouts, (2, 3)):

        def empty(channels, scale, dtype=dtype, layout=layout):
            size = 1, channels, 16 * scale, 16 * scale
            return torch.empty(size, dtype=dtype, device="meta").to(memory_format=layout)

        low, high, gates = empty(64, ratio), empty(64, 1), (empty(1, ratio), empty(1, 1))
        for self_gate, gated in ((False, False), (False, True), (True, True)):
            used = gates if gated else (None, None)
            yield from module.plan_forward(low, high, *used, self_gate, low)
            kept = low if self_gate else None, high if gated else None
            yield from module.plan_backward(low, *kept, *used, 16, 16, self_gate)[1]


def pixel_shuffle_launches():
    module = load("pixel_shuffle")
    layouts = torch.contiguous_format, torch.channels_last
    # The usual factor in every type; the others, and the other order, in the widest one.
    cases = *product(DTYPES, (2,), (0,)), *product((torch.float64,), (2, 3, 4), (1,))
    for (dtype, r, order), layout in product(cases, layouts):

        def empty(channels, scale, dtype=dtype, layout=layout):
            size = 1, channels, 16 * scale, 16 * scale
            return torch.empty(size, dtype=dtype, device="meta").to(memory_format=layout)

        content, wide = empty(16 * r * r, 1), empty(16, r)
        yield from module.plan_forward(content, None, empty(32, r), r, 1.0, order)
        yield from module.plan_forward(content, wide, wide, r, 0.1, order)
        yield from module.plan_backward(wide, content, 16, r, 0.1, order)[1]


def difference_map_launches():
    module = load("difference_map")
    for dtype, layout, padded in product(DTYPES, LAYOUTS, (False, True)):
        image = torch.empty(1, 3, 16, 16, dtype=dtype, device="meta").to(memory_format=layout)
        valid = torch.empty(1, 2, dtype=torch.int64, device="meta") if padded else None
        yield from module.plan_forward(image, image, valid, image[:, :1])
        yield from module.plan_backward(image[:, :1], image, image, valid, image)


def difference_gate_launches():
    module = load("difference_gate")
    needs = (True, True, True, True), (True, True, False, False)
    cases = (
        *product(DTYPES, (None,)),
        (torch.float16, torch.float32),
        (torch.float32, torch.float64),
    )
    for (dtype, wide), layout, resize in product(cases, LAYOUTS, range(3)):
        features = torch.empty(1, 64, 16, 16, dtype=dtype, device="meta")
        weight = features.new_empty(1, 64, 1, 1)
        difference = torch.empty(1, 1, 64, 64, dtype=wide or dtype, device="meta")
        features, threshold = features.to(memory_format=layout), difference.new_empty(())
        tensors = features, weight, difference, threshold
        yield from module.plan_forward(*tensors, resize, features)
        for wanted in needs:
            yield from module.plan_backward(features, *tensors, resize, wanted)[1]


def avg_max_pool_launches():
    module = load("avg_max_pool")
    for dtype, layout in product(DTYPES, (torch.contiguous_format, torch.channels_last)):
        features = torch.empty((2, 64, 16, 32), dtype=dtype, device="meta").to(memory_format=layout)
        mean = torch.empty((2, 64, 1, 1), dtype=dtype, device="meta")
        index = torch.empty_like(mean, dtype=torch.int64)
        last = layout == torch.channels_last
        for valid in (None, torch.empty((2, 2), dtype=torch.int64, device="meta")):
            yield from module.plan_forward(features, valid, mean, mean, index)
            yield from module.plan_backward(mean, mean, index, valid, features, last)


def balanced_l1_launches():
    module = load("balanced_l1")

    def empty(size, dtype):
        return torch.empty(size, dtype=dtype, device="meta")

    for dtype, layout in product(DTYPES, (torch.contiguous_format, torch.channels_last)):
        maps = empty((2, 64, 16, 32), dtype).to(memory_format=layout)
        mask, count = empty((2, 16, 32), torch.uint8), empty((), torch.int64)
        total = empty((), torch.promote_types(dtype, torch.float32))
        boxes, ids = empty((48, 4), dtype), empty((48,), torch.int64)
        for valid in (None, empty((2, 2), torch.int64)):
            scale = empty((), torch.float64)
            yield from module.plan_mask(maps, boxes, ids, valid, scale, mask)
        yield from module.plan_sums(maps, maps, mask, (total, total, count))
        for gradients in ((maps, None), (None, maps), (maps, maps)):
            yield from module.plan_backward(total, total, maps, maps, mask, *gradients)


LAUNCHES = {
    "gated_upsample_add": gated_upsample_add_launches,
    "pixel_shuffle": pixel_shuffle_launches,
    "difference_map": difference_map_launches,
    "difference_gate": difference_gate_launches,
    "avg_max_pool": avg_max_pool_launches,
    "balanced_l1": balanced_l1_launches,
}


def specialised(launch):
    """What the just-in-time compiler makes of a launch: (signature, constants, attributes)."""
    signature, constants, attributes = {}, {}, {}
    arguments = dict(zip(launch.kernel.arg_names, launch.args, strict=False)) | launch.constexprs
    for parameter in launch.kernel.params:
        name, value = parameter.name, arguments[parameter.name]
        special = not parameter.do_not_specialize
        if isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
        elif parameter.is_constexpr or value is None or (special and value == 1):
            signature[name], constants[name] = "constexpr", value
            continue
        else:
            signature[name] = "i32"
        if special and (isinstance(value, torch.Tensor) or value % 16 == 0):
            attributes[(parameter.num,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def compile_one(job):
    """A line that says what was compiled and which resources ptxas gave it."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, name, signature, constants, attributes, architecture = job
    kernel = getattr(load(module), name)
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32))
    assert compiled.asm["cubin"][:4] == b"\x7fELF"
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    file = next(p for n, p in compiled.metadata_group.items() if n.endswith(".cubin"))
    command = [tool, "--dump-resource-usage", file]
    usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    resources = re.search(r"REG:\d+ STACK:\d+ SHARED:\d+ LOCAL:\d+", usage).group()
    return f"{name} sm_{architecture} {resources} {signature} {constants}"


def compile_all():
    jobs = {}
    for module, launches in LAUNCHES.items():
        for launch, architecture in product(launches(), ARCHITECTURES):
            job = module, launch.kernel.__name__, *specialised(launch), architecture
            jobs[repr(job)] = job  # the same kernel serves several problems
    with ProcessPoolExecutor(max_workers=2) as pool:
        print(*pool.map(compile_one, jobs.values()), sep="\n")


def test_every_kernel_compiles_for_every_architecture_without_spills():
    pytest.importorskip("triton", reason="there is no Triton for this platform")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, __file__]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert {line.split()[1] for line in lines} == {f"sm_{a}" for a in ARCHITECTURES}
    # Spilled registers live in the stack frame. Triton 3.6 has none; 16 bytes allow other versions
    # to park a few around a 64-bit division, which is a subroutine.
    assert [line for line in lines if not re.search(r" STACK:(0|8|16) .* LOCAL:0 ", line)] == []


if __name__ == "__main__":
    compile_all()
