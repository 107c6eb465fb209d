"""The command `tinyops eval`."""

import csv
import json
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from PIL import Image
from results import make_result
from rich.console import Console

from tinyops.cli import main
from tinyops.cli.eval import Eval, show
from tinyops.evaluation import PROTOCOLS, evaluate
from tinyops.inference.formats import write_coco, write_csv

GOLDEN = Path(__file__).parent / "data" / "golden"
# Protocol, golden case, files.
CASES = {
    "tinyperson": ("tinyperson_twoclass_141", "gt.json", "dt.json"),
    "coco": ("multiclass_crowd_321", "gt.json", "dt.json"),
    "aitod": ("multiclass_aitod_301", "gt.json", "dt.json"),
    "droneswarms": ("multiclass_aitod_301", "gt.json", "dt.json"),
    "visdrone": ("visdrone_basic_501", "input.json", "input.json"),
    "visdrone-coco": ("multiclass_crowd_321", "gt.json", "dt.json"),
    "soda-d": ("multiclass_soda_341", "gt.json", "dt.json"),
    "tt100k": ("tt100k_902", "gt.json", "dt.json"),
    "widerface": ("wider_basic_701", "input.json", "input.json"),
}


def write(path, content):
    path.write_text(json.dumps(content))
    return path


def command(truth, detections, *more):
    return ["eval", "--gt", str(truth), "--detections", str(detections), *map(str, more)]


def metrics_of(truth, detections, out, *more):
    assert main(command(truth, detections, "--out", out, *more)) == 0
    return json.loads((out / "metrics.json").read_text())


def ap(metrics, band="tiny1", threshold="0.50"):
    (limit,) = metrics["result"]["maxDets"]
    return pytest.approx(metrics["result"]["AP"][f"{band}@{limit}"][threshold])


def case(protocol):
    folder, *names = CASES[protocol]
    return [GOLDEN / folder / name for name in names]


def test_every_protocol_has_a_name_on_the_command_line():
    assert set(get_args(get_type_hints(Eval)["protocol"])) == set(PROTOCOLS) == set(CASES)


@pytest.mark.parametrize("protocol", CASES)
def test_files_and_table_are_those_of_the_protocol(protocol, tmp_path, capsys):
    truth, found = case(protocol)
    metrics = metrics_of(truth, found, tmp_path, "--protocol", protocol)
    result = evaluate(protocol, truth, found)
    assert metrics["result"] == json.loads(json.dumps(result))
    rows = PROTOCOLS[protocol].table(result)
    assert metrics["table"] == rows
    with (tmp_path / "metrics.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    printed = capsys.readouterr().out
    for row, line in zip(rows, lines, strict=True):
        assert line["protocol"] == protocol
        assert line["setting"] == metrics["setting"]
        for name, value in row.items():
            if isinstance(value, float):
                assert float(line[name]) == value
                assert f" {value:.2f} " in printed
            else:
                assert line[name] == (value or "")
    assert metrics["setting"] in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "metrics.csv",
        "metrics.json",
        "report.html",
    ]


def test_visdrone_as_coco_with_the_sizes_of_aitod(tmp_path):
    truth, found = case("visdrone-coco")
    more = ("--protocol", "visdrone-coco", "--areas", "aitod", "--max-detections", 1500)
    (row,) = metrics_of(truth, found, tmp_path, *more)["table"]
    (expected,) = PROTOCOLS["aitod"].table(evaluate("aitod", truth, found))
    assert row["AP_verytiny"] == expected["AP_vt"] > 0


def golden_results(truth, found):
    """Golden detections as results of a run over a folder, best last image first."""
    truth, found = (json.loads(path.read_text()) for path in (truth, found))
    names = tuple(category["name"] for category in truth["categories"])
    for image in reversed(truth["images"]):
        entries = [d for d in found if d["image_id"] == image["id"]]
        boxes = [(x, y, x + w, y + h) for x, y, w, h in (d["bbox"] for d in entries)]
        scores, labels = ([d[key] for d in entries] for key in ("score", "category_id"))
        name = f"/data/{image['file_name']}"
        yield make_result(boxes, scores, labels, name=name, categories=names)


@pytest.mark.parametrize("form", [write_coco, write_csv])
@pytest.mark.parametrize("protocol", ["tinyperson", "aitod"])
def test_detections_of_tinyops_detect_are_matched_by_name(tmp_path, protocol, form):
    truth, found = case(protocol)
    path = tmp_path / ("found.json" if form is write_coco else "found.csv")
    form(golden_results(truth, found), path)
    metrics = metrics_of(truth, path, tmp_path / "out", "--protocol", protocol)
    expected = PROTOCOLS[protocol].table(evaluate(protocol, truth, found))
    for row, wanted in zip(metrics["table"], expected, strict=True):
        assert row == pytest.approx(wanted, abs=1e-3)  # boxes are written to 0.001 px


