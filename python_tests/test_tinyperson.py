"""TinyPerson's AP by hand; test_evaluation_golden.py has the evaluator's own numbers."""

import json

import pytest

from tinyops.evaluation.tinyperson import BANDS, evaluate, sized_ap

ONE = pytest.approx(1, abs=1e-12)  # COCO adds an epsilon to the divisor


def ground_truth(*boxes, images=1, **fields):
    """One class; boxes are (x, y, w, h) in image 1."""
    annotations = [
        {"id": k, "image_id": 1, "category_id": 1, "bbox": list(box), "iscrowd": 0, **fields}
        for k, box in enumerate(boxes)
    ]
    return {
        "images": [{"id": k + 1, "width": 640, "height": 512} for k in range(images)],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": annotations,
    }


def found(*boxes, scores=None):
    scores = scores or [0.9 - 0.1 * k for k in range(len(boxes))]
    return [
        {"image_id": 1, "category_id": 1, "bbox": list(box), "score": score}
        for box, score in zip(boxes, scores, strict=True)
    ]


def test_perfect_detections_have_ap_1_also_for_an_object_of_id_0():
    boxes = [(10, 10, 6, 6), (50, 50, 10, 10)]
    truth = ground_truth(*boxes)
    assert truth["annotations"][0]["id"] == 0
    result = sized_ap(truth, found(*boxes))
    assert [result["tiny1", 0.5], result["tiny2", 0.75], result["tiny", 0.25]] == [ONE] * 3


def test_no_detections_give_0_where_objects_count_and_minus_1_elsewhere():
    result = sized_ap(ground_truth((10, 10, 6, 6)), [])
    expected = {band: 0 if band in ("all", "tiny", "tiny1") else -1 for band in BANDS}
    assert {band: result[band, 0.5] for band in BANDS} == expected


def test_no_objects_give_minus_1():
    result = sized_ap(ground_truth(), found((1, 1, 5, 5)))
    assert set(result.values()) == {-1}


def test_a_size_on_a_limit_belongs_to_both_bands():
    result = sized_ap(ground_truth((10, 10, 8, 8)), found((10, 10, 8, 8)))
    assert [result["tiny1", 0.5], result["tiny2", 0.5]] == [ONE] * 2
    assert result["tiny3", 0.5] == -1


@pytest.mark.parametrize("flag", ["ignore", "uncertain", "iscrowd"])
def test_detections_inside_a_flagged_region_do_not_count(flag):
    truth = ground_truth((200, 200, 6, 6), (10, 10, 100, 100))
    truth["annotations"][1][flag] = 1
    inside = found((20, 20, 6, 6), (50, 50, 7, 7), (200, 200, 6, 6))
    assert sized_ap(truth, inside)["tiny", 0.5] == ONE
    truth["annotations"][1][flag] = 0
    # The large box counts in no tiny band, so it absorbs them still; outside it they are errors.
    assert sized_ap(truth, inside)["tiny", 0.5] == ONE
    outside = found((400, 20, 6, 6), (450, 50, 7, 7), (200, 200, 6, 6))
    assert sized_ap(truth, outside)["tiny", 0.5] == pytest.approx(1 / 3)


def miss_rates(truth, detections):
    return evaluate(truth, detections, compatible=False)["MR"]["tiny1"]


def test_a_share_of_exactly_the_threshold_is_enough_in_the_ap_and_too_little_in_the_miss_rate():
    truth = ground_truth((200, 200, 6, 6), (10, 10, 6, 6))
    truth["annotations"][1]["ignore"] = 1
    half, third = found((13, 10, 6, 6), (200, 200, 6, 6)), found((14, 10, 6, 6), (200, 200, 6, 6))
    assert sized_ap(truth, half)["tiny1", 0.5] == ONE  # o = 1 / 3: a share of 0.5
    assert sized_ap(truth, third)["tiny1", 0.5] == pytest.approx(0.5)
    # Here o is over the detection's area, and only above 0.5 it is left out: 1 / 3 gives 0.5.
    assert miss_rates(truth, third)["points_before_first_detection"]["0.50"] == [8]
    assert miss_rates(truth, half)["points_before_first_detection"]["0.50"] == [0]


def test_rounding_does_not_part_equal_boxes():
    box = (10.1, 10.1, 6.3, 6.3)
    assert box[0] + box[2] - box[0] < box[2]
    assert sized_ap(ground_truth(box), found(box), thresholds=[1.0])["tiny1", 1.0] == ONE


def test_detections_of_another_size_take_no_object_from_the_miss_rate():
    truth = ground_truth((10, 10, 8, 8))
    larger = found((10, 10, 10.5, 10.5), (10, 10, 8, 8))  # 8 * 1.25 is the limit
    assert miss_rates(truth, larger)["recall_at_fppi"]["0.50"] == [[1] * 9]
    within = found((10, 10, 9.5, 9.5), (10, 10, 8, 8))
    recalls = miss_rates(truth, within)["recall_at_fppi"]
    assert recalls["0.50"] == [[1] * 9]
    assert recalls["0.75"] == [[0] * 8 + [1]]  # where it is a false alarm, and the first


def test_only_the_best_detections_count():
    truth = ground_truth((10, 10, 6, 6))
    boxes = [(100 + 20 * k, 100, 6, 6) for k in range(3)] + [(10, 10, 6, 6)]
    assert sized_ap(truth, found(*boxes), max_detections=3)["tiny", 0.5] == 0
    assert sized_ap(truth, found(*boxes), max_detections=4)["tiny", 0.5] == pytest.approx(0.25)


def test_own_bands_and_thresholds():
    truth, detections = ground_truth((10, 10, 6, 6)), found((10, 10, 6, 5))
    result = sized_ap(truth, detections, bands={"mine": (2, 9)}, thresholds=(0.8, 0.9))
    assert result == {("mine", 0.8): ONE, ("mine", 0.9): 0}


def test_arguments_stay_and_nothing_is_printed(capsys):
    truth, detections = ground_truth((10, 10, 6, 6)), found((10, 10, 6, 5))
    before = json.dumps([truth, detections])
    sized_ap(truth, detections)
    assert json.dumps([truth, detections]) == before
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bands": {"x": (5, 5)}}, r"bands\['x'\]"),
        ({"bands": {"x": (-1, 5)}}, r"bands\['x'\]"),
        ({"thresholds": (0, 0.5)}, "thresholds"),
        ({"thresholds": ()}, "thresholds"),
        ({"max_detections": 0}, "max_detections"),
    ],
)
def test_settings_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        sized_ap(ground_truth((1, 1, 5, 5)), [], **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 7}, r"results\[0\].image_id .* got 7"),
        ({"category_id": 7}, r"results\[0\].category_id .* got 7"),
        ({"score": float("nan")}, r"results\[0\].score must be finite"),
        ({"bbox": [0, 0, float("inf"), 1]}, r"results\[0\].bbox must be finite"),
    ],
)
def test_wrong_detections_are_refused(change, message):
    (entry,) = found((1, 1, 5, 5))
    with pytest.raises(ValueError, match=message):
        sized_ap(ground_truth((1, 1, 5, 5)), [{**entry, **change}])
