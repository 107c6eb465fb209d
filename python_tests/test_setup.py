"""What setup.py decides to build."""

import importlib.util
from pathlib import Path

import pytest
from backends import ROOT

spec = importlib.util.spec_from_file_location("tinyops_setup", ROOT / "setup.py")
setup = importlib.util.module_from_spec(spec)
spec.loader.exec_module(setup)

CPU_TORCH = setup.Torch(Path("torch"), "2.13.0+cpu", None)
CUDA_TORCH = setup.Torch(Path("torch"), "2.11.0+cu130", "13.0")


def decide(monkeypatch, torch, wish=None, nvcc=None):
    if wish is None:
        monkeypatch.delenv("TINYOPS_CUDA", raising=False)
    else:
        monkeypatch.setenv("TINYOPS_CUDA", wish)
    monkeypatch.setattr(setup, "find_nvcc", lambda: nvcc and "/cuda/bin/nvcc")
    monkeypatch.setattr(setup, "nvcc_version", lambda path: nvcc)
    return setup.decide_cuda(torch)


@pytest.mark.parametrize(
    ("torch", "wish", "nvcc", "cuda", "reason"),
    [
        (CPU_TORCH, None, (13, 0), False, "CPU kernels only: torch 2.13.0+cpu has no CUDA"),
        (CPU_TORCH, "1", (13, 0), True, "CPU and CUDA kernels: TINYOPS_CUDA=1"),
        (CUDA_TORCH, None, None, False, "CPU kernels, and Triton on the GPU: CUDA 13.0 torch, but"),
        (CUDA_TORCH, "auto", (13, 0), True, "CPU and CUDA kernels: CUDA 13.0 torch and /cuda/bin"),
        (CUDA_TORCH, "0", (13, 0), False, "CPU kernels, and Triton on the GPU: TINYOPS_CUDA=0"),
        (CUDA_TORCH, None, (12, 4), False, "nvcc 12.8 or newer is needed, found /cuda/bin/nvcc"),
        (CUDA_TORCH, None, (12, 9), False, "is another major version"),
    ],
)
def test_what_is_built_and_why(monkeypatch, torch, wish, nvcc, cuda, reason):
    decision, why = decide(monkeypatch, torch, wish, nvcc)
    assert decision is cuda
    assert reason in why
    assert "\n" not in why


@pytest.mark.parametrize(
    ("wish", "nvcc", "message"),
    [
        ("1", None, "TINYOPS_CUDA=1 needs nvcc"),
        ("1", (12, 4), "TINYOPS_CUDA=1 needs nvcc 12.8 or newer"),
        ("yes", (13, 0), "TINYOPS_CUDA must be 0, 1 or auto, got 'yes'"),
    ],
)
def test_what_cannot_be_built_is_said(monkeypatch, wish, nvcc, message):
    with pytest.raises(SystemExit, match=message):
        decide(monkeypatch, CUDA_TORCH, wish, nvcc)


def test_torch_is_found_without_importing_it():
    import torch

    found = setup.find_torch()
    assert found.directory == Path(torch.__file__).parent
    assert found.version == torch.__version__
    assert found.cuda == torch.version.cuda
