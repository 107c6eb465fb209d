"""Images resized until their objects are as large as those of another data set."""

import pickle

import numpy as np
import pytest
import torch
from annotated import annotated_image, annotated_set, golden
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torchvision import tv_tensors
from torchvision.transforms import v2

from tinyops.data.scale_match import MonotoneScaleMatch, ScaleMatch, SizeHistogram, object_sizes

CASES = ("scale_match_61", "scale_match_62")


def sizes_of(entries):
    boxes = [entry["bbox"] for entry in entries]
    ignore = [entry["iscrowd"] or entry.get("ignore", False) for entry in entries]
    return object_sizes(annotated_set(annotated_image(0, (9, 9), boxes, ignore=ignore)))


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """What the original computed, the target's histogram, and the sizes of both sets."""
    expected, given = (golden(request.param, name) for name in ("expected", "input"))
    target, source = sizes_of(given["dst"]), sizes_of(given["src"])
    return expected, SizeHistogram.of(target, expected["bins"]), target, source


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


def test_histograms_of_the_original(case):
    expected, histogram, target, _ = case
    close(histogram.probabilities, expected["sm_prob"])
    close(histogram.edges, expected["sm_edges"])
    for name, options in (("log_bins", {"logarithmic": True}), ("no_tail", {"tails": 0})):
        other = SizeHistogram.of(target, expected["bins"], **options)
        close(other.probabilities, expected[name]["prob"])
        np.testing.assert_allclose(other.edges, expected[name]["edges"], rtol=1e-13)


def test_monotone_map_of_the_original(case):
    expected, histogram, _, source = case
    close(histogram.quantiles(source), expected["msm_src_edges"])
    match = MonotoneScaleMatch(histogram, source)
    for size, other in expected["msm_map"]:
        assert match.map(size) == pytest.approx(other, rel=1e-12)


def test_new_sizes_of_the_original(case):
    expected, histogram, _, source = case
    options = {"limits": tuple(expected["scale_range"]), "default": expected["default_scale"]}
    match = ScaleMatch(histogram, **options)
    monotone = MonotoneScaleMatch(histogram, source, **options)
    for image in expected["cases"]:
        boxes = np.array(image["boxes_xyxy"], np.float32).reshape(-1, 4)
        size = image["height"], image["width"]
        draws = iter(image["uniform_draws"])
        assert match.new_size(boxes, size, draws.__next__) == tuple(image["sm_new_hw"])
        left = len(image["uniform_draws"]) - image["n_draws_used"]
        assert list(draws) == image["uniform_draws"][len(image["uniform_draws"]) - left :]
        assert monotone.new_size(boxes, size, draws.__next__) == tuple(image["msm_new_hw"])


FIXED = SizeHistogram(np.array([1.0]), np.array([5.0, 5.0]))  # all objects have 5 px


def scene(boxes, ignore=None, size=(80, 120)):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    image = tv_tensors.Image(torch.randint(0, 256, (3, *size), dtype=torch.uint8))
    target = {
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
        "labels": torch.arange(1, 1 + len(boxes)),
        "ignore": torch.tensor(ignore or [False] * len(boxes), dtype=torch.bool),
        "image_id": torch.tensor(3),
    }
    return image, target


def test_a_box_gets_the_wanted_size():
    image, target = scene([[10, 20, 29, 39]])  # 20 px with the last ones
    small, moved = ScaleMatch(FIXED)(image, target)
    assert small.shape == (3, 20, 30)
    assert moved["boxes"].tolist() == [[2.5, 5, 7.25, 9.75]]
    assert moved["boxes"].canvas_size == (20, 30)
    assert moved["image_id"] == 3


def test_a_draw_at_the_end_of_a_bin_belongs_to_it_in_spite_of_rounding():
    """0.1 + 0.7 is a bit less than 0.8."""
    target = SizeHistogram(np.array([0.1, 0.7, 0.2]), np.array([1.0, 2.0, 3.0, 4.0]))
    box = np.array([[0.0, 0.0, 9.0, 9.0]])  # of size 10, by w + 1
    draws = iter((0.8, 0.5))
    assert ScaleMatch(target).new_size(box, (100, 200), draws.__next__) == (25, 50)


def test_objects_too_small_go_with_their_labels():
    _, moved = ScaleMatch(FIXED)(*scene([[0, 0, 19, 19], [30, 30, 33, 39], [1, 1, 60, 60]]))
    # The size of the image: (20 * sqrt(4 * 10) ... ) is between; the second box is 3 px wide.
    assert moved["labels"].tolist() == [1, 3]
    assert moved["ignore"].tolist() == [False, False]


