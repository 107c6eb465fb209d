"""Print versions, what was built, and which kernels each operator uses on this machine."""

import argparse
import importlib.metadata
import importlib.util
import platform
from collections.abc import Sequence

import torch

import tinyops
from tinyops._lib import library_directory


def main(arguments: Sequence[str]) -> int:
    """Run `tinyops info`; returns the exit code."""
    argparse.ArgumentParser(prog="tinyops info", description=__doc__).parse_args(arguments)
    for title, lines in facts().items():
        print(title)
        width = max(map(len, lines))
        for name, value in lines.items():
            print(f"  {name:<{width}}  {value}")
    return 0


def facts() -> dict[str, dict[str, str]]:
    """Everything that `info` prints: title -> name -> value."""
    from tinyops._eval import build_facts

    built = build_facts()
    return {
        "versions": {
            "tinyops": tinyops.__version__,
            "torch": torch.__version__,
            **{name: _version(name) for name in ("torchvision", "triton", "numpy")},
            "Python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        },
        "build": {
            "kind": built["cuda_reason"],
            "libraries": str(library_directory()),
            "compiler": built["compiler"] + (f", nvcc {built['nvcc']}" if built["nvcc"] else ""),
            "CPU kernels for": " ".join(built["cpu_instruction_sets"]),
            "CUDA kernels for": " ".join(built["cuda_architectures"]) or "none",
        },
        "machine": {
            "CPU": f"{_cpu_name()}, {torch.get_num_threads()} threads",
            "CPU features": _cpu_features(),
            "CPU kernels in use": built["cpu_instruction_set_in_use"],
            "GPU": _gpus(),
        },
        "kernels (CPU tensors, CUDA tensors)": {
            name: f"C++, {_cuda_backend(name)}" for name in tinyops.ops.OPERATORS
        },
    }


def _cuda_backend(name: str) -> str:
    if tinyops.has_cuda_kernels:
        return "CUDA C++"
    schemas = torch._C._dispatch_get_all_op_names()  # of one file, those that begin with its name
    own = [schema for schema in schemas if schema.startswith(f"tinyops::{name}")]
    if not any(torch._C._dispatch_has_kernel_for_dispatch_key(schema, "CUDA") for schema in own):
        return "none: this torch has no CUDA"
    # Regular operators have Triton kernels; those on boxes are irregular.
    has_triton = importlib.util.find_spec(f"tinyops._triton.{name}") is not None
    return "Triton" if has_triton else "CPU kernel on a copy"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _cpu_features() -> str:
    names = ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16")
    try:
        with open("/proc/cpuinfo") as lines:
            flags = next(line for line in lines if line.startswith(("flags", "Features"))).split()
    except (OSError, StopIteration):
        return "unknown"
    return " ".join(name for name in names if name in flags) or "none of AVX2 and AVX-512"


def _gpus() -> str:
    if not torch.cuda.is_available():
        return "none"
    devices = (torch.cuda.get_device_properties(k) for k in range(torch.cuda.device_count()))
    return ", ".join(f"{d.name} (sm_{d.major}{d.minor})" for d in devices)
