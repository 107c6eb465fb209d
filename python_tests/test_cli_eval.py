"""The command `tinyops eval`."""

import csv
import json
from pathlib import Path

import pytest
from results import make_result

from tinyops.cli import main
from tinyops.evaluation.tinyperson import BANDS as TINYPERSON_BANDS
from tinyops.inference.formats import write_coco, write_csv

GOLDEN = sorted((Path(__file__).parent / "golden").glob("tinyperson_*.json"))


def write(path, content):
    path.write_text(json.dumps(content))
    return path


def command(truth, detections, *more):
    return ["eval", "--annotations", str(truth), "--detections", str(detections), *map(str, more)]


def metrics_of(truth, detections, out, *more):
    assert main(command(truth, detections, "--out", out, *more)) == 0
    return json.loads((out / "metrics.json").read_text())


def golden_case(path):
    golden = json.loads(path.read_text())
    for image in golden["images"]:
        image["file_name"] = f"labeled_images/{image['id']}.jpg"
    return golden


def golden_results(golden):
    """The detections as results of a run over a folder, best last image first."""
    names = tuple(category["name"] for category in golden["categories"])
    for image in reversed(golden["images"]):
        found = [d for d in golden["detections"] if d["image_id"] == image["id"]]
        boxes = [(x, y, x + w, y + h) for x, y, w, h in (d["bbox"] for d in found)]
        scores, labels = ([d[key] for d in found] for key in ("score", "category_id"))
        name = f"/data/{image['file_name']}"
        yield make_result(boxes, scores, labels, name=name, categories=names)


@pytest.mark.parametrize("form", ["list", "coco", "csv"])
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_equals_tinybenchmark_from_every_kind_of_file(tmp_path, path, form):
    golden = golden_case(path)
    truth = write(tmp_path / "truth.json", golden)
    if form == "list":
        detections = write(tmp_path / "found.json", golden["detections"])
    elif form == "coco":
        write_coco(golden_results(golden), detections := tmp_path / "found.json")
    else:
        write_csv(golden_results(golden), detections := tmp_path / "found.csv")
    metrics = metrics_of(truth, detections, tmp_path / "out", "--max-detections", "1000")
    assert metrics["max_detections"] == 1000
    assert metrics["detection_count"] == len(golden["detections"])
    assert list(metrics["bands"]) == list(TINYPERSON_BANDS)
    for band, row in metrics["bands"].items():
        for iou, value in golden["expected"]["1000"][band].items():
            assert row[f"ap{iou[2:]}"] == pytest.approx(value, abs=1e-9), (band, iou)


@pytest.fixture
def truth(tmp_path):
    """Two images with an object of 6 px each, one of 10 px, and an ignored one of 6 px."""
    boxes = [(1, 10, 10, 6, 6), (2, 10, 10, 6, 6), (1, 50, 50, 10, 10), (1, 80, 80, 6, 6)]
    content = {
        "images": [
            {"id": k, "file_name": f"sea/{k}.png", "width": 640, "height": 512} for k in (1, 2)
        ],
        "categories": [{"id": 3, "name": "person"}, {"id": 5, "name": "boat"}],
        "annotations": [
            {"id": k, "image_id": image, "category_id": 3, "bbox": box, "ignore": k == 3}
            for k, (image, *box) in enumerate(boxes)
        ],
    }
    return write(tmp_path / "truth.json", content)


def found(*names, **more):
    more = {"categories": ("boat", "person"), "labels": [2], **more}
    return [make_result([[10, 10, 16, 16]], name=name, **more) for name in names]


def test_images_without_detections_are_missed(truth, tmp_path, capsys):
    write_coco(found("x/sea/1.png"), tmp_path / "found.json")
    metrics = metrics_of(truth, tmp_path / "found.json", tmp_path / "out")
    assert metrics["images_without_detections"] == 1
    # Half of the two objects at precision 1: 51 of the 101 points of recall.
    assert metrics["bands"]["tiny1"] == {
        "size": [1, 8],
        "objects": 2,
        "ap25": pytest.approx(51 / 101),
        "ap50": pytest.approx(51 / 101),
        "ap75": pytest.approx(51 / 101),
    }
    text = capsys.readouterr().out
    assert "at most 200 detections per image and class; 1 detections in 2 images, 1 of" in text
    (line,) = (line for line in text.splitlines() if " tiny1 " in line)
    assert line.replace("│", "").split() == ["tiny1", "1", "to", "8", "2", *["50.50"] * 3]


def test_metrics_csv_has_a_line_per_band_and_no_number_where_nothing_counts(truth, tmp_path):
    write_csv(found("1.png", "2.png"), tmp_path / "found.csv")
    metrics_of(truth, tmp_path / "found.csv", tmp_path / "out", "--max-detections", "7")
    with (tmp_path / "out" / "metrics.csv").open(newline="") as file:
        rows = {row["band"]: row for row in csv.DictReader(file)}
    assert list(rows) == list(TINYPERSON_BANDS)
    assert {row["max_detections"] for row in rows.values()} == {"7"}
    assert [rows[band]["objects"] for band in ("tiny", "tiny2", "small")] == ["3", "1", "0"]
    assert float(rows["tiny1"]["ap50"]) == pytest.approx(1)
    assert [float(rows["tiny2"]["ap75"]), rows["small"]["ap50"]] == [0, ""]
    content = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert content["bands"]["small"]["ap50"] is None


