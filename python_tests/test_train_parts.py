"""What a training is made of: the order of images, rates, optimizers, averages."""

import math
from typing import ClassVar

import pytest
import torch
from torch import nn
from training import Spots, Squares

from tinyops.train import Average, Order, Schedule, Training, make_loader, make_optimizer

# The order of the images.


def test_an_epoch_holds_every_image_once():
    batches = list(Order(10, 5, seed=3, last=4))
    assert [len(batch) for batch in batches] == [5] * 4
    pairs = [pair for batch in batches for pair in batch]
    assert sorted(pairs) == [(epoch, index) for epoch in (0, 1) for index in range(10)]
    assert pairs[:10] != sorted(pairs[:10])
    assert [i for _, i in pairs[:10]] != [i for _, i in pairs[10:]]


def test_batches_across_the_end_of_an_epoch_leave_no_image_out():
    pairs = [pair for batch in Order(10, 4, seed=3, last=5) for pair in batch]
    assert sorted(pairs) == [(epoch, index) for epoch in (0, 1) for index in range(10)]
    assert [e for e, _ in pairs] == [0] * 10 + [1] * 10


def test_a_batch_larger_than_the_data_set_spans_epochs():
    (batch,) = Order(3, 7, last=1)
    assert sorted(batch) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), batch[-1]]
    assert batch[-1][0] == 2


def test_an_order_begins_anywhere():
    whole = list(Order(10, 6, parts=2, seed=1, last=9))
    assert len(whole) == len(Order(10, 6, parts=2, seed=1, last=9)) == 18
    assert list(Order(10, 6, parts=2, seed=1, first=4, last=9)) == whole[8:]
    assert list(Order(10, 6, parts=2, seed=2, last=9)) != whole


def test_parts_make_the_batch():
    whole = list(Order(10, 6, seed=1, last=5))
    parts = list(Order(10, 6, parts=3, seed=1, last=5))
    assert [parts[3 * k] + parts[3 * k + 1] + parts[3 * k + 2] for k in range(5)] == whole


def test_batches_that_cannot_be_shared_are_refused():
    with pytest.raises(ValueError, match=r"batch must be a multiple of .* = 3 \* 1, got 4"):
        Order(10, 4, parts=3, last=1)
    with pytest.raises(ValueError, match="at least one image"):
        Order(0, 4, last=1)


class Draws(Squares):
    def sample(self, index, epoch):
        image, target = super().sample(index, epoch)
        return image, target | {"draw": torch.rand(1)}


def test_samples_do_not_depend_on_the_workers():
    def samples(workers, first=0):
        order = Order(5, 2, seed=1, first=first, last=6)
        for _, targets in make_loader(Draws(5), order, workers=workers):
            yield [(target["name"], float(target["draw"])) for target in targets]

    alone = list(samples(0))
    assert list(samples(2)) == alone
    assert list(samples(2, first=3)) == alone[3:]
    assert len({pair for batch in alone for pair in batch}) == 12
    assert {name[0] for batch in alone for name, _ in batch} == {"0", "1", "2"}


# Rates, optimizers, averages.


def test_rates_of_the_paper():
    schedule = Schedule(0.002, 1200, milestones=(800, 1100), warmup=500)
    rates = [schedule.at(step) for step in (0, 250, 500, 799, 800, 1099, 1100, 1199)]
    expected = [2e-6, 0.001001, 2e-3, 2e-3, 2e-4, 2e-4, 2e-5, 2e-5]
    assert rates == pytest.approx(expected)


def test_cosine_rates_fall_to_zero():
    schedule = Schedule(1.0, 100, kind="cosine", warmup=0)
    assert [schedule.at(step) for step in (0, 50, 100)] == pytest.approx([1, 0.5, 0], abs=1e-12)
    assert schedule.at(25) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    warm = Schedule(1.0, 100, kind="cosine", warmup=10, warmup_factor=0.5)
    assert warm.at(5) == pytest.approx(0.75 * schedule.at(5))


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_norms_and_biases_decay_only_if_asked(kind):
    model = Spots()
    model.body[1].weight.requires_grad_(False)
    everything = make_optimizer(model, kind, weight_decay=0.5)
    assert [group["weight_decay"] for group in everything.param_groups] == [0.5]
    assert len(everything.param_groups[0]["params"]) == 4
    some = make_optimizer(model, kind, weight_decay=0.5, decay_all=False)
    assert [group["weight_decay"] for group in some.param_groups] == [0.5, 0.0]
    assert [len(group["params"]) for group in some.param_groups] == [2, 2]
    assert all(p.dim() == 4 for p in some.param_groups[0]["params"])


class Slow(nn.Module):
    """Two weights with a gradient of 1, of which one wants a hundredth of the rate."""

    rate_factors: ClassVar = {"slow": 0.01}

    def __init__(self):
        super().__init__()
        self.slow, self.fast = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def forward(self, images, targets):
        return {"loss": self.slow + self.fast}


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_parameter_may_want_another_rate(kind):
    model = Slow()
    training = Training(model, make_optimizer(model, kind), Schedule(0.1, 5, warmup=0), seed=0)
    for step in (1, 2):
        training.update([([], [])])
        if step == 1:
            assert (model.fast.item(), model.slow.item()) == pytest.approx((-0.1, -0.001))
    assert model.slow.item() == pytest.approx(0.01 * model.fast.item(), rel=1e-4)


def test_an_average_follows_the_model():
    model = nn.BatchNorm2d(1)
    average = Average(model, 0.5)
    with torch.no_grad():
        model.weight.fill_(2.0)
        model.running_mean.fill_(7.0)
    average.update(model, 1)  # decay (1 + 1) / (10 + 1)
    assert average.model.weight.item() == pytest.approx(1 + 9 / 11)
    average.update(model, 10**6)
    assert average.model.weight.item() == pytest.approx(2 - (2 / 11) / 2)
    assert average.model.running_mean.item() == 7.0
    assert not average.model.training
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\), got 1"):
        Average(model, 1)
