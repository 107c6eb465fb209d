"""Attention of a model over an image of any size."""

import numpy as np
import pytest
import torch
from torch import nn

from tinyops.inference.heat import attention_map, has_attention
from tinyops.inference.source import ArraySource
from tinyops.inference.types import Detection
from tinyops.models import create


class Neck(nn.Module):
    """Its attention is the red of the image, in cells of 4 and 8 pixels; the coarse one halved."""

    def __init__(self):
        super().__init__()
        self.attention = nn.Identity()

    def forward(self, pixels):
        red = pixels[:, :1]
        levels = [nn.functional.avg_pool2d(red, 4), nn.functional.avg_pool2d(red, 8) / 2]
        return [], {"attention_logits": [x.logit() for x in levels]}


class Model(nn.Module):
    """A detector that finds nothing, with images padded to a multiple of 8 by ones."""

    scale = 1.0

    def __init__(self):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.strides = (4, 8)
        self.neck = Neck()
        self.calls = []

    def forward(self, images):
        self.calls.append(len(images))
        sides = [max(image.shape[k] for image in images) for k in (1, 2)]
        padded = torch.ones(len(images), 3, *(-(-side // 8) * 8 for side in sides))
        for row, image in zip(padded, images, strict=True):
            row[:, : image.shape[1], : image.shape[2]] = image
        self.neck(padded)
        nothing = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0)}
        return [nothing] * len(images)


def cells(height, width, seed=0):
    """Reds in blocks of 4 pixels."""
    random = np.random.default_rng(seed)
    blocks = random.integers(1, 255, (-(-height // 4), -(-width // 4)), dtype=np.uint8)
    red = np.kron(blocks, np.ones((4, 4), np.uint8))[:height, :width]
    return np.stack([red, red * 0, red * 0], 2)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (88, 120), (12, 20)])
def test_it_is_the_largest_attention_at_each_pixel(height, width):
    pixels, model = cells(height, width), Model()
    how = Detection(tile=(48, 40), overlap=8, batch=3)
    heat = attention_map(model, ArraySource(pixels, name="x"), how)
    assert heat.shape == (height, width)
    red = pixels[..., 0] / 255
    assert (heat >= red - 1e-5).all()
    higher = heat > red + 1e-5  # by the coarse level: at most half of the largest, or by padding
    assert (heat[higher] <= 0.5 + 1e-5).all()
    assert higher.mean() < 0.5
    assert max(model.calls) <= 3
    assert not model.neck._forward_hooks


def test_a_large_image_has_a_coarser_map():
    pixels = cells(64, 160)
    how = Detection(tile=(32, 32), overlap=0)
    fine = attention_map(Model(), ArraySource(pixels, name="x"), how)
    heat = attention_map(Model(), ArraySource(pixels, name="x"), how, max_side=40)
    assert heat.shape == (16, 40)
    blocks = fine.reshape(16, 4, 40, 4)
    np.testing.assert_allclose(heat, blocks.max((1, 3)), atol=1e-5)


def test_detectors_with_sspnet_have_attention():
    torch.manual_seed(0)
    small = {"neck_channels": 8}
    assert not has_attention(create("retinanet_fpn_resnet_nano", **small))
    assert not has_attention(lambda images: [])
    model = create("retinanet_sspnet_resnet_nano", **small, scale=2).eval()
    assert has_attention(model)
    how = Detection(tile=(64, 64), overlap=8)
    heat = attention_map(model, ArraySource(cells(50, 70), name="x"), how)
    assert heat.shape == (50, 70)
    assert 0 < heat.min() < heat.max() < 1
