"""The generator and the discriminator of GDL, and the crops that they see."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tinyops.nn.complexity import complexity
from tinyops.nn.crops import crop_boxes
from tinyops.nn.discriminator import Discriminator
from tinyops.nn.generator import Generator
from tinyops.nn.global_norm import GlobalBatchNorm2d, use_global_norms


def test_a_new_generator_is_nearly_bilinear_resizing():
    torch.manual_seed(0)
    z = torch.randn(2, 3, 5, 7)
    up = F.interpolate(z, scale_factor=4, mode="bilinear", align_corners=False)
    made = Generator(width=8, blocks=2)(z)
    assert made.shape == (2, 3, 20, 28)
    assert 0 < (made - up).abs().max() < 0.1


def shuffled(x):
    """Channels c, i, j of a cell to channel c of the pixels i, j within."""
    n, channels, height, width = x.shape
    x = x.reshape(n, channels // 4, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(n, channels // 4, 2 * height, 2 * width)


def leaky(x):
    return torch.where(x > 0, x, 0.25 * x)


def test_the_generator_is_a_residual_network():
    torch.manual_seed(0)
    model = Generator(5, width=6, blocks=2, upscale=4, kernel=3, norms=True).eval()
    z = torch.randn(2, 5, 4, 6)
    first, (one, two) = model.first, model.blocks
    start = leaky(F.conv2d(z, first[0].weight, first[0].bias, padding=1))
    x = start
    for block in (one, two):
        y = F.conv2d(x, block[0].weight, padding=1) / (1 + 1e-5) ** 0.5  # a new norm, in eval mode
        x = x + F.conv2d(leaky(y), block[3].weight, padding=1) / (1 + 1e-5) ** 0.5
    x = start + F.conv2d(x, model.middle[0].weight, padding=1) / (1 + 1e-5) ** 0.5
    (conv,) = model.enlarge
    up = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    x = up + leaky(shuffled(F.conv2d(x, conv.weight, conv.bias, padding=1)))
    x = shuffled(F.conv2d(x, model.last.weight, model.last.bias, padding=1))
    expected = x + F.interpolate(z, scale_factor=4, mode="bilinear", align_corners=False)
    torch.testing.assert_close(model(z), expected)


def test_costs_of_a_generator():
    found = complexity(Generator().to("meta"), torch.empty(1, 3, 32, 32, device="meta"))
    first, conv, last = 81 * 3 * 64 + 64, 9 * 64 * 64 + 64, 81 * 64 * 12 + 12
    assert found.parameters == first + 1 + 8 * (2 * conv + 1) + conv + 4 * conv + last
    cells, activations = 32 * 32, 64 * 32 * 32 * (1 + 8)
    assert found.macs == cells * (first + 17 * conv + 4 * conv + 4 * last) + activations


def test_norms_are_batch_norms_that_processes_share():
    assert not any(isinstance(x, nn.BatchNorm2d) for x in Generator().modules())
    model = use_global_norms(Generator(width=4, blocks=2, norms=True))
    assert sum(isinstance(x, GlobalBatchNorm2d) for x in model.modules()) == 5


@pytest.mark.parametrize("z", [(0, 3, 4, 4), (1, 3, 1, 1), (2, 3, 3, 5)])
def test_few_and_small_images(z):
    model = Generator(width=4, blocks=1, upscale=2)
    made = model(torch.randn(z))
    assert made.shape == (z[0], 3, 2 * z[2], 2 * z[3])
    made.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"upscale": 3}, "upscale must be a power of 2, at least 2, got 3"),
        ({"upscale": 1}, "upscale must be a power of 2, at least 2, got 1"),
        ({"kernel": 4}, "kernel must be odd, got 4"),
        ({"blocks": 0}, "blocks must be at least 1, got 0"),
    ],
)
def test_wrong_generators(options, text):
    with pytest.raises(ValueError, match=text):
        Generator(**options)


def test_parameters_of_a_discriminator():
    model = Discriminator(3, 128, 2)
    convs = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512 * 512)
    norms = 2 * (64 + 128 + 256 + 512 + 512)
    heads = 1024 * (1 + 3 + 8) + 1 + 3 + 8
    total = convs + norms + 512 * 4 * 4 * 1024 + 1024 + heads
    assert sum(p.numel() for p in model.parameters()) == total


@pytest.mark.parametrize("size", [3, 4, 7, 16, 24])
@pytest.mark.parametrize("count", [0, 2])
def test_heads_of_a_discriminator(size, count):
    model = Discriminator(5, size, 3, width=8, hidden=6)
    logits, offsets, real = model(torch.randn(count, 5, size, size))
    assert (logits.shape, offsets.shape, real.shape) == ((count, 4), (count, 3, 4), (count,))
    (logits.sum() + offsets.sum() + real.sum()).backward()
    assert all(p.grad is not None for p in model.parameters())
    one = Discriminator(5, size, 3, width=8, hidden=6, class_agnostic=True, realness=False)
    logits, offsets, real = one(torch.randn(count, 5, size, size))
    assert (logits.shape, offsets.shape, real) == ((count, 4), (count, 1, 4), None)


def test_images_beside_each_other_do_not_matter_to_a_discriminator():
    torch.manual_seed(0)
    model = Discriminator(3, 16, 2, width=8, hidden=6).double().train()
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    for together, alone in zip(model(images), model(images[1:2]), strict=True):
        torch.testing.assert_close(together[1:2], alone)


def test_wrong_discriminators():
    with pytest.raises(ValueError, match="width must be a multiple of 8, got 12"):
        Discriminator(3, 16, 1, width=12)
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        Discriminator(3, 16, 0)


def test_a_crop_of_whole_pixels_is_those_pixels():
    pixels = torch.arange(2 * 3 * 8 * 9.0).reshape(2, 3, 8, 9)
    boxes = torch.tensor([[2.0, 1, 6, 5], [4, 3, 6, 5]])
    ids = torch.tensor([1, 0])
    crops = crop_boxes(pixels, boxes[:1], ids[:1], 4)
    torch.testing.assert_close(crops[0], pixels[1, :, 1:5, 2:6])
    crops = crop_boxes(pixels, boxes, ids, 4, context=2.0)
    torch.testing.assert_close(crops[1], pixels[0, :, 2:6, 3:7])


def test_a_crop_is_black_beyond_the_image():
    crop = crop_boxes(torch.ones(1, 1, 6, 6), torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([0]), 8,
                      context=2.0)  # fmt: skip
    assert (crop[0, 0, 2:, 2:] == 1).all()
    assert (crop[0, 0, :1] == 0).all()
    assert (crop[0, 0, :, :1] == 0).all()


def test_low_resolution_is_the_mean_of_high_resolution():
    torch.manual_seed(0)
    pixels = torch.randn(2, 3, 40, 50, dtype=torch.float64)
    boxes = torch.tensor([[3.3, 4.1, 12.9, 30.2], [-2.0, 30.5, 8.5, 44.0], [20, 20, 21, 21.5]])
    ids = torch.tensor([0, 1, 1])
    high = crop_boxes(pixels, boxes.double(), ids, 32, context=1.5, samples=2)
    low = crop_boxes(pixels, boxes.double(), ids, 8, context=1.5, samples=8)
    torch.testing.assert_close(F.avg_pool2d(high, 4), low)


def test_crops_keep_half_precision():
    boxes, ids = torch.tensor([[3.0, 4, 12, 30]]), torch.tensor([0])
    pixels = torch.randn(1, 3, 40, 50).bfloat16()
    crop = crop_boxes(pixels, boxes, ids, 8)
    assert crop.dtype == torch.bfloat16
    expected = crop_boxes(pixels.float(), boxes, ids, 8)
    torch.testing.assert_close(crop, expected.bfloat16())
