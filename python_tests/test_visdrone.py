"""VisDrone's texts, and what is wrong with them; test_evaluation_golden.py has the numbers."""

import json
from pathlib import Path

import pytest
from PIL import Image

from tinyops.evaluation.details import FOUND, LEFT_OUT
from tinyops.evaluation.protocols import details, evaluate

CASE = Path(__file__).parent / "data" / "golden" / "visdrone_basic_501" / "input.json"


@pytest.fixture
def folders(tmp_path):
    """The golden case as texts and pictures: ground truth, detections, pictures."""
    made = [tmp_path / name for name in ("annotations", "found", "images")]
    for folder in made:
        folder.mkdir()
    for entry in json.loads(CASE.read_text()):
        for folder, key, end in zip(made, ("gt", "dt"), ("", ","), strict=False):
            lines = "".join(",".join(map(str, row)) + end + "\n" for row in entry[key])
            (folder / f"{entry['name']}.txt").write_text(lines)
        size = (entry["width"], entry["height"])
        Image.new("L", size).save(made[2] / f"{entry['name']}.jpg")
    return made


def test_texts_give_the_numbers_of_the_json(folders):
    truth, found, images = folders
    expected = evaluate("visdrone", CASE, CASE)
    assert evaluate("visdrone", truth, found) == expected
    assert evaluate("visdrone", truth.parent, found) == expected  # the folder of a split
    assert evaluate("visdrone", CASE, found, images=images) == expected
    moved = images.rename(images.parent / "elsewhere")
    assert evaluate("visdrone", truth, found, images=moved) == expected
    with pytest.raises(ValueError, match="expected a picture of"):
        evaluate("visdrone", truth, found)


def test_an_image_without_a_text_has_no_detections(folders):
    truth, found, _ = folders
    name = min(found.iterdir()).name
    (found / name).write_text("")
    expected = evaluate("visdrone", truth, found)
    (found / name).unlink()
    assert evaluate("visdrone", truth, found) == expected


def test_nothing_found_gives_0_and_no_objects_minus_1():
    image = {"name": "a", "width": 9, "height": 9, "gt": [[1, 1, 3, 3, 1, 4, 0, 0]]}
    found = {"name": "a", "dt": [[1, 1, 3, 3, 0.5, 4, -1, -1]]}
    assert evaluate("visdrone", [image], [])["summary"]["AP"] == 0
    assert evaluate("visdrone", [image], [found])["summary"]["AP"] == pytest.approx(100)
    assert evaluate("visdrone", [{**image, "gt": []}], [found])["summary"]["AP"] == -1
    assert evaluate("visdrone", [], [])["summary"]["AP"] == -1


def test_details_leave_out_what_lies_on_objects_of_score_0():
    rows = [[1, 1, 3, 3, 0, 4, 0, 0], [20, 20, 5, 5, 1, 4, 0, 0]]
    found = [[1, 1, 3, 3, 0.9, 4, -1, -1], [20, 20, 5, 5, 0.8, 4, -1, -1]]
    one = details("visdrone", [{"name": "a", "gt": rows}], [{"name": "a", "dt": found}])
    assert one.kinds.tolist() == [LEFT_OUT, FOUND]
    assert one.object_kinds.tolist() == [LEFT_OUT, FOUND]
    assert one.ap[0].tolist() == [-1, -1, -1, 0.5] + [-1] * 6  # recall counts both objects


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1,2,3,x,1,4,0,0", "line 3 must be numbers"),
        ("1,2,3", "line 3 must be left, top"),
        ("1,2,nan,4,1,4,0,0", "line 3 must be finite and below 1e100"),
        ("1,2,-3,4,1,4,0,0", "line 3 must be finite and below 1e100, its size not negative"),
        ("1,2,3,4,1,12,0,0", r"line 3 must be .* its category in 0..11"),
        ("1,2,3,4,1,4.5,0,0", "line 3 must be"),
    ],
)
def test_a_wrong_line_is_named(folders, line, message):
    truth, found, _ = folders
    path = min(found.iterdir())
    path.write_text("1,2,3,4,1,4,0,0\n\n" + line + "\n")
    with pytest.raises(ValueError, match=f"^{path}: {message}"):
        evaluate("visdrone", truth, found)


@pytest.mark.parametrize(
    ("truth", "found", "message"),
    [
        ([{"name": "a", "gt": [[1, 2, 3, 4, 0, 0]]}], [], r"ground_truth: \[0\]: ignored regions"),
        ([{"name": "a", "gt": []}] * 2, [], r"ground_truth: \[1\].name must be another"),
        ([{"name": "a", "gt": []}], [{"name": "b", "dt": []}], "detections: 1 images are not in"),
        (
            [{"name": "a", "gt": []}],
            [{"name": "a", "dt": [[1]]}],
            r"detections: \[0\].dt\[0\] must",
        ),
        ([{"name": "a", "gt": [["x"]]}], [], r"ground_truth: .*Expected `float`, got `str`"),
        ([{"name": "a", "gt": [], "width": 0, "height": 5}], [], r"ground_truth: \[0\]: width"),
        (
            [{"name": "a", "gt": [], "width": 10**5, "height": 10**5}],
            [],
            r"ground_truth: \[0\]: wi",
        ),
        ({}, [], "ground_truth: Expected `array`"),
    ],
)
def test_a_wrong_entry_is_named(truth, found, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        evaluate("visdrone", truth, found)


def test_an_empty_folder_is_an_error(folders, tmp_path):
    truth, _, _ = folders
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="for each image, found none"):
        evaluate("visdrone", truth, tmp_path / "empty")
