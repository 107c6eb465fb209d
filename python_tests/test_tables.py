"""COCO json as columns: what is wrong is said in one line with file, field and index."""

import copy
import json
import re

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyops.evaluation import evaluate, tables
from tinyops.evaluation.tables import read_detections, read_ground_truth

OBJECT = {"id": 4, "image_id": 9, "category_id": 2, "bbox": [1, 2, 3, 4.5]}
TRUTH = {
    "images": [{"id": 9, "file_name": "b.png", "width": 5}, {"id": 3, "file_name": "a.png"}],
    "categories": [{"id": 2, "name": "person"}, {"id": 1, "name": "boat"}],
    "annotations": [OBJECT, {**OBJECT, "id": 0, "area": 7, "iscrowd": 1, "size": 2.5}],
}
FOUND = {"image_id": 9, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 0.5}
MANY = [{**FOUND, "score": k / 100} for k in range(100)]


def refused(source, read=None):
    """The message of the error, without the name of file or argument."""
    read = read or (lambda x: read_detections(x, read_ground_truth(TRUTH)))
    with pytest.raises(ValueError, match=r"^(ground_truth|detections|.*\.json): ") as caught:
        read(source)
    (line,) = str(caught.value).splitlines()
    return re.sub(r"^(ground_truth|detections|.*\.json): ", "", line)


@pytest.fixture
def written(tmp_path):
    def write(content):
        path = tmp_path / "file.json"
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_text(text)
        return path

    return write


def test_ids_are_sorted_and_defaults_filled_in(written):
    for source in (TRUTH, written(TRUTH), str(written(TRUTH))):
        table = read_ground_truth(source)
        assert table.image_ids.tolist() == [3, 9]
        assert table.image_names == ["a.png", "b.png"]
        assert (table.class_ids.tolist(), table.classes) == ([1, 2], ["boat", "person"])
        assert table.images.tolist() == [1, 1]
        assert table.labels.tolist() == [1, 1]
        assert table.areas.tolist() == [13.5, 7]
        assert table.sizes.tolist() == [13.5**0.5, 2.5]
        assert table.crowd.tolist() == [False, True]
        assert table.ids.tolist() == [4, 0]


def test_without_ids_objects_are_numbered_from_1():
    objects = [{k: v for k, v in OBJECT.items() if k != "id"}] * 2
    assert read_ground_truth({**TRUTH, "annotations": objects}).ids.tolist() == [1, 2]


def test_detections_are_the_same_in_all_forms(written):
    truth = read_ground_truth(TRUTH)
    numpy = [
        {
            "image_id": np.int64(x["image_id"]),
            "category_id": np.int32(x["category_id"]),
            "bbox": np.array(x["bbox"], np.float32),
            "score": np.float64(x["score"]),
        }
        for x in MANY
    ]
    forms = [MANY, {"annotations": MANY}, numpy, tuple(MANY)]
    forms += [written(MANY), written({"annotations": MANY}), written(json.dumps(MANY, indent=2))]
    for source in forms:
        found = read_detections(source, truth)
        assert found.scores.tolist() == [x["score"] for x in MANY]
        assert found.boxes.tolist() == [x["bbox"] for x in MANY]
        assert set(found.images.tolist()) == {1}
        assert set(found.labels.tolist()) == {1}


ENTRIES = [
    FOUND,
    {**FOUND, "note": "}, {"},
    {**FOUND, "more": {"a": [{}, {"b": []}, {}]}},
    {"segmentation": [{"x": 1}, {"y": 2}], **FOUND},
]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(ENTRIES), max_size=12), st.integers(1, 300), st.booleans())
def test_a_file_that_is_read_in_pieces_gives_the_same(tmp_path_factory, entries, size, indent):
    truth = read_ground_truth(TRUTH)
    entries = [{**x, "score": k / 16} for k, x in enumerate(entries)]
    path = tmp_path_factory.getbasetemp() / "pieces.json"
    path.write_text(json.dumps(entries, indent=2 if indent else None) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "_PIECE", size)
        found = read_detections(path, truth)
    assert found.scores.tolist() == [x["score"] for x in entries]


@pytest.mark.parametrize("size", [40, 1 << 20])
@pytest.mark.parametrize("in_file", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": float("nan")}, "score must be finite, got nan"),
        ({"score": "0.5"}, "score: Expected `float`, got `str`"),
        ({"score": None}, "score: Expected `float`, got `null`"),
        ({"bbox": [1, 2, 3]}, "bbox: Expected `array` of length 4"),
        ({"bbox": [1, 2, float("inf"), 3]}, "bbox must be finite and below 1e100, got [1.0, 2.0, "),
        ({"bbox": [1, 2, 3, 1e308]}, "bbox must be finite and below 1e100, got [1.0, 2.0, 3.0, "),
        ({"bbox": [1, 2, -3, 3]}, "bbox must be x y w h without a negative size"),
        ({"bbox": [1, 2, "3", 3]}, "bbox[2]: Expected `float`, got `str`"),
        ({"image_id": 7}, "image_id must be one of the 2 ids of the ground truth, got 7"),
        ({"image_id": 2**70}, "image_id must be in 64 bits"),
        ({"category_id": 3}, "category_id must be one of the 2 ids of the ground truth, got 3"),
        ({"category_id": True}, "category_id: Expected `int`, got `bool`"),
    ],
)
def test_a_wrong_detection_is_named(written, monkeypatch, change, message, in_file, size):
    monkeypatch.setattr(tables, "_PIECE", size)
    monkeypatch.setattr(tables, "_AT_A_TIME", 8)
    entries = [*MANY[:50], {**FOUND, **change}, *MANY]
    assert refused(written(entries) if in_file else entries).startswith(f"results[50].{message}")
    if size > 40:
        content = {"annotations": entries}
        line = refused(written(content) if in_file else content)
        assert line.startswith(f"annotations[50].{message}")


