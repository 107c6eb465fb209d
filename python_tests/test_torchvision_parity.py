"""What is torchvision's too is the same here: box coder, clipping, levels of RoIs, pyramid."""

import pytest
import torch
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import FeaturePyramidNetwork, clip_boxes_to_image
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.poolers import LevelMapper

from tinyops.nn.boxes import clip, decode, encode
from tinyops.nn.fpn import FPN
from tinyops.nn.roi import RoIPool

STDS = (0.1, 0.1, 0.2, 0.2)
CODER = BoxCoder((10.0, 10.0, 5.0, 5.0))


def boxes(seed: int, least: float, most: float) -> torch.Tensor:
    """[200, 4] with sides between two lengths."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(200, 2, generator=generator) * 300 - 50
    sides = least * (most / least) ** torch.rand(200, 2, generator=generator)
    return torch.cat([corner, corner + sides], 1)


def test_offsets_are_those_of_torchvisions_coder():
    objects, anchors = boxes(0, 2, 60), boxes(1, 4, 90)
    expected = CODER.encode_single(objects, anchors)
    torch.testing.assert_close(encode(objects, anchors, STDS), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("classes", [1, 3])
def test_boxes_are_those_of_torchvisions_coder(classes):
    anchors = boxes(1, 4, 90)
    generator = torch.Generator().manual_seed(2)
    offsets = 3 * torch.randn(200, classes, 4, generator=generator)
    offsets[:5, :, 2:] = 100.0  # grow beyond the limit
    expected = CODER.decode_single(offsets.flatten(1), anchors).unflatten(1, (-1, 4))
    torch.testing.assert_close(decode(offsets, anchors, STDS), expected, rtol=1e-5, atol=1e-3)


def test_clipping_is_torchvisions():
    given = boxes(3, 5, 200)
    sizes = torch.tensor([[90, 120]]).expand(len(given), -1)
    assert torch.equal(clip(given, sizes), clip_boxes_to_image(given, (90, 120)))


def test_boxes_are_seen_on_torchvisions_levels():
    given = boxes(4, 3, 900)
    expected = LevelMapper(2, 5, canonical_scale=224, canonical_level=4)([given])
    assert expected.bincount().min() > 5
    assert torch.equal(RoIPool().choose_levels(given), expected)


def test_pyramid_is_torchvisions():
    channels = [6, 10, 14, 18]
    ours = FPN(channels, 8)
    theirs = FeaturePyramidNetwork(channels, 8, extra_blocks=LastLevelMaxPool())
    for parts, names in ((ours.lateral_convs, "inner_blocks"), (ours.output_convs, "layer_blocks")):
        for conv, block in zip(parts, getattr(theirs, names), strict=True):
            block[0].load_state_dict(conv.state_dict())
    generator = torch.Generator().manual_seed(5)
    features = [
        torch.randn(2, width, *size, generator=generator)
        for width, size in zip(channels, [(25, 30), (13, 15), (7, 8), (4, 4)], strict=True)
    ]
    expected = theirs({str(k): x for k, x in enumerate(features)}).values()
    found, _ = ours(features)
    for level, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(level, wanted, rtol=1e-5, atol=1e-5)
