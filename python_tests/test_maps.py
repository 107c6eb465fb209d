"""Maps of whole images."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tinyops.inference.maps import KINDS, image_maps, map_kinds
from tinyops.inference.source import ArraySource
from tinyops.inference.types import Detection
from tinyops.models import create


class BrightNeck(nn.Module):
    """Attention to what is bright: 0.5 on black, almost 1 on white."""

    def __init__(self):
        super().__init__()
        self.attention = nn.Identity()

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


def heat_of(model, source, tile=(64, 48), overlap=20, batch=3, **options):
    how = Detection(tile=tile, overlap=overlap, batch=batch)
    return torch.from_numpy(image_maps(model, source, how, **options).attention)


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize(("tile", "overlap"), [(None, 0), ((64, 64), 16), ((72, 56), (24, 8))])
def test_the_map_is_high_where_the_model_looks(tile, overlap, scale):
    # 200 and 144 are multiples of 8: each tile begins at a cell, and a square is one.
    image = picture(200, 144, *SQUARES)
    heat = heat_of(Model(scale), image, tile=tile, overlap=overlap, level=1, max_side=25)
    assert heat.shape == (18, 25)
    expected = torch.full((18, 25), 0.5)
    for x1, y1, _, _ in SQUARES:
        expected[y1 // 8, x1 // 8] = torch.tensor(10.0).sigmoid()
    if scale == 1:
        assert torch.allclose(heat, expected, atol=1e-4)
    else:  # cells of 4 px, of which the largest near each middle counts
        assert ((heat > 0.99) >= (expected > 0.6)).all()
        assert (heat > 0.51).sum() <= 9 * len(SQUARES)


def test_an_object_between_the_cells_is_at_its_place():
    heat = heat_of(Model(), picture(150, 97, (77, 41, 97, 61)))
    assert heat.shape == (97, 150)
    y, x = (heat > 0.75).nonzero().float().mean(0).tolist()
    assert (x, y) == pytest.approx((86.5, 50.5), abs=1.5)


def test_peaks_stay_in_a_coarse_map():
    squares = [(x, y, x + 4, y + 4) for x in range(4, 400, 44) for y in range(0, 300, 52)]
    heat = heat_of(Model(), picture(400, 300, *squares), level=0, max_side=20)
    assert heat.shape == (15, 20)
    for x1, y1, _, _ in squares:
        assert heat[y1 // 20, x1 // 20] > 0.9


@pytest.mark.parametrize("max_side", [1, 3, 19, 50, 149, 1000])
def test_every_cell_of_the_map_has_attention(max_side):
    heat = heat_of(Model(), picture(150, 97), overlap=0, max_side=max_side)
    assert max(heat.shape) == min(150, max_side)
    assert torch.allclose(heat, torch.tensor(0.5))


def test_overlaps_and_levels_have_the_greater_attention():
    model, calls = Model(), []

    def forward(features):  # tiles by their number
        calls.append(torch.full((1, 1, 4, 4), float(len(calls))))
        return features, {"attention_logits": [calls[-1], 1 - calls[-1]]}

    model.neck.forward = forward

    def heat(level):
        calls.clear()
        image = picture(24, 16)
        heat = heat_of(model, image, (16, 16), 8, 1, max_side=6, level=level).logit()
        assert (heat == heat[:1]).all()
        return heat[0].round().tolist()

    assert heat(0) == [0, 0, 1, 1, 1, 1]
    assert heat(1) == [1, 1, 1, 1, 0, 0]
    assert heat(None) == [1, 1, 1, 1, 1, 1]


def test_tiles_come_in_batches_and_the_model_stays_as_it_is():
    model = Model().train()
    heat_of(model, picture(100, 50), (40, 50), 10, 2)
    assert model.batches == [2, 1]
    assert model.training
    assert not model.neck._forward_hooks

    class Broken(ArraySource):
        def read(self, window):
            raise OSError("cut short")

    with pytest.raises(OSError, match="cut short"):
        heat_of(model, Broken(np.zeros((9, 9), np.uint8)))
    assert not model.neck._forward_hooks


def test_models_have_the_maps_of_their_parts():
    image = ArraySource(np.random.default_rng(0).integers(0, 256, (70, 90, 3)).astype(np.uint8))
    how = Detection(tile=(64, 64), overlap=32)
    lacking = KINDS[1:]
    for name, kinds in (
        ("retinanet_sspnet", KINDS[:1]),
        ("retinanet_srtod", lacking),
        ("faster_rcnn_sspnet_srtod", KINDS),
    ):
        torch.manual_seed(0)
        model = create(f"{name}_resnet_nano", num_classes=1, neck_channels=16)
        assert map_kinds(model) == kinds
        maps = image_maps(model, image, how)
        assert tuple(maps.draw()) == kinds
        for values in (maps.attention, maps.difference):
            assert values is None or values.shape == (70, 90)
            assert values is None or 0 < values.min() < values.max() < 1
        assert (maps.reconstruction is None) == (name == "retinanet_sspnet")
    for other in (create("retinanet_fpn_resnet_nano", neck_channels=16), nn.Linear(1, 1)):
        assert map_kinds(other) == ()
        with pytest.raises(ValueError, match=r"^model must have SSPNet's neck or SR-"):
            image_maps(other, image, how)


class Rebuilder(nn.Module):
    """Rebuilds tiles in a grey that rises with their number, whatever the image is."""

    def __init__(self):
        super().__init__()
        self.threshold, self.grey = nn.Parameter(torch.tensor(0.3)), 0.2

    def forward(self, pixels):
        shown = type("Shown", (), {})()
        shown.reconstruction = torch.full_like(pixels, self.grey)
        shown.difference = (pixels - self.grey).abs().mean(1, keepdim=True)
        self.grey += 0.2
        return pixels, shown


class RebuildingModel(Model):
    def __init__(self, scale=1.0):
        super().__init__(scale)
        self.refiner = Rebuilder()
        del self.neck.attention

    def forward(self, images):
        self.neck.forward = lambda features: self.refiner(self.seen)
        self.seen = F.interpolate(torch.stack(list(images)), scale_factor=self.scale)
        return super().forward(images)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_differences_are_the_greater_and_reconstructions_fade(scale):
    how = Detection(tile=(16, 16), overlap=8, batch=1)
    maps = image_maps(RebuildingModel(scale), picture(24, 16, (2, 2, 4, 4)), how)
    assert maps.attention is None
    assert maps.threshold == pytest.approx(0.3)
    expected = np.full((16, 24), 0.2)  # on black, of the first tile
    expected[:, 8:] = 0.4
    expected[2:4, 2:4] = 0.8
    if scale == 1:
        assert maps.difference == pytest.approx(expected, abs=1e-6)
    second = np.clip((np.arange(24) + 0.5 - 8) / 8, 0, 1)  # its share: both reach the other's end
    assert maps.reconstruction == pytest.approx(
        np.broadcast_to(0.2 + 0.2 * second[None, :, None], (16, 24, 3)), abs=1e-6
    )
    picture_of = {kind: np.asarray(drawn) for kind, drawn in maps.draw().items()}
    above = picture_of["mask"][:16, :24, 0] == 255
    assert (above == (maps.difference > 0.3)).all()
    assert np.abs(picture_of["reconstruction"][:16, :8] / 255 - 0.2).max() < 0.01
    heat = picture_of["difference"][:16, :24].sum(-1)
    assert heat[3, 3] == heat.max() > heat[3, 20] > heat[8, 1]


def test_a_fine_difference_stays_in_a_coarse_map_and_colors_are_means():
    image = picture(64, 32, (9, 9, 10, 10))
    model = RebuildingModel()
    maps = image_maps(model, image, Detection(tile=None), max_side=8)
    assert maps.difference.shape == (4, 8)
    assert maps.difference[1, 1] == pytest.approx(0.8)
    assert maps.difference[3, 7] == pytest.approx(0.2)
    assert maps.reconstruction == pytest.approx(np.full((4, 8, 3), 0.2), abs=1e-6)


@pytest.mark.parametrize(
    ("argument", "options"),
    [("level", {"level": 2}), ("max_side", {"max_side": 0}), ("overlap", {"overlap": 64})],
)
def test_settings_out_of_range_are_named(argument, options):
    with pytest.raises(ValueError, match=f"^{argument} must"):
        heat_of(Model(), picture(10, 10), **options)
