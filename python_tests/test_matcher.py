"""The matcher against pycocotools, at its limits, and on threads."""

import contextlib
import io
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tinyops import _eval
from tinyops.evaluation import coco
from tinyops.evaluation.average_precision import Evaluation
from tinyops.evaluation.details import DUPLICATE, FALSE, FOUND, LEFT_OUT, MISSED, mean_of_classes
from tinyops.evaluation.protocols import PROTOCOLS, details, evaluate, table
from tinyops.evaluation.tables import read_detections, read_ground_truth

COCO_JSON = [name for name in PROTOCOLS if name in ("tinyperson", "coco", "aitod", "soda-d")]


def scene(rng, images=3, classes=2, objects=12, detections=20, grid=4.0):
    """Boxes whose corners and scores lie on grids, so that overlaps and scores are often equal."""

    def box(side=10):
        return [
            float(x) for x in (*rng.integers(0, 12, 2) * grid, *rng.integers(0, side, 2) * grid)
        ]

    def where():
        return {
            "image_id": int(rng.integers(1, images + 1)) * 7,
            "category_id": int(rng.integers(1, classes + 1)) * 3,
        }

    annotations = []
    for k in range(objects):
        b = box()
        area = b[2] * b[3] * float(rng.choice([1, 0.8]))
        crowd = int(rng.random() < 0.2)
        annotations.append({"id": k, **where(), "bbox": b, "area": area, "iscrowd": crowd})
    found = []
    for _ in range(detections):
        b = list(annotations[rng.integers(objects)]["bbox"]) if objects else box()
        if rng.random() < 0.6:
            b[rng.integers(4)] += float(rng.choice([0, grid / 2, grid]))
        else:
            b = box()
        found.append({**where(), "bbox": b, "score": float(rng.integers(1, 9)) / 8})
    truth = {
        "images": [{"id": 7 * (k + 1)} for k in reversed(range(images))],
        "categories": [{"id": 3 * (k + 1), "name": str(k)} for k in reversed(range(classes))],
        "annotations": annotations,
    }
    return truth, found


def pycocotools(truth, found):
    """Its precision [T, 101, C, A, M] and recall [T, C, A, M]."""
    with contextlib.redirect_stdout(io.StringIO()):
        index = COCO()
        index.dataset = truth
        index.createIndex()
        results = COCO()
        entries = [
            {**x, "id": k, "area": x["bbox"][2] * x["bbox"][3], "iscrowd": 0}
            for k, x in enumerate(found, 1)
        ]
        results.dataset = {**truth, "annotations": entries}  # loadRes fails on an empty list
        results.createIndex()
        evaluation = COCOeval(index, results, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"]


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 30),
    st.integers(0, 150),
)
def test_precision_and_recall_are_those_of_pycocotools(seed, images, classes, objects, detections):
    truth, found = scene(np.random.default_rng(seed), images, classes, objects, detections)
    table = read_ground_truth(truth)
    boxes = read_detections(found, table)
    evaluation = Evaluation(table, boxes, coco.RULES, table.crowd, table.crowd)
    expected, expected_recall = pycocotools(truth, found)
    precision, recall = evaluation.curves
    np.testing.assert_array_equal(precision.transpose(2, 4, 3, 1, 0), expected)
    np.testing.assert_array_equal(recall.transpose(2, 3, 1, 0), expected_recall)


@pytest.mark.parametrize("protocol", COCO_JSON)
def test_threads_change_nothing(protocol):
    truth, found = scene(np.random.default_rng(0), 60, 3, 900, 3000)
    results = [evaluate(protocol, truth, found, threads=n) for n in (1, 2, 3, 16)]
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("protocol", COCO_JSON)
@pytest.mark.parametrize("classes", [0, 1, 2])
@pytest.mark.parametrize("images", [0, 2])
def test_no_detections_give_0_and_no_objects_minus_1(protocol, classes, images):
    truth = {
        "images": [{"id": k} for k in range(images)],
        "categories": [{"id": k} for k in range(classes)],
        "annotations": [],
    }
    result = evaluate(protocol, truth, [])
    assert {x for row in result["AP"].values() for x in row.values()} == {-1}
    table(protocol, result)
    if not (images and classes):
        return
    entry = {"image_id": 0, "category_id": 0, "bbox": [0, 0, 5, 5]}
    false = [{**entry, "score": 0.5}]
    assert evaluate(protocol, truth, false)["AP"] == result["AP"]
    full = {**truth, "annotations": [entry]}
    values = {x for row in evaluate(protocol, full, [])["AP"].values() for x in row.values()}
    assert values == {0, -1}  # bands of other sizes have none


def test_500_detections_count_in_visdrone_where_coco_takes_100():
    entry = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5]}
    truth = {"images": [{"id": 1}], "categories": [{"id": 1}], "annotations": [{**entry, "id": 1}]}
    found = [{**entry, "bbox": [50, 50, 5, 5], "score": 0.9}] * 499 + [{**entry, "score": 0.1}]
    assert evaluate("visdrone-coco", truth, found)["stats"]["AP"] == pytest.approx(1 / 500)
    assert evaluate("visdrone-coco", truth, found, max_detections=499)["stats"]["AP"] == 0
    assert evaluate("coco", truth, found)["stats"]["AP"] == 0


