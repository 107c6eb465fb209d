"""Two processes train as one with their batches together. gloo, on this machine."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from train_program import exit_codes, main, start

from tinyops._files import TRAINING, read_facts, read_tensors
from tinyops.nn.global_norm import GlobalBatchNorm2d, use_global_norms
from tinyops.train import process_group
from tinyops.train.processes import rank

PROGRAM = Path(__file__).parent / "train_program.py"
OPTIONS = {"steps": 7, "batch": 4, "save_every": 2, "make": {"average_decay": 0.9, "clip": 5.0}}


def trained(folder, processes, **options):
    codes = exit_codes(start(main, folder, OPTIONS | options, processes=processes))
    assert codes == [0] * processes
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("alone"), 1)


def assert_close_runs(folder, other, tolerance=1e-5):
    for name in ("train.csv", "val.csv"):
        assert (folder / name).exists() == (other / name).exists()
        if not (folder / name).exists():
            continue
        text, expected = ((f / name).read_text().splitlines() for f in (folder, other))
        assert text[0] == expected[0]
        assert len(text) == len(expected)
        if name == "train.csv":
            for line, wanted in zip(text[1:], expected[1:], strict=True):
                values = [float(value) for value in line.split(",")]
                assert values == pytest.approx([float(v) for v in wanted.split(",")], rel=tolerance)
    _, tensors, _ = read_tensors(folder / "last.safetensors", [TRAINING])
    _, wanted, _ = read_tensors(other / "last.safetensors", [TRAINING])
    assert tensors.keys() == wanted.keys()
    for key, value in tensors.items():
        torch.testing.assert_close(value, wanted[key], rtol=1e-4, atol=1e-5)


def test_two_processes_train_as_one(alone, tmp_path):
    assert_close_runs(trained(tmp_path, 2), alone)
    losses = [line.split(",")[2] for line in (alone / "train.csv").read_text().splitlines()[1:]]
    assert len(set(losses)) == 7


def test_two_processes_train_a_detector_as_one(tmp_path):
    small = {"neck_channels": 8, "head_channels": 8, "proposals": [20, 20]}
    small |= {"samples": 16, "rpn_samples": 16}
    options = {"steps": 3, "detector": ["faster_rcnn_sspnet_resnet_nano", small]}
    folders = [trained(tmp_path / str(n), n, **options) for n in (1, 2)]
    columns = (folders[0] / "train.csv").read_text().splitlines()[0].split(",")
    assert {"rpn_objectness", "roi_classes"} < set(columns)
    assert_close_runs(*reversed(folders))


def test_one_process_begins_and_two_go_on(alone, tmp_path):
    assert exit_codes(start(main, tmp_path, OPTIONS | {"kill": ["step", 4]})) == [-signal.SIGKILL]
    assert len((tmp_path / "train.csv").read_text().splitlines()) == 5
    assert_close_runs(trained(tmp_path, 2), alone)


def test_with_torchrun_an_error_in_one_process_ends_all(tmp_path):
    paths = [str(PROGRAM.parent), str(PROGRAM.parent.parent), os.environ.get("PYTHONPATH", "")]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    result = subprocess.run(
        [sys.executable, *torchrun, PROGRAM, tmp_path, json.dumps(OPTIONS | {"fail": [1, 3]})],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode != 0
    assert "this process fails" in result.stderr
    _, facts = read_facts(tmp_path / "last.safetensors", [TRAINING])
    assert facts["step"] == 3  # the end of an epoch


def test_global_norm_is_batch_norm_over_all_processes():
    assert exit_codes(start(check_norms, processes=2)) == [0, 0]


def test_alone_global_norm_is_batch_norm():
    norm, reference = GlobalBatchNorm2d(3), nn.BatchNorm2d(3)
    x = torch.randn(4, 3, 5, 5)
    assert torch.equal(norm(x), reference(x))
    assert torch.equal(norm.running_var, reference.running_var)
    assert torch.equal(norm.eval()(x), reference.eval()(x))


def test_norms_are_replaced_and_keep_their_values():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4, 1e-3, 0.2)))
    frozen = nn.BatchNorm2d(4, affine=False).eval()
    model.append(frozen)
    old, state = model[1][0], {k: v.clone() for k, v in model.state_dict().items()}
    assert use_global_norms(model) is model
    new = model[1][0]
    assert type(new) is GlobalBatchNorm2d
    assert new.weight is old.weight
    assert (new.eps, new.momentum) == (1e-3, 0.2)
    assert (new.training, model[2].training) == (True, False)
    assert model.state_dict().keys() == state.keys()
    with pytest.raises(ValueError, match=r"0\.1 must be BatchNorm2d .* got BatchNorm1d"):
        use_global_norms(nn.Sequential(nn.Sequential(nn.Identity(), nn.BatchNorm1d(4))))


def check_norm(rank, dtype, momentum, affine):
    """A step of two processes with unequal shares against one with all images."""
    torch.manual_seed(0)
    x = (torch.randn(5, 3, 4, 6) * 2 + 30).to(dtype)
    upstream = torch.randn(5, 3, 4, 6).to(dtype)
    share = slice(0, 2) if rank == 0 else slice(2, 5)
    reference = nn.BatchNorm2d(3, momentum=momentum, affine=affine).to(dtype)
    if affine:
        nn.init.normal_(reference.weight)
        nn.init.normal_(reference.bias)
    norm = use_global_norms(nn.Sequential(nn.BatchNorm2d(3, momentum=momentum, affine=affine)))[0]
    norm.to(dtype).load_state_dict(reference.state_dict())
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {}
    for _ in range(2):
        whole, part = x.clone().requires_grad_(), x[share].clone().requires_grad_()
        expected, y = reference(whole), norm(part)
        torch.testing.assert_close(y, expected[share], **tolerance)
        expected.backward(upstream)
        y.backward(upstream[share])
        torch.testing.assert_close(part.grad, whole.grad[share], **tolerance)
        for key, value in reference.state_dict().items():
            torch.testing.assert_close(norm.state_dict()[key], value, **tolerance)
    for p, q in zip(norm.parameters(), reference.parameters(), strict=True):
        total = p.grad.clone()
        torch.distributed.all_reduce(total)
        torch.testing.assert_close(total, q.grad, **tolerance)


def check_half():
    norm = use_global_norms(nn.Sequential(nn.BatchNorm2d(2)))
    x = torch.randn(2, 2, 3, 3, dtype=torch.bfloat16, requires_grad=True)
    y = norm(x.to(memory_format=torch.channels_last))
    y.sum().backward()
    assert y.dtype == x.grad.dtype == torch.bfloat16
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert norm[0].weight.grad.dtype == torch.float32


def check_norms():
    with process_group(torch.device("cpu")):
        for dtype in (torch.float32, torch.float64):
            for momentum in (0.1, None):
                for affine in (True, False):
                    check_norm(rank(), dtype, momentum, affine)
        check_half()