def test_ignored_objects_have_no_say_and_stay():
    alone, _ = ScaleMatch(FIXED)(*scene([[0, 0, 19, 19]]))
    both, moved = ScaleMatch(FIXED)(*scene([[0, 0, 19, 19], [0, 0, 70, 70]], [False, True]))
    assert both.shape == alone.shape
    assert moved["ignore"].tolist() == [False, True]


@pytest.mark.parametrize("boxes", [[], [[5, 5, 5.5, 6]]])
def test_images_without_objects_get_the_default(boxes):
    for match in (ScaleMatch(FIXED), MonotoneScaleMatch(FIXED, np.array([20.0]))):
        small, moved = match(*scene(boxes))
        assert small.shape == (3, 20, 30)
        assert len(moved["boxes"]) == 0


def test_scales_outside_are_clipped_or_replaced():
    image, target = scene([[0, 0, 79, 79]])  # wants 5/80
    assert ScaleMatch(FIXED)(image, target)[0].shape == (3, 8, 12)
    assert ScaleMatch(FIXED, outside="default")(image, target)[0].shape == (3, 20, 30)
    image, target = scene([[0, 0, 2, 2]])  # wants 5/3
    assert ScaleMatch(FIXED)(image, target)[0].shape == (3, 80, 120)
    assert ScaleMatch(FIXED, limits=(0.1, 9))(image, target)[0].shape == (3, 133, 200)


def test_the_generator_decides_and_alone():
    histogram = SizeHistogram.of(np.linspace(2, 19, 50), 10)
    match = pickle.loads(pickle.dumps(v2.Compose([ScaleMatch(histogram)])))
    shapes = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        shapes.append(match(*scene([[0, 0, 39, 39]]))[0].shape)
    assert shapes[0] == shapes[1] != shapes[2]


def test_sizes_of_many_images_follow_the_target():
    sizes = np.random.default_rng(0).gamma(4, 3, 4000) + 1
    histogram = SizeHistogram.of(sizes, 20)
    match = ScaleMatch(histogram, limits=(1e-3, 1e3))
    draw = np.random.default_rng(1).random
    drawn = [match._draw(draw) for _ in range(4000)]
    for share in (0.1, 0.25, 0.5, 0.75, 0.9):
        assert np.quantile(drawn, share) == pytest.approx(np.quantile(sizes, share), rel=0.06)


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.floats(0.01, 1e5), min_size=1, max_size=60),
    st.lists(st.floats(0.01, 1e5), min_size=1, max_size=60),
    st.integers(3, 30),
    st.booleans(),
)
def test_any_sizes_give_rising_maps_within_the_target(target, source, bins, logarithmic):
    assume(int(len(target) * (1 - 1 / bins)) > int(len(target) / bins))  # some between the tails
    histogram = SizeHistogram.of(np.array(target), bins, logarithmic=logarithmic)
    assert histogram.probabilities.sum() == pytest.approx(1)
    assert len(histogram.edges) == bins + 1
    assert (np.diff(histogram.edges) >= 0).all()
    match = MonotoneScaleMatch(histogram, np.array(source))
    mapped = [match.map(size) for size in [1e-9, *sorted(source), 1e9]]
    assert min(target) <= mapped[0]
    assert mapped[-1] <= max(target)
    assert (np.diff(mapped) >= -1e-9 * max(target)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": []}, "at least one"),
        ({"sizes": [1]}, "enough"),
        ({"sizes": [1, 0]}, "positive"),
        ({"sizes": [1, np.nan]}, "finite"),
        ({"bins": 0}, "bins must be 3 or more"),
        ({"bins": 2}, "bins must be 3 or more"),
        ({"tails": 1.0}, "tails in"),
    ],
)
def test_bad_histograms_are_refused(change, message):
    options = {"sizes": [1, 2, 3], "bins": 10, **change}
    with pytest.raises(ValueError, match=message):
        SizeHistogram.of(np.array(options.pop("sizes"), float), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limits": (0, 1)}, "limits must be"),
        ({"limits": (2, 1)}, "limits must be"),
        ({"outside": "drop"}, "outside must be"),
        ({"default": 0}, "default must be"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ScaleMatch(FIXED, **options)
    with pytest.raises(ValueError, match="at least one, got none"):
        MonotoneScaleMatch(FIXED, np.empty(0))
