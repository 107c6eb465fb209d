"""Tsinghua-Tencent 100K's accuracy and recall."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from tinyops.evaluation import tt100k
from tinyops.evaluation.details import DUPLICATE, FALSE, FOUND, LEFT_OUT, MISSED

GOLDEN = sorted((Path(__file__).parent / "data" / "golden").glob("tt100k_*"))
KEY = "iou0.50_minscore40_overall_all"


def thing(x, y, w, h, category="pn", score=None):
    box = {"xmin": x, "ymin": y, "xmax": x + w, "ymax": y + h}
    return {"bbox": box, "category": category, **({} if score is None else {"score": score})}


def images(**objects):
    return {"imgs": {k: {"path": f"test/{k}.jpg", "objects": v} for k, v in objects.items()}}


def measure(truth, found, key=KEY, **options):
    result = tt100k.evaluate(truth, found, **options)
    return [result[key][name] for name in ("right", "wrong", "miss")]


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("folder", GOLDEN, ids=lambda path: path.name)
def test_equals_the_original(folder, loaded):
    paths = [folder / "gt.json", folder / "dt.json"]
    result = tt100k.evaluate(*([json.loads(p.read_text()) for p in paths] if loaded else paths))
    expected = json.loads((folder / "expected.json").read_text())
    assert result.keys() == expected.keys()
    for key, values in expected.items():
        assert result[key].keys() == values.keys()
        for name, value in values.items():
            assert result[key][name] == pytest.approx(value, abs=1e-12), (key, name)


def test_there_are_golden_cases():
    assert len(GOLDEN) == 2


def test_pairs_are_taken_by_overlap_and_not_by_score():
    truth = images(a=[thing(0, 0, 10, 10)])
    found = images(a=[thing(0, 0, 10, 8, score=99), thing(0, 0, 10, 10, score=50)])
    assert measure(truth, found) == [1, 1, 0]
    details = tt100k.details(truth, found)
    assert dict(zip(details.scores.tolist(), details.kinds.tolist(), strict=True)) == {
        99: DUPLICATE,
        50: FOUND,
    }
    assert details.targets.tolist() == [0, 0]


def test_an_overlap_of_exactly_the_threshold_is_none():
    truth = images(a=[thing(0, 0, 10, 10)])
    assert measure(truth, images(a=[thing(0, 0, 10, 5, score=99)])) == [0, 1, 1]
    assert measure(truth, images(a=[thing(0, 0, 10, 5.01, score=99)])) == [1, 0, 0]
    higher = "iou0.75_minscore40_overall_all"
    assert measure(truth, images(a=[thing(0, 0, 10, 7.5, score=99)]), higher) == [0, 1, 1]
    assert measure(truth, images(a=[thing(0, 0, 10, 7.51, score=99)]), higher) == [1, 0, 0]


def test_an_object_of_another_size_leaves_with_its_detection():
    # The longer side counts: 40 x 10 is medium, although its area is that of a small one.
    truth = images(a=[thing(0, 0, 40, 10), thing(100, 0, 20, 20)])
    found = images(a=[thing(0, 0, 31, 10, score=99), thing(200, 0, 32, 5, score=99)])
    small, medium = (f"iou0.50_minscore40_{size}_all" for size in ("small", "medium"))
    assert measure(truth, found, small) == [0, 0, 1]
    assert measure(truth, found, medium) == [1, 1, 0]


def test_other_classes_are_not_of_the_published_ones():
    truth = images(a=[thing(0, 0, 9, 9, "w63")])
    found = images(a=[thing(0, 0, 9, 9, "w63", 99), thing(50, 0, 9, 9, "never seen", 99)])
    assert measure(truth, found) == [1, 1, 0]
    assert measure(truth, found, "iou0.50_minscore40_overall_type45") == [0, 0, 0]


def test_a_least_score_of_ones_own_has_keys_and_a_table():
    truth = images(a=[thing(0, 0, 9, 9)])
    found = images(a=[thing(0, 0, 9, 9, score=61.5)])
    result = tt100k.evaluate(truth, found, min_score=61.5)
    assert result["iou0.50_minscore61.5_overall_type45"]["right"] == 1
    assert result["per_class_iou0.50_minscore61.5"] == {"pn": {"accuracy": 1, "recall": 1}}
    small, medium = tt100k.table(result)[:2]
    assert (small["size"], small["accuracy"], medium["recall"]) == ("small", 100, 100)
    higher = tt100k.evaluate(truth, found, min_score=61.6)
    assert tt100k.table(higher)[0]["recall"] == 0


def test_images_that_are_not_named_cost_nothing_in_the_original_alone():
    truth = images(a=[thing(0, 0, 9, 9)], b=[thing(0, 0, 9, 9)])
    truth["imgs"]["c"] = {"path": "train/c.jpg", "objects": [thing(0, 0, 9, 9)]}
    found = {"imgs": {"a": {"objects": [thing(0, 0, 9, 9, score=99)]}}}
    assert measure(truth, found) == [1, 0, 0]
    assert measure(truth, found, compatible=False) == [1, 0, 1]  # c is of another folder
    for compatible in (True, False):
        assert measure(truth, {"imgs": {}}, compatible=compatible) == [0, 0, 3]


@pytest.mark.parametrize(
    ("truth", "rates", "sane"),
    [([thing(0, 0, 9, 9)], [1, 0, 0], [0, 0, 0]), ([], [1, 1, 1], [-1, -1, -1])],
)
def test_where_nothing_was_detected(truth, rates, sane):
    for compatible, expected in ((True, rates), (False, sane)):
        result = tt100k.evaluate(images(a=truth), images(a=[]), compatible=compatible)
        assert [result[KEY][k] for k in ("accuracy", "recall", "F1")] == expected
    recall = tt100k.table(result)[0]["recall"]
    assert recall is (None if not truth else recall)


def plainly(truth, found, threshold, min_score, low, high):
    """Right, wrong and missed of one image, by lists and loops alone."""
    found = [x for x in found if x["score"] >= min_score]

    def side(x):
        box = x["bbox"]
        return max(box["xmax"] - box["xmin"], box["ymax"] - box["ymin"])

    def iou(a, b):
        a, b = a["bbox"], b["bbox"]
        width = min(a["xmax"], b["xmax"]) - max(a["xmin"], b["xmin"])
        height = min(a["ymax"], b["ymax"]) - max(a["ymin"], b["ymin"])
        common = max(width, 0) * max(height, 0)
        areas = ((x["xmax"] - x["xmin"]) * (x["ymax"] - x["ymin"]) for x in (a, b))
        return common / (sum(areas) - common)

    pairs = [
        (-iou(a, b), g, d)
        for g, a in enumerate(truth)
        for d, b in enumerate(found)
        if a["category"] == b["category"] and iou(a, b) > threshold
    ]
    of_object, of_found = {}, {}
    for _, g, d in sorted(pairs):
        if g not in of_object and d not in of_found:
            of_object[g], of_found[d] = d, g
    wanted = [g for g, x in enumerate(truth) if low <= side(x) < high]
    right = sum(g in of_object for g in wanted)
    wrong = sum(d not in of_found and low <= side(x) < high for d, x in enumerate(found))
    return [right, wrong, len(wanted) - right]


def test_equals_plain_loops_on_crowded_images_with_ties():
    rng = np.random.default_rng(3)

    def things(count):
        corners, sizes = rng.integers(0, 40, (count, 2)), rng.integers(20, 110, (count, 2))
        rows = np.hstack([corners, sizes]).tolist()
        return [
            thing(*row, f"c{rng.integers(2)}", float(rng.choice([30, 40, 45, 70, 90])))
            for row in rows
        ]

    truth, found = ({k: things(12) for k in "abcdef"} for _ in range(2))
    result = tt100k.evaluate(images(**truth), images(**found))
    total = 0
    for iou, score, (size, limits) in itertools.product(
        (0.5, 0.75), (0, 40, 50, 70), tt100k.SIZES.items()
    ):
        parts = [plainly(truth[k], found[k], iou, score, *limits) for k in truth]
        expected = np.sum(parts, 0).tolist()
        values = result[f"iou{iou:.2f}_minscore{score}_{size}_all"]
        assert [values[k] for k in ("right", "wrong", "miss")] == expected, (iou, score, size)
        total += expected[0]
    assert total > 100


def test_details_agree_with_the_measures():
    gt, dt = (GOLDEN[1] / name for name in ("gt.json", "dt.json"))
    details, expected = tt100k.details(gt, dt), tt100k.evaluate(gt, dt)[KEY]
    kinds = np.bincount(details.kinds, minlength=5)
    objects = np.bincount(details.object_kinds, minlength=5)
    assert kinds[FOUND] == objects[FOUND] == expected["right"]
    assert kinds[FALSE] + kinds[DUPLICATE] == expected["wrong"]
    assert objects[MISSED] == expected["miss"]
    assert kinds[LEFT_OUT] == kinds.sum() - expected["right"] - expected["wrong"]
    found = details.kinds == FOUND
    assert (details.labels[found] == details.object_labels[details.targets[found]]).all()
    assert (details.images[found] == details.object_images[details.targets[found]]).all()
    assert (np.diff(details.precision, axis=2) <= 0).all()
    none = details.ap < 0
    assert (details.ap[~none] == details.precision[~none].mean(1)).all()
    # The last row is of all sizes: where an object was found at 40, the curve gets as far.
    (small, overall) = details.precision[0], details.precision[-1]
    assert ((small[:, 0] >= 0) <= (overall[:, 0] >= 0)).all()


def test_precision_over_recall_worked_out_by_hand():
    truth = images(a=[thing(0, 0, 10, 10), thing(50, 0, 10, 10)])
    found = images(
        a=[
            thing(0, 0, 10, 10, score=90),
            thing(200, 0, 10, 10, score=80),
            thing(50, 0, 10, 10, score=10),
        ]
    )
    details = tt100k.details(truth, found)
    curve = details.precision[list(details.bands).index("overall"), 0]
    assert curve[:51].tolist() == [1] * 51
    assert curve[51:].tolist() == pytest.approx([2 / 3] * 50)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (thing(0, 0, 9, float("nan"), score=1), r"imgs\['a'\]: objects\[1\].bbox must be finite"),
        (thing(0, 0, 9, -1, score=1), r"imgs\['a'\]: objects\[1\].bbox must .* ymin <= ymax"),
        (thing(0, 0, 9, 9, score=float("inf")), r"imgs\['a'\]: objects\[1\].score must be finite"),
        ({"bbox": 3, "category": "pn"}, r"imgs\['a'\]: objects\[1\].bbox: Expected `object`"),
        (thing(0, 0, 9, 9, category=7), r"imgs\['a'\]: objects\[1\].category: Expected `str`"),
        ({"category": "pn"}, r"imgs\['a'\]: objects\[1\]: .*missing required field `bbox`"),
        (thing(0, 0, 9, 1e300, score=1), r"imgs\['a'\]: objects\[1\].bbox must .* below 1e100"),
    ],
)
def test_wrong_entries_are_named(tmp_path, entry, message):
    truth, found = images(a=[]), images(a=[thing(0, 0, 9, 9, score=1), entry])
    with pytest.raises(ValueError, match=f"^detections: {message}"):
        tt100k.evaluate(truth, found)
    path = tmp_path / "dt.json"
    path.write_text(json.dumps(found))  # with NaN as Python writes it
    with pytest.raises(ValueError, match=f"dt.json: {message}"):
        tt100k.evaluate(truth, path)


@pytest.mark.parametrize(
    "content",
    ["[]", "{}", '{"imgs": []}', '{"imgs": {"a": "b"}}', '{"imgs": {"a": {"obj', "", "[" * 10**5],
)
def test_files_that_are_something_else_are_named(tmp_path, content):
    path = tmp_path / "dt.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"dt\.json") as caught:
        tt100k.evaluate(images(a=[]), path)
    assert "\n" not in str(caught.value)


def test_unknown_images_are_refused():
    with pytest.raises(ValueError, match=r"^detections: imgs\['b'\] is not in the ground truth$"):
        tt100k.evaluate(images(a=[]), images(b=[]))
