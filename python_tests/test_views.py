"""What the model sees of an image: tiles, scales and flips."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from squares import SMALL, Drawn, Seer, draw, rows, run, scatter, scene, truth

from tinyops.inference.types import FLIPS, Detection, View
from tinyops.inference.views import Tile, plan_tiles


@pytest.mark.parametrize("scale", [0.3, 1, 1.5, 3])
@pytest.mark.parametrize("size", [(1000, 777), (40, 900), (1, 1), (213, 171)])
def test_tiles_cover_the_image_and_have_the_size_that_was_asked_for(scale, size):
    tiles = plan_tiles(*size, Detection(tile=(64, 48), overlap=(8, 20), views=(View(scale),)))
    seen = np.zeros(size[::-1], bool)
    for tile in tiles:
        x1, y1, x2, y2 = tile.window
        seen[y1:y2, x1:x2] = True
        for side, shown, most, length in zip(tile.sides, tile.size, (64, 48), size, strict=True):
            assert shown == most or (side == length and shown == max(1, round(length * scale)))
    assert seen.all()


def test_neighbours_share_pixels_of_what_the_model_sees():
    tiles = plan_tiles(100, 16, Detection(tile=(60, 48), overlap=(20, 0), views=(View(3.0),)))
    assert [tile.window[0] for tile in tiles][:3] == [0, 13, 26]  # 7 of 20 pixels, 6.7 rounded up


@pytest.mark.parametrize("flip", FLIPS)
def test_a_tile_maps_what_the_model_sees_back_to_its_window(flip):
    tile = Tile((10, 20, 23, 29), (7, 20), flip)  # 13 x 9 pixels are seen as 7 x 20
    boxes = torch.tensor([[0.0, 0, 7, 20], [0, 0, 3.5, 5]])
    x = (6.5, 13) if flip in ("horizontal", "both") else (0, 6.5)
    y = (6.75, 9) if flip in ("vertical", "both") else (0, 2.25)
    expected = torch.tensor([[0, 0, 13, 9], [x[0], y[0], x[1], y[1]]])
    torch.testing.assert_close(tile.place(boxes), expected)
    assert tile.show(torch.zeros(9, 13, 3, dtype=torch.uint8)).shape == (3, 20, 7)
    assert tile.place(boxes[:0]).shape == (0, 4)


def test_bytes_become_the_floats_that_training_sees():
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3).view(3, 16, 16).permute(1, 2, 0)
    shown = Tile((0, 0, 16, 16), (16, 16)).show(pixels.contiguous())
    assert torch.equal(shown, pixels.permute(2, 0, 1).float() / 255)
    assert torch.equal(Tile((0, 0, 16, 16), (16, 16), "both").show(pixels), shown.flip(1, 2))
    floats = torch.rand(16, 16, 3)
    assert torch.equal(Tile((0, 0, 16, 16), (16, 16)).show(floats), floats.permute(2, 0, 1))


@pytest.mark.parametrize(("scale", "flip"), [*zip([0.5, 1, 2, 3], FLIPS, strict=True)])
def test_boxes_of_views_are_mapped_back_exactly(scale, flip):
    squares = scatter(150, 100, 15, sides=(4, 8))
    source = Drawn(draw(150, 100, squares))
    model = Seer()
    how = Detection(tile=(60, 48), overlap=27, batch=8, views=(View(scale, flip),))
    (result,) = run([source], how, model)
    assert rows(result) == truth(squares)
    assert set(itertools.chain(*model.batches)) == {(48, 60)}


def test_views_that_show_the_same_are_all_seen():
    model, how = Seer(), Detection(tile=None, views=(View(1.0), View(0.75)))
    (result,) = run([Drawn(np.full((1, 1, 3), (255, 0, 0), np.uint8))], how, model)
    assert (len(result.tiles), len(result["boxes"]), len(result.removed)) == (2, 1, 1)


def test_views_are_merged_without_duplicates():
    source, squares = scene(5)
    views = tuple(View(s, f) for s in (1.0, 2.0) for f in FLIPS)
    how = Detection(tile=(60, 48), overlap=20, views=views)
    (result,) = run([source], how)
    assert rows(result) == truth(squares)
    assert len(result.removed) >= 7 * len(squares)
    assert len(result.tiles) == len(plan_tiles(150, 100, how))
    windows = {tuple(window) for window in result.tiles.tolist()}
    assert {(0, 0, 60, 48), (0, 0, 30, 24)} <= windows


def test_views_find_what_one_scale_misses():
    class Shortsighted(Seer):
        def find(self, image):
            found = super().find(image)
            wide = found["boxes"][:, 2] - found["boxes"][:, 0] >= 8
            return {name: x[wide] for name, x in found.items()}

    source, squares = scene(6)
    large = [square for square in squares if square[2] >= 8]
    (once,) = run([source], replace(SMALL, tile=None), Shortsighted())
    assert rows(once) == truth(large)
    assert len(large) < len(squares)
    how = Detection(tile=None, views=(View(), View(2.0)))
    assert rows(run([scene(6)[0]], how, Shortsighted())[0]) == truth(squares)
