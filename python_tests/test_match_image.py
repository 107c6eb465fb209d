"""Detections matched with objects one to one, against numbers worked out by hand."""

import numpy as np
import pytest

from tinyops.evaluation.details import DUPLICATE, FALSE, FOUND, LEFT_OUT
from tinyops.evaluation.matcher import match_image

OBJECTS = [[0, 0, 10, 10], [100, 0, 110, 10]]


def test_the_best_detection_has_the_object_and_the_next_is_a_duplicate():
    boxes = [[0, 0, 10, 8], [0, 0, 10, 10], [100, 0, 110, 5], [50, 50, 60, 60]]
    kinds, targets = match_image(boxes, [0.9, 0.3, 0.2, 0.8], OBJECTS)
    assert kinds.tolist() == [FOUND, DUPLICATE, FOUND, FALSE]  # the third has an IoU of exactly 0.5
    assert targets.tolist() == [0, 0, 1, -1]


def test_a_detection_takes_the_free_object_of_highest_overlap():
    objects = [[0, 0, 10, 10], [2, 0, 12, 10]]  # IoU 2/3
    boxes = [[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10]]
    kinds, targets = match_image(boxes, [0.5, 0.5, 0.6], objects)
    assert kinds.tolist() == [FOUND, DUPLICATE, FOUND]  # the lower index first among equal scores
    assert targets.tolist() == [1, 0, 0]


def test_regions_take_what_finds_nothing_by_the_share_of_its_area():
    region = [[0, 0, 100, 10]]
    boxes = [[0, 0, 10, 10], [20, 0, 30, 20], [40, 0, 50, 21]]
    kinds, targets = match_image(boxes, [0.9, 0.8, 0.7], OBJECTS[:1], region)
    assert kinds.tolist() == [FOUND, LEFT_OUT, FALSE]
    assert targets.tolist() == [0, -1, -1]


def test_a_threshold_decides():
    box, score = [[0, 0, 10, 7]], [1.0]
    assert match_image(box, score, OBJECTS, threshold=0.7)[0].tolist() == [FOUND]
    assert match_image(box, score, OBJECTS, threshold=0.71)[0].tolist() == [FALSE]
    for bad in (0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="threshold"):
            match_image(box, score, OBJECTS, threshold=bad)


@pytest.mark.parametrize("empty", [[], np.zeros((0, 4))])
def test_nothing_is_matched_with_nothing(empty):
    assert [x.tolist() for x in match_image(empty, [], OBJECTS)] == [[], []]
    assert match_image(OBJECTS, [1, 1], empty)[0].tolist() == [FALSE, FALSE]
