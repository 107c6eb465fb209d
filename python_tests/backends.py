"""The backends that every operator is tested on, each a namespace of `torch.ops` and a device.

cpu     the C++ kernels, `torch.ops.tinyops` on CPU tensors
sim     the real .cu files and their glue on CPU tensors, by csrc/tests/cudasim: `tinyops_sim`
triton  the Triton kernels, on the GPU or else under the interpreter: `tinyops_triton`
cuda    the CUDA kernels, `torch.ops.tinyops` on GPU tensors; skipped without a GPU
"""

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import tinyops

NAMES = ("cpu", "sim", "triton", "cuda")
ROOT = Path(__file__).resolve().parent.parent


class Backend(NamedTuple):
    name: str
    namespace: str
    device: str

    @property
    def ops(self):
        return getattr(torch.ops, self.namespace)


def get(name: str) -> Backend:
    if name == "cpu":
        return Backend(name, "tinyops", "cpu")
    if name == "sim":
        _load_simulator()
        return Backend(name, "tinyops_sim", "cpu")
    if name == "triton":
        pytest.importorskip("triton", reason="there is no Triton for this platform")
        _define_triton()
        return Backend(name, "tinyops_triton", "cuda" if torch.cuda.is_available() else "cpu")
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    if not tinyops.has_cuda_kernels:
        pytest.skip("tinyops was built without CUDA kernels: needs a GPU machine with nvcc")
    return Backend(name, "tinyops", "cuda")


@functools.cache
def _load_simulator() -> None:
    path = os.environ.get("TINYOPS_SIM_LIBRARY") or _build_simulator()
    torch.ops.load_library(path)
    for module in tinyops.ops.modules():
        module.register("tinyops_sim")


def _build_simulator() -> str:
    """Compile cudasim's library with CMake; only what changed is compiled again."""
    tree = ROOT / "build" / f"sim-{sys.implementation.cache_tag}"
    torch_directory = Path(torch.__file__).parent
    commands = (
        ["cmake", "-S", ROOT, "-B", tree, "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}",
         f"-DTINYOPS_TORCH_DIR={torch_directory}", "-DTINYOPS_CUDA=OFF"],
        ["cmake", "--build", tree, "--target", "tinyops_sim"],
    )  # fmt: skip
    for command in commands:
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        if done.returncode != 0:
            pytest.fail(f"cudasim does not build:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return str(tree / "libtinyops_sim.so")


@functools.cache
def _define_triton() -> None:
    """The schemas of `tinyops` once more, implemented by Triton wherever the tensors are."""
    library = torch.library.Library("tinyops_triton", "DEF")
    _alive.append(library)
    for name in torch._C._dispatch_get_all_op_names():
        namespace, _, stem = name.partition("::")
        if namespace == "tinyops":
            schema = str(getattr(torch.ops.tinyops, stem).default._schema)
            library.define(schema.removeprefix("tinyops::"))
    for module in tinyops.ops.modules():
        module.implement_without_cuda("tinyops_triton", "CompositeExplicitAutograd")
        module.register("tinyops_triton")


_alive: list[torch.library.Library] = []  # a library unregisters its operators when it goes
