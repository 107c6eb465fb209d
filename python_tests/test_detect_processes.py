"""`tinyops detect` that is killed and goes on, or runs in two processes, writes the same bytes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import detect_program
import pytest
from detect_program import draw_image
from train_program import exit_codes, start

COUNT = 14


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for k in range(COUNT):
        draw_image(folder / f"{k:02d}.png", k, (200, 90) if k % 5 == 2 else (40, 30))
    (folder / "04.png").write_bytes(b"no image")
    (folder / "07.png").write_bytes((folder / "06.png").read_bytes()[:90])
    return folder


def arguments(images, out, *more):
    size = ["--tile", "32", "32", "--overlap", "8", "--batch", "3", "--device", "cpu"]
    formats = ["--format", "coco", "csv", "geojson", "--insets", "0"]
    return ["detect", str(images), "--out", str(out), *size, *formats, *more]


def run(images, out, *more, processes=1, **options):
    words = arguments(images, out, *more)
    return exit_codes(start(detect_program.command, words, *options.values(), processes=processes))


def final_files(out):
    """All but the settings, in which the folder is."""
    files = {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    return {name: x for name, x in files.items() if ".parts" not in str(name)} | {
        Path("settings.yaml"): files[Path("settings.yaml")].replace(str(out).encode(), b"OUT")
    }


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    assert run(images, out) == [1]
    files = final_files(out)
    assert len(files) == COUNT - 2 + 5
    assert files[Path("detections.csv")].count(b"\n") > 40
    return files


def test_killed_in_the_middle_of_a_write_and_continued(images, whole, tmp_path):
    assert run(images, tmp_path, die=2) == [-signal.SIGKILL]
    assert not (tmp_path / "detections.json").exists()
    assert len(list((tmp_path / ".parts").glob("*.safetensors"))) == 1
    assert list((tmp_path / ".parts").glob(".*.tmp"))
    assert run(images, tmp_path, die=3) == [-signal.SIGKILL]
    assert run(images, tmp_path) == [1]
    assert final_files(tmp_path) == whole
    assert not list(tmp_path.rglob("*.tmp"))


def test_killed_from_outside_and_continued(images, whole, tmp_path):
    (process,) = start(detect_program.slow, arguments(images, tmp_path))
    deadline = time.monotonic() + 60
    while not list((tmp_path / ".parts").glob("*.safetensors")):
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    assert exit_codes([process]) == [-signal.SIGKILL]
    assert not (tmp_path / "detections.json").exists()
    assert run(images, tmp_path) == [1]
    assert final_files(tmp_path) == whole


def test_two_processes_go_on_with_what_one_began(images, whole, tmp_path):
    assert run(images, tmp_path, die=3) == [-signal.SIGKILL]
    assert run(images, tmp_path, processes=2) == [1, 1]
    assert final_files(tmp_path) == whole


def test_one_process_goes_on_with_what_two_began(images, whole, tmp_path):
    codes = run(images, tmp_path, die=2, processes=2)
    assert -signal.SIGKILL in codes
    assert 0 not in codes
    assert run(images, tmp_path) == [1]
    assert final_files(tmp_path) == whole


def test_wrong_arguments_end_all_processes(images, tmp_path):
    assert run(images, tmp_path, "--stretch", "3", "3", processes=2) == [2, 2]
    assert run(images / "none", tmp_path, processes=2) == [2, 2]
    assert not list(tmp_path.iterdir())


def test_torchrun_shares_the_images_out(images, whole, tmp_path):
    paths = [str(Path(detect_program.__file__).parents[k]) for k in (0, 1)]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    result = subprocess.run(
        [sys.executable, *torchrun, detect_program.__file__, *arguments(images, tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 1
    assert "12 images, " in result.stdout
    assert final_files(tmp_path) == whole