@pytest.mark.parametrize(("limit", "ap"), [(1, 0), (2, 0.5)])
def test_only_the_best_detections_of_an_image_count(truth, tmp_path, limit, ap):
    boxes = [[300, 300, 306, 306], [10, 10, 16, 16]]  # the better one is wrong
    facts = {"labels": [2, 2], "categories": ("boat", "person")}
    results = [make_result(boxes, name=f"{k}.png", **facts) for k in (1, 2)]
    write_csv(results, tmp_path / "found.csv")
    metrics = metrics_of(truth, tmp_path / "found.csv", tmp_path, "--max-detections", limit)
    assert metrics["bands"]["tiny1"]["ap50"] == pytest.approx(ap)


def test_without_out_nothing_is_written(truth, tmp_path, capsys):
    write_csv(found("1.png"), tmp_path / "found.csv")
    before = sorted(tmp_path.rglob("*"))
    assert main(command(truth, tmp_path / "found.csv")) == 0
    assert "tiny1" in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before


def test_no_detections_at_all_are_0(truth, tmp_path):
    metrics = metrics_of(truth, write(tmp_path / "found.json", []), tmp_path / "out")
    assert (metrics["detection_count"], metrics["bands"]["tiny"]["ap50"]) == (0, 0)


def test_categories_without_names_are_ids(truth, tmp_path):
    write_coco(found("1.png", "2.png", categories=None, labels=[3]), tmp_path / "found.json")
    metrics = metrics_of(truth, tmp_path / "found.json", tmp_path / "out")
    assert metrics["bands"]["tiny1"]["ap50"] == pytest.approx(1)


def refusal(capsys, *arguments):
    assert main(command(*arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_unknown_images_are_refused_unless_they_are_left_out(truth, tmp_path, capsys):
    entry = {"category_id": 3, "bbox": [10, 10, 6, 6], "score": 0.5}
    bare = write(tmp_path / "list.json", [{**entry, "image_id": k} for k in (1, 2, 8, 9, 9)])
    write_coco(found("1.png", "2.png", "8.png", "9.png"), tmp_path / "found.json")
    for path, first in ((bare, "image_id 8"), (tmp_path / "found.json", "8.png")):
        text = refusal(capsys, truth, path, "--out", tmp_path / "out")
        assert f"{path}: 2 images are not in {truth}, the first is {first};" in text
        assert not (tmp_path / "out").exists()
        metrics = metrics_of(truth, path, tmp_path / "out", "--ignore-unknown-images")
        assert (metrics["unknown_images"], metrics["detection_count"]) == (2, 2)
        assert metrics["bands"]["tiny1"]["ap50"] == pytest.approx(1)
        (tmp_path / "out" / "metrics.json").unlink()
        (tmp_path / "out" / "metrics.csv").unlink()
        (tmp_path / "out").rmdir()
        assert "; 2 other images left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"categories": ("boat", "bird")}, "category 'bird' is not in"),
        ({"categories": None, "labels": [4]}, "category 4 is not in"),
    ],
)
def test_unknown_categories_are_refused(truth, tmp_path, capsys, more, message):
    write_coco(found("1.png", **more), tmp_path / "found.json")
    assert message in refusal(capsys, truth, tmp_path / "found.json")


def test_an_image_detected_twice_is_refused(truth, tmp_path, capsys):
    write_coco(found("a/1.png", "b/1.png"), tmp_path / "found.json")
    text = refusal(capsys, truth, tmp_path / "found.json")
    assert "a/1.png and b/1.png mean the same image" in text


def test_files_that_are_not_what_they_should_be_are_refused(truth, tmp_path, capsys):
    missing, text = tmp_path / "missing.json", tmp_path / "text.json"
    text.write_text("hello")
    good = write(tmp_path / "found.json", [])
    assert str(missing) in refusal(capsys, truth, missing)
    assert str(missing) in refusal(capsys, missing, good)
    assert f"{text}: " in refusal(capsys, truth, text)
    assert f"{text} is not JSON" in refusal(capsys, text, good)
    assert "truth.json: annotations[0]: score must be" in refusal(capsys, truth, truth)
    assert "found.json: expected an object with images" in refusal(capsys, good, good)
    assert "max_detections must be positive" in refusal(capsys, truth, good, "--max-detections", 0)


def test_two_categories_of_one_name_are_refused(truth, tmp_path, capsys):
    content = json.loads(truth.read_text())
    content["categories"][1]["name"] = "person"
    write(truth, content)
    write_coco(found("1.png"), tmp_path / "found.json")
    assert "two categories have the same name" in refusal(capsys, truth, tmp_path / "found.json")