@pytest.mark.parametrize("form", [write_coco, write_csv])
def test_detections_of_tinyops_detect_for_the_other_protocols(tmp_path, form):
    path = tmp_path / ("found.json" if form is write_coco else "found.csv")

    def measured(protocol, truth, names, label, name):
        rows = [[10, 10, 16, 16], [50, 50, 56, 56]]
        result = make_result(rows, [0.6, 0.9], [label] * 2, name=name, categories=names)
        form([result], path)
        truth = write(tmp_path / "truth.json", truth)
        return metrics_of(truth, path, tmp_path / "out", "--protocol", protocol)["result"]

    face = {"name": "0_P", "gt": [[10, 10, 6, 6]], "easy": [], "medium": [], "hard": [0]}
    faces = [{"event": "0--P", "images": [face]}]
    result = measured("widerface", faces, ("person", "face"), 2, "x/0--P/0_P.jpg")
    assert [row[1:3] for row in result["hard"]["curve"][::39]] == [[1, 0], [2, 1]]  # best first

    box = {"xmin": 10, "ymin": 10, "xmax": 16, "ymax": 16}
    sign = {"path": "test/7.jpg", "objects": [{"category": "pn", "bbox": box}]}
    result = measured("tt100k", {"imgs": {"7": sign}}, ("pn",), 1, "img/7.jpg")
    found = [result[f"iou0.50_minscore{k}_small_all"] for k in (50, 70)]
    assert [(x["right"], x["wrong"], x["miss"]) for x in found] == [(1, 1, 0), (0, 1, 1)]

    row = [10, 10, 6, 6, 1, 4, 0, 0]
    drone = [{"name": "0000001", "width": 99, "height": 99, "gt": [row]}]
    result = measured("visdrone", drone, ("car", "bus"), 1, "val/0000001.png")
    assert result["summary"]["AP50"] == 50
    assert result["summary"]["AR1"] == 0  # the best one is a false alarm
    assert result["AP"][3][0] == 50


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
            {"id": k, "image_id": image, "category_id": 3, "bbox": box, "ignore": k == 4}
            for k, (image, *box) in enumerate(boxes, 1)
        ],
    }
    return write(tmp_path / "truth.json", content)


def found(*names, **more):
    more = {"categories": ("boat", "person"), "labels": [2], **more}
    return [make_result([[10, 10, 16, 16]], name=name, **more) for name in names]


def test_images_without_detections_are_missed(truth, tmp_path, capsys):
    write_coco(found("x/sea/1.png"), tmp_path / "found.json")
    metrics = metrics_of(truth, tmp_path / "found.json", tmp_path / "out")
    # Half of the two objects at precision 1: 51 of the 101 points of recall.
    assert ap(metrics) == 51 / 101
    counts = ("images", "images_without_detections", "found", "missed", "false_alarms")
    assert [metrics[key] for key in counts] == [2, 1, 1, 2, 0]
    text = capsys.readouterr().out
    assert "1 detections in 2 images, 1 of them without any" in text
    assert "at most 200 detections per image and class" in text


def test_where_nothing_counts_there_is_no_number(truth, tmp_path):
    write_csv(found("1.png", "2.png"), tmp_path / "found.csv")
    metrics = metrics_of(truth, tmp_path / "found.csv", tmp_path / "out")
    assert [ap(metrics, band) for band in ("tiny1", "tiny2", "small")] == [1, 0, -1]
    assert metrics["table"][0]["small 50"] is None
    text = (tmp_path / "out" / "report.html").read_text()
    assert ">none<" in text


@pytest.mark.parametrize(("limit", "value"), [(1, 0), (2, 0.5)])
def test_only_the_best_detections_of_an_image_count(truth, tmp_path, limit, value):
    boxes = [[300, 300, 306, 306], [10, 10, 16, 16]]  # the better one is wrong
    facts = {"labels": [2, 2], "categories": ("boat", "person")}
    results = [make_result(boxes, name=f"{k}.png", **facts) for k in (1, 2)]
    write_csv(results, tmp_path / "found.csv")
    metrics = metrics_of(truth, tmp_path / "found.csv", tmp_path, "--max-detections", limit)
    assert ap(metrics) == value
    assert f"at most {limit} detections" in metrics["setting"]


def test_without_out_nothing_is_written(truth, tmp_path, capsys):
    write_csv(found("1.png"), tmp_path / "found.csv")
    before = sorted(tmp_path.rglob("*"))
    assert main(command(truth, tmp_path / "found.csv")) == 0
    assert "tiny1" in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before


def test_no_detections_at_all_are_0(truth, tmp_path):
    metrics = metrics_of(truth, write(tmp_path / "found.json", []), tmp_path / "out")
    assert (metrics["detection_count"], ap(metrics)) == (0, 0)


def test_categories_without_names_are_ids(truth, tmp_path):
    write_coco(found("1.png", "2.png", categories=None, labels=[3]), tmp_path / "found.json")
    assert ap(metrics_of(truth, tmp_path / "found.json", tmp_path / "out")) == 1


