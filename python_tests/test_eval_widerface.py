"""WIDER FACE's average precision."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from tinyops.evaluation import widerface
from tinyops.evaluation.details import DUPLICATE, FALSE, FOUND, LEFT_OUT, MISSED

GOLDEN = sorted((Path(__file__).parent / "data" / "golden").glob("wider_*"))


def loaded(folder):
    return [json.loads((folder / name).read_text()) for name in ("input.json", "expected.json")]


def image(gt, dt=(), hard=None, name="a"):
    every = list(range(len(gt)))
    sets = {"easy": [], "medium": every, "hard": every if hard is None else hard}
    return {"name": name, "gt": gt, "dt": list(dt), **sets}


def hard(*images, **options):
    scene = [{"event": "e", "images": list(images)}]
    return widerface.evaluate(scene, scene, **options)["hard"]


def cells(values):
    """A column of Matlab's cells."""
    column = np.empty((len(values), 1), object)
    for k, value in enumerate(values):
        column[k, 0] = value
    return column


def write_mat(folder, events):
    """As the benchmark's files are."""

    def nested(value):
        return cells([cells([value(x) for x in e["images"]]) for e in events])

    savemat(
        folder / "wider_face_val.mat",
        {
            "event_list": cells([e["event"] for e in events]),
            "file_list": nested(lambda x: x["name"]),
            "face_bbx_list": nested(lambda x: np.reshape(x["gt"], (-1, 4)).astype(float)),
        },
    )
    for name in widerface.SETS:
        indices = nested(lambda x, name=name: np.reshape(x[name], (-1, 1)).astype(np.uint16) + 1)
        savemat(folder / f"wider_{name}_val.mat", {"gt_list": indices})


def write_texts(folder, events):
    for event in events:
        (folder / event["event"]).mkdir(parents=True)
        for x in event["images"]:
            rows = [" ".join(map(str, row)) for row in x["dt"]]
            lines = [f"{event['event']}/{x['name']}", str(len(rows)), *rows, ""]
            (folder / event["event"] / f"{x['name']}.txt").write_text("\n".join(lines))


@pytest.mark.parametrize("form", ["path", "content", "folders"])
@pytest.mark.parametrize("folder", GOLDEN, ids=lambda path: path.name)
def test_equals_the_original(folder, form, tmp_path):
    events, expected = loaded(folder)
    truth = found = events
    if form == "path":
        truth = found = str(folder / "input.json")
    elif form == "folders":
        (truth := tmp_path / "truth").mkdir()
        write_mat(truth, events)
        write_texts(found := tmp_path / "found", events)
    result = widerface.evaluate(truth, found)
    assert list(result) == ["easy", "medium", "hard"]
    for name, values in expected.items():
        values.pop("octave_AP")
        assert result[name].keys() == values.keys()
        assert result[name]["AP"] == pytest.approx(values["AP"], abs=1e-9)
        assert result[name]["count_face"] == values["count_face"]
        for row, wanted in zip(result[name]["curve"], values["curve"], strict=True):
            assert row == pytest.approx(wanted, abs=1e-9)


def test_there_are_golden_cases():
    assert len(GOLDEN) == 3


def test_a_second_detection_of_a_face_is_a_false_alarm():
    face = [10, 10, 20, 20]
    rows = [[*face, 0.9], [300, 1, 9, 9, 0.2]]
    once = hard(image([face], rows), image([[1, 1, 9, 9]], name="b"))
    assert once["AP"] == 0.5
    twice = hard(
        image([face], [[*face, 0.9], [*face, 0.8], [300, 1, 9, 9, 0.2]]),
        image([[1, 1, 9, 9]], [[1, 1, 9, 9, 0.7]], name="b"),
    )
    assert twice["curve"][-1][:3] == [1000, 4, 2]
    assert twice["AP"] == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_a_detection_of_a_face_that_is_not_of_the_set_does_not_count():
    faces = [[10, 10, 20, 20], [100, 10, 20, 20]]
    rows = [[*faces[0], 0.9], [*faces[0], 0.85], [*faces[1], 0.8], [300, 1, 9, 9, 0.1]]
    result = hard(image(faces, rows, hard=[1]))
    assert result["curve"][-1] == [1000, 2, 1, 0.5, 1]
    assert result["AP"] == 1


