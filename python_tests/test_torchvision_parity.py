"""What torchvision has, too, is the same here: clipping, levels of RoIs, pyramid."""

import torch
from torchvision.ops import FeaturePyramidNetwork, clip_boxes_to_image
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.poolers import LevelMapper

from tinyops.nn.boxes import clip
from tinyops.nn.fpn import FPN
from tinyops.nn.roi import RoIPool


def boxes(seed: int, least: float, most: float) -> torch.Tensor:
    """[200, 4] with sides between two lengths."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(200, 2, generator=generator) * 300 - 50
    sides = least * (most / least) ** torch.rand(200, 2, generator=generator)
    return torch.cat([corner, corner + sides], 1)


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