def test_quirks_can_be_left_out(truth, tmp_path):
    content = json.loads(truth.read_text())
    content["annotations"][0]["id"] = 0  # which the original takes for no object
    write(truth, content)
    write_csv(found("1.png", "2.png"), tmp_path / "found.csv")
    values = []
    for more in ((), ("--not-compatible",)):
        metrics = metrics_of(truth, tmp_path / "found.csv", tmp_path / "out", *more)
        values.append((ap(metrics) == 1, metrics["compatible"]))
    assert values == [(False, True), (True, False)]
    assert "left out" in (tmp_path / "out" / "report.html").read_text()


def test_a_data_set_of_another_format_will_do(tmp_path):
    (tmp_path / "yolo" / "labels" / "train").mkdir(parents=True)
    (tmp_path / "yolo" / "images" / "train").mkdir(parents=True)

    Image.new("RGB", (100, 100)).save(tmp_path / "yolo" / "images" / "train" / "1.png")
    (tmp_path / "yolo" / "labels" / "train" / "1.txt").write_text("0 0.13 0.13 0.06 0.06\n")
    (tmp_path / "yolo" / "data.yaml").write_text("train: images/train\nnames: [person]\n")
    write_csv(found("1.png"), tmp_path / "found.csv")
    metrics = metrics_of(tmp_path / "yolo", tmp_path / "found.csv", tmp_path / "out")
    assert (metrics["images"], ap(metrics)) == (1, 1)


def test_columns_stand_below_each_other_on_a_narrow_screen():
    row = {f"column {k}": k + 0.5 for k in range(9)}
    names = ("found", "missed", "false_alarms", "duplicates", "detection_count", "images")
    facts = dict.fromkeys((*names, "images_without_detections", "unknown_images"), 0)
    facts["compatible"] = True
    metrics = {"table": [row], "protocol": "p", "setting": "s", **facts}
    for width, lines in ((40, 9), (200, 1)):
        console = Console(width=width)
        with console.capture() as capture:
            show(metrics, console)
        text = capture.get()
        assert sum(f"{k}.50" in line for line in text.splitlines() for k in range(9)) == 9
        assert len([line for line in text.splitlines() if ".50" in line]) == lines
        assert "…" not in text


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
    messages = {
        bare: f"{bare}: results[2].image_id must be one of",
        tmp_path / "found.json": f"2 images are not in {truth}, the first is 8.png; --ignore-unk",
    }
    for number, (path, message) in enumerate(messages.items()):
        out = tmp_path / f"out{number}"
        assert message in refusal(capsys, truth, path, "--out", out)
        assert not out.exists()
        metrics = metrics_of(truth, path, out, "--ignore-unknown-images")
        assert (metrics["unknown_images"], metrics["detection_count"]) == (2, 2)
        assert ap(metrics) == 1
        assert "2 other images left out" in capsys.readouterr().out


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
    assert f"{text}: is not JSON" in refusal(capsys, text, good)
    assert "truth.json: annotations[0]: Object missing" in refusal(capsys, truth, truth)
    assert f"{good}: " in refusal(capsys, good, good)


def test_a_lack_of_memory_is_said_in_a_line(truth, tmp_path, capsys, monkeypatch):
    def match(**_):
        raise MemoryError

    monkeypatch.setattr("tinyops.evaluation.matcher._eval.match", match)
    good = write(tmp_path / "found.json", [])
    assert main(command(truth, good, "--out", tmp_path / "out")) == 1
    assert capsys.readouterr() == ("", "tinyops eval: there is not enough memory for this\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("protocol", "more", "message"),
    [
        ("tinyperson", ("--max-detections", 0), "max_detections must be positive"),
        ("tinyperson", ("--threads", 0), "threads must be positive, got 0"),
        ("tt100k", ("--threads", 0), "threads must be positive, got 0"),
        ("aitod", ("--areas", "coco"), "--areas: aitod has no such setting"),
        ("widerface", ("--max-detections", 5), "--max-detections: widerface has no such setting"),
        ("coco", ("--min-score", 5), "--min-score: coco has no such setting"),
        ("widerface", ("--ignore-unknown-images",), "--ignore-unknown-images is not for widerface"),
        ("coco", ("--images", "."), "--images is for the report, which needs --out"),
    ],
)
def test_wrong_settings_are_refused(protocol, more, message, capsys):
    text = refusal(capsys, *case(protocol), "--protocol", protocol, *more)
    assert message in text


def test_two_categories_of_one_name_are_refused(truth, tmp_path, capsys):
    content = json.loads(truth.read_text())
    content["categories"][1]["name"] = "person"
    write(truth, content)
    write_coco(found("1.png"), tmp_path / "found.json")
    assert "two categories have the same name" in refusal(capsys, truth, tmp_path / "found.json")


def test_the_older_name_of_the_ground_truth_is_known(truth, tmp_path):
    good = write(tmp_path / "found.json", [])
    assert main(["eval", "--annotations", str(truth), "--detections", str(good)]) == 0
