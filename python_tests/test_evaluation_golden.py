"""Every number that the original evaluators gave for small sets; a README in each says how."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tinyops.evaluation import evaluate, tinyperson
from tinyops.evaluation.details import FOUND, LEFT_OUT
from tinyops.evaluation.tables import read_detections, read_ground_truth

GOLDEN = Path(__file__).parent / "data" / "golden"
COCO = sorted(p.parent for p in GOLDEN.glob("*/dt.json") if "tt100k" not in p.parent.name)
VISDRONE = sorted(GOLDEN.glob("visdrone_*"))
# Block of expected.json -> protocol, options, and the part of the result that it is.
BLOCKS = {
    "coco": ("coco", {}, None),
    "aitod": ("aitod", {}, None),
    "soda": ("soda-d", {}, None),
    "tinyperson_ap": ("tinyperson", {}, None),
    "tinyperson_ap_maxdet1000": ("tinyperson", {"max_detections": 1000}, None),
    "tinyperson_ap_flags_off": ("tinyperson", {"flags": False}, None),
    "tinyperson_mr": ("tinyperson", {}, "MR"),
}


@cache
def read(path):
    return json.loads(path.read_text())


def compare(value, expected, where=""):
    """Whatever is in `expected` is in `value`, numbers to 1e-9."""
    if isinstance(expected, dict):
        assert not expected.keys() - value.keys(), where
        for key, entry in expected.items():
            compare(value[key], entry, f"{where}/{key}")
    elif isinstance(expected, list):
        assert len(value) == len(expected), where
        for k, pair in enumerate(zip(value, expected, strict=True)):
            compare(*pair, f"{where}[{k}]")
    elif expected is None or isinstance(expected, str):
        assert value == expected, where
    else:
        assert type(value) in (int, float), where
        assert abs(value - expected) <= 1e-9, (where, value, expected)


def test_all_cases_are_there():
    assert (len(COCO), len(VISDRONE)) == (16, 4)
    assert all(read(case / "expected.json").keys() == BLOCKS.keys() for case in COCO)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("case", COCO, ids=lambda p: p.name)
def test_equals_the_original(case, block):
    protocol, options, part = BLOCKS[block]
    result = evaluate(protocol, case / "gt.json", case / "dt.json", **options)
    json.dumps(result, allow_nan=False)
    compare(result if part is None else result[part], read(case / "expected.json")[block])


@pytest.mark.parametrize("case", VISDRONE, ids=lambda p: p.name)
def test_equals_the_toolkit_of_visdrone(case):
    compare(evaluate("visdrone", *[case / "input.json"] * 2), read(case / "expected.json"))


@pytest.mark.parametrize("case", VISDRONE, ids=lambda p: p.name)
def test_without_its_quirk_a_class_of_visdrone_counts_once(case):
    result = evaluate("visdrone", *[case / "input.json"] * 2, compatible=False)
    compare(result["summary"], read(case / "expected.json")["unweighted_summary"])


# With an object of id 0, compatible=False also finds that one: it has the next test.
IDS_ABOVE_0 = [case for case in COCO if case.name != "tinyperson_idzero_151"]


@pytest.mark.parametrize("case", IDS_ABOVE_0, ids=lambda p: p.name)
def test_without_its_quirk_nothing_is_found_before_the_first_detection(case):
    rates = evaluate("tinyperson", case / "gt.json", case / "dt.json", compatible=False)["MR"]
    for band, expected in read(case / "expected.json")["tinyperson_mr"].items():
        if band != "fppi":
            compare(rates[band]["MR"], expected["MR_without_index_wrap"])


def test_without_its_quirk_id_0_is_an_id_like_others():
    truth = read(GOLDEN / "tinyperson_idzero_151" / "gt.json")
    found = read(GOLDEN / "tinyperson_idzero_151" / "dt.json")
    moved = [{**entry, "id": entry["id"] + 1} for entry in truth["annotations"]]
    for protocol in ("tinyperson", "coco", "aitod", "soda-d"):
        sane = evaluate(protocol, truth, found, compatible=False)
        compare(sane, evaluate(protocol, {**truth, "annotations": moved}, found, compatible=False))
        quirk = evaluate(protocol, truth, found)
        worse = [sane["AP"][key]["mean"] - quirk["AP"][key]["mean"] for key in sane["AP"]]
        assert max(worse) > 0.01


MATCHED = [case for case in COCO if (case / "matches.json").exists()]


@pytest.mark.parametrize("case", MATCHED, ids=lambda p: p.name)
def test_every_match_is_that_of_tinybenchmark(case):
    truth = read_ground_truth(case / "gt.json")
    found = read_detections(case / "dt.json", truth)
    rules = tinyperson._rules(tinyperson.BANDS, tinyperson.THRESHOLDS, 200)
    evaluation = tinyperson._evaluation(truth, found, rules, True, 1, True)
    matches, tiny = evaluation.match(targets=True), list(tinyperson.BANDS).index("tiny")
    for image in read(case / "matches.json"):
        here = found.images[matches.rows] == np.searchsorted(truth.image_ids, image["image_id"])
        here &= found.labels[matches.rows] == 0
        assert matches.rows[here].tolist() == image["det_index"]
        for t, expected in enumerate(image["iou"].values()):
            kinds = matches.kinds[tiny, t][here]
            ids = np.append(truth.ids, 0)[matches.targets[tiny, t][here]]  # -1: none is 0
            ids[(kinds != FOUND) & (kinds != LEFT_OUT)] = 0
            assert ids.tolist() == expected["matched_gt_id"]
            assert (kinds == LEFT_OUT).tolist() == [bool(x) for x in expected["ignored"]]
    assert len(MATCHED) == 5
