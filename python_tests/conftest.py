"""Set-up of every test: backends, and uninitialised memory filled with NaN."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton kernels are imported

import backends
import pytest


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fill uninitialised tensors with NaN, so that an element that a kernel forgets shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.manual_seed(0)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=backends.NAMES)
def backend(request):
    """One backend after the other; those that this machine cannot run are skipped."""
    return backends.get(request.param)


@pytest.fixture(params=["geo", "plain"])
def reader(request, monkeypatch):
    """Images are opened with rasterio and without it."""
    if request.param == "plain":
        monkeypatch.setattr("tinyops.inference.source.find_spec", lambda name: None)
    return request.param
