"""Detectors on a GPU compute what they compute on the CPU; they train there in all layouts."""

import copy

import pytest
import torch
from detection import target
from helpers import assert_close

from tinyops.models import create

DEVICE = "cuda"
PAIRS = [
    f"{d}_{n}" for d in ("faster_rcnn", "cascade_rcnn", "retinanet") for n in ("fpn", "sspnet")
]
TWO_STAGES = {"head_channels": 32, "rpn_samples": 64, "samples": 64, "proposals": [60, 60]}
SIZES = (64, 96), (50, 40)
TARGETS = [
    target((10, 10, 18, 22), (40, 30, 49, 38), (60, 5, 90, 60), labels=[1, 2, 0], ignore=[0, 0, 1]),
    target(),
]

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
each_pair = pytest.mark.parametrize("pair", PAIRS)


@pytest.fixture(autouse=True)
def plain_roi_align():
    """That of torchvision's kernels: under deterministic algorithms it compiles another."""
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def exact_convolutions():
    """No TF32, and nothing else that cuDNN may choose to be fast."""
    with torch.backends.cudnn.flags(enabled=False, allow_tf32=False):
        yield


def images():
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(3, *size, generator=generator) for size in SIZES]


def on_device(x):
    """A list of tensors or of targets."""
    return [
        {k: v.to(DEVICE) for k, v in one.items()} if isinstance(one, dict) else one.to(DEVICE)
        for one in x
    ]


def small(pair):
    """A model of few channels whose scores and boxes are far apart."""
    torch.manual_seed(0)
    options = {} if pair.startswith("retinanet") else TWO_STAGES
    model = create(f"{pair}_resnet_nano", num_classes=2, neck_channels=16, **options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("rpn_cls.weight", "fc_cls.weight", "retina_cls.weight")):
                parameter.mul_(20)
            if name.endswith("retina_cls.bias"):
                parameter.zero_()
    return model


def losses_and_gradients(model, batch, targets):
    torch.manual_seed(1)
    losses = model(batch, targets)
    gradients = torch.autograd.grad(sum(losses.values()), list(model.parameters()))
    return losses, gradients


@each_pair
@pytest.mark.usefixtures("exact_convolutions")
def test_losses_and_gradients_are_those_of_the_cpu(pair):
    model = small(pair)
    expected, wanted = losses_and_gradients(model, images(), TARGETS)
    moved = copy.deepcopy(model).to(DEVICE)
    losses, gradients = losses_and_gradients(moved, on_device(images()), on_device(TARGETS))
    assert list(losses) == list(expected)
    for name, loss in losses.items():
        assert loss.device.type == DEVICE
        assert_close(loss.detach(), expected[name].detach())
    for gradient, other in zip(gradients, wanted, strict=True):
        size = other.abs().max().clamp(min=1e-3)  # sums of many terms, of both signs
        assert (gradient.cpu() - other).abs().max() < 5e-3 * size


@each_pair
@pytest.mark.usefixtures("exact_convolutions")
def test_detections_are_those_of_the_cpu(pair):
    model = small(pair).eval()
    with torch.no_grad():
        expected = model(images())
        found = model.to(DEVICE)(on_device(images()))
    for one, two in zip(found, expected, strict=True):
        assert len(two["scores"]) > 5
        assert {x.device.type for x in one.values()} == {DEVICE}
        assert one["labels"].tolist() == two["labels"].tolist()
        assert_close(one["scores"], two["scores"])
        assert_close(one["boxes"], two["boxes"])


@each_pair
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_trains(pair, dtype):
    model = small(pair).to(DEVICE)
    batch, targets = on_device(images()), on_device(TARGETS)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    history = []
    for _ in range(10):
        torch.manual_seed(2)
        with torch.autocast(DEVICE, dtype):
            losses = model(batch, targets)
        assert {x.dtype for x in losses.values()} == {torch.float32}
        loss = sum(losses.values())
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.9 * history[0]


@each_pair
def test_a_step_in_channels_last(pair):
    model, batch, targets = small(pair).to(DEVICE), on_device(images()), on_device(TARGETS)
    expected, _ = losses_and_gradients(model, batch, targets)
    losses, gradients = losses_and_gradients(
        model.to(memory_format=torch.channels_last), batch, targets
    )
    assert all(x.isfinite().all() for x in gradients)
    for name, loss in losses.items():  # TF32 and other algorithms: wider than the common tolerance
        torch.testing.assert_close(loss.detach(), expected[name].detach(), rtol=0.05, atol=0.01)
