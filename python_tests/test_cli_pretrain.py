"""The command `tinyops pretrain`, and a detector trained with what it leaves."""

import csv
import json
import sys

import numpy as np
import pytest
import torch
from small_image_files import NAMES, archive, write_cifar, write_cifar_binary, write_imagenet32
from train_program import exit_codes, start

from tinyops._files import TRAINING, read_tensors, write_tensors
from tinyops.cli import main
from tinyops.cli.pretrain import Pretrain
from tinyops.config import load_yaml
from tinyops.data.cifar100 import read_cifar100
from tinyops.data.small_images import SmallImages
from tinyops.data.synth_write import write_tinysea
from tinyops.models import create_classifier, load
from tinyops.train import Schedule, Training, accuracy

THIN = "widths=[8, 8, 8, 8]"
FAST = ["--backbone", "resnet18", "--override", THIN, "--batch", "8", "--steps", "10"]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Files need not be on the disk for these tests, which a busy disk would slow down."""
    monkeypatch.setattr("tinyops._files._sync", lambda path: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_cifar(tmp_path_factory.mktemp("cifar"))


def command(data, out, *more):
    rest = ["--workers", "0", "--warmup", "3", "--device", "cpu"]
    return ["pretrain", "--data", str(data), "--out", str(out), *rest, *more]


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """A run of a network that learns in seconds."""
    out = tmp_path_factory.mktemp("run")
    learn = ["--backbone", "bh_resnet_nano", "--batch", "16", "--steps", "60", "--val-every", "5"]
    rate = ["--optimizer", "adamw", "--lr", "2e-3"]
    assert main(command(folder, out, *learn, *rate)) == 0
    return out


def test_it_learns_far_above_chance(trained, folder):
    found = rows(trained / "val.csv")
    assert [row["epoch"] for row in found] == ["5", "10", "15"]
    assert float(found[-1]["top1"]) > 0.9  # 4 kinds: chance is 0.25
    assert float(found[-1]["top5"]) == 1
    losses = [float(row["cross_entropy"]) for row in rows(trained / "train.csv")]
    assert losses[0] > 4  # about log(100)
    assert sum(losses[-5:]) / 5 < 0.5
    model = load(trained, build=create_classifier)
    assert model.categories == tuple(NAMES)
    best = max(float(row["top1"]) for row in found)
    assert accuracy(model, read_cifar100(folder, "val"))["top1"] == best


def test_a_detector_begins_with_the_backbone_and_trains(trained, tmp_path):
    write_tinysea(tmp_path / "data", images=3, size=(96, 64), seed=4)
    data = ["--annotations", f"{tmp_path}/data/train.json", "--images", f"{tmp_path}/data/train"]
    size = ["--tile", "64", "64", "--overlap", "16", "--batch", "2", "--steps", "1"]
    size += ["--workers", "0", "--device", "cpu", "--warmup", "0"]
    model = ["--model", "faster_rcnn_fpn_bh_resnet_nano", "--override", "neck_channels=16"]
    model += ["head_channels=16", "proposals=[30, 30]", "samples=16", "rpn_samples=16"]

    def run(out, *more):
        code = main(["train", *data, *size, *model, "--out", str(tmp_path / out), *more])
        return code, load(tmp_path / out).backbone.state_dict() if code == 0 else None

    source = load(trained, build=create_classifier).backbone.state_dict()
    code, still = run("still", "--weights", str(trained), "--lr", "1e-30")
    assert code == 0
    assert still.keys() == source.keys()
    for name, x in still.items():
        torch.testing.assert_close(x, source[name], rtol=0, atol=1e-20)
    state = ["--weights", str(trained / "last.safetensors")]
    code, moved = run("moved", *state, "--lr", "0.01", "--steps", "15")
    assert code == 0
    losses = [float(row["loss"]) for row in rows(tmp_path / "moved" / "train.csv")]
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    changed = [name for name, x in moved.items() if not torch.equal(x, source[name])]
    assert len(changed) == len(source)
    assert not torch.equal(run("alone", "--lr", "1e-30")[1]["conv1.weight"], source["conv1.weight"])


def test_what_was_learnt_is_in_the_backbone(trained, folder, tmp_path):
    """A new linear layer on frozen features tells the images apart, on random ones it does not."""
    probe = ["--backbone", "bh_resnet_nano", "--override", "frozen_stages=4", "--batch", "16"]
    probe += [
        "--optimizer",
        "adamw",
        "--lr",
        "1e-2",
        "--warmup",
        "0",
        "--steps",
        "20",
        "--milestones",
    ]
    found = []
    for out, more in (("learnt", ["--weights", str(trained)]), ("random", [])):
        assert main(command(folder, tmp_path / out, *probe, *more)) == 0
        found.append(float(rows(tmp_path / out / "val.csv")[-1]["cross_entropy"]))
    assert found[0] < 0.3
    assert found[1] > 0.8  # log(4), which is 1.39, is chance


def test_weights_of_another_backbone_are_one_line(trained, tmp_path, capsys):
    write_tinysea(tmp_path / "data", images=1, size=(64, 64), seed=4)
    data = ["--annotations", f"{tmp_path}/data/train.json", "--images", f"{tmp_path}/data/train"]
    model = ["--model", "faster_rcnn_fpn_resnet_nano", "--weights", str(trained)]
    assert main(["train", *data, *model, "--tile", "64", "64", "--out", f"{tmp_path}/run"]) == 2
    error = capsys.readouterr().err
    assert "best.safetensors: expected a classifier with resnet_nano, got classifier_bh_" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: archive(write_cifar(folder), folder / "cifar.tar.gz"),
        write_cifar_binary,
        lambda folder: write_imagenet32(folder),
        lambda folder: write_imagenet32(folder, write="savez"),
    ],
    ids=["archive", "binary", "pickles", "npz"],
)
def test_every_edition_trains(tmp_path, write, capsys):
    data = write(tmp_path / "data")
    is_big = (tmp_path / "data").glob("train_data_batch*")
    more = ["--format", "imagenet32"] if list(is_big) else []
    assert main(command(data, tmp_path / "run", *FAST, "--steps", "2", *more)) == 0
    classes, images = (1000, 80) if more else (100, 64)
    text = capsys.readouterr().out
    assert f"{classes} classes; {images} images, 24 for validation; 2 steps at a rate" in text
    assert len(rows(tmp_path / "run" / "train.csv")) == 2


@pytest.mark.parametrize(
    "more",
    [
        ["--ema", "0.9", "--clip", "5"],
        ["--amp", "bf16", "--optimizer", "adamw", "--schedule", "cosine"],
        ["--amp", "fp16", "--parts", "2", "--channels-last"],
    ],
    ids=" ".join,
)
def test_an_interrupted_run_goes_on_bit_by_bit(folder, tmp_path, more, capsys):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    arguments = [*FAST, "--save-every", "3", *more]
    assert main(command(folder, whole, *arguments)) == 0
    with pytest.MonkeyPatch.context() as patch:
        update = Training.update

        def stop(self, parts):
            if self.step == 5:
                raise KeyboardInterrupt
            return update(self, parts)

        patch.setattr(Training, "update", stop)
        assert main(command(folder, cut, *arguments)) == 130
    assert "goes on" in capsys.readouterr().err
    _, tensors, facts = read_tensors(cut / "last.safetensors", [TRAINING])
    assert facts["step"] == 3
    assert main(command(folder, cut, *arguments, "--workers", "1")) == 0
    for name in ("log.jsonl", "train.csv", "val.csv"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    _, tensors, facts = read_tensors(cut / "last.safetensors", [TRAINING])
    _, expected, other = read_tensors(whole / "last.safetensors", [TRAINING])
    assert facts == other
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(x, expected[name]) for name, x in tensors.items())


def run_command(*arguments):
    sys.exit(main(arguments))


def test_two_processes_train_as_one(folder, tmp_path):
    for processes in (1, 2):
        arguments = command(folder, tmp_path / str(processes), *FAST, "--steps", "3")
        codes = exit_codes(start(run_command, *arguments, processes=processes))
        assert codes == [0] * processes
    for name in ("train.csv", "val.csv"):
        one, two = (rows(tmp_path / n / name) for n in "12")
        assert len(one) == len(two) > 0
        for a, b in zip(one, two, strict=True):
            values = [float(x) for x in b.values()]
            assert values == pytest.approx([float(x) for x in a.values()], rel=1e-3)
    _, one, _ = read_tensors(tmp_path / "1/last.safetensors", [TRAINING])
    _, two, _ = read_tensors(tmp_path / "2/last.safetensors", [TRAINING])
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-3, atol=2e-4)


def test_a_run_repeats_from_its_configuration(folder, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(command(folder, first, *FAST, "--steps", "2")) == 0
    config = ["pretrain", "--config", str(first / "config.yaml"), "--out", str(second)]
    assert main(config) == 0
    assert (first / "log.jsonl").read_bytes() == (second / "log.jsonl").read_bytes()
    assert load_yaml(Pretrain, second / "config.yaml").override == {"widths": [8, 8, 8, 8]}
    assert main([*config, "--augment", "none", "--fresh"]) == 0
    assert (first / "log.jsonl").read_bytes() != (second / "log.jsonl").read_bytes()


def test_a_training_begins_with_another_backbone(folder, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(command(folder, first, *FAST, "--steps", "1")) == 0
    more = ["--weights", str(first), "--lr", "1e-30", "--steps", "1"]
    assert main(command(folder, second, *FAST, *more)) == 0
    one, other = (load(x, build=create_classifier) for x in (first, second))
    for (name, a), b in zip(
        one.backbone.named_parameters(), other.backbone.parameters(), strict=True
    ):
        assert torch.equal(a, b), name
    assert not torch.equal(one.backbone.bn1.running_mean, other.backbone.bn1.running_mean)


def test_another_configuration_does_not_go_on(folder, tmp_path, capsys):
    assert main(command(folder, tmp_path, *FAST, "--steps", "1")) == 0
    assert main(command(folder, tmp_path, *FAST, "--steps", "1", "--batch", "4")) == 2
    assert "the same configuration, but batch was 8 and is 4\n" in capsys.readouterr().err


def test_a_run_from_before_a_setting_goes_on_without_it(folder, tmp_path, capsys):
    assert main(command(folder, tmp_path, *FAST, "--steps", "1")) == 0
    path = tmp_path / "last.safetensors"
    _, tensors, facts = read_tensors(path, [TRAINING])
    for name in ("channels_last", "weights"):
        del facts["configuration"][name]
    write_tensors(path, TRAINING, tensors, facts)
    assert main(command(folder, tmp_path, *FAST, "--steps", "1")) == 0
    assert "resumed after step 1 of 1" in capsys.readouterr().out
    assert main(command(folder, tmp_path, *FAST, "--steps", "1", "--channels-last")) == 2
    assert "but channels_last was False and is True\n" in capsys.readouterr().err


def test_defaults_are_those_of_the_format(folder, tmp_path, capsys, monkeypatch):
    def fit(training, *_, **options):
        seen.update(options, schedule=training.schedule)

    monkeypatch.setattr("tinyops.cli.pretrain.fit", fit)
    nano = ["--backbone", "resnet_nano"]
    seen = {}
    assert main(command(folder, tmp_path / "run", *nano)) == 0
    assert seen["steps"] == 200 * 64 // 128
    assert seen["schedule"] == Schedule(0.1, 100, "steps", (30, 60, 80), 0.2, warmup=3)
    data = write_imagenet32(tmp_path / "data")
    assert main(command(data, tmp_path / "big", *nano, "--format", "imagenet32")) == 0
    assert seen["steps"] == 40 * 80 // 128
    assert "25 steps at a rate of 0.1 on cpu" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data", "nowhere"], "nowhere: expected a folder or an archive of CIFAR-100"),
        (["--format", "imagenet32"], "expected train_data_batch_1 or train_data_batch_1.npz in it"),
        (["--backbone", "resnet_nan"], "and one of resnet18, resnet50, "),
        (["--override", "width=3"], "got 'width'"),
        (["--override", "widths=[-3, 8, 8, 8]"], "got {'widths': [-3, 8, 8, 8]}"),
        (["--weights", "no.pth"], "no.pth"),
        (["--batch", "1"], "batch must be 2 or more for each of the parts, got 1"),
        (["--batch", "8", "--parts", "8"], "batch must be 2 or more for each of the parts, got 8"),
        (["--backbone", "timm:vit_tiny_patch16_224"], "on 32 x 32 pixels, got {}: Input height"),
        (["--backbone", "timm:nothing"], "timm cannot make 'nothing'"),
        (["--batch", "6", "--parts", "4"], "batch must be a multiple of parts, 4, got 6"),
        (["--epochs", "inf"], "epochs must be above 0 and finite, got inf"),
        (["--milestones", "0.5", "2"], "milestones must be in (0, 1], got (0.5, 2.0)"),
        (["--ema", "1"], "ema must be in [0, 1), got 1"),
        (["--seed", "-1"], "seed must be at least 0, got -1"),
        (["--device", "gpu"], "device must be auto, cpu, cuda or cuda:<k>, got 'gpu'"),
        (["--config", "no.yaml"], "no.yaml"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(folder, tmp_path, capsys, more, message):
    assert main(command(folder, tmp_path / "run", *more)) == 2
    error = capsys.readouterr().err
    assert error.startswith("tinyops pretrain: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_disk_that_does_not_take_a_state_is_one_line(folder, tmp_path, capsys, monkeypatch):
    def full(*x):
        raise OSError("No space left on device")

    monkeypatch.setattr("tinyops._files.save_file", full)
    assert main(command(folder, tmp_path, *FAST, "--steps", "1")) == 1
    assert capsys.readouterr().err == "tinyops pretrain: No space left on device\n"
    assert {path.name for path in tmp_path.iterdir()} >= {"config.yaml", "log.jsonl"}
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".safetensors", ".tmp")]


def test_a_loss_that_is_not_finite_ends_the_command(folder, tmp_path, capsys):
    assert main(command(folder, tmp_path, *FAST, "--lr", "1e30", "--warmup", "0")) == 1
    assert "must be finite, got" in capsys.readouterr().err


def test_the_top_five_of_images_that_are_shared_unevenly():
    class Known(torch.nn.Module):
        """Ranks class 0 first, then 1, and so on."""

        def forward(self, images):
            return -torch.arange(10.0).expand(len(images), 10)

    labels = np.array([0, 0, 3, 4, 5, 9, 0])
    data = SmallImages((np.zeros((7, 3, 32, 32), np.uint8),), labels, tuple("abcdefghij"))
    for batch in (1, 3, 100):
        found = accuracy(Known(), data, batch=batch)
        assert found["top1"] == 3 / 7
        assert found["top5"] == 5 / 7
        loss = torch.nn.functional.cross_entropy(Known()(labels).double(), torch.tensor(labels))
        assert found["cross_entropy"] == pytest.approx(float(loss), rel=1e-12)


def test_the_log_names_what_was_measured(trained):
    last = json.loads((trained / "log.jsonl").read_text().splitlines()[-1])
    assert list(last) == ["kind", "step", "epoch", "top1", "top5", "cross_entropy"]
