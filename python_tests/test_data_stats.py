"""What is in a data set, in numbers."""

import json
import math

import numpy as np
import pytest
from annotated import annotated_image, annotated_set
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyops.data.stats import BANDS, describe

DATA = annotated_set(
    annotated_image(
        0,
        (100, 80),
        [(0, 0, 4, 4), (9, 9, 8, 2), (20, 20, 8, 8), (5, 5, 30, 30), (0, 0, 9, 9)],
        [1, 1, 2, 1, 0],
        [0, 0, 0, 1, 1],
    ),
    annotated_image(1, (100, 80), []),
    annotated_image(2, (50, 40), [(1, 1, 40, 10)], [2]),
    classes=("person", "drone", "boat"),
)


def test_counts_and_sizes():
    facts = describe(DATA)
    assert (facts["images"], facts["empty_images"]) == (3, 1)
    assert (facts["objects"], facts["ignored"]) == (4, 2)
    assert facts["ignore_share"] == 2 / 6
    person, drone, boat = facts["classes"].values()
    assert (person["objects"], person["ignored"], person["mean"], person["max"]) == (2, 1, 4, 4)
    assert (drone["objects"], drone["min"], drone["median"], drone["max"]) == (2, 8, 14, 20)
    assert (boat["objects"], boat["mean"]) == (0, None)
    assert facts["size"]["mean"] == 9
    assert facts["size"]["deviation"] == pytest.approx(math.sqrt((25 + 25 + 1 + 121) / 4))
    assert facts["image_sizes"] == [
        {"width": 100, "height": 80, "images": 2},
        {"width": 50, "height": 40, "images": 1},
    ]


def test_bands_are_those_of_the_benchmarks():
    bands = describe(DATA)["bands"]
    # Sizes 4, 4, 8 and 20; a limit belongs to the band above it.
    assert list(bands["tinyperson"].values()) == [0, 2, 1, 0, 1, 0]
    assert list(bands["aitod"].values()) == [2, 1, 1, 0]
    assert list(bands["coco"].values()) == [4, 0, 0]
    assert list(bands["soda-d"].values()) == [3, 0, 1, 0, 0]
    assert list(bands["tt100k"].values()) == [3, 1, 0, 0]  # the long sides: 4, 8, 8 and 40


def test_histograms():
    facts = describe(DATA)
    sizes = facts["sizes"]
    assert sum(sizes["counts"]) == 4
    assert sizes["edges"][0] == 4
    assert sizes["counts"][0] == 2
    assert sizes["counts"][-1] == 1
    assert sizes["edges"][-2] <= 20 < sizes["edges"][-1]
    ratios = facts["aspect_ratios"]
    assert (ratios["edges"][0], ratios["counts"][0]) == (1, 2)
    assert ratios["counts"][8] == 2  # 4 = 2^(8/4)
    assert facts["objects_per_image"] == {"edges": [0, 1, 2, 4], "counts": [1, 1, 1]}


def test_boxes_without_area_are_counted_apart():
    facts = describe(annotated_set(annotated_image(0, (9, 9), [(1, 1, 0, 5), (1, 1, -2, 5)])))
    assert facts["without_area"] == facts["objects"] == 2
    assert facts["sizes"]["counts"] == []


def test_no_images_no_numbers():
    facts = describe(annotated_set())
    assert (facts["images"], facts["objects"], facts["ignore_share"]) == (0, 0, 0)
    assert facts["size"]["mean"] is None
    json.dumps(facts, allow_nan=False)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.lists(st.tuples(*[st.floats(1e-3, 1e4)] * 4, st.booleans()), max_size=8), max_size=6
    )
)
def test_everything_adds_up(images):
    data = annotated_set(
        *(
            annotated_image(k, (9, 9), [row[:4] for row in rows], ignore=[row[4] for row in rows])
            for k, rows in enumerate(images)
        )
    )
    facts = describe(data)
    json.dumps(facts, allow_nan=False)
    total = sum(not row[4] for rows in images for row in rows)
    assert facts["objects"] == facts["classes"]["person"]["objects"] == total
    assert facts["objects"] + facts["ignored"] == sum(map(len, images))
    for name in BANDS:
        assert sum(facts["bands"][name].values()) == total
    for name in ("sizes", "aspect_ratios"):
        assert sum(facts[name]["counts"]) == total
        assert (np.diff(facts[name]["edges"]) > 0).all()
    assert sum(facts["objects_per_image"]["counts"]) == len(images)
    assert sum(entry["images"] for entry in facts["image_sizes"]) == len(images)