@pytest.mark.parametrize(
    ("field", "k", "change", "message"),
    [
        ("images", 1, {"id": 9}, "id must be another than those before, got 9"),
        ("images", 1, {"id": "a"}, "id: Expected `int`, got `str`"),
        ("images", 1, {"file_name": 3}, "file_name: Expected `str`, got `int`"),
        ("categories", 1, {"id": 2}, "id must be another than those before, got 2"),
        ("annotations", 1, {"id": 4}, "id must be another than those before, got 4"),
        ("annotations", 1, {"area": -1}, "area must be finite and not negative, got -1.0"),
        ("annotations", 1, {"area": float("nan")}, "area must be finite and not negative"),
        ("annotations", 1, {"size": -1}, "size must be finite and not negative, got -1.0"),
        ("annotations", 1, {"bbox": [1, 2, 3, -4]}, "bbox must be x y w h without a negative"),
        ("annotations", 1, {"image_id": 4}, "image_id must be one of the 2 ids"),
        ("annotations", 1, {"category_id": -2}, "category_id must be one of the 2 ids"),
        ("annotations", 1, {"iscrowd": "no"}, "iscrowd: Expected `bool | int`, got `str`"),
        ("annotations", 0, {"id": 2**64}, "id must be in 64 bits"),
    ],
)
def test_a_wrong_entry_of_the_ground_truth_is_named(written, field, k, change, message):
    content = copy.deepcopy(TRUTH)
    content[field][k] |= change
    for source in (content, written(content)):
        assert refused(source, read_ground_truth).startswith(f"{field}[{k}].{message}")


@pytest.mark.parametrize("field", TRUTH)
def test_a_missing_list_is_named(written, field):
    without = {k: v for k, v in TRUTH.items() if k != field}
    for content in ({**TRUTH, field: 3}, without):
        for source in (content, written(content)):
            assert field in refused(source, read_ground_truth)


@pytest.mark.parametrize("text", ["", " ", "{", "\0", "x", "[", "{}}", "[1,]", "[" * 100_000])
def test_what_is_not_json_is_refused(written, text):
    for read in (None, read_ground_truth):
        message = refused(written(text), read)
        assert message.startswith("is not JSON: ") or text[0] in "[{"  # else its form is named


@pytest.mark.parametrize("size", [40, 1 << 20])
def test_truncated_json_is_never_read_as_less(written, monkeypatch, size):
    monkeypatch.setattr(tables, "_PIECE", size)
    text = json.dumps(MANY[:4])
    for end in range(len(text)):
        assert refused(written(text[:end])).startswith("is not JSON")
    whole = json.dumps(TRUTH)
    for end in range(0, len(whole), 3):
        assert refused(written(whole[:end]), read_ground_truth).startswith("is not JSON")
    for bad in (text[:-1] + ",]", text + "]", text + " 3", text.replace("}, {", "} {")):
        assert refused(written(bad)).startswith("is not JSON")


@pytest.mark.parametrize("content", [3, None, "x", True])
def test_what_is_not_a_list_is_said_so(written, content):
    assert refused(written(json.dumps(content))).startswith("Expected `object | array`, got")
    assert refused(written({"annotations": content})).startswith("annotations: Expected `array`")
    assert refused({"annotations": content}) == f"annotations must be a list, got {content!r}"


def test_no_memory_is_said_in_a_line(written, monkeypatch):
    def full(*_args, **_kwargs):
        raise MemoryError

    monkeypatch.setattr(msgspec.json, "decode", full)
    message = "there is not enough memory for it"
    assert refused(written(TRUTH), read_ground_truth) == message


def test_a_missing_file_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        evaluate("coco", tmp_path / "nothing", [])
    with pytest.raises(FileNotFoundError, match="nothing"):
        evaluate("coco", TRUTH, tmp_path / "nothing")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["image_id", "category_id", "bbox", "score"]), VALUES, st.booleans())
def test_whatever_comes_it_is_a_value_or_one_line(tmp_path_factory, field, value, in_file):
    entries = [FOUND, {**FOUND, field: value}]
    source = tmp_path_factory.getbasetemp() / "any.json"
    source.write_text(json.dumps(entries))
    message = ""
    try:
        result = evaluate("coco", TRUTH, source if in_file else entries)
    except ValueError as error:
        message = str(error)
    if message:
        assert re.fullmatch(rf".*(any\.json|detections): results\[1\]\.{field}\b.*", message)
    else:
        assert -1 <= result["stats"]["AP"] <= 1


def test_content_stays_as_it_was_and_nothing_is_printed(capsys):
    before = json.dumps([TRUTH, MANY])
    evaluate("tinyperson", TRUTH, MANY)
    assert json.dumps([TRUTH, MANY]) == before
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""
