"""How well anchors fit a data set, and anchors that fit better."""

import numpy as np
import pytest
import torch
from annotated import annotated_image, annotated_set
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyops.data import anchors as anchors_module
from tinyops.data.anchors import (
    AnchorLevel,
    anchor_levels,
    best_overlaps,
    centred_overlaps,
    fit_anchors,
    place_anchors,
)
from tinyops.nn.anchors import AnchorGenerator
from tinyops.ops import max_overlap


@settings(deadline=None, max_examples=50)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.lists(st.sampled_from([4, 8, 16]), min_size=1, max_size=3, unique=True),
    st.lists(st.floats(0.3, 6), min_size=1, max_size=3),
    st.lists(st.floats(0.2, 5), min_size=1, max_size=3),
    st.lists(st.tuples(*[st.floats(0, 1)] * 4), max_size=5),
)
def test_coverage_is_that_of_all_anchors(width, height, strides, scales, ratios, places):
    """Every anchor that the generator makes, compared with every object."""
    boxes = [(a * width, b * height, 0.5 + 20 * c, 0.5 + 20 * d) for a, b, c, d in places]
    image = annotated_image(0, (width, height), boxes)
    found = best_overlaps(annotated_set(image), anchor_levels(strides, scales, ratios))
    levels = [torch.empty(1, 1, -(-height // s), -(-width // s)).double() for s in strides]
    anchors = torch.cat(AnchorGenerator(strides, scales, ratios)(levels))
    corners = image.bbox.copy()
    corners[:, 2:] += corners[:, :2]
    expected, _ = max_overlap(torch.from_numpy(corners), anchors)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-9, atol=1e-12)


def test_objects_to_be_ignored_are_left_out():
    image = annotated_image(0, (50, 50), [(4, 4, 8, 8), (0, 0, 3, 3)], ignore=[0, 1])
    level = AnchorLevel(8, np.array([[8.0, 8]]))
    assert best_overlaps(annotated_set(image), [level]).tolist() == [1]
    assert best_overlaps(annotated_set(), [level]).shape == (0,)


def test_anchors_of_boxes_of_two_sizes_are_these():
    sides = np.concatenate([np.repeat([[4.0, 10], [20, 18]], 30, 0), [[5, 11], [19, 19]]])
    assert fit_anchors(sides, 2).tolist() == [[4, 10], [20, 18]]
    assert fit_anchors(sides[:1], 1).tolist() == [[4, 10]]


def test_of_many_boxes_some_are_drawn(monkeypatch):
    monkeypatch.setattr(anchors_module, "_MOST", 40)
    sides = np.exp(np.random.default_rng(0).normal(2, 0.5, (4000, 2)))
    found = centred_overlaps(sides, fit_anchors(sides, 4)).max(1).mean()
    monkeypatch.setattr(anchors_module, "_MOST", 4000)
    assert found == pytest.approx(
        centred_overlaps(sides, fit_anchors(sides, 4)).max(1).mean(), abs=0.04
    )
    assert found != centred_overlaps(sides, fit_anchors(sides, 4)).max(1).mean()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.integers(1, 6))
def test_clusters_beat_random_anchors(seed, count):
    generator = np.random.default_rng(seed)
    sides = np.exp(generator.normal(2.3, 0.6, (300, 2)))
    found = centred_overlaps(sides, fit_anchors(sides, count, seed=seed)).max(1).mean()
    guesses = [
        centred_overlaps(sides, sides[generator.choice(300, count, replace=False)]).max(1).mean()
        for _ in range(20)
    ]
    # A median is not the best anchor of its boxes, so that a lucky guess may come near.
    assert found > max(guesses) - 0.01
    assert found > np.mean(guesses) + 0.02


def test_one_seed_one_result_and_no_step_makes_it_worse():
    sides = np.exp(np.random.default_rng(0).normal(2, 0.5, (500, 2)))
    anchors = fit_anchors(sides, 5, seed=3)
    assert np.array_equal(anchors, fit_anchors(sides, 5, seed=3))
    assert (np.diff(anchors.prod(1)) >= 0).all()
    means = [
        centred_overlaps(sides, fit_anchors(sides, 5, seed=3, starts=1, steps=k)).max(1).mean()
        for k in (1, 2, 5, 50)
    ]
    assert means == sorted(means)
    assert means[0] < means[-1]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.floats(1e-3, 1e5), st.floats(1e-3, 1e5)), min_size=1, max_size=30),
    st.integers(1, 6),
)
def test_any_boxes_can_be_clustered(boxes, count):
    sides = np.array(boxes)
    if len({*boxes}) < count:
        with pytest.raises(ValueError, match="different boxes"):
            fit_anchors(sides, count)
    else:
        anchors = fit_anchors(sides, count, starts=2)
        assert anchors.shape == (count, 2)
        assert (anchors >= sides.min(0) * (1 - 1e-9)).all()
        assert (anchors <= sides.max(0) * (1 + 1e-9)).all()


def test_centred_overlaps_by_hand():
    overlaps = centred_overlaps(np.array([[4.0, 2]]), np.array([[4.0, 2], [2, 2], [2, 4], [8, 1]]))
    assert overlaps.tolist() == [[1, 0.5, 4 / 12, 4 / 12]]


def test_anchors_lie_on_the_coarsest_stride_of_half_their_size():
    levels = place_anchors(np.array([[2.0, 2], [8, 8], [16, 15], [16, 16], [90, 90]]), (4, 8, 16))
    assert [level.stride for level in levels] == [4, 8, 16]
    assert [level.sides[:, 0].tolist() for level in levels] == [[2, 8, 16], [16], [90]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 0}, "count must be at least 1"),
        ({"starts": 0}, "starts must be at least 1"),
        ({"sides": [[1, 0]]}, "sides must be positive"),
        ({"sides": [[1, np.nan]]}, "sides must be positive and finite"),
        ({"sides": np.zeros((0, 2))}, "different boxes"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        fit_anchors(
            **{"sides": np.array(change.pop("sides", [[1, 2]]), float), "count": 1} | change
        )


@pytest.mark.parametrize("bad", [(), (0,), (4, -1), (float("nan"),)])
def test_bad_levels_are_named(bad):
    for name in ("strides", "scales", "ratios"):
        options = {"strides": (4,), "scales": (1,), "ratios": (1,), name: bad}
        with pytest.raises(ValueError, match=f"{name} must be numbers above 0"):
            anchor_levels(**options)
