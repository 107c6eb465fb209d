"""The command `tinyops train`."""

import csv
import json
import sys
from dataclasses import replace

import pytest
import torch
import yaml

from tinyops.cli import main
from tinyops.cli.train import Train, parse
from tinyops.config import load_yaml
from tinyops.data import read, write
from tinyops.data.synth_write import write_tinysea
from tinyops.models import load
from tinyops.train import Training

MODEL = ["--model", "faster_rcnn_fpn_resnet_nano", "--override", "neck_channels=16"]
MODEL += ["--override", "head_channels=16", "proposals=[30, 30]", "samples=16", "rpn_samples=16"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_tinysea(folder, images=3, size=(96, 64), seed=4)  # two of them show people
    write_tinysea(folder, images=2, size=(96, 64), seed=2, split="val")
    return folder


def command(folder, out, *more):
    data = ["--annotations", f"{folder}/train.json", "--images", f"{folder}/train"]
    data += ["--val-annotations", f"{folder}/val.json", "--val-images", f"{folder}/val"]
    size = ["--tile", "64", "64", "--overlap", "16", "--batch", "2", "--steps", "4"]
    rest = ["--workers", "0", "--warmup", "2", "--device", "cpu", "--out", str(out)]
    return ["train", *data, *size, *rest, *MODEL, *more]


def lines(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_models_logs_and_its_configuration(folder, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(command(folder, out, "--ema", "0.9", "--amp", "bf16", "--clip", "10")) == 0
    text = capsys.readouterr().out
    assert "1 classes; 3 images, 6 tiles; 4 steps at a rate of 0.004 on cpu" in text
    assert [row["step"] for row in lines(out / "train.csv")] == ["1", "2", "3", "4"]
    assert [(row["step"], row["epoch"]) for row in lines(out / "val.csv")] == [
        ("3", "1"),
        ("4", "1"),
    ]
    assert all(0 <= float(row["ap50_tiny"]) <= 1 for row in lines(out / "val.csv"))
    settings = load_yaml(Train, out / "config.yaml")
    assert (settings.steps, settings.ema, settings.tile) == (4, 0.9, (64, 64))
    assert settings.override["proposals"] == [30, 30]
    assert settings.override["neck_channels"] == 16
    model = load(out)
    assert model.categories == ("person",)
    assert model.recipe["head_channels"] == 16
    assert set(model([torch.rand(3, 64, 64)])[0]) == {"boxes", "scores", "labels"}


def test_sets_in_other_formats_train_the_same_model(folder, tmp_path, capsys):
    runs = []
    for name in ("coco", "tt100k"):  # which keeps every bit of a box
        sets = {}
        for split in ("train", "val"):
            data = read(folder / f"{split}.json", images=folder / split)
            data = replace(data, images=tuple(x.select(~x.ignore) for x in data.images))
            sets[split] = tmp_path / (f"{split}.json" if name == "coco" else f"tt-{split}")
            write(data, sets[split], name, split=split, images="copy")
        given = ["--annotations", str(sets["train"]), "--val-annotations", str(sets["val"])]
        if name == "coco":
            given += ["--images", f"{tmp_path}/train", "--val-images", f"{tmp_path}/val"]
        out = tmp_path / f"run-{name}"
        rest = command(folder, out)[9:]
        assert main(["train", *given, *rest]) == 0
        runs.append((out / "val.csv").read_bytes())
    assert runs[0] == runs[1]
    assert main(["train", *given[:2], "--format", "coco", *rest]) == 2
    assert "tinyops train: " in capsys.readouterr().err


def test_coco_needs_a_folder_of_images(folder, tmp_path, capsys):
    given = ["train", "--annotations", f"{folder}/train.json", "--out", str(tmp_path / "run")]
    assert main(given) == 2
    message = f"tinyops train: {folder}/train.json: it says not where its images are; give images\n"
    assert capsys.readouterr().err == message


def test_a_run_repeats_from_its_configuration(folder, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(command(folder, first, "--steps", "3", "--augment", "sspnet")) == 0
    config = ["train", "--config", str(first / "config.yaml"), "--out", str(second)]
    assert main(config) == 0
    assert (first / "log.jsonl").read_bytes() == (second / "log.jsonl").read_bytes()
    assert main([*config, "--seed", "1", "--fresh"]) == 0
    assert (first / "log.jsonl").read_bytes() != (second / "log.jsonl").read_bytes()
    assert load_yaml(Train, second / "config.yaml").fresh is False


def test_another_configuration_does_not_go_on(folder, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(command(folder, out, "--steps", "1")) == 0
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert main(command(folder, out, "--steps", "1", "--lr", "0.5", "--workers", "0")) == 2
    assert "the same configuration, but lr was None and is 0.5\n" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_the_command_line_wins(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("annotations: a\nlr: 1e-3\noverride: {neck_channels: 8, dice: [1, x]}\n")
    options = ["--config", str(path), "--images", "b", "--out", "c"]
    more = ["--lr", "0.5", "--override", "neck_channels=9", "--override", "name=1e-2", "on=null"]
    settings = parse([*options, *more])
    assert (str(settings.annotations), settings.lr, str(settings.out)) == ("a", 0.5, "c")
    expected = {"neck_channels": 9, "dice": [1, "x"], "name": 0.01, "on": None}
    assert settings.override == expected
    assert parse(options).lr == 1e-3
    assert parse(options).override == {"neck_channels": 8, "dice": [1, "x"]}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--annotations", "no.json"], "no.json"),
        (["--images", "nowhere"], "3 image files are missing, the first is nowhere/"),
        (["--val-annotations", "no.json"], "no.json"),
        (["--model", "faster_rcnn_fpn_resnet_nan"], "such as faster_rcnn_fpn_resnet_nano"),
        (["--override", "neck_chanels=3"], "neck_chanels"),
        (["--override", "neck_channels"], "override must be NAME=VALUE, got 'neck_channels'"),
        (["--override", "neck_channels=-3"], "got {'neck_channels': -3"),
        (["--override", "num_classes=2"], "num_classes"),
        (["--weights", "no.pth"], "no.pth"),
        (["--epochs", "inf"], "epochs must be above 0 and finite, got inf"),
        (["--best", "ap50_reasonable"], "best is ap50_reasonable, but there is no object of its"),
        (["--tile", "10", "10"], "overlap must be in [0, 10), got 16"),
        (["--batch", "0"], "batch must be at least 1, got 0"),
        (["--batch", "3", "--parts", "2"], "batch must be a multiple of parts, 2, got 3"),
        (["--lr", "-1"], "lr must be above 0 and finite, got -1"),
        (["--ema", "1"], "ema must be in [0, 1), got 1"),
        (["--best", "map"], "best must be one of ap25_all, ap25_tiny"),
        (["--device", "gpu"], "device must be auto, cpu, cuda or cuda:<k>, got 'gpu'"),
        (["--device", "mps"], "device must be auto, cpu, cuda or cuda:<k>, got 'mps'"),
        (["--device", "cuda:99"], "device must be here, got 'cuda:99'"),
        (["--config", "no.yaml"], "no.yaml"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(folder, tmp_path, capsys, more, message):
    assert main(command(folder, tmp_path / "run", *more)) == 2
    error = capsys.readouterr().err
    assert error.startswith("tinyops train: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_mistakes_in_the_file_are_one_line(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text("lr: fast")
    assert main(["train", "--config", str(path)]) == 2
    expected = f"tinyops train: {path}: lr must be float or null, got str 'fast'\n"
    assert capsys.readouterr().err == expected


def test_other_categories_in_validation_are_refused(folder, tmp_path, capsys):
    table = json.loads((folder / "val.json").read_text())
    table["categories"] = [{"id": 1, "name": "boat"}]
    (tmp_path / "val.json").write_text(json.dumps(table))
    more = ["--val-annotations", str(tmp_path / "val.json")]
    assert main(command(folder, tmp_path / "run", *more)) == 2
    assert "got ('boat',)" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_ends_the_command(folder, tmp_path, capsys):
    arguments = command(folder, tmp_path / "run", "--lr", "1e20", "--warmup", "0", "--steps", "9")
    assert main(arguments) == 1
    assert "must be finite, got" in capsys.readouterr().err


def test_boxes_without_area_can_be_left_out(folder, tmp_path, capsys):
    table = json.loads((folder / "train.json").read_text())
    table["annotations"][0]["bbox"][2] = 0
    (tmp_path / "train.json").write_text(json.dumps(table))
    more = ["--annotations", str(tmp_path / "train.json"), "--steps", "1"]
    assert main(command(folder, tmp_path / "run", *more)) == 2
    assert "annotations[0]: bbox has no area" in capsys.readouterr().err
    assert main(command(folder, tmp_path / "run", *more, "--drop-empty-boxes")) == 0


def test_images_of_another_size_are_found_before_the_training(folder, tmp_path, capsys):
    table = json.loads((folder / "val.json").read_text())
    table["images"][1]["width"] += 1
    (tmp_path / "val.json").write_text(json.dumps(table))
    more = ["--val-annotations", str(tmp_path / "val.json")]
    assert main(command(folder, tmp_path / "run", *more)) == 2
    assert "must be 97x64 px as its annotations say, got 96x64" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_missing_arguments_are_named(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train"])
    assert stopped.value.code == 2
    assert "--annotations" in capsys.readouterr().err


def test_help_explains_every_setting(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tinyops", "train", "--help"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for word in (
        "--config FILE",
        "--override NAME=VALUE",
        "--val-every",
        "Epochs between",
        "torchrun",
    ):
        assert word in text


def test_the_configuration_is_plain_yaml(tmp_path):
    settings = parse(
        ["--annotations", "a", "--images", "b", "--out", "c", "--override", "x=[1, 2]"]
    )
    from tinyops.config import dump_yaml

    dump_yaml(settings, tmp_path / "a.yaml")
    assert yaml.safe_load((tmp_path / "a.yaml").read_text())["override"] == {"x": [1, 2]}
    assert load_yaml(Train, tmp_path / "a.yaml") == settings


def test_a_training_begins_with_another_model(folder, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(command(folder, first)) == 0
    assert main(command(folder, second, "--start", str(first), "--lr", "1e-9")) == 0
    assert "first: took 90 of its 90 tensors; the model has 90" in capsys.readouterr().out
    one, other = load(first), load(second / "last.safetensors")
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_start_without_a_fitting_tensor_is_refused(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tinyops.cli.train.load", lambda path: torch.nn.Linear(2, 3))
    assert main(command(folder, tmp_path, "--start", "other")) == 2
    assert (
        "start must have tensors that fit the model, got none in other" in capsys.readouterr().err
    )


PHASED = ["--model", "faster_rcnn_efpn_resnet_nano", "--phase-steps"]


def test_all_phases_run_in_a_row_and_the_last_is_the_result(folder, tmp_path, capsys):
    assert main(command(folder, tmp_path, *PHASED, "3", "1", "2")) == 0
    text = capsys.readouterr().out
    assert "6 steps at a rate" in text
    for line in (
        "phase 1 of 3: detector, 3 steps",
        "phase 2 of 3: distillation, 1 steps",
        "phase 3 of 3: refinement, 2 steps",
    ):
        assert line in text
    assert [len(lines(p / "train.csv")) for p in (tmp_path / "phase1_detector", tmp_path)] == [3, 2]
    model, base = load(tmp_path), load(tmp_path / "phase1_detector")
    assert (model.phase, base.phase) == ("refinement", "detector")
    for (name, a), b in zip(
        model.backbone.named_parameters(), base.backbone.parameters(), strict=True
    ):
        assert torch.equal(a, b), name


def test_an_interrupted_phase_goes_on(folder, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    arguments = [*PHASED, "2", "4", "2", "--save-every", "1"]
    assert main(command(folder, whole, *arguments)) == 0
    with pytest.MonkeyPatch.context() as patch:
        update = Training.update

        def stop(self, parts):
            if self.model.phase == "distillation" and self.step == 2:
                raise KeyboardInterrupt
            return update(self, parts)

        patch.setattr(Training, "update", stop)
        assert main(command(folder, cut, *arguments)) == 130
    assert not (cut / "last.safetensors").exists()
    assert main(command(folder, cut, *arguments)) == 0
    one, other = load(whole), load(cut)
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_a_phase_that_the_start_has_behind_it_is_left_out(folder, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(command(folder, first)) == 0
    more = [*PHASED, "0", "1", "1", "--start", str(first)]
    assert main(command(folder, second, *more)) == 0
    assert not (second / "phase1_detector").exists()
    a, b = load(first).rpn, load(second).rpn
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("steps", [("1", "1"), ("1", "1", "0"), ("-1", "1", "1")])
def test_phase_steps_that_do_not_fit_are_refused(folder, tmp_path, steps, capsys):
    assert main(command(folder, tmp_path, *PHASED, *steps)) == 2
    assert "phase_steps must be" in capsys.readouterr().err
