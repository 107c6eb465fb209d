"""`tinyops data stats`, `anchors`, `view` and `tile`."""

import json
import re

import pytest
from annotated import GOLDEN
from test_page import Elements

from tinyops.cli import main
from tinyops.data import read
from tinyops.data.synth_write import write_tinysea

CASE = GOLDEN / "tile_corner_merge_ov30_42"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sea")
    write_tinysea(folder, images=3, size=(300, 200), seed=1, classes=3)
    return folder


def run(command, folder, *more):
    source = ["--data", str(folder / "train.json"), "--images", str(folder / "train")]
    return main(["data", command, *source, *map(str, more)])


def test_stats_are_printed_and_written(folder, tmp_path, capsys):
    assert run("stats", folder, "--out", tmp_path / "out", "--bands", "aitod") == 0
    printed = capsys.readouterr().out
    facts = json.loads((tmp_path / "out" / "stats.json").read_text())
    data = read(folder / "train.json")
    assert facts["objects"] == sum(int((~image.ignore).sum()) for image in data.images)
    assert f"objects: {facts['objects']} of 3 classes" in printed
    assert "very tiny" in printed
    assert "sea_person" in printed
    fit = facts["anchors"]["coverage"]
    assert fit["all"]["objects"] == facts["objects"]
    assert 0 <= fit["all"]["IoU 0.7"] <= fit["all"]["IoU 0.5"] <= fit["all"]["IoU 0.3"] <= 1
    page = Elements((tmp_path / "out" / "stats.html").read_text())
    assert page.open == []
    assert not page.all("script")
    assert page.all("svg", **{"aria-label": "Anchor coverage"})
    columns = [x for x in page.all("rect") if float(x["height"]) == 250]
    assert len(columns) >= 3  # the highest of each histogram


def test_stats_of_a_set_without_objects(tmp_path, capsys):
    empty = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "<b>"}]}
    (tmp_path / "e.json").write_text(json.dumps(empty))
    arguments = ["data", "stats", "--data", str(tmp_path / "e.json"), "--out", str(tmp_path)]
    assert main(arguments) == 0
    page = Elements((tmp_path / "stats.html").read_text())
    assert "<b>" in page.text
    assert not page.all("b")
    assert main(["data", "anchors", "--data", str(tmp_path / "e.json")]) == 2
    assert "sides must be of at least 9 different boxes" in capsys.readouterr().err


def test_anchors_fit_better_than_those_of_a_detector(folder, tmp_path, capsys):
    more = ["--count", "6", "--seed", "2", "--strides", "4", "8"]
    assert run("anchors", folder, *more, "--out", tmp_path / "a.json") == 0
    assert "6 anchors for" in capsys.readouterr().out
    result = json.loads((tmp_path / "a.json").read_text())
    assert len(result["anchors"]) == 6
    for row in result["anchors"]:
        assert row["size"] ** 2 == pytest.approx(row["width"] * row["height"])
        assert row["size / stride"] * row["stride"] == pytest.approx(row["size"])
    found, present = result["comparison"]
    assert (found["shapes"], present["shapes"]) == (6, 24)
    assert found["mean IoU, centred"] > present["mean IoU, centred"]


def test_a_page_shows_images_and_boxes(folder, tmp_path, capsys):
    assert run("view", folder, "--out", tmp_path / "view.html", "--count", "2") == 0
    assert "2 of 3 images" in capsys.readouterr().out
    page = Elements((tmp_path / "view.html").read_text())
    assert page.open == []
    assert not page.all("script")
    assert not [x for x in page.all("image") if not x["href"].startswith("data:")]
    data = read(folder / "train.json")
    shown = [i for i in data.images if any(i.file_name in x for x in [page.text])]
    assert len(shown) == 2
    whole = [x for x in page.all("svg") if x["aria-label"] != "magnified"]
    assert [x["viewbox"] for x in whole] == ["0 0 300 200"] * 2
    rectangles = page.all("rect")
    assert len(rectangles) >= sum(map(len, shown))
    x, y, width, _ = shown[0].bbox[0].tolist()
    gap = 2 * 300 / 1160
    expected = {"x": f"{x - gap:.2f}", "y": f"{y - gap:.2f}", "width": f"{width + 2 * gap:.2f}"}
    assert page.all("rect", **expected)
    ids = {x["id"] for x in page.all("input")}
    kinds = {kind for x in rectangles for kind in x["class"].split()}
    assert kinds <= ids
    for entry in ids:  # each can be hidden
        assert (
            f"body:has(#{entry}:not(:checked)) rect.{entry} "
            in (tmp_path / "view.html").read_text()
        )


def test_images_on_the_page_can_be_chosen(folder, tmp_path, capsys):
    data = read(folder / "train.json")
    names = data.classes
    for k, name in enumerate(names, 1):
        wanted = [i for i in data.images if ((i.labels == k) & ~i.ignore).any()]
        code = run("view", folder, "--out", tmp_path / "view.html", "--only", name)
        assert code == (0 if wanted else 2)
        if wanted:
            assert f"{len(wanted)} of 3 images" in capsys.readouterr().out
    assert run("view", folder, "--out", tmp_path / "v.html", "--largest", "0.5") == 2
    assert "none of 3 images is as wanted" in capsys.readouterr().err
    assert run("view", folder, "--out", tmp_path / "v.html", "--only", "boat") == 2
    assert "only must be of" in capsys.readouterr().err
    assert not (tmp_path / "v.html").exists()


