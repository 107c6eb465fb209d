"""Windows of large images."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyops.data.tiles import clip_to_window, tile_starts, tile_windows


def test_corners_of_the_released_tiles():
    # TinyPerson's read-me lists these for a width of 1280; they belong to an overlap of 50.
    assert tile_starts(1280, 640, 50) == [0, 590, 640]


def test_windows_of_the_original_splitter():
    # Corners that TinyBenchmark's splitter writes.
    assert tile_windows(1280, 720, overlap=0) == [
        (0, 0, 640, 512),
        (640, 0, 1280, 512),
        (0, 208, 640, 720),
        (640, 208, 1280, 720),
    ]
    assert tile_windows(700, 497, overlap=0) == [(0, 0, 640, 497), (60, 0, 700, 497)]
    assert tile_windows(500, 400, overlap=30) == [(0, 0, 500, 400)]


@settings(deadline=None)
@given(length=st.integers(1, 3000), tile=st.integers(1, 700), share=st.floats(0, 0.999))
def test_tiles_cover_an_axis_and_overlap_enough(length, tile, share):
    overlap = int(share * tile)
    starts = tile_starts(length, tile, overlap)
    assert starts[0] == 0
    assert starts[-1] == max(length - tile, 0)
    assert all(0 < b - a <= tile - overlap for a, b in itertools.pairwise(starts))


def test_both_overlaps_can_differ():
    windows = tile_windows(100, 100, (60, 60), (20, 40))
    assert sorted({w[0] for w in windows}) == [0, 40]
    assert sorted({w[1] for w in windows}) == [0, 20, 40]


def test_boxes_are_clipped_and_their_share_is_a_side():
    boxes = torch.tensor([[5.0, 5, 15, 25], [0, 0, 20, 20], [90, 90, 99, 99], [10, 10, 40, 50]])
    clipped, visible = clip_to_window(boxes, (10, 10, 40, 50))
    expected = [[0, 0, 5, 15], [0, 0, 10, 10], [30, 40, 30, 40], [0, 0, 30, 40]]
    torch.testing.assert_close(clipped, torch.tensor(expected).float())
    torch.testing.assert_close(visible, torch.tensor([(75 / 200) ** 0.5, 0.5, 0, 1]))


def test_no_boxes_stay_no_boxes():
    clipped, visible = clip_to_window(torch.zeros(0, 4), (0, 0, 5, 5))
    assert clipped.shape == (0, 4)
    assert visible.shape == (0,)


@pytest.mark.parametrize("arguments", [(0, 10, 0), (10, 0, 0), (10, 10, 10), (10, 10, -1)])
def test_impossible_tiles_are_refused(arguments):
    with pytest.raises(ValueError, match="must be"):
        tile_starts(*arguments)
