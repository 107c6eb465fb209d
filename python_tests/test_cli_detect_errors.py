"""What `tinyops detect` says when something is wrong, and that the rest goes on."""

import re
import resource
from pathlib import Path

import pytest
import torch
from detect_program import OPTIONS, Bright, boxes_of, detect, draw_image, use_quick_model
from PIL import Image

from tinyops.cli import main


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    use_quick_model(monkeypatch.setattr)


@pytest.fixture
def images(tmp_path):
    for k in range(3):
        draw_image(tmp_path / f"images/{k}.png", k)
    return tmp_path / "images"


def test_bad_files_are_one_line_each_and_the_rest_goes_on(images, tmp_path, capsys):
    Image.open(images / "0.png").save(images / "0.jpg", quality=95)
    for name in ("0.jpg", "0.png"):
        (images / f"cut_{name}").write_bytes((images / name).read_bytes()[:100])
    (images / "empty.png").touch()
    (images / "text.png").write_text("no image")
    (images / "gone.png").symlink_to("nowhere")
    (images / "folder.png").mkdir()
    Image.new("RGB", (1, 1)).save(images / "one_px.png")
    for mode in ("1", "L", "P", "RGBA", "CMYK", "I;16"):
        suffix = "tif" if mode in ("CMYK", "I;16") else "png"
        Image.new(mode, (40, 30)).save(images / f"mode_{mode.replace(';', '')}.{suffix}")
    (images / "notes.txt").write_text("not looked at")
    assert detect(images, "--out", tmp_path / "out") == 1
    reasons = {
        "cut_0.jpg": ".+",
        "cut_0.png": ".+",
        "empty.png": "the file is empty",
        "gone.png": "No such file or directory",
        "text.png": "no image of a kind that can be decoded",
    }
    captured = capsys.readouterr()
    errors = captured.err.splitlines()
    assert len(errors) == len(reasons)
    for name, reason in reasons.items():
        path = re.escape(str(images / name))
        line = f"tinyops detect: (cannot read )?{path}: {reason}"
        assert sum(bool(re.fullmatch(line, error)) for error in errors) == 1, name
    rows = (tmp_path / "out/failures.csv").read_text().splitlines()
    assert [row.partition(",")[0] for row in rows[1:]] == [f"{images}/{name}" for name in reasons]
    good = {path.name for path in images.iterdir()} - {*reasons, "notes.txt", "folder.png"}
    assert {Path(name).name for name in boxes_of(tmp_path / "out")} == good
    assert len(list((tmp_path / "out/pictures").iterdir())) == len(good) == 11
    assert captured.out.endswith("; 5 images failed, see failures.csv\n")


def test_an_image_in_which_the_model_finds_no_numbers_is_one_line(
    images, tmp_path, capsys, monkeypatch
):
    def broken(self, batch):
        found = forward(self, batch)
        if batch[0].shape[2] < 32:
            found[0]["boxes"] = torch.full((1, 4), float("nan"))
            found[0]["scores"], found[0]["labels"] = torch.ones(1), torch.ones(1).long()
        return found

    forward = Bright.forward
    monkeypatch.setattr(Bright, "forward", broken)
    draw_image(images / "narrow.png", 1, (20, 30))
    assert detect(images, "--out", tmp_path / "out") == 1
    expected = f"{images}/narrow.png: model must give finite boxes, got NaN or infinity"
    assert capsys.readouterr().err == f"tinyops detect: {expected}\n"
    assert (tmp_path / "out/failures.csv").read_text().count(expected) == 1
    assert len(boxes_of(tmp_path / "out")) == 3


def test_when_all_images_fail_the_files_are_there_and_empty(images, tmp_path, capsys):
    (images / "text.png").write_text("no image")
    assert detect(images / "text.png", "--out", tmp_path / "out") == 1
    assert boxes_of(tmp_path / "out") == {}
    expected = "0 images, 0 tiles, 0 objects; 1 images failed, see failures.csv\n"
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--overlap", "32"], "overlap must be one or two numbers from 0 to less than tile"),
        (["--batch", "0"], "batch must be at least 1, got 0"),
        (["--scales", "0"], "scales must be positive, got [0.0]"),
        (
            ["--scales", "1", "1"],
            "scales and flips must be given, each of them once, got",
        ),
        (["--min-score", "2"], "min_score must be in [0, 1], got 2.0"),
        (["--stretch", "5", "5"], "stretch must be (low, high) with low < high, got (5.0, 5.0)"),
        (["--bands", "1", "2"], "bands must be one or three numbers from 1, got (1, 2)"),
        (["--bands", "0"], "bands must be one or three numbers from 1, got (0,)"),
        (["--insets", "-1"], "insets must be at least 0, got -1"),
        (["--device", "gpu"], "device must be auto, cpu, cuda or cuda:<k>, got 'gpu'"),
        (["--heat"], "heat must be off for a model without attention (SSPNet has it)"),
        (["--maps"], "maps must be off for a model without any (SSPNet and SR-TOD have)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(images, tmp_path, capsys, more, message):
    words = ["detect", str(images), "--out", str(tmp_path / "out"), *OPTIONS, *more]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"tinyops detect: {message}")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_files_that_are_not_there_are_one_line(images, tmp_path, capsys, monkeypatch):
    monkeypatch.undo()
    for model in (tmp_path / "none.safetensors", images / "0.png"):
        assert detect(images, "--out", tmp_path / "out", "--model", model) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"tinyops detect: {model}: expected a ")
        assert error.count("\n") == 1
    assert detect(images, "no/*.png", "--out", tmp_path / "out") == 2
    expected = "tinyops detect: no/*.png: there is no such file, or no image in it\n"
    assert capsys.readouterr().err == expected
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_one_line(images, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert detect(images, "--out", tmp_path / "file/out") == 2
    expected = f"tinyops detect: {tmp_path}/file/out: cannot be written: Not a directory\n"
    assert capsys.readouterr().err == expected


def test_a_full_disk_is_one_line_and_the_run_goes_on_later(images, tmp_path, capsys):
    draw_image(images / "big.png", 1, (300, 300))
    words = [images, "--out", tmp_path / "out", "--no-picture"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        code = detect(*words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    error = capsys.readouterr().err
    assert code == 1
    assert re.fullmatch(
        rf"tinyops detect: {tmp_path}/out: cannot be written: .*File too.*\n", error
    )
    assert {path.name for path in (tmp_path / "out").iterdir()} == {".parts", "settings.yaml"}
    assert detect(*words) == 0


def test_too_little_memory_is_one_line(images, tmp_path, capsys, monkeypatch):
    def full(self, batch):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr(Bright, "forward", full)
    assert detect(images, "--out", tmp_path / "out") == 1
    assert capsys.readouterr().err == "tinyops detect: CUDA out of memory.\n"


def test_missing_arguments_are_named(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["detect", "a"])
    assert stopped.value.code == 2
    assert "--out" in capsys.readouterr().err
    assert main(["detect", "--out", "b"]) == 2
    assert "images must be files, folders or patterns, got none" in capsys.readouterr().err