def test_overlap_is_that_of_boxes_wider_by_a_pixel():
    # 3 x 3 moved by 2: 2 of 4 columns are common, 8 of 24 pixels; by 1: 12 of 20.
    for shift, found in ((1, 1), (2, 0)):
        assert hard(image([[5, 5, 3, 3]], [[5 + shift, 5, 3, 3, 9]]))["curve"][-1][2] == found


def test_false_alarms_in_images_without_faces():
    scene = [
        image([[1, 1, 9, 9]], [[1, 1, 9, 9, 0.5], [300, 1, 9, 9, 0.1]]),
        image([], [[1, 1, 9, 9, 0.9]], name="b"),
    ]
    assert hard(*scene)["AP"] == 1
    assert hard(*scene, compatible=False)["AP"] == 0.5


def test_scores_outside_of_0_to_1():
    rows = [[1, 1, 9, 9, 10], [60, 1, 9, 9, 2], [90, 1, 9, 9, 1.0001]]
    scene = image([row[:4] for row in rows], rows)
    # From 1 to 10 in the original, so that the last one is above 0; from the least to the greatest.
    at_0_025 = [hard(scene, compatible=c)["curve"][-2][2] for c in (True, False)]
    assert at_0_025 == [2, 2]
    negative = image([row[:4] for row in rows], [[*row[:4], row[4] - 20] for row in rows])
    # From -18.9999 to 0 in the original: the greatest, -10, is at 0.47.
    at_0_9 = [hard(negative, compatible=c)["curve"][3][2] for c in (True, False)]
    assert at_0_9 == [0, 1]


@pytest.mark.parametrize(("score", "ap"), [(0.0, 0), (0.6, 0), (1.0, 0), (7.0, 1)])
def test_equal_scores(score, ap):
    scene = image([[1, 1, 9, 9]], [[1, 1, 9, 9, score]])
    assert hard(scene)["AP"] == ap  # 0 / 0 in the original if they are within 0..1
    assert hard(scene, compatible=False)["AP"] == 1


def test_detections_that_are_not_sorted():
    rows = [[300, 1, 9, 9, 0.1], [1, 1, 9, 9, 0.9]]
    scene = image([[1, 1, 9, 9]], rows)
    assert hard(scene)["AP"] == 0.5
    assert hard(scene, compatible=False)["AP"] == 1


def test_nothing_at_all():
    nothing = widerface.evaluate([], [])
    assert [nothing[name]["AP"] for name in widerface.SETS] == [None] * 3
    assert widerface.evaluate([], [], compatible=False)["easy"]["AP"] == -1
    assert widerface.table(nothing) == [{"easy": None, "medium": None, "hard": None}]
    events, _ = loaded(GOLDEN[0])
    missed = widerface.evaluate(events, [])
    assert [missed[name]["AP"] for name in widerface.SETS] == [0] * 3
    assert widerface.table(missed)[0]["hard"] == 0
    assert len(widerface.details([], []).kinds) == 0


def test_details_agree_with_the_measures():
    events, expected = loaded(GOLDEN[0])
    details = widerface.details(events, events)
    last = expected["hard"]["curve"][-1]
    kinds = np.bincount(details.kinds, minlength=5)
    objects = np.bincount(details.object_kinds, minlength=5)
    assert kinds[FOUND] == objects[FOUND] == last[2]
    assert kinds[FOUND] + kinds[DUPLICATE] + kinds[FALSE] == last[1]
    assert objects[FOUND] + objects[MISSED] == expected["hard"]["count_face"]
    assert objects[LEFT_OUT] == sum(
        len(x["gt"]) - len(x["hard"]) for e in events for x in e["images"]
    )
    assert details.ap[:, 0].tolist() == pytest.approx([expected[k]["AP"] for k in widerface.SETS])
    assert details.precision.shape == (3, 1, 101)
    assert (np.diff(details.scores) <= 0).all()
    found = details.kinds == FOUND
    assert (details.object_kinds[details.targets[found]] == FOUND).all()
    assert details.image_names[1] == "0--Event/0_Event_0_11.jpg"


