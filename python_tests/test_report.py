"""The report of `tinyops eval`."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_page import Elements

from tinyops.cli import eval_report, main
from tinyops.evaluation import tinyperson
from tinyops.plot import report
from tinyops.plot.pixels import as_windowed
from tinyops.plot.report import HIT, LEGEND, MISS, WRONG, crop

GOLDEN = Path(__file__).parent / "data" / "golden"
NAMES = ["a & <b>.png", "Möwe 海.png"]
CLASSES = ["<script>alert(1)</script>", "Schwimmer ü"]
SEA = (20, 90, 160)


@pytest.fixture
def scene(tmp_path):
    """Two images; an object that is found and one that is missed in each, and false alarms."""
    (tmp_path / "images").mkdir()
    truth = {"images": [], "annotations": [], "categories": []}
    found = []
    for k, name in enumerate(NAMES, 1):
        Image.new("RGB", (200, 150), SEA).save(tmp_path / "images" / name)
        truth["images"].append({"id": k, "file_name": name, "width": 200, "height": 150})
        truth["categories"].append({"id": k, "name": CLASSES[k - 1]})
        for number, box in enumerate(([10, 10, 6, 6], [100, 60, 8 + k, 8 + k])):
            entry = {"id": 10 * k + number, "image_id": k, "category_id": k, "bbox": box}
            truth["annotations"].append(entry)
        rows = [([10, 10, 6, 6], 0.9), ([150, 100, 7, 7], 0.1 * k), ([190, 5, 7, 7], 0.55)]
        for box, score in rows:
            found.append({"image_id": k, "category_id": k, "bbox": box, "score": score})
    for name, content in (("truth", truth), ("found", found)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def written(folder, *more):
    command = ["eval", "--gt", f"{folder}/truth.json", "--detections", f"{folder}/found.json"]
    assert main([*command, "--out", str(folder / "out"), *map(str, more)]) == 0
    text = (folder / "out" / "report.html").read_text("utf-8")
    return text, json.loads((folder / "out" / "metrics.json").read_text("utf-8"))


def picture(element):
    kind, _, data = element["src"].partition(",")
    assert kind == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def shows(pixels, outcome):
    """Whether a line of the color of an outcome is there, whatever JPEG made of it."""
    color = report.rgb(LEGEND[outcome].color)
    return (abs(pixels - color).max(-1) < 40).sum() > 40


def test_numbers_are_those_of_the_result(scene):
    text, metrics = written(scene)
    read = Elements(text)
    assert read.open == []
    for row in metrics["table"]:
        for value in row.values():
            if isinstance(value, float):
                assert f"{value:.2f}" in read.text
    for key in ("setting", "gt", "detections"):
        assert metrics[key] in read.text
    details = tinyperson.details(scene / "truth.json", scene / "found.json")
    ap = [float(np.mean(row[row >= 0])) if (row >= 0).any() else None for row in details.ap]
    tracks = [float(bar["width"]) for bar in read.all("rect", **{"class": "track"})]
    bars = [float(bar["width"]) for bar in read.all("rect", **{"class": "bar"})]
    assert len(tracks) == len(details.bands)
    wanted = [tracks[0] * x for x in ap if x is not None]
    assert bars == pytest.approx(wanted, abs=0.06)
    assert len(read.all("polyline")) == len(wanted)
    for band, value in zip(details.bands, ap, strict=True):
        assert (value is None) == (f"{band}, " not in read.text)
        assert value is None or re.search(rf"{band}, [^:]+: AP {value:.3f}", read.text)
    assert read.text.count("Classes (2)") == 1
    assert "2 objects found, 2 missed, 4 false alarms, 0 duplicates (IoU" in read.text


def test_a_curve_has_the_points_of_the_details(scene):
    text, _ = written(scene)
    details = tinyperson.details(scene / "truth.json", scene / "found.json")
    band = list(details.bands).index("tiny1")
    precision = details.precision[band].mean(0)
    assert precision[0] == pytest.approx(1)
    names = re.findall(r"<title>(.*?)</title></polyline>", text)
    number = next(k for k, name in enumerate(names) if name.startswith("tiny1,"))
    points = Elements(text).all("polyline")[number]["points"].split()
    points = np.array([point.split(",") for point in points], float)
    recall, height = (points[:, 0] - 40) / 420, (290 - points[:, 1]) / 280
    assert recall == pytest.approx(details.recall[: len(points)], abs=1e-3)
    assert height == pytest.approx(precision[: len(points)], abs=1e-3)
    assert not precision[len(points) :].any()


def test_names_of_all_kinds_are_written_as_they_are(scene):
    for more in ((), ("--images", scene / "images")):
        text, _ = written(scene, *more)
        read = Elements(text)
        assert not read.all("script") + read.all("link") + read.all("b")
        for name in (*NAMES, *CLASSES):
            assert name in read.text
        assert not re.search(r"https?:|url\(|@import", re.sub(r'"data:[^"]+"', "", text))
        assert not [a for _, a in read.elements if any(name.startswith("on") for name in a)]


def test_misses_come_by_size_and_false_alarms_by_score(scene):
    read = Elements(written(scene)[0])
    assert not read.all("img")
    lines = re.findall(r"[^\n]+ px: [^\n]+, x \d+ y \d+", read.text)
    assert [line.split(" px: ")[0].rsplit(", ")[-1] for line in lines[:2]] == ["10.0", "9.0"]
    assert [line.split(",")[0] for line in lines[2:]] == ["0.55", "0.55", "0.2", "0.1"]
    assert lines[0].endswith(f"{NAMES[1]}, x 100 y 60")


def test_galleries_show_the_places(scene):
    read = Elements(written(scene, "--images", scene / "images")[0])
    images = read.all("img")
    assert len(images) == len(read.all("input", type="checkbox")) == 6
    for k, element in enumerate(images):
        pixels = picture(element)
        assert max(pixels.shape[:2]) == report.SIDE
        assert shows(pixels, MISS) == (k < 2)
        assert shows(pixels, WRONG) == (k >= 2)
        assert abs(np.median(pixels, (0, 1)) - SEA).max() < 6


def test_long_galleries_say_what_they_leave_out(scene, monkeypatch):
    monkeypatch.setattr(eval_report, "MOST", 1)
    read = Elements(written(scene, "--images", scene / "images")[0])
    assert len(read.all("img")) == 2
    assert "1 of 2, largest first" in read.text
    assert "1 of 4, highest score first" in read.text


def test_a_report_that_fails_leaves_the_old_files(scene, capsys):
    written(scene)
    files = {path: path.read_bytes() for path in (scene / "out").iterdir()}
    capsys.readouterr()
    (scene / "images" / NAMES[1]).unlink()
    command = ["eval", "--gt", f"{scene}/truth.json", "--detections", f"{scene}/found.json"]
    out = ("--out", f"{scene}/out", "--images", f"{scene}/images")
    assert main([*command, *out]) == 2
    output, error = capsys.readouterr()
    assert NAMES[1] in error
    assert error.count("\n") == 1
    assert "2 objects found" in output  # what was measured is not lost
    assert {path: path.read_bytes() for path in (scene / "out").iterdir()} == files


@pytest.mark.parametrize(
    ("protocol", "case", "names"),
    [
        ("tt100k", "tt100k_901", ("gt.json", "dt.json")),
        ("widerface", "wider_tiny_721", ("input.json", "input.json")),
        ("visdrone", "visdrone_basic_501", ("input.json", "input.json")),
        ("aitod", "multiclass_aitod_301", ("gt.json", "dt.json")),
    ],
)
def test_other_protocols_have_one_too(tmp_path, protocol, case, names):
    truth, found = (str(GOLDEN / case / name) for name in names)
    out = ("--out", str(tmp_path), "--protocol", protocol)
    assert main(["eval", "--gt", truth, "--detections", found, *out]) == 0
    read = Elements((tmp_path / "report.html").read_text())
    assert read.open == []
    assert read.all("polyline")
    assert "Missed objects" in read.text


def test_images_of_visdrone_have_names_without_a_suffix(tmp_path):
    Image.new("RGB", (99, 99), SEA).save(tmp_path / "7.jpg")
    row = [10, 10, 6, 6, 1, 4, 0, 0]
    scene = [{"name": "7", "width": 99, "height": 99, "gt": [row], "dt": []}]
    (tmp_path / "scene.json").write_text(json.dumps(scene))
    files = [f"--{name}={tmp_path / 'scene.json'}" for name in ("gt", "detections")]
    options = ("--protocol", "visdrone", "--images", str(tmp_path), "--out", str(tmp_path / "out"))
    assert main(["eval", *files, *options]) == 0
    (shown,) = Elements((tmp_path / "out" / "report.html").read_text()).all("img")
    assert shows(picture(shown), MISS)


def test_nothing_at_all_has_a_report(scene):
    (scene / "found.json").write_text("[]")
    truth = json.loads((scene / "truth.json").read_text())
    text, metrics = written(scene, "--images", scene / "images")
    assert metrics["found"] == metrics["false_alarms"] == 0
    assert "None." in Elements(text).text
    (scene / "truth.json").write_text(json.dumps({key: [] for key in truth}))
    text, _ = written(scene)
    assert Elements(text).all("polyline") == []


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((300, 200), (100, 100, 104, 104)),
        ((300, 200), (0, 0, 4, 4)),
        ((300, 200), (296, 196, 300, 200)),
        ((30, 20), (10, 10, 14, 14)),
        ((3000, 2000), (100, 100, 1900, 1900)),
        ((300, 200), (290, 190, 400, 320)),
        ((1, 1), (0, 0, 1, 1)),
    ],
)
def test_a_crop_shows_the_box_and_no_pixel_that_is_not_there(size, box):
    boxes = np.array([box, (0, 0, 1, 1)], float)
    image = as_windowed(Image.new("RGB", size, SEA))
    shown = np.asarray(crop(image, box, boxes, [HIT, WRONG], ["", ""])).astype(int)
    assert max(shown.shape[:2]) <= report.SIDE
    assert shows(shown, HIT) or size == (1, 1)
