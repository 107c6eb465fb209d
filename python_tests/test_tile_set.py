"""Tiles of a data set, made once, and what was found in them taken back."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from annotated import annotated_image, annotated_set, golden, of_coco
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyops.data.tile_set import cut_set, merge_tiles
from tinyops.data.tiles import tile_windows

CASES = {"tile_corner_merge_ov30_42": 30, "tile_corner_merge_ov50_41": 50}
GRIDS = golden("tile_grids", "expected")


@pytest.mark.parametrize("name", GRIDS["offline"])
def test_windows_of_the_original_splitter(name):
    for size, rows in GRIDS["offline"][name].items():
        windows = tile_windows(*map(int, size.split("x")), overlap=int(name[2:]))
        assert windows == [tuple(window) for row in rows for window in row]


@pytest.mark.parametrize("height", [512, 640])
def test_windows_at_run_time(height):
    for size, windows in GRIDS[f"runtime_640x{height}_ov100"].items():
        found = tile_windows(*map(int, size.split("x")), (640, height), 100)
        assert [[x, y, a - x, b - y] for x, y, a, b in found] == windows


@pytest.mark.parametrize("case", CASES)
def test_tiles_of_the_original_splitter(case):
    data, expected = of_coco(golden(case, "gt")), of_coco(golden(case, "corner_gt"))
    tiles = cut_set(data, overlap=CASES[case])
    assert tiles.extra == expected.extra
    assert len(tiles.images) == len(expected.images)
    for ours, theirs in zip(tiles.images, expected.images, strict=True):
        for name in ("id", "file_name", "width", "height", "corner"):
            assert getattr(ours, name) == getattr(theirs, name)
        np.testing.assert_array_equal(ours.bbox, theirs.bbox)  # the bits
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        np.testing.assert_array_equal(ours.ignore, theirs.ignore)
        for name, values in theirs.attributes.items():
            if name in ours.attributes:
                np.testing.assert_array_equal(ours.attributes[name], values)


@pytest.mark.parametrize("rule", ["ge", "gt", "none"])
@pytest.mark.parametrize("case", CASES)
def test_merging_of_the_originals(case, rule):
    tiles = cut_set(of_coco(golden(case, "gt")), overlap=CASES[case])
    merged = merge_tiles(tiles, golden(case, "tile_dt"), rule=rule)
    expected = golden(case, "merged_nonms" if rule == "none" else f"merged_{rule}")
    assert merged == expected  # the bits, in the originals' order


def result(image_id=0, bbox=(1, 2, 3, 4), score=0.5, **more):
    return {"image_id": image_id, "category_id": 1, "bbox": bbox, "score": score, **more}


def one_image(size, *boxes, **options):
    return annotated_set(annotated_image(7, size, boxes, **options))


def test_half_of_the_area_decides():
    # Cut by the right side of the first tile: 49 of 100 and 48 of 100 columns are left.
    data = one_image((200, 100), (51, 10, 100, 9), (52, 30, 100, 9))
    first = cut_set(data, (100, 100), 0).images[0]
    assert first.bbox.tolist() == [[51, 10, 49, 9]]


def test_coordinates_are_rounded_to_float32():
    tile = cut_set(one_image((50, 50), (0.1, 0.2, 10.3, 5.7)), (64, 64)).images[0]
    assert tile.bbox.tolist() == [[float(np.float32(x)) for x in (0.1, 0.2, 10.3, 5.7)]]


def test_what_is_known_of_objects_comes_along():
    values = {"area": np.array([100.0]), "segmentation": np.array([None]), "id": np.array([55])}
    data = one_image((100, 60), (43, 10, 10, 10), attributes={**values, "logo": np.array([True])})
    tile = cut_set(data, (50, 60), 0).images[0]
    assert tile.attributes["logo"] == [True]
    assert tile.attributes["id"] == [0]
    assert tile.attributes["area"] == [70]
    assert tile.attributes["size"] == [math.sqrt(70)]
    polygon = [[43, 10, 43, 20, 50, 20, 50, 10]]
    assert tile.attributes["segmentation"].tolist() == [polygon]


def test_empty_tiles_can_be_left_out():
    data = one_image((200, 100), (10, 10, 5, 5))
    assert [len(tile) for tile in cut_set(data, (100, 100), 0).images] == [1, 0]
    (tile,) = cut_set(data, (100, 100), 0, keep_empty=False).images
    assert (tile.id, tile.corner) == (0, (0, 0, 100, 100))


@st.composite
def scenes(draw):
    """An image, tiles, and boxes of whole quarters that are no larger than the overlap."""
    tile = draw(st.integers(8, 60)), draw(st.integers(8, 60))
    overlap = draw(st.integers(2, min(tile) - 1))
    size = draw(st.integers(overlap, 200)), draw(st.integers(overlap, 200))
    boxes = []
    for _ in range(draw(st.integers(0, 6))):
        sides = [draw(st.integers(4, 4 * overlap)) / 4 for _ in range(2)]
        lows = [draw(st.integers(0, int(4 * (size[k] - sides[k])))) / 4 for k in range(2)]
        boxes.append((*lows, *sides))
    return size, tile, overlap, boxes


@settings(deadline=None, max_examples=60)
@given(scenes())
def test_some_tile_has_every_object_whole(scene):
    size, tile, overlap, boxes = scene
    tiles = cut_set(one_image(size, *boxes), tile, overlap).images
    for x, y, w, h in boxes:
        assert any(
            [x - t.corner[0], y - t.corner[1], w, h] == row
            for t in tiles
            for row in t.bbox.tolist()
        )


@settings(deadline=None, max_examples=60)
@given(scenes())
def test_merged_tiles_give_whole_boxes_back(scene):
    size, tile, overlap, boxes = scene
    tiles = cut_set(one_image(size, *boxes), tile, overlap)
    found = []
    for t in tiles.images:
        x, y = t.corner[:2]
        for number, box in enumerate(boxes):  # a detector that knows whole objects alone
            moved = [box[0] - x, box[1] - y, *box[2:]]
            if moved in t.bbox.tolist():
                found.append(result(t.id, moved, 1 - number / 100, category_id=number))
    apart = all(
        min(a[0] + a[2], b[0] + b[2]) + 1 <= max(a[0], b[0])
        or min(a[1] + a[3], b[1] + b[3]) + 1 <= max(a[1], b[1])
        for a, b in itertools.combinations(boxes, 2)
    )
    for rule in ("ge", "gt"):
        merged = merge_tiles(tiles, found, rule=rule)
        back = {(x["category_id"], *x["bbox"]) for x in merged}
        assert all(x["image_id"] == 7 for x in merged)
        assert back <= {(k, *box) for k, box in enumerate(boxes)}
        if apart:
            assert len(back) == len(merged) == len(boxes)


TILES = cut_set(one_image((100, 50)), (60, 60), 20)


def test_an_overlap_of_half_goes_or_stays():
    # With sides of x2 - x1 + 1: 10 x 10 and 5 x 10 pixels, half of which are common.
    pair = [result(bbox=(0, 0, 9, 9)), result(bbox=(0, 0, 4, 9), score=0.9)]
    assert merge_tiles(TILES, pair, rule="ge") == [{**pair[1], "image_id": 7, "bbox": [0, 0, 4, 9]}]
    assert [x["score"] for x in merge_tiles(TILES, pair, rule="gt")] == [0.9, 0.5]
    assert [x["score"] for x in merge_tiles(TILES, pair, rule="none")] == [0.5, 0.9]


def test_categories_do_not_keep_boxes_apart_and_other_fields_stay():
    pair = [result(note=3), result(score=0.6, category_id=2)]
    (left,) = merge_tiles(TILES, pair)
    assert left["category_id"] == 2
    assert merge_tiles(TILES, pair[:1])[0]["note"] == 3
    assert merge_tiles(TILES, []) == []


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_extreme_thresholds(threshold):
    pair = [result(bbox=(0, 0, 9, 9)), result(bbox=(0, 0, 4, 9), score=0.9)]
    assert len(merge_tiles(TILES, pair, rule="gt", threshold=threshold)) == 1 + (threshold == 1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (result(5), r"detections\[1\]: image_id must be that of a tile, got 5"),
        (result("a"), "got 'a'"),
        (result(bbox=(1, 2, 3)), r"detections\[1\] must have a bbox of 4 finite numbers"),
        (result(bbox=(1, 2, -3, 4)), "no negative sides"),
        (result(bbox=(1, float("nan"), 3, 4)), "finite"),
        (result(bbox=(1, 2, "x", 4)), "numbers"),
        (result(bbox=None), "numbers"),
        (result(bbox="1234"), "numbers"),
        (result(bbox=(1, 2, 10**400, 4)), "numbers"),
        (result(score=float("nan")), "a finite score"),
        (result(score=None), "numbers"),
        ({"image_id": 0}, "KeyError"),
    ],
)
def test_bad_detections_are_named(row, message):
    with pytest.raises(ValueError, match=message):
        merge_tiles(TILES, [result(), row])


def test_what_is_no_tile_is_refused():
    with pytest.raises(ValueError, match="must have old_images"):
        merge_tiles(one_image((10, 10)), [])
    with pytest.raises(ValueError, match="must be of whole images"):
        cut_set(TILES)
    bare = replace(TILES, images=tuple(replace(x, corner=None) for x in TILES.images))
    with pytest.raises(ValueError, match="tile 0 must have a corner"):
        merge_tiles(bare, [])
    twice = annotated_set(*one_image((9, 9)).images, replace(one_image((9, 9)).images[0], id=8))
    with pytest.raises(ValueError, match="twice"):
        merge_tiles(cut_set(twice), [])


@pytest.mark.parametrize("options", [{"min_visible": 0}, {"min_visible": 1.1}, {"overlap": 640}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        cut_set(one_image((10, 10)), **options)
    with pytest.raises(ValueError, match="rule must be"):
        merge_tiles(TILES, [], rule="le")
    with pytest.raises(ValueError, match="threshold must be"):
        merge_tiles(TILES, [], threshold=float("nan"))
