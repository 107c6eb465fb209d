"""The demonstration: its scene, its files, its numbers, and what it refuses."""

import contextlib
import io
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tinyops.cli import demo, main
from tinyops.cli.detection_file import read_detections
from tinyops.data.synth import make_scene
from tinyops.data.tiles import clip_to_window, tile_windows
from tinyops.evaluation.tinyperson import sized_ap
from tinyops.models import create, save

SEED, SIZE, PEOPLE = 3, (700, 600), 60
WORDS = ["--seed", str(SEED), "--size", *map(str, SIZE), "--people", str(PEOPLE)]


class Oracle(nn.Module):
    """Finds most of the people of the scene, not exactly, and some that are not there."""

    num_classes = 1
    categories = ("person",)

    def __init__(self):
        super().__init__()
        density = PEOPLE * 256**2 / (SIZE[0] * SIZE[1])
        image, annotations = make_scene(SEED, 0, SIZE, density=density)
        self.image = torch.from_numpy(image).permute(2, 0, 1) / 255
        boxes = torch.tensor([x["bbox"] for x in annotations if not x["uncertain"]])
        boxes[:, 2:] += boxes[:, :2]
        noise = torch.Generator().manual_seed(0)
        sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
        boxes += 0.08 * sides * torch.randn(boxes.shape, generator=noise)
        corners = 600 * torch.rand(12, 2, generator=noise)
        self.boxes = torch.cat([boxes[::3], boxes[1::3], torch.cat([corners, corners + 9], 1)])
        self.scores = torch.rand(len(self.boxes), generator=noise)

    def forward(self, images):
        return [self.look(image) for image in images]

    def look(self, image):
        for window in tile_windows(*SIZE, (640, 512), 60):
            x1, y1, x2, y2 = window
            if torch.equal(self.image[:, y1:y2, x1:x2], image):
                boxes, visible = clip_to_window(self.boxes, window)
                seen = visible > 0.3
                return {
                    "boxes": boxes[seen],
                    "scores": self.scores[seen] * visible[seen],
                    "labels": torch.ones(int(seen.sum()), dtype=torch.int64),
                }
        raise AssertionError("a tile that is not of the scene, or not as it was drawn")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a demo, and what it printed."""
    out = tmp_path_factory.mktemp("demo") / "new" / "folder"
    text = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(text):
        patch.setattr(demo, "load", lambda *_: Oracle())
        assert main(["demo", "--out", str(out), *WORDS]) == 0
    return out, text.getvalue()


def test_all_files_are_there_and_nothing_else(finished):
    out, _ = finished
    assert sorted(path.name for path in out.iterdir()) == sorted(demo.FILES)


def test_the_scene_is_kept_as_it_was_drawn_with_its_truth(finished):
    out, _ = finished
    density = PEOPLE * 256**2 / (SIZE[0] * SIZE[1])
    image, annotations = make_scene(SEED, 0, SIZE, density=density)
    np.testing.assert_array_equal(np.asarray(Image.open(out / "scene.png")), image)
    truth = json.loads((out / "truth.json").read_text())
    assert [x["bbox"] for x in truth["annotations"]] == [list(x["bbox"]) for x in annotations]
    assert truth["images"] == [
        {"id": 1, "file_name": "scene.png", "width": SIZE[0], "height": SIZE[1]}
    ]


def test_the_numbers_are_those_of_the_files(finished):
    out, text = finished
    truth = json.loads((out / "truth.json").read_text())
    found = read_detections(out / "detections.json").results.entries()
    measures = json.loads((out / "measures.json").read_text())
    ap = sized_ap(
        truth, found, bands=demo.BANDS, thresholds=[0.5], max_detections=demo.MAX_DETECTIONS
    )
    assert {(band, 0.5): row["ap50"] for band, row in measures["bands"].items()} == ap
    assert 0.3 < ap["all", 0.5] < 0.9  # the oracle is good, and not too good
    for band, row in measures["bands"].items():
        (line,) = [line for line in text.splitlines() if line.startswith(band)]
        assert f"{row['ap50']:.3f}" in line
        assert re.search(rf"\b{row['people']}\b", line)


def test_what_is_found_adds_up(finished):
    measures = json.loads((finished[0] / "measures.json").read_text())
    rows = measures["bands"]
    assert rows["all"]["people"] == rows["tiny1"]["people"] + rows["above 8 px"]["people"]
    people_found = round(rows["all"]["recall"] * rows["all"]["people"])
    wrong = measures["false_alarms"] + measures["duplicates"]
    assert people_found + wrong + measures["left_out"] == measures["detections"]
    assert people_found > 0
    assert measures["false_alarms"] > 0


def test_measures_worked_out_by_hand():
    def entry(x, side, **more):
        box = {"image_id": 1, "category_id": 1, "bbox": [x, 0, side, side]}
        return {**box, "area": side**2, "ignore": False, "uncertain": False, **more}

    people = [entry(0, 6), entry(100, 10)]
    crowd = [entry(200, 50, uncertain=True), entry(300, 50, ignore=True)]
    truth = {
        "images": [{"id": 1, "width": 1000, "height": 500}],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": people + crowd,
    }
    scores = {0: 0.9, 1: 0.5, 100: 0.4, 210: 0.8, 310: 0.7, 400: 0.6}
    sides = {100: 10}
    found = [entry(x, sides.get(x, 6), score=score) for x, score in scores.items()]
    measures = demo.measure(truth, found)
    counts = {"detections": 5, "false_alarms": 1, "duplicates": 1, "left_out": 2}
    assert counts.items() <= measures.items()
    assert measures["megapixels"] == 0.5
    assert {band: row["recall"] for band, row in measures["bands"].items()} == {
        "tiny1": 1,
        "tiny2": 0,  # with a score of 0.4
        "tiny3": None,
        "above 8 px": 0,
        "all": 0.5,
    }
    assert measures["bands"]["tiny1"]["ap50"] == pytest.approx(1)
    assert measures["bands"]["tiny2"]["ap50"] == pytest.approx(1)


def test_the_time_of_every_stage_is_told(finished):
    out, text = finished
    seconds = json.loads((out / "measures.json").read_text())["seconds"]
    assert {"draw the scene", "read", "network", "stitch", "pictures"} <= set(seconds)
    assert all(value > 0 and name in text for name, value in seconds.items())
    assert str(out / "report.html") in text


class Links(HTMLParser):
    """What a page would load, and its text."""

    def __init__(self, page):
        super().__init__()
        self.targets, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.targets += [value for name, value in attributes if name in ("src", "href", "srcset")]

    def handle_data(self, data):
        self.text += data


def test_the_report_stands_alone_and_has_the_numbers(finished):
    out, _ = finished
    page = (out / "report.html").read_text()
    links = Links(page)
    files = [name for name in demo.FILES if name != "report.html"]
    assert [x for x in links.targets if not x.startswith("data:image/jpeg;base64,")] == files
    assert len(links.targets) > len(files)
    assert "url(" not in page
    assert "@import" not in page
    rows = json.loads((out / "measures.json").read_text())["bands"]
    for band, row in rows.items():
        assert band in links.text
        assert (f"{row['ap50']:.3f}" if row["people"] else "none") in links.text


def test_the_picture_can_be_read(finished):
    with Image.open(finished[0] / "picture.jpg") as picture:
        picture.load()
        assert picture.format == "JPEG"
        assert picture.width >= SIZE[0]


def test_a_seed_gives_one_scene_and_an_earlier_demo_is_replaced(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "load", lambda *_: Oracle())
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    names = ("scene.png", "detections.json", "picture.jpg")
    for name in ("notes.txt", *names):  # as if of another seed
        (tmp_path / name).write_text("mine")
    assert main(["demo", "--out", str(tmp_path), *WORDS]) == 0
    for name in ("truth.json", *names):
        assert (tmp_path / name).read_bytes() == (finished[0] / name).read_bytes()
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["scene.png", "report.html", "truth.json"])
def test_files_of_something_else_are_not_touched(tmp_path, monkeypatch, capsys, name):
    monkeypatch.setattr(demo, "load", lambda *_: Oracle())
    (tmp_path / name).write_text("mine")
    assert main(["demo", "--out", str(tmp_path), *WORDS]) == 2
    assert one_line(capsys) == (
        f"tinyops demo: {tmp_path / name} is not of a demo: choose another folder"
    )
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_an_interrupted_demo_leaves_no_results_of_an_earlier_one(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "load", lambda *_: Oracle())
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "detect_sources", interrupted)
    assert main(["demo", "--out", str(tmp_path), *WORDS]) == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scene.png", "truth.json"]


def test_a_model_of_a_file_runs_and_may_find_nothing(tmp_path, capsys):
    path = tmp_path / "model.safetensors"
    torch.manual_seed(0)
    save(create("retinanet_fpn_resnet_nano", neck_channels=16, convs=1), path)
    words = ["--seed", "1", "--size", "200", "160", "--people", "3"]
    assert main(["demo", "--out", str(tmp_path / "out"), "--model", str(path), *words]) == 0
    rows = json.loads((tmp_path / "out/measures.json").read_text())["bands"]
    assert rows["all"]["ap50"] == 0
    assert rows["tiny3"] == {"ap50": -1, "people": 0, "recall": None}
    assert re.search(r"tiny3 .* 0 +- +-\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--people", "0"], "people must be 1 to 2000, got 0"),
        (["--people", "2001"], "people must be 1 to 2000, got 2001"),
        (["--seed", "-1"], "seed and index must not be negative, got -1 and 0"),
        (["--size", "0", "600"], "size must be 16 to 20000 px per side, got 0x600"),
        (["--size", "700", "20001"], "size must be 16 to 20000 px per side, got 700x20001"),
        (["--size", "16", "16", "--people", "1000"], "density must be 0 to 200 objects"),
        (["--model", "none.safetensors"], "none.safetensors"),
        (["--out", "file"], "file is not a folder"),
        (["--device", "tpu"], "device must be auto, cpu, cuda or cuda:<k>, got 'tpu'"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    if "--model" not in words:
        monkeypatch.setattr(demo, "load", lambda *_: Oracle())
    assert main(["demo", *words]) == 2
    assert message in one_line(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_model_of_several_classes_is_refused(tmp_path, capsys):
    path = tmp_path / "model.safetensors"
    save(create("retinanet_fpn_resnet_nano", 3, neck_channels=16, convs=1), path)
    assert main(["demo", "--out", str(tmp_path / "out"), "--model", str(path)]) == 2
    assert "expected a model of one class, got 3" in one_line(capsys)


def one_line(capsys):
    """The last line of stderr, above which there may be bars of progress."""
    text = capsys.readouterr().err
    line = text.strip().splitlines()[-1]
    assert line.startswith("tinyops demo: ")
    assert "Traceback" not in text
    return line