GOOD = [{"event": "e", "images": [image([[1, 1, 9, 9]], [[1, 1, 9, 9, 0.5]])]}]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "gt",
            [[1, 1, 9]],
            r"ground_truth: \[0\].images\[0\].gt\[0\]: Expected `array` of length 4",
        ),
        (
            "gt",
            [[1, 1, -9, 9]],
            r"ground_truth: \[0\].images\[0\].gt\[0\] must be finite and below",
        ),
        ("dt", [[1, 1, 9, 1e300, 0]], r"detections: \[0\].images\[0\].dt\[0\] must .* below 1e100"),
        (
            "hard",
            [1],
            r"ground_truth: \[0\].images\[0\].hard: expected .* indices of 1 faces, got 1",
        ),
        ("hard", [0, 0], r"ground_truth: \[0\].images\[0\].hard: expected different"),
        ("hard", ["a"], r"ground_truth: \[0\].images\[0\].hard\[0\]: Expected `int`"),
        ("dt", [[1, 1, 9, 9, np.nan]], r"detections: \[0\].images\[0\].dt\[0\] must be finite"),
        (
            "dt",
            [[1, 1, 9, 9]],
            r"detections: \[0\].images\[0\].dt\[0\]: Expected `array` of length 5",
        ),
        ("dt", 3, r"detections: \[0\].images\[0\].dt: Expected `array`, got `int`"),
    ],
)
def test_wrong_entries_are_named(field, value, message):
    scene = [{"event": "e", "images": [{**GOOD[0]["images"][0], field: value}]}]
    with pytest.raises(ValueError, match=f"^{message}"):
        widerface.evaluate(scene, scene)


def test_images_that_are_unknown_or_there_twice_are_refused():
    other = [{"event": "e", "images": [{"name": "b", "dt": []}]}]
    with pytest.raises(
        ValueError, match=r"^detections: \[0\].images\[0\]: image e/b is not in the "
    ):
        widerface.evaluate(GOOD, other)
    with pytest.raises(
        ValueError, match=r"^detections: \[1\].images\[0\]: image e/a is there twice"
    ):
        widerface.evaluate(GOOD, GOOD * 2)
    with pytest.raises(
        ValueError, match=r"^ground_truth: \[1\].images\[0\]: image e/a is there tw"
    ):
        widerface.evaluate(GOOD * 2, GOOD)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 2 must be the number of the lines after it, 0, got ''"),
        ("e/a\n2\n1 1 9 9 0.5\n", "line 2 must be the number of the lines after it, 1, got '2'"),
        ("e/a\n1\n1 1 9 9\n", "line 3 must be x y w h score"),
        ("e/a\n1\n1 1 9 nine 0.5\n", "line 3 must be x y w h score"),
        ("e/a\n1\n1 1 9 9 nan\n", r"rows\[0\] must be finite"),
    ],
)
def test_wrong_texts_are_named(tmp_path, text, message):
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "a.txt").write_text(text)
    with pytest.raises(ValueError, match=rf"a\.txt: {message}"):
        widerface.evaluate(GOOD, tmp_path)


def test_files_that_are_not_there_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\.txt"):
        widerface.evaluate(GOOD, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"wider_face_val\.mat"):
        widerface.evaluate(tmp_path, GOOD)


def test_broken_mats_are_named(tmp_path):
    write_mat(tmp_path, GOOD)
    whole = (tmp_path / "wider_easy_val.mat").read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2], whole[:150]):
        (tmp_path / "wider_easy_val.mat").write_bytes(content)
        with pytest.raises(ValueError, match=r"wider_easy_val\.mat") as caught:
            widerface.evaluate(tmp_path, GOOD)
        assert "\n" not in str(caught.value)
    savemat(tmp_path / "wider_easy_val.mat", {"gt_list": np.arange(3)})
    with pytest.raises(ValueError, match="expected a list of cells gt_list"):
        widerface.evaluate(tmp_path, GOOD)
    savemat(tmp_path / "wider_easy_val.mat", {"gt_list": cells([])})
    with pytest.raises(ValueError, match=r"its files have \[1, 1, 1, 0, 1, 1\] events"):
        widerface.evaluate(tmp_path, GOOD)
