"""Data sets from one format to another, and the command that does it."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tinyops.cli import main
from tinyops.data import formats, read, write
from tinyops.data.formats.coco import to_coco
from tinyops.data.types import AnnotatedImage, AnnotatedSet

NAMES = ("car", "bus stop", "it's <b>", "größe", "2")
NO_IGNORE = ("yolo", "tt100k")
NO_NAMES = ("visdrone", "widerface")


@st.composite
def sets(draw, *, least=1, whole=True):
    """Sets with boxes inside their images."""
    classes = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True))
    images = []
    for k in range(draw(st.integers(least, 3))):
        size = [draw(st.integers(2, 90)) for _ in range(2)]
        rows = []
        for _ in range(draw(st.integers(0, 4))):
            number = st.integers(0, 64) if whole else st.floats(0, 64, width=32)
            share = [draw(number) / 64 for _ in range(4)]
            x, y = (min(share[i] * size[i], size[i] - 1) for i in range(2))
            width, height = (max(share[2 + i] * (size[i] - (x, y)[i]), 1) for i in range(2))
            box = [x, y, width, height]
            rows.append([int(value) for value in box] if whole else box)
        labels = draw(
            st.lists(st.integers(0, len(classes)), min_size=len(rows), max_size=len(rows))
        )
        ignore = [label == 0 or draw(st.booleans()) for label in labels]
        bbox = np.array(rows, np.float64).reshape(-1, 4)
        arrays = bbox, np.array(labels, np.int64), np.array(ignore, np.bool_)
        images.append(AnnotatedImage(k + 1, f"d{k % 2}/{k}.png", *size, *arrays))
    return AnnotatedSet(tuple(images), tuple(classes), tuple(range(1, len(classes) + 1)))


def through(data, folder, name):
    """Written in a format and read again."""
    path = folder / (f"{name}.json" if name == "coco" else name)
    write(data, path, name, images="copy")
    return read(path, images=path.with_suffix("") if name == "coco" else None)


def draw_images(data, folder):
    for image in data.images:
        (folder / image.file_name).parent.mkdir(exist_ok=True)
        Image.new("L", (image.width, image.height)).save(folder / image.file_name)
    return replace(data, folder=folder)


def content(data, name):
    """What the format keeps: image -> size and objects."""
    table = {}
    for image in data.images:
        objects = []
        for box, label, ignore in zip(image.bbox, image.labels, image.ignore, strict=True):
            if ignore and name in NO_IGNORE:
                continue
            kept = "" if ignore or name in NO_NAMES else data.classes[label - 1]
            objects.append((box.tolist(), kept, bool(ignore)))
        table[image.file_name] = (image.width, image.height, objects)
    return table


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for file, (width, height, objects) in expected.items():
        assert found[file][:2] == (width, height)
        assert [o[1:] for o in found[file][2]] == [o[1:] for o in objects]
        boxes = [[o[0] for o in table] for table in (found[file][2], objects)]
        np.testing.assert_allclose(*boxes, rtol=0, atol=1e-9)


@pytest.mark.parametrize("second", formats.FORMATS)
@pytest.mark.parametrize("first", formats.FORMATS)
def test_every_format_becomes_every_other(first, second):
    @settings(max_examples=5, deadline=None, derandomize=True)
    @given(data=sets())
    def check(data):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            (root / "again").mkdir()
            once = through(draw_images(data, root), root, first)
            assert_same(content(once, first), content(data, first))
            twice = through(once, root / "again", second)
            assert_same(content(twice, second), content(once, second))

    check()


@settings(max_examples=30, deadline=None)
@given(data=sets(least=0, whole=False))
def test_coco_keeps_every_bit(data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.json"
        assert write(data, path, "coco") == []
        again = read(path)
        assert to_coco(again) == json.loads(path.read_text())
    for image, other in zip(data.images, again.images, strict=True):
        assert image.bbox.tobytes() == other.bbox.tobytes()
        assert image.labels.tolist() == other.labels.tolist()
        assert image.ignore.tolist() == other.ignore.tolist()


@settings(max_examples=15, deadline=None)
@given(data=sets(whole=False), name=st.sampled_from(("yolo", "tt100k", "visdrone", "voc")))
def test_decimals_are_kept_or_rounded(data, name):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        found = content(through(draw_images(data, root), root, name), name)
    limit = 0.5 + 1e-9 if name in ("visdrone", "voc") else 1e-9
    for file, (_width, _height, objects) in content(data, name).items():
        for (a, *_), (b, *_) in zip(found[file][2], objects, strict=True):
            a, b = np.array(a), np.array(b)
            assert np.abs(a[:2] - b[:2]).max() <= limit
            assert np.abs(a[:2] + a[2:] - b[:2] - b[2:]).max() <= limit


@pytest.mark.parametrize("name", ["visdrone", "voc", "widerface"])
def test_less_than_half_a_pixel_becomes_one_pixel(tmp_path, name):
    """A box without area could not be read again."""
    box = np.array([[3.1, 4.2, 0.3, 0.2]])
    image = AnnotatedImage(1, "a.png", 9, 9, box, np.array([1]), np.array([False]))
    data = draw_images(AnnotatedSet((image,), ("x",), (1,)), tmp_path)
    assert through(data, tmp_path, name).images[0].bbox.tolist() == [[3, 4, 1, 1]]


@pytest.fixture
def folder(tmp_path):
    """Two images and three objects as COCO."""
    entry = {"image_id": 7, "category_id": 9, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0}
    table = {
        "info": {"year": 2020},
        "images": [
            {"id": k, "file_name": f"{k}.png", "width": 20, "height": 10, "license": 1}
            for k in (7, 5)
        ],
        "categories": [{"id": 9, "name": "gull"}],
        "annotations": [
            {"id": 3, **entry},
            {"id": 4, **entry, "bbox": [0.25, 0, 2, 2], "area": 4, "uncertain": True},
            {"id": 5, **entry, "image_id": 5, "score": 0.5},
        ],
    }
    (tmp_path / "a.json").write_text(json.dumps(table))
    for k in (7, 5):
        Image.new("RGB", (20, 10)).save(tmp_path / f"{k}.png")
    return tmp_path


def convert(*arguments):
    return main(["data", "convert", *map(str, arguments)])


def test_the_command_says_what_is_lost(folder, capsys):
    out = folder / "y"
    command = ["--from", folder / "a.json", "--images", folder, "--to", out, "--to-format", "yolo"]
    assert convert(*command, "--copy-images") == 0
    assert capsys.readouterr().out.splitlines() == [
        "1 boxes marked ignore are left out: YOLO has no place for them",
        "2 boxes lose their id: YOLO has no place for them",
        "1 boxes lose their score: YOLO has no place for them",
        "2 images lose their license: YOLO has no place for them",
        "the set loses its info: YOLO has no place for them",
        "the images lose their ids and their order: YOLO has no place for them",
        "the classes lose their ids: YOLO has no place for them",
        f"{out}: 2 images, 3 boxes read",
    ]
    assert sorted(p.name for p in out.rglob("*.*")) == [
        "5.png",
        "5.txt",
        "7.png",
        "7.txt",
        "data.yaml",
    ]
    assert (out / "images/train/5.png").read_bytes() == (folder / "5.png").read_bytes()
    assert (out / "labels/train/7.txt").read_text() == "0 0.125 0.4 0.15 0.4\n"


def test_what_visdrone_loses_is_said(folder, capsys):
    out = folder / "v"
    assert convert("--from", folder / "a.json", "--to", out, "--to-format", "visdrone") == 0
    text = capsys.readouterr().out
    assert "1 boxes are rounded: VisDrone has whole pixels\n" in text
    assert "the classes lose their names: VisDrone has its own; gull is 1\n" in text
    assert "1 boxes lose their uncertain: VisDrone" in text
    assert (out / "annotations/7.txt").read_text() == "1,2,3,4,1,1,0,0\n0,0,2,2,0,1,0,0\n"
    assert not (out / "images").exists()


def test_images_are_linked(folder):
    options = ["--images", folder, "--link-images", "--to-format"]
    assert convert("--from", folder / "a.json", "--to", folder / "b.json", *options, "coco") == 0
    assert (folder / "b/7.png").is_symlink()
    assert (folder / "b/7.png").resolve() == (folder / "7.png").resolve()
    assert to_coco(read(folder / "b.json")) == to_coco(read(folder / "a.json"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--to-format", "coco"], "exists: choose another"),
        (["--to", "t", "--to-format", "yolo", "--to-split", "a/b"], "split must be a plain name"),
        (["--to", "t", "--to-format", "yolo", "--to-split", "x"], "split must be train, val or te"),
        (["--to", "t.json", "--to-format", "coco", "--split", "x"], "split must be None"),
        (["--to", "t", "--to-format", "coco"], "COCO is a .json, got the name t"),
        (
            ["--to", "t.json", "--to-format", "coco", "--copy-images"],
            "must have a folder of images",
        ),
        (
            ["--to", "t.json", "--to-format", "coco", "--from", "no"],
            "no: expected a data set, found no",
        ),
        (
            ["--to", "t", "--to-format", "voc", "--copy-images", "--link-images"],
            "either --copy-images or --link-images",
        ),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(folder, capsys, monkeypatch, more, message):
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    assert convert("--from", "a.json", "--to", "a.json", *more) == 2
    error = capsys.readouterr().err
    assert error.startswith("tinyops data convert: ")
    assert message in error
    assert error.count("\n") == 1
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("name", ["voc", "tt100k"])
def test_two_classes_of_one_name_stay_apart_or_are_refused(folder, name):
    data = read(folder / "a.json")
    data = replace(data, classes=("gull", "gull"), category_ids=(9, 10))
    with pytest.raises(ValueError, match="tells classes by their names, and two are 'gull'"):
        write(data, folder / "x", name)
    write(data, folder / "b.json", "coco")
    assert read(folder / "b.json").classes == ("gull", "gull")


def test_flags_that_a_format_holds_are_not_called_lost(folder):
    data = read(folder / "a.json")
    images = [replace(x, attributes={"ignore": x.ignore}) for x in data.images]
    data = replace(data, images=tuple(images))
    for name in ("visdrone", "voc", "widerface", "yolo", "tt100k"):
        assert not any("lose their ignore" in note for note in write(data, folder / name, name))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../../7.png", "cannot write under the name '../../7.png'"),
        ("/7.png", "cannot write under the name '/7.png'"),
        ("", "cannot write under the name ''"),
        ("a\nb.png", "cannot write under the name"),
        ("7.jpg", "7.png and 7.jpg would have the same annotations in"),
    ],
)
@pytest.mark.parametrize("format", ["visdrone", "voc", "yolo"])
def test_names_that_lead_elsewhere_are_refused(folder, name, message, format):
    table = json.loads((folder / "a.json").read_text())
    table["images"][1]["file_name"] = name
    (folder / "a.json").write_text(json.dumps(table))
    before = sorted(folder.rglob("*"))
    with pytest.raises(ValueError, match=message):
        write(read(folder / "a.json"), folder / "x", format)
    assert sorted(folder.rglob("*")) == before


def test_a_failure_half_way_leaves_nothing(folder, monkeypatch):
    data = read(folder / "a.json", images=folder)
    (folder / "5.png").unlink()
    before = sorted(folder.rglob("*"))
    for name in formats.FORMATS:
        target = folder / ("x.json" if name == "coco" else "x")
        with pytest.raises(FileNotFoundError):
            write(data, target, name, images="copy")
        assert sorted(folder.rglob("*")) == before


def test_tiles_have_a_place_in_coco_alone(folder):
    data = read(folder / "a.json")
    tile = replace(data.images[0], corner=(0, 0, 20, 10))
    data = replace(data, images=(tile, *data.images[1:]))
    with pytest.raises(ValueError, match=r"image 7 is a tile of 7\.png, which YOLO cannot say"):
        write(data, folder / "x", "yolo")


def test_attributes_of_other_meaning_are_left_out(folder):
    """`pose` is a number in WIDER FACE and a text in VOC."""
    data = read(folder / "a.json")
    first, *rest = data.images
    for pose, voc, wider in (([1, 0], None, [1, 0]), (["Left", None], ["Left", None], [0, 0])):
        column = formats.common.column(pose)
        image = replace(first, attributes={"pose": column})
        changed = replace(data, images=(image, *rest), folder=folder)
        for name, expected in (("voc", voc), ("widerface", wider)):
            target = folder / f"{name}{pose[0]}"
            notes = write(changed, target, name, images="copy")
            found = next(x for x in read(target).images if x.file_name == "7.png").attributes
            assert found.get("pose", np.array(None)).tolist() == expected
            assert any("lose their pose" in note for note in notes) == (pose != expected)
