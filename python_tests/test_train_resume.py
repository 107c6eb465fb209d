"""A training that was killed, and went on, is the training that was not."""

import json
import os
import random
import signal
import time

import pytest
import torch
from rich.console import Console
from train_program import exit_codes, main, start
from training import Squares, description_of, make_training, same_state

from tinyops._files import MODEL, TRAINING, read_tensors
from tinyops.train import fit

OPTIONS = {"steps": 22, "batch": 4, "save_every": 4, "make": {"average_decay": 0.9, "clip": 5.0}}
LOGS = ("log.jsonl", "train.csv", "val.csv")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Files need not be on the disk for these tests, which a busy disk would slow down."""
    monkeypatch.setattr("tinyops._files._sync", lambda path: None)


def exit_code(folder, **options):
    return exit_codes(start(main, folder, OPTIONS | options))[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert exit_code(folder) == 0
    return folder


def assert_same_run(folder, other):
    for name in LOGS:
        assert (folder / name).read_bytes() == (other / name).read_bytes()
    for name in ("best.safetensors", "last.safetensors"):
        kind, tensors, facts = read_tensors(folder / name, [MODEL, TRAINING])
        other_kind, expected, other_facts = read_tensors(other / name, [MODEL, TRAINING])
        assert (kind, facts) == (other_kind, other_facts)
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(x, expected[key]) for key, x in tensors.items())


def test_the_whole_run_is_as_expected(whole):
    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in lines if row["kind"] == "train"] == list(range(1, 23))
    assert [row["step"] for row in lines if row["kind"] == "val"] == [
        3,
        5,
        8,
        10,
        13,
        15,
        18,
        20,
        22,
    ]
    assert len({row["loss"] for row in lines if row["kind"] == "train"}) == 22


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_from_outside_at_a_random_step(whole, tmp_path, seed):
    step = random.Random(seed).randrange(2, 20)
    log = tmp_path / "train.csv"
    (process,) = start(main, tmp_path, OPTIONS)
    deadline = time.monotonic() + 60
    while not log.exists() or log.read_text().count("\n") < step:
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    assert exit_codes([process]) == [-signal.SIGKILL]
    assert exit_code(tmp_path, workers=seed) == 0
    assert_same_run(tmp_path, whole)


def test_killed_again_and_again_in_the_middle_of_writes(whole, tmp_path):
    for kill in (["rows", 5], ["state", 1], ["step", 7], ["best", 1], ["state", 3], ["rows", 8]):
        assert exit_code(tmp_path, kill=kill) == -signal.SIGKILL, kill
        assert len(list(tmp_path.glob(".*.tmp"))) == (kill[0] in ("state", "best"))
    assert exit_code(tmp_path) == 0
    assert_same_run(tmp_path, whole)
    assert not list(tmp_path.glob(".*"))  # torn files had temporary names


class StoppedError(Exception):
    pass


def fitted(folder, stop=None, configuration=None, **options):
    names = ("parts", "resume", "every", "measure")
    fit_options = {name: options.pop(name) for name in names if name in options}
    training = make_training(steps=14, **options)
    update = training.update

    def until(parts):
        if training.step == stop:
            raise StoppedError
        return update(parts)

    training.update = until
    quiet, configuration = Console(quiet=True), configuration or {"batch": 4}
    description = description_of(training.model)
    try:
        fit(
            training, Squares(), folder, steps=14, batch=4, save_every=3, console=quiet,
            description=description, configuration=configuration, **fit_options,
        )  # fmt: skip
    except StoppedError:
        assert stop is not None
    return training


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "adamw"},
        {"amp": "fp16", "clip": 1.0},
        {"amp": "bf16", "channels_last": True},
        {"parts": 2, "average_decay": 0.5},
    ],
    ids=str,
)
def test_every_kind_of_state_comes_back(tmp_path, options):
    expected = fitted(tmp_path / "whole", **options)
    fitted(tmp_path / "cut", stop=8, **options)
    back = fitted(tmp_path / "cut", **options)
    assert same_state(back.model, expected.model)
    assert back.scaler.state_dict() == expected.scaler.state_dict()
    assert (tmp_path / "cut/train.csv").read_text() == (tmp_path / "whole/train.csv").read_text()


def test_losses_that_nobody_looked_at_yet_are_logged_before_a_state(tmp_path):
    fitted(tmp_path / "whole", every=20)
    fitted(tmp_path / "cut", stop=7, every=20)  # the state is that of step 6
    assert len((tmp_path / "cut/train.csv").read_text().splitlines()) == 7
    fitted(tmp_path / "cut", every=20)
    assert (tmp_path / "cut/train.csv").read_text() == (tmp_path / "whole/train.csv").read_text()


def test_the_best_value_comes_back(tmp_path):
    fitted(tmp_path, stop=4, measure=lambda model: {"ap50_tiny": 0.9})
    best = (tmp_path / "best.safetensors").read_bytes()
    training = fitted(tmp_path, measure=lambda model: {"ap50_tiny": 0.3})
    assert training.best == 0.9
    assert (tmp_path / "best.safetensors").read_bytes() == best


def test_a_complete_training_is_left_alone(tmp_path):
    fitted(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    training = fitted(tmp_path)
    assert training.step == 14
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_fresh_start_forgets_the_old_run(tmp_path):
    fitted(tmp_path / "a", stop=5)
    (tmp_path / "a/best.safetensors").write_text("old")
    fitted(tmp_path / "a", stop=2, resume=False)
    assert not (tmp_path / "a/best.safetensors").exists()
    assert not (tmp_path / "a/last.safetensors").exists()
    assert len((tmp_path / "a/train.csv").read_text().splitlines()) == 3


def test_another_configuration_is_refused(tmp_path):
    fitted(tmp_path, stop=5)
    before = (tmp_path / "train.csv").read_bytes()
    other = {"batch": 8, "data": {"tile": [64, 64]}}
    expected = (
        r"last\.safetensors: expected the same configuration, "
        r"but batch was 4 and is 8; data is \{'tile': \[64, 64\]\} and was absent$"
    )
    with pytest.raises(ValueError, match=expected):
        fitted(tmp_path, configuration=other)
    assert (tmp_path / "train.csv").read_bytes() == before


def test_another_model_is_refused(tmp_path):
    fitted(tmp_path, stop=5)
    training = make_training()
    training.model.recipe["width"] = 5
    with pytest.raises(ValueError, match=r"but arguments\.width was 4 and is 5"):
        training.restore(
            tmp_path / "last.safetensors", description_of(training.model), {"batch": 4}
        )


def test_a_state_cut_short_is_refused(tmp_path):
    fitted(tmp_path, stop=5)
    path = tmp_path / "last.safetensors"
    os.truncate(path, path.stat().st_size - 10)
    with pytest.raises(ValueError, match=r"last\.safetensors: expected a complete safetensors"):
        fitted(tmp_path)
