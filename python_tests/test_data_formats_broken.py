"""Data sets that are not what they should be: the error names the file, the place and why."""

import json

import pytest
from test_data_formats import TINYPERSON, TT100K, VISDRONE, WIDER, XML, YOLO, files, voc, wider

from tinyops.data import read


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("annotations/b.txt", "1,2,3\n", r"b\.txt line 1: left .* must be finite num"),
        (
            "annotations/b.txt",
            "1,2,3,x,1,1,0,0",
            r"b\.txt line 1: left .* must be finite num",
        ),
        (
            "annotations/b.txt",
            "1,2,3,nan,1,1,0,0",
            r"b\.txt line 1: left .* must be finite num",
        ),
        ("annotations/b.txt", "\n1,2,3,4,1,12,0,0", r"b\.txt line 2: category must be a whole"),
        ("annotations/b.txt", "1,2,3,4,1,1.5,0,0", r"b\.txt line 1: category must be a whole"),
        ("annotations/b.txt", "1,2,3,4,1,1,1e20,0", r"b\.txt line 1: truncation must be a whole"),
        ("annotations/b.txt", "1,2,-3,4,1,1,0,0", r"b\.txt line 1: bbox must not have a negative"),
        ("annotations/b.txt", "1,2,0,4,1,1,0,0", r"b\.txt line 1: bbox has no area"),
        ("annotations/c.txt", "", r"c\.txt: expected an image .*images/c\.jpg, found none"),
        ("images/b.jpg", (1, 1), r"b\.jpg and b\.png have the same annotations"),
        ("images/b.png", "no image", r"cannot read the size of .*b\.png"),
    ],
)
def test_wrong_visdrone_is_named(tmp_path, name, text, message):
    files(tmp_path, {**VISDRONE, name: text})
    with pytest.raises((ValueError, OSError), match=message):
        read(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>", r"a\.xml is not xml: no element found"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><annotation>&a;</annotation>', r"a\.xml line 1: .* a DTD"),
        ('<!DOCTYPE x SYSTEM "file:///etc/passwd"><annotation/>', r"a\.xml line 1: .* a DTD"),
        (XML.replace("<name>cat</name>", ""), r"a\.xml object 2: expected name, got nothing"),
        (XML.replace("<xmin>11</xmin>", ""), r"a\.xml object 2: expected xmin, got nothing"),
        (XML.replace("11.5", "y"), r"a\.xml object 1: ymax must be finite numbers, got 'y'"),
        (XML.replace("11.5", "0"), r"a\.xml object 1: bbox must not have a negative size"),
        (XML.replace("50<", "-5<"), r"a\.xml: width must be a whole number in 0\.\."),
        (XML.replace(">1</t", ">x</t"), r"a\.xml object 1: truncated must be finite"),
    ],
)
def test_wrong_voc_is_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read(voc(tmp_path, text))


def test_voc_without_annotations_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected a folder with Annotations, found none"):
        read(tmp_path, "voc")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("labels/train/x.txt", "2 .5 .5 .1 .1", r"x\.txt line 1: class must be a whole .* 0\.\.1"),
        ("labels/train/x.txt", "0 .5 .5 .1", r"x\.txt line 1: class cx .* must be finite numbers"),
        ("labels/train/x.txt", "0 50 .5 .1 .1", r"x\.txt line 1: cx must be a share in 0\.\.1"),
        (
            "labels/train/x.txt",
            "0 0 0 0 1 .5",
            r"x\.txt line 1: class cx .* must be finite numbers",
        ),
        ("labels/train/x.txt", "0 0 0 0 1 2 1", r"x\.txt line 1: x must be a share in 0\.\.1"),
        ("labels/train/x.txt", "0 .5 .5 0 .1", r"x\.txt line 1: bbox has no area"),
        ("data.yaml", "train: images/train\n", r"data\.yaml: names must be the classes"),
        ("data.yaml", "train: [1]\nnames: [a]\n", r"data\.yaml: train must be paths"),
        ("data.yaml", "train: [", r"data\.yaml must be YAML: "),
        ("data.yaml", "- 1", r"data\.yaml must be a mapping"),
        ("data.yaml", "train: no\nnames: [a]\n", r"data\.yaml: split must be one .*, none; got tr"),
        ("data.yaml", "train: none\nnames: [a]\n", r"data\.yaml: expected images in .*none, fo"),
    ],
)
def test_wrong_yolo_is_named(tmp_path, name, text, message):
    files(tmp_path, {**YOLO, name: text})
    with pytest.raises((ValueError, OSError), match=message):
        read(tmp_path, split="train")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\n2\n", "\nx\n", r"gt\.txt line 2: count must be finite numbers, got 'x'"),
        ("\n2\n", "\n-1\n", r"gt\.txt line 2: the number of faces must be a whole number"),
        ("\n2\n", "\n99\n", r"gt\.txt line 2: expected 99 faces, got 10 lines"),
        ("449", "", r"gt\.txt line 3: x y width .* must be finite numbers"),
        ("7 8 0", "7 8 0.5", r"gt\.txt line 12: blur must be a whole number"),
        ("\n1\n5 6 7 8 0 0 0 0 0 0\n", "", r"gt\.txt line 11: expected the number of faces of '1-"),
    ],
)
def test_wrong_wider_face_is_named(tmp_path, old, new, message):
    path = wider(tmp_path) / "wider_face_split/wider_face_val_bbx_gt.txt"
    path.write_text(WIDER.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        read(path)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("imgs",), [], "expected an object with types and imgs"),
        (("imgs", "5"), 3, r"imgs\['5'\] must have a list of objects, got 3"),
        (("imgs", "5", "id"), "5", r"imgs\['5'\] must have an int id and a path"),
        (("imgs", "5", "objects", 1, "category"), "x", r"'5'\] object 1: category 'x' is not"),
        (("imgs", "5", "objects", 1, "bbox"), [1], r"'5'\] object 1 must have category and bbox"),
        (
            ("imgs", "5", "objects", 0, "bbox", "xmin"),
            "1",
            r"'5'\] object 0: bbox must have",
        ),
        (
            ("imgs", "5", "objects", 0, "bbox", "xmax"),
            1,
            r"'5'\] object 0: bbox must not",
        ),
        (("imgs", "5", "objects", 0, "bbox", "xmax"), 10**400, r"'5'\] object 0: bbox must have"),
        (("imgs", "5", "id"), 2**63, r"imgs\['5'\] must have an int id"),
        (("types",), ["a", "a"], "types must be names, each once"),
        (("types",), [["a"]], "types must be names, each once"),
    ],
)
def test_wrong_tt100k_is_named(tmp_path, path, value, message):
    content = json.loads(json.dumps(TT100K))
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    names = {"annotations.json": json.dumps(content)}
    files(tmp_path, {**names, "train/5.jpg": (30, 20), "test/7.jpg": (8, 9)})
    with pytest.raises(ValueError, match=rf"annotations\.json: .*{message}"):
        read(tmp_path, "tt100k")


def test_truncated_json_is_named(tmp_path):
    for text in (json.dumps(TINYPERSON), json.dumps(TT100K)):
        path = files(tmp_path, {"a.json": text[: len(text) // 2]}) / "a.json"
        for name in ("coco", "tt100k"):
            with pytest.raises(ValueError, match=r"a\.json:? (it )?is not JSON"):
                read(path, name)
