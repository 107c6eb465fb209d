"""Training in one process."""

import csv
import io
import json
import math

import pytest
import torch
from rich.console import Console
from torch import nn
from training import Spots, Squares, description_of, make_training, same_state

from tinyops.models.checkpoint import load
from tinyops.train import (
    Display,
    Log,
    Order,
    Schedule,
    Training,
    fit,
    make_loader,
    make_optimizer,
    train_one_epoch,
)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Files need not be on the disk for these tests, which a busy disk would slow down."""
    monkeypatch.setattr("tinyops._files._sync", lambda path: None)


def run(folder, training=None, dataset=None, **options):
    training = training or make_training(steps=options.get("steps", 8))
    options = {
        "steps": 8,
        "batch": 4,
        "configuration": {},
        "console": Console(quiet=True),
    } | options
    description = description_of(training.model)
    result = fit(training, dataset or Squares(), folder, description=description, **options)
    return training, result


def rows(folder, kind="train"):
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


class Counter:
    """Metrics that rise, then fall."""

    def __init__(self, *values):
        self.values, self.models = list(values), []

    def __call__(self, model):
        assert not model.training
        self.models.append({name: x.clone() for name, x in model.state_dict().items()})
        return {"ap50_tiny": self.values[len(self.models) - 1], "images": 3}


# Steps.


def test_a_step_is_that_of_the_optimizer():
    training = make_training(rate=0.1, model=Spots(noise=0.0))
    training.schedule = Schedule(0.1, 10, warmup=0)
    images, targets = zip(*[Squares()[k] for k in range(4)], strict=True)
    other = Spots(noise=0.0)
    other.load_state_dict(training.model.state_dict())
    losses = training.update([(images, targets)])
    expected = other(images, targets)
    sum(expected.values()).backward()
    with torch.no_grad():
        for p in other.parameters():
            p -= 0.1 * (p.grad + 1e-4 * p)
    for name, value in training.model.named_parameters():
        torch.testing.assert_close(value, other.get_parameter(name))
    assert {name: float(x) for name, x in losses.items()} == pytest.approx(
        {name: float(x.detach()) for name, x in expected.items()}
    )
    assert training.step == 1


def test_parts_give_the_gradient_of_their_mean():
    parts = [tuple(zip(*[Squares()[k] for k in ids], strict=True)) for ids in ((1, 2), (4, 5))]
    halves, alone = [], []
    for part in parts:
        training = made_for_parts()
        before = [p.detach().clone() for p in training.model.parameters()]
        losses = training.update([part])
        after = list(training.model.parameters())
        halves.append([p.detach() - b for p, b in zip(after, before, strict=True)])
        alone.append(losses)
    training = made_for_parts()
    before = [p.detach().clone() for p in training.model.parameters()]
    losses = training.update(parts)
    for name, value in losses.items():
        torch.testing.assert_close(value, (alone[0][name] + alone[1][name]) / 2)
    for p, b, one, two in zip(training.model.parameters(), before, *halves, strict=True):
        torch.testing.assert_close(p.detach() - b, (one + two) / 2, rtol=1e-4, atol=1e-6)


def made_for_parts():
    training = make_training(model=Spots(noise=0.0, norm=lambda width: nn.GroupNorm(1, width)))
    training.schedule = Schedule(0.1, 10, warmup=0)
    with torch.no_grad():
        for p in training.model.parameters():
            p.copy_(torch.linspace(-1, 1, p.numel()).view_as(p))
    return training


def test_gradients_are_clipped():
    batch = tuple(zip(*[Squares()[k] for k in range(4)], strict=True))
    moved = []
    for clip in (None, 1e-3):
        training = make_training(clip=clip)
        training.schedule = Schedule(1.0, 10, warmup=0)
        training.optimizer.param_groups[0]["weight_decay"] = 0.0
        before = [p.detach().clone() for p in training.model.parameters()]
        training.update([batch])
        change = [b - p for p, b in zip(training.model.parameters(), before, strict=True)]
        moved.append(float(torch.cat([x.detach().flatten() for x in change]).norm()))
    assert moved[0] > 0.1
    assert moved[1] == pytest.approx(1e-3, rel=1e-3)


def test_a_step_is_a_function_of_the_seed_and_its_number():
    batch = tuple(zip(*[Squares()[k] for k in range(4)], strict=True))
    losses = []
    for noise, seed in ((1, 0), (2, 0), (1, 1)):
        training = make_training(model=Spots(noise=5.0))
        training.model.load_state_dict(make_training().model.state_dict())
        training.seed = seed
        torch.manual_seed(noise)
        losses.append([float(training.update([batch])["loss_spots"]) for _ in range(3)])
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]
    assert len(set(losses[0])) == 3


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_trains_in_float32(amp, tmp_path):
    seen = []
    model = Spots()
    model.body[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    training = make_training(model=model, amp=amp, clip=10.0)
    run(tmp_path, training)
    assert set(seen) == {torch.bfloat16 if amp == "bf16" else torch.float16}
    assert all(p.dtype == torch.float32 for p in model.parameters())
    losses = [row["loss"] for row in rows(tmp_path)]
    plain = make_training()
    plain.model.load_state_dict(make_training(model=Spots()).model.state_dict())
    assert losses[-1] < losses[0]


def test_other_precisions_are_refused():
    with pytest.raises(ValueError, match="amp must be 'none', 'bf16' or 'fp16', got 'fp8'"):
        make_training(amp="fp8")


def test_channels_last_weights():
    training = make_training(channels_last=True)
    assert training.model.body[0].weight.is_contiguous(memory_format=torch.channels_last)


# Epochs, logs and files.


def test_training_lowers_the_loss_and_writes_every_step(tmp_path):
    training, result = run(tmp_path, steps=25, batch=10, parts=2)
    table = rows(tmp_path)
    assert [row["step"] for row in table] == list(range(1, 26))
    assert table[-1]["loss"] < 0.7 * table[0]["loss"]
    for row in table:
        assert list(row) == ["kind", "step", "rate", "loss", "loss_spots", "loss_size"]
        assert row["loss"] == row["loss_spots"] + row["loss_size"]
        assert row["rate"] == training.schedule.at(row["step"] - 1)
    with (tmp_path / "train.csv").open() as file:
        for line, row in zip(csv.DictReader(file), table, strict=True):
            assert {key: float(value) for key, value in line.items()} == {
                key: value for key, value in row.items() if key != "kind"
            }
    assert result["loss"] == pytest.approx(table[-1]["loss"])  # an epoch has one step


def test_epochs_end_with_the_step_that_completes_them(tmp_path):
    measure = Counter(*range(10))
    _, result = run(tmp_path, steps=9, measure=measure)  # 10 images, 4 in a step
    assert [(row["step"], row["epoch"]) for row in rows(tmp_path, "val")] == [
        (3, 1), (5, 2), (8, 3), (9, 3),
    ]  # fmt: skip
    assert result == {"ap50_tiny": 3, "images": 3}


def test_epochs_shorter_than_a_step_are_measured_together(tmp_path):
    run(tmp_path, steps=4, batch=7, dataset=Squares(3), measure=Counter(*range(9)), measure_every=3)
    assert [(row["step"], row["epoch"]) for row in rows(tmp_path, "val")] == [
        (2, 4),
        (3, 7),
        (4, 9),
    ]


def test_the_best_model_is_kept(tmp_path):
    measure = Counter(0.1, 0.7, 0.7, 0.2)
    training, _ = run(tmp_path, steps=10, measure=measure)
    assert training.best == 0.7
    build = lambda name, num_classes, width, noise: Spots(width, noise)  # noqa: E731
    best, last = (load(tmp_path / f"{n}.safetensors", build=build) for n in ("best", "last"))
    assert all(torch.equal(x, measure.models[1][name]) for name, x in best.state_dict().items())
    assert same_state(last, training.model)
    assert best.categories == ("spot",)


def test_the_average_is_measured_and_kept(tmp_path):
    measure = Counter(0.1, 0.2)
    training, _ = run(tmp_path, make_training(average_decay=0.9), steps=5, measure=measure)
    build = lambda name, num_classes, width, noise: Spots(width, noise)  # noqa: E731
    average = training.average.model
    assert not torch.equal(average.body[0].weight, training.model.body[0].weight)
    for name in ("best", "last"):
        assert same_state(load(tmp_path / f"{name}.safetensors", build=build), average)
    assert torch.equal(measure.models[-1]["body.0.weight"], average.body[0].weight)


def test_the_best_metric_must_be_there(tmp_path):
    with pytest.raises(ValueError, match="best must be one of ap50_tiny, images, got 'ap'"):
        run(tmp_path, measure=Counter(1, 2, 3, 4), best="ap")


class Broken(Spots):
    def __init__(self, step, value, error=None):
        super().__init__()
        self.step, self.value, self.error, self.calls = step, value, error, 0

    def forward(self, images, targets=None):
        self.calls += 1
        if self.error is not None and self.calls > self.step:
            raise self.error
        losses = super().forward(images, targets)
        if self.calls == self.step:
            losses["loss_spots"] = losses["loss_spots"] * self.value
        return losses


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_losses_that_are_not_finite_stop_the_training(tmp_path, value):
    training = make_training(model=Broken(7, value))
    with pytest.raises(
        FloatingPointError, match=rf"loss_spots must be finite, got {value} at step 7"
    ):
        run(tmp_path, training, save_every=2)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5, 6]
    fresh = make_training()
    fresh.restore(tmp_path / "last.safetensors", description_of(fresh.model), {})
    assert fresh.step == 6


class Steep(Spots):
    """A finite loss whose gradient is not, in one step."""

    def forward(self, images, targets=None):
        losses = super().forward(images, targets)
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls == 4:
            losses["loss_spots"] = losses["loss_spots"] + (0 * self.body[0].weight).sum().sqrt()
        return losses


@pytest.mark.parametrize("save_every", [1, 100])
def test_weights_that_are_not_finite_are_not_kept(tmp_path, save_every):
    measure = Counter(0.1, 0.2, 0.3)
    with pytest.raises(FloatingPointError, match="weights must be finite, but are not after step"):
        run(tmp_path, make_training(model=Steep()), batch=5, save_every=save_every, measure=measure)
    assert len(measure.models) == 1  # of two steps each
    fresh = make_training()
    fresh.restore(tmp_path / "last.safetensors", description_of(fresh.model), {})
    assert fresh.step == (3 if save_every == 1 else 2)
    fresh.check_weights()


def test_losses_are_looked_at_before_other_errors_are_reported():
    training = make_training(model=Broken(3, math.nan, RuntimeError("boxes are NaN")))
    with pytest.raises(FloatingPointError, match=r"loss_spots .* at step 3"):
        train_one_epoch(training, make_loader(Squares(), Order(10, 2, last=9)), every=20)
    training = make_training(model=Broken(3, 1.0, RuntimeError("boxes are NaN")))
    with pytest.raises(RuntimeError, match="boxes are NaN"):
        train_one_epoch(training, make_loader(Squares(), Order(10, 2, last=9)), every=20)


def test_losses_are_looked_at_now_and_then():
    training, seen = make_training(model=Broken(8, math.nan)), []

    def after_step(flush):
        if training.step == 7:
            flush()
            assert [row["step"] for row in seen] == list(range(1, 8))

    with pytest.raises(FloatingPointError, match=r"loss_spots .* at step 8"):
        train_one_epoch(
            training,
            make_loader(Squares(), Order(10, 2, last=20)),
            every=5,
            on_row=seen.append,
            after_step=after_step,
        )
    assert (len(seen), training.step) == (7, 10)


def test_losses_keep_their_names(tmp_path):
    class Fickle(Spots):
        def forward(self, images, targets=None):
            losses = super().forward(images, targets)
            return losses if self.training_step.step < 2 else {"loss_spots": losses["loss_spots"]}

    training = make_training(model=Fickle())
    Fickle.training_step = training
    with pytest.raises(ValueError, match="losses of step 3 must be those of the step before"):
        run(tmp_path, training)


def test_a_loader_of_ones_own_suffices():
    batches = [tuple(zip(*[Squares()[k] for k in ids], strict=True)) for ids in ((0, 1), (2, 3))]
    training, seen = make_training(), []
    means = train_one_epoch(training, batches, on_row=seen.append)
    assert training.step == 2
    assert means["loss"] == pytest.approx((seen[0]["loss"] + seen[1]["loss"]) / 2)


def test_logs_are_cut_back(tmp_path):
    log = Log(tmp_path)
    for step in range(1, 5):
        log.write("train", {"step": step, "loss": step / 3})
    log.write("val", {"step": 4, "ap": 0.5})
    with pytest.raises(ValueError, match=r"rows of train must have the columns \['step', 'loss'\]"):
        log.write("train", {"step": 5, "other": 1.0})
    (tmp_path / "train.csv").open("a").write("5,0.3")  # killed while writing
    (tmp_path / "log.jsonl").open("a").write('{"kind": "tr')
    Log(tmp_path, 2)
    assert (tmp_path / "train.csv").read_text() == f"step,loss\n1,{1 / 3}\n2,{2 / 3}\n"
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]
    assert not (tmp_path / "val.csv").exists()
    Log(tmp_path)
    assert not list(tmp_path.iterdir())


def test_events_for_tensorboard(tmp_path):
    run(tmp_path, tensorboard=True)
    assert [path.name[:6] for path in (tmp_path / "tensorboard").iterdir()] == ["events"]


def test_without_a_terminal_there_are_lines():
    text = io.StringIO()
    with Display(3, 4, console=Console(file=text, width=40), seconds=0) as display:
        for step in (1, 2, 3):
            display.update({"step": step, "rate": 0.1, "loss": 1.5, "loss_rpn_box": 2.0})
        display.say("[x] done")
    lines = text.getvalue().splitlines()
    assert [line[:11] for line in lines] == [
        "step 1 of 3",
        "step 2 of 3",
        "step 3 of 3",
        "[x] done",
    ]
    assert "rate 0.1  loss 1.5 rpn_box 2" in lines[0]
    assert "images/s" in lines[0]


def test_models_of_any_optimizer_train(tmp_path):
    for name in ("sgd", "adamw"):
        model = Spots()
        optimizer = make_optimizer(model, name, decay_all=False)
        training = Training(model, optimizer, Schedule(0.01, 20, kind="cosine", warmup=2))
        run(tmp_path / name, training, steps=20, batch=10)
        losses = [row["loss"] for row in rows(tmp_path / name)]
        assert losses[-1] < losses[0]
