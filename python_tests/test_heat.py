"""Attention of whole images."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tinyops.inference.heat import heat_maps
from tinyops.inference.source import ArraySource
from tinyops.models import create


class BrightNeck(nn.Module):
    """Attention to what is bright: 0.5 on black, almost 1 on white."""

    def forward(self, features):
        logits = [x.mean(1, keepdim=True) * 10 for x in features]
        return features, {"attention_logits": logits}


class Backbone(nn.Module):
    strides = (4, 8)

    def forward(self, pixels):
        return [F.avg_pool2d(pixels, stride) for stride in self.strides]


class Model(nn.Module):
    """Pads at the right and below to a multiple of 32, as the detectors do, and resizes."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.backbone, self.neck, self.scale = Backbone(), BrightNeck(), scale
        self.batches = []

    def forward(self, images):
        self.batches.append(len(images))
        shown = [F.interpolate(x[None], scale_factor=self.scale)[0] for x in images]
        height, width = (-(-max(x.shape[d] for x in shown) // 32) * 32 for d in (1, 2))
        pads = [(0, width - x.shape[2], 0, height - x.shape[1]) for x in shown]
        x = torch.stack([F.pad(x, pad) for x, pad in zip(shown, pads, strict=True)])
        self.neck(self.backbone(x))
        empty = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0)}
        return [empty] * len(images)


def picture(width, height, *squares):
    pixels = np.zeros((height, width, 3), np.uint8)
    for x1, y1, x2, y2 in squares:
        pixels[y1:y2, x1:x2] = 255
    return ArraySource(pixels)


SQUARES = ((16, 8, 24, 16), (120, 88, 128, 96), (184, 128, 192, 136))


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize(("tile", "overlap"), [(None, 0), ((64, 64), 16), ((72, 56), (24, 8))])
def test_the_map_is_high_where_the_model_looks(tile, overlap, scale):
    # 200 and 144 are multiples of 8: each tile begins at a cell, and a square is one.
    heat = heat_maps(
        Model(scale), picture(200, 144, *SQUARES), level=1, tile=tile, overlap=overlap, batch=3
    )
    assert heat.shape == (18, 25)
    expected = torch.full((18, 25), 0.5)
    for x1, y1, _, _ in SQUARES:
        expected[y1 // 8, x1 // 8] = torch.tensor(10.0).sigmoid()
    if scale == 1:
        assert torch.allclose(heat, expected)
    else:  # cells of 4 px: the middle of a square is between its four
        assert (heat > 0.99).nonzero().tolist() == (expected > 0.6).nonzero().tolist()


def test_an_object_between_the_cells_is_at_its_place():
    heat = heat_maps(
        Model(), picture(150, 97, (77, 41, 97, 61)), stride=1, tile=(64, 48), overlap=20
    )
    assert heat.shape == (97, 150)
    y, x = (heat > 0.75).nonzero().float().mean(0).tolist()
    assert (x, y) == pytest.approx((86.5, 50.5), abs=1.5)


@pytest.mark.parametrize("stride", [1, 3, 8, 50, 1000])
def test_every_cell_of_the_map_has_attention(stride):
    heat = heat_maps(Model(), picture(150, 97), stride=stride, tile=(64, 48), overlap=0)
    assert heat.shape == (-(-97 // stride), -(-150 // stride))
    assert torch.allclose(heat, torch.tensor(0.5))


def test_overlaps_have_the_greater_attention():
    model = Model()

    def forward(features):  # tiles by their number
        model.tiles = getattr(model, "tiles", 0) + 1
        return features, {"attention_logits": [torch.full((1, 1, 4, 4), -1.0 + model.tiles)]}

    model.neck.forward = forward
    heat = heat_maps(model, picture(24, 16), stride=4, tile=(16, 16), overlap=8, batch=1)
    assert torch.allclose(heat[0, :2], torch.tensor(0.0).sigmoid())
    assert torch.allclose(heat[0, 2:], torch.tensor(1.0).sigmoid())


def test_tiles_come_in_batches_and_the_model_stays_as_it_is():
    model = Model().train()
    heat_maps(model, picture(100, 50), tile=(40, 50), overlap=10, batch=2)
    assert model.batches == [2, 1]
    assert model.training
    assert not model.neck._forward_hooks
    with pytest.raises(ValueError, match="level must be from 0 to 1, got 2"):
        heat_maps(model, picture(100, 50), level=2)
    assert not model.neck._forward_hooks


def test_sspnet_has_maps_and_fpn_says_that_it_has_none():
    image = ArraySource(np.random.default_rng(0).integers(0, 256, (70, 90, 3)).astype(np.uint8))
    torch.manual_seed(0)
    model = create("retinanet_sspnet_resnet18", num_classes=1, neck_channels=16)
    heat = heat_maps(model, image, level=1, tile=(64, 64), overlap=32, stride=4)
    assert heat.shape == (18, 23)
    assert heat.min() > 0
    assert heat.max() < 1
    assert heat.std() > 0
    plain = create("retinanet_fpn_resnet18", num_classes=1, neck_channels=16)
    with pytest.raises(ValueError, match=r"^model must have attention.* with FPN"):
        heat_maps(plain, image)
    with pytest.raises(ValueError, match=r"^model must have attention"):
        heat_maps(nn.Linear(1, 1), image)


def test_settings_out_of_range_are_named():
    with pytest.raises(ValueError, match="stride must be at least 1, got 0"):
        heat_maps(Model(), picture(10, 10), stride=0)
    with pytest.raises(ValueError, match="overlap must be"):
        heat_maps(Model(), picture(10, 10), tile=(5, 5), overlap=5)
