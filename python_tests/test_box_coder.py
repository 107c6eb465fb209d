"""Offsets from anchors, and boxes cut at the border."""

import math

import pytest
import torch
from torchvision.models.detection._utils import BoxCoder

from tinyops.nn.boxes import LARGEST_GROWTH, clip, decode, encode

ONES = (1.0, 1.0, 1.0, 1.0)
STDS = (0.1, 0.1, 0.2, 0.2)


def boxes_of(count, dtype=torch.float32):
    corners = 100 * torch.rand(count, 2, dtype=dtype)
    return torch.cat([corners, corners + 1 + 30 * torch.rand(count, 2, dtype=dtype)], 1)


def test_by_hand():
    anchors = torch.tensor([[10.0, 10, 20, 30]])  # 10 x 20 around (15, 20)
    boxes = torch.tensor([[10.0, 20, 30, 30]])  # 20 x 10 around (20, 25)
    expected = [0.5 / 0.1, 0.25 / 0.1, math.log(2) / 0.2, -math.log(2) / 0.2]
    torch.testing.assert_close(encode(boxes, anchors, STDS), torch.tensor([expected]))


@pytest.mark.parametrize("stds", [ONES, STDS])
def test_torchvision(stds):
    boxes, anchors = boxes_of(50), boxes_of(50)
    coder = BoxCoder(tuple(1 / s for s in stds))
    offsets = encode(boxes, anchors, stds)
    torch.testing.assert_close(offsets, coder.encode_single(boxes, anchors), rtol=1e-4, atol=1e-4)
    offsets = torch.randn(50, 4)
    torch.testing.assert_close(
        decode(offsets, anchors, stds), coder.decode_single(offsets, anchors), rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize("stds", [ONES, STDS])
def test_decode_inverts_encode(stds):
    boxes, anchors = boxes_of(100, torch.float64), boxes_of(100, torch.float64)
    torch.testing.assert_close(decode(encode(boxes, anchors, stds), anchors, stds), boxes)


def test_classes_share_the_anchor():
    offsets, anchors = torch.randn(7, 3, 4), boxes_of(7)
    together = decode(offsets, anchors, STDS)
    for c in range(3):
        assert torch.equal(together[:, c], decode(offsets[:, c], anchors, STDS))


def test_growth_is_limited():
    anchors = torch.tensor([[0.0, 0, 10, 10]])
    found = decode(torch.tensor([[0.0, 0, 50, -50]]), anchors, ONES)
    torch.testing.assert_close(found[:, 2] - found[:, 0], torch.tensor([10 * 1000 / 16]))
    torch.testing.assert_close(found[:, 3] - found[:, 1], torch.tensor([10 * 16 / 1000]))
    assert pytest.approx(math.log(62.5)) == LARGEST_GROWTH


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_offsets_of_half_precision_become_float32(dtype):
    offsets, anchors = torch.randn(20, 4).to(dtype), boxes_of(20) + 1000
    found = decode(offsets, anchors, STDS)
    assert found.dtype == torch.float32
    assert torch.equal(found, decode(offsets.float(), anchors, STDS))


def test_empty_boxes_have_finite_offsets():
    boxes = torch.tensor([[5.0, 5, 5, 5], [1, 1, 3, 3]])
    anchors = torch.tensor([[1.0, 1, 3, 3], [5, 5, 5, 5]])
    assert encode(boxes, anchors, STDS).isfinite().all()


def test_clip():
    boxes = torch.tensor([[-3.0, 5, 30, 20], [-3, 5, 30, 20], [40, 40, 50, 50]])
    sizes = torch.tensor([[10, 20], [30, 40], [10, 20]])  # height, width
    expected = torch.tensor([[0.0, 5, 20, 10], [0, 5, 30, 20], [20, 10, 20, 10]])
    assert torch.equal(clip(boxes, sizes), expected)
    per_class = boxes[:, None].expand(-1, 2, -1)
    assert torch.equal(clip(per_class, sizes), expected[:, None].expand(-1, 2, -1))
