"""SR-TOD's threshold: from the data at first, then learned; and how it is kept."""

import copy

import numpy as np
import pytest
import torch
from detection import batch_of, pyramid

from tinyops.nn.srtod import SelfReconstruction
from tinyops.train import make_optimizer
from tinyops.train.optim import Average

STRIDES = (4, 8, 16, 32, 64)


def made(**options):
    torch.manual_seed(0)
    return SelfReconstruction(8, STRIDES, **options)


def step(module, seed):
    """One batch of two images, of which the second is smaller; its differences."""
    torch.manual_seed(seed)
    batch = batch_of((64, 96), (50, 33))
    refined, shown = module(pyramid(batch), batch)
    if torch.is_grad_enabled():
        refined[0].sum().backward()
    return shown, batch


def quantile(shown, batch, q=0.9):
    """The mean over the images of the smallest difference that a share q does not exceed."""
    values = []
    for plane, (height, width) in zip(shown.difference[:, 0], batch.sizes, strict=True):
        own = plane[:height, :width].detach().numpy().ravel()
        values.append(np.quantile(own, q, method="inverted_cdf"))
    return np.mean(values)


def test_the_first_batch_gives_the_quantile():
    for q in (0.9, 0.5, 1.0):
        module = made(quantile=q)
        shown, batch = step(module, 1)
        assert module.threshold.item() == pytest.approx(quantile(shown, batch, q), abs=1e-6)
        assert shown.threshold.item() == module.threshold.item()


def test_the_first_batches_give_a_mean_of_the_last_twenty_or_so():
    module, expected = made(calibration=30), 0.0
    for k in range(1, 31):
        shown, batch = step(module, k)
        assert module.threshold.grad.item() == 0  # for DistributedDataParallel
        expected += (quantile(shown, batch) - expected) / min(k, 20)
        assert module.threshold.item() == pytest.approx(expected, abs=1e-6)
    before = module.threshold.item()
    module.zero_grad()
    shown, _ = step(module, 31)
    assert module.threshold.item() == shown.threshold.item() == before
    assert module.threshold.grad.item() != 0
    assert module.seen == 30


def test_a_given_threshold_is_not_calibrated():
    module = made(threshold=0.2)
    step(module, 1)
    assert module.threshold.item() == pytest.approx(0.2)
    assert module.threshold.grad.item() != 0


def test_evaluation_does_not_calibrate():
    module = made()
    step(module, 1)
    before = module.threshold.item()
    step(module.eval(), 2)
    assert (module.threshold.item(), module.seen) == (before, 1)


def test_without_a_gradient_it_stays_as_released():
    module = made(threshold=0.2, ste="none")
    shown, _ = step(module, 1)
    assert module.threshold.grad is None
    assert not any(p.grad is not None and p.grad.any() for p in module.head.parameters())
    module.loss(shown).backward()
    assert all(p.grad.any() for p in module.head.parameters())
    optimizer = make_optimizer(module, weight_decay=0.5)
    chosen = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert id(module.threshold) not in chosen


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("decay_all", [True, False])
def test_it_never_decays(kind, decay_all):
    module = made(threshold=0.2)
    optimizer = make_optimizer(module, kind, weight_decay=0.5, decay_all=decay_all)
    for p in module.parameters():
        p.grad = torch.zeros_like(p)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    before = module.head.colours.weight.clone()
    bias = module.head.colours.bias.clone()
    optimizer.step()
    assert module.threshold.item() == pytest.approx(0.2)
    assert not torch.equal(module.head.colours.weight, before)
    assert torch.equal(module.head.colours.bias, bias) == (not decay_all)
    count = sum(len(group["params"]) for group in optimizer.param_groups)
    assert count == len(list(module.parameters()))


def test_calibration_goes_on_where_it_was():
    whole, half = made(calibration=6), made(calibration=6)
    for k in range(10):
        step(whole, k)
    for k in range(4):
        step(half, k)
    again = made(calibration=6)
    for k in range(7):  # it has ended there, which is forgotten
        step(again, 50 + k)
    again.load_state_dict(copy.deepcopy(half.state_dict()))
    for k in range(4, 10):
        step(again, k)
    assert torch.equal(again.threshold, whole.threshold)
    assert again.seen == 6


def test_an_average_has_the_count_of_batches_too():
    module = made(calibration=3)
    average = Average(module, 0.9)
    for k in range(1, 6):
        step(module, k)
        average.update(module, k)
    assert average.model.seen == 3
    assert 0 < average.model.threshold < 1
    again = average.model.train()
    before = again.threshold.item()
    with torch.no_grad():
        step(again, 9)  # it does not begin anew
    assert again.threshold.item() == before