def test_a_set_is_cut_and_merged_back(tmp_path, capsys):
    out = tmp_path / "tiles"
    assert main(["data", "tile", "--data", str(CASE / "gt.json"), "--out", str(out)]) == 0
    assert "19 tiles of 3 images, 44 boxes of 43" in capsys.readouterr().out
    made = json.loads((out / "tiles.json").read_text())
    expected = json.loads((CASE / "corner_gt.json").read_text())
    assert made["annotations"] == expected["annotations"]  # the original's file
    assert made["images"] == expected["images"]
    assert made["old_images"] == expected["old_images"]
    for rule, name in (("ge", "merged_ge"), ("gt", "merged_gt"), ("none", "merged_nonms")):
        merged = tmp_path / f"{rule}.json"
        words = ["--data", str(out / "tiles.json"), "--merge", str(CASE / "tile_dt.json")]
        assert main(["data", "tile", *words, "--out", str(merged), "--rule", rule]) == 0
        assert json.loads(merged.read_text()) == json.loads((CASE / f"{name}.json").read_text())


def test_what_detect_found_in_the_files_of_tiles_is_merged(folder, tmp_path, capsys):
    """Its ids are its own: tiles go by their file names, and classes by their names."""
    out = tmp_path / "cut"
    assert run("tile", folder, "--out", out, "--tile", "128", "96", "--pixels", "tiles") == 0
    tiles = json.loads((out / "tiles.json").read_text())
    rows = [
        {key: row[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.5}
        for row in tiles["annotations"]
    ]
    detected = {
        "images": [
            {"id": 900 - x["id"], "file_name": f"{out}/images/{x['file_name']}"}
            for x in tiles["images"]
        ],
        "categories": [{"id": 70 - x["id"], "name": x["name"]} for x in tiles["categories"]],
        "annotations": [
            {**x, "image_id": 900 - x["image_id"], "category_id": 70 - x["category_id"]}
            for x in rows
        ],
    }
    merged = []
    for name, content in (("list", rows), ("detections", detected)):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(content))
        words = ["--data", str(out / "tiles.json"), "--merge", str(path)]
        assert main(["data", "tile", *words, "--out", str(tmp_path / "new" / name)]) == 0
        merged.append(json.loads((tmp_path / "new" / name).read_text()))
    assert merged[0] == merged[1] != []
    assert {row["image_id"] for row in merged[0]} <= {x["id"] for x in tiles["old_images"]}
    detected["images"][0]["file_name"] = "other.png"
    path.write_text(json.dumps(detected))
    assert main(["data", "tile", *words, "--out", str(tmp_path / "no")]) == 2
    assert capsys.readouterr().err.endswith("tiles.json, the first is other.png\n")


@pytest.mark.parametrize("pixels", ["tiles", "whole"])
def test_erased_tiles_are_read_again(folder, tmp_path, pixels):
    more = ["--tile", "128", "96", "--pixels", pixels, "--erase", "mean", "--suffix", ".jpg"]
    assert run("tile", folder, "--out", tmp_path / "out", *more) == 0
    data = read(tmp_path / "out" / "tiles.json", images=tmp_path / "out" / "images")
    assert not any(image.ignore.any() for image in data.images)
    assert len(data.images) == 27
    assert all((image.corner is None) == (pixels == "tiles") for image in data.images)
    count = len(list((tmp_path / "out" / "images").rglob("*.jpg")))
    assert count == (27 if pixels == "tiles" else 3)


@pytest.mark.parametrize(
    ("command", "more", "message"),
    [
        ("stats", ["--scales", "0"], "scales must be numbers above 0"),
        ("stats", ["--data", "no.json"], "no.json: expected a data set, found nothing"),
        ("anchors", ["--count", "0"], "count must be at least 1"),
        ("view", ["--out", "x.html", "--count", "0"], "count must be at least 1"),
        ("view", ["--out", "x.html", "--images", "none"], "3 image files are missing"),
        ("tile", ["--out", "x", "--erase", "mean"], "erase needs pixels"),
        ("tile", ["--out", "x", "--pixels", "whole"], "pixels must be none or tiles"),
        ("tile", ["--out", "x", "--overlap", "999"], "overlap must be in [0, 640), got 999"),
        (
            "tile",
            ["--out", "x", "--merge", "{folder}/train.json"],
            "train.json: annotations[0]: Object missing required field `score`",
        ),
        ("tile", ["--out", "x", "--merge", "{folder}/bad.json"], "is not JSON"),
        (
            "tile",
            ["--out", "x", "--merge", "{folder}/text.json"],
            "Expected `object | array`",
        ),
        ("tile", ["--out", "x", "--merge", "{folder}/none.json"], "must have old_images"),
    ],
)
def test_mistakes_are_one_line(folder, tmp_path, capsys, monkeypatch, command, more, message):
    (folder / "bad.json").write_text("[{")
    (folder / "none.json").write_text("[]")
    (folder / "text.json").write_text('"a"')
    monkeypatch.chdir(tmp_path)
    assert run(command, folder, *(word.format(folder=folder) for word in more)) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"tinyops data {command}: ")
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit):
        main(["data", "--help"])
    words = re.findall(r"^    (\w+) ", capsys.readouterr().out, re.MULTILINE)
    assert {"stats", "anchors", "view", "tile"} <= set(words)