def test_details_say_what_became_of_everything():
    truth = {
        "images": [{"id": 5, "file_name": "a.png"}],
        "categories": [{"id": 2, "name": "person"}, {"id": 1, "name": "boat"}],
        "annotations": [
            {"image_id": 5, "category_id": 2, "bbox": [0, 0, 10, 10]},
            {"image_id": 5, "category_id": 2, "bbox": [50, 0, 10, 10]},
            {"image_id": 5, "category_id": 2, "bbox": [100, 0, 100, 100], "ignore": True},
        ],
    }
    boxes = [[0, 0, 10, 9], [0, 0, 10, 8], [30, 0, 10, 10], [120, 20, 10, 10], [0, 50, 90, 90]]
    found = [
        {"image_id": 5, "category_id": 2, "bbox": box, "score": 0.5 + 0.1 * k}
        for k, box in enumerate(boxes)
    ]
    one = details("tinyperson", truth, found)
    assert one.kinds.tolist() == [LEFT_OUT, LEFT_OUT, FALSE, FOUND, DUPLICATE]  # best first
    assert one.targets.tolist() == [-1, 2, -1, 0, 0]
    assert one.boxes[2].tolist() == [30, 0, 40, 10]
    assert one.object_kinds.tolist() == [FOUND, MISSED, LEFT_OUT]
    assert (one.classes, one.image_names) == (["boat", "person"], ["a.png"])
    assert one.labels.tolist() == [1] * 5
    bands = list(one.bands)
    result = evaluate("tinyperson", truth, found)
    for band, ap in zip(bands, mean_of_classes(one.ap), strict=True):
        assert ap == result["AP"][f"{band}@200"]["0.50"]
    np.testing.assert_array_equal(
        one.ap, np.where(one.precision[..., 0] < 0, -1, one.precision.mean(-1))
    )
    assert details("tinyperson", truth, found, band="small").object_kinds.tolist() == [LEFT_OUT] * 3
    for wrong in ({"band": "x"}, {"threshold": 0.3}):
        with pytest.raises(ValueError, match="must be one of"):
            details("tinyperson", truth, found, **wrong)


def test_arguments_out_of_range_are_refused():
    truth, found = scene(np.random.default_rng(0))
    for wrong, message in (
        ({"threads": 0}, "threads"),
        ({"max_detections": 0}, "max_detections"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate("tinyperson", truth, found, **wrong)
    with pytest.raises(ValueError, match="visdrone-coco"):
        evaluate("x", truth, found)
    with pytest.raises(TypeError, match="max_detections"):
        evaluate("coco", truth, found, max_detections=3)


def arrays(**changed):
    """Arguments of the compiled `match`: an object, and a detection of it."""
    one = np.zeros(1, np.int64)
    box, no = np.array([[0.0, 0, 4, 4]]), np.zeros((1, 1), bool)
    values = {
        "object_cells": one,
        "object_boxes": box,
        "object_areas": np.ones(1),
        "ignored": no,
        "region": no,
        "unfindable": no[0],
        "cells": one,
        "boxes": box,
        "scores": np.ones(1),
        "outside": no,
        "classes": 1,
        "images": 1,
        "thresholds": [0.5],
        "absorb": [],
        "drop_outside": False,
        "most": 1,
        "targets": True,
        "threads": 1,
    }
    return values | changed


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"cells": np.ones(1, np.int64)}, r"cells\[0\] must be in 0..classes \* images - 1, got 1"),
        ({"object_cells": -np.ones(1, np.int64)}, r"object_cells\[0\]"),
        ({"boxes": np.zeros((2, 4))}, r"boxes: expected \[1, 4\], got \[2, 4\]"),
        ({"region": np.zeros((2, 1), bool)}, "region: expected"),
        ({"scores": np.array([np.nan])}, "scores must not be NaN"),
        ({"thresholds": []}, "thresholds"),
        ({"thresholds": [0.5] * 65}, "thresholds"),
        ({"thresholds": [0.0]}, "thresholds"),
        ({"thresholds": [float("nan")]}, "thresholds"),
        ({"absorb": [0.5, 0.5]}, "absorb"),
        ({"most": 0}, "most"),
    ],
)
def test_the_compiled_matcher_checks_its_arguments(changed, message):
    assert _eval.match(**arrays()).kinds.tolist() == [[[FOUND]]]
    with pytest.raises(ValueError, match=message):
        _eval.match(**arrays(**changed))


def test_arrays_of_another_type_are_not_copied_silently():
    with pytest.raises(TypeError):
        _eval.match(**arrays(boxes=np.zeros((1, 4), np.float32)))


def test_results_are_views_that_outlive_their_owner():
    matches = _eval.match(**arrays())
    kinds = matches.kinds
    assert not kinds.flags.writeable
    del matches
    assert kinds.tolist() == [[[FOUND]]]


def test_the_detections_of_a_file_are_not_all_in_memory_as_objects():
    code = """
import pathlib, resource, tempfile
from tinyops.evaluation import evaluate
truth = {"images": [{"id": k} for k in range(1000)], "categories": [{"id": 1}]}
truth["annotations"] = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 8, 8]}]
row = '{"image_id": %d, "category_id": 1, "bbox": [300.125, 200.375, 8.5, 8.5], "score": 0.%d}'
with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, "found.json")
    with path.open("w") as file:
        file.write("[" + row % (0, 5))
        for k in range(150):
            file.write("".join("," + row % (n, k + 1) for n in range(1000)))
        file.write("]")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert evaluate("tinyperson", truth, path)["AP"]["tiny@200"]["0.50"] == 0
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 65_000  # KiB
