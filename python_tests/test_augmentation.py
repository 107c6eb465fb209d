"""Copy-paste and Scale Match as settings of `tinyops train`."""

import json
from dataclasses import replace

import pytest
import torch
from test_cli_train import command

from tinyops.cli import main
from tinyops.cli.augmentation import make_transform
from tinyops.cli.train_settings import Train
from tinyops.config import load_yaml
from tinyops.data import read
from tinyops.data.dataset import CocoTiles
from tinyops.data.synth_write import write_tinysea


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_tinysea(folder, images=3, size=(256, 192), seed=4)
    write_tinysea(folder, images=2, size=(256, 192), seed=2, split="val")
    return folder


@pytest.fixture(scope="module")
def data(folder):
    return read(folder / "train.json", images=folder / "train")


def tiles(data, settings):
    transform = make_transform(settings, data)
    return CocoTiles(data, tile=(128, 96), overlap=16, transform=transform, seed=settings.seed)


def settings(folder, **changes):
    base = Train(folder / "train.json", folder / "out", folder / "train", augment="none")
    return replace(base, **changes)


def test_nothing_is_asked_for(folder, data):
    assert make_transform(settings(folder), data) is None


def test_copies_are_added_from_the_tile_and_from_other_images(folder, data):
    plain = tiles(data, settings(folder))
    own = tiles(data, settings(folder, copy_paste=2))
    other = tiles(data, settings(folder, copy_paste_bank=3))
    counts = torch.tensor(
        [[len(x[k][1]["labels"]) for k in range(len(x))] for x in (plain, own, other)]
    )
    assert (counts[1] >= counts[0]).all()
    assert counts[1].sum() > 1.3 * counts[0].sum()
    added = counts[2] - counts[0]
    assert added.max() == 3
    assert added.min() >= 0
    assert (counts[1] == counts[0])[counts[0] == 0].all()  # nothing to be copied


@pytest.mark.parametrize("monotone", [False, True])
def test_tiles_get_the_sizes_of_another_set(folder, data, monotone):
    matched = tiles(data, settings(folder, scale_match=folder / "val.json", monotone=monotone))
    shapes = {matched[k][0].shape for k in range(len(matched))}
    assert len(shapes) > 1
    assert all(height <= 96 and width <= 128 for _, height, width in shapes)


def test_samples_are_a_function_of_seed_epoch_and_index(folder, data):
    options = {"copy_paste": 1, "copy_paste_bank": 2, "scale_match": folder / "val.json"}
    first, again = (tiles(data, settings(folder, seed=3, **options)) for _ in range(2))
    changed = 0
    for index in range(len(first)):
        image, target = first.sample(index, 5)
        same, wanted = again.sample(index, 5)
        assert torch.equal(image, same)
        assert all(torch.equal(target[name], wanted[name]) for name in target)
        other = first.sample(index, 6)[0]
        changed += image.shape != other.shape or not torch.equal(image, other)
    assert changed > len(first) / 2


def test_a_training_runs_with_them(folder, tmp_path):
    more = ["--copy-paste", "1", "--copy-paste-bank", "2", "--scale-match", folder / "val.json"]
    more += ["--repeat-small", "3", "--steps", "2"]
    assert main(command(folder, tmp_path / "run", *map(str, more))) == 0
    found = load_yaml(Train, tmp_path / "run" / "config.yaml")
    assert found.repeat_small == 3
    assert (found.copy_paste, found.copy_paste_bank) == (1, 2)
    assert found.scale_match == folder / "val.json"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--repeat-small", "0"], "repeat_small must be at least 1, got 0"),
        (["--copy-paste", "-1"], "copy_paste must be at least 0, got -1"),
        (
            ["--scale-match", "{}/one.json"],
            "one.json: sizes must be enough for tails of 0.02, got 1",
        ),
        (["--scale-match", "no.json"], "no.json: expected a data set, found nothing"),
        (["--augment", "sspnet", "--scale-match", "{}/val.json"], "augment must not be sspnet"),
    ],
)
def test_mistakes_are_one_line(folder, tmp_path, capsys, more, message):
    content = json.loads((folder / "val.json").read_text())
    content["annotations"] = content["annotations"][:1]
    (folder / "one.json").write_text(json.dumps(content))
    assert main(command(folder, tmp_path / "run", *(word.format(folder) for word in more))) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
