"""SR-TOD: the refiner against the paper's equations, its threshold, and its loss."""

import math

import pytest
import torch
import torch.nn.functional as F
from detection import batch_of, pyramid
from torch import nn

from tinyops.nn.complexity import complexity
from tinyops.nn.srtod import ChannelGate, ReconstructionHead, SelfReconstruction, high_pass

STRIDES = (4, 8, 16, 32, 64)


class Painter(nn.Module):
    """A head that gives a fixed picture."""

    def __init__(self, picture):
        super().__init__()
        self.picture = nn.Parameter(picture)

    def forward(self, features):
        return self.picture


class Open(nn.Module):
    """A channel gate that lets everything through."""

    def forward(self, features, valid=None):
        return features.new_ones(*features.shape[:2], 1, 1)


def painted(picture, **options):
    """Of stride 4, with that reconstruction whatever the features are, and without channel gate."""
    module = SelfReconstruction(4, STRIDES, **options).to(picture.dtype)
    module.head, module.channel_gate = Painter(picture), Open()
    return module


def test_the_head_has_the_published_size_and_cost():
    with torch.device("meta"):
        head = ReconstructionHead(256, 2)
        found = complexity(head, torch.empty(1, 256, 200, 200))  # of 800 x 800 pixels
        assert ReconstructionHead(256, 3)(torch.empty(2, 256, 5, 7)).shape == (2, 3, 40, 56)
    assert found.parameters == 1_025_923
    biases = 400 * 400 * 128 + 800 * 800 * (64 + 3)
    assert round((found.by_operator["convolution"] - biases) / 1e9, 1) == 137.4
    assert sum(p.numel() for p in ChannelGate(256).parameters()) == 8464


def test_the_head_of_p3_has_three_steps():
    module = SelfReconstruction(32, STRIDES, level=1)
    widths = [up[0].out_channels for up in module.head.ups]
    assert widths == [16, 8, 4]
    assert module.head.colours.in_channels == 4


def plain(module, features, image, sizes):
    """Equations 1 to 6 image by image, without padding; the sign's gradient is the identity's."""
    reconstruction = module.head(features)
    enhanced, maps, errors, count = [], [], 0.0, 0
    for k, (height, width) in enumerate(sizes):
        colours = image[k, :, :height, :width]
        error = reconstruction[k, :, :height, :width] - colours
        errors, count = errors + (error**2).sum(), count + error.numel()
        if module.high_frequency is not None:
            whole = torch.zeros_like(image[k])
            whole[:, :height, :width] = error
            error = high_pass(whole[None], module.high_frequency)[0, :, :height, :width]
        difference = F.pad(
            error.abs().mean(0), (0, image.shape[3] - width, 0, image.shape[2] - height)
        )
        maps.append(difference)
        soft = 0.5 * (difference - module.threshold)
        hard = (difference > module.threshold).to(soft.dtype)
        mask = hard + soft - soft.detach()
        blocks = mask.unflatten(1, (-1, 4)).unflatten(0, (-1, 4)).transpose(1, 2).flatten(2)
        if module.resize == "nearest":
            mask = blocks[..., 0]
        elif module.resize == "area":
            mask = blocks.mean(2)
        else:
            highest = blocks > 0.5
            first = torch.where(highest, torch.arange(16), 16).amin(2, keepdim=True)
            mask = blocks.gather(2, first % 16)[..., 0]  # 16: all are 0, and so is the first
        cells = features[k, :, : math.ceil(height / 4), : math.ceil(width / 4)].flatten(1)
        first, second = module.channel_gate.mlp[0], module.channel_gate.mlp[2]
        logits = 0
        for pooled in (cells.mean(1), cells.max(1).values):
            hidden = (first.weight @ pooled + first.bias).clamp(min=0)
            logits = logits + second.weight @ hidden + second.bias
        weight = 1 / (1 + torch.exp(-logits))
        enhanced.append(features[k] * weight[:, None, None] * (1 + mask))
    return torch.stack(enhanced), torch.stack(maps)[:, None], errors / count


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"resize": "nearest"},
        {"resize": "max"},
        {"high_frequency": 0.2},
        {"high_frequency": 0.1, "resize": "nearest"},
    ],
)
def test_equals_the_equations_with_their_gradients(options):
    module = SelfReconstruction(16, STRIDES, threshold=0.24, **options).double()
    nn.init.normal_(module.channel_gate.mlp[-1].weight)
    nn.init.normal_(module.channel_gate.mlp[-1].bias)
    if "high_frequency" in options:
        nn.init.constant_(module.threshold, 0.15)
    batch = batch_of((60, 33), (21, 64))
    image, sizes = batch.pixels.double(), batch.sizes
    features = torch.randn(2, 16, 16, 16, dtype=torch.float64, requires_grad=True)
    leaves = [features, *module.parameters()]
    noise = torch.randn_like(features)
    results = []
    for run in ("module", "plain"):
        if run == "module":
            enhanced, shown = module.enhance(features, image, torch.tensor(sizes))
            difference, loss = shown.difference, module.loss(shown)
            share = shown.mask[difference > 0].mean()
            assert 0.1 < share < 0.9  # or the test would see no mask
        else:
            enhanced, difference, loss = plain(module, features, image, sizes)
        total = (enhanced * noise).sum() + 30 * loss
        results.append([enhanced, difference, loss, *torch.autograd.grad(total, leaves)])
    for one, two in zip(*results, strict=True):
        assert torch.allclose(one, two, atol=1e-9), (one - two).abs().max()
    assert results[0][-1].abs().max() > 0


def test_a_hand_worked_cell():
    image = torch.zeros(1, 3, 4, 8)
    picture = torch.zeros(1, 3, 4, 8)
    picture[0, :, 1, 1] = torch.tensor([0.3, 0.6, 0.0])  # difference 0.3, one of 16 pixels
    picture[0, :, 0, 4] = 0.15  # the upper left pixel of the second cell
    picture[0, :, 3, 7] = 0.3
    features = torch.full((1, 4, 1, 2), 2.0)
    for resize, expected in (
        ("nearest", [2.0, 3.0]),  # 2 (1 + 1/2): the difference is the threshold
        ("area", [2 + 2 / 16, 2 + 2 * 1.5 / 16]),
        ("max", [4.0, 4.0]),
    ):
        module = painted(picture, threshold=0.15, resize=resize)
        enhanced, shown = module.enhance(features, image)
        assert torch.allclose(enhanced, torch.tensor(expected).expand(1, 4, 1, 2))
        assert shown.mask.unique().tolist() == [0, 0.5, 1]
    squares = 0.3**2 + 0.6**2 + 3 * 0.15**2 + 3 * 0.3**2
    assert module.loss(shown).item() == pytest.approx(squares / (3 * 32))


def test_the_other_levels_stay():
    batch = batch_of((64, 64), (40, 50))
    levels = pyramid(batch, channels=16)
    for level in (0, 1):
        module = SelfReconstruction(16, STRIDES, level=level, threshold=0.2)
        refined, shown = module(levels, batch)
        for k, (one, two) in enumerate(zip(refined, levels, strict=True)):
            assert (one is two) == (k != level)
        assert refined[level].shape == levels[level].shape
        assert shown.reconstruction.shape == batch.pixels.shape


def test_padding_does_not_count():
    torch.manual_seed(0)
    sizes = torch.tensor([[30, 21]])
    module = SelfReconstruction(8, STRIDES, threshold=0.2)
    features, image = torch.randn(1, 8, 8, 16), torch.rand(1, 3, 32, 64)
    enhanced, shown = module.enhance(features, image, sizes)
    assert (shown.difference[..., 30:, :] == 0).all()
    assert (shown.difference[..., 21:] == 0).all()
    other = image.clone()
    other[..., 30:, :] = 7
    other[..., 21:] = 7
    again, seen = module.enhance(features, other, sizes)
    assert torch.equal(again, enhanced)
    assert torch.equal(module.loss(seen), module.loss(shown))
    errors = (shown.reconstruction - image)[..., :30, :21] ** 2
    assert torch.allclose(module.loss(shown), errors.mean())


def test_as_released_padding_counts_and_is_black():
    sizes = torch.tensor([[3, 4]])
    picture = torch.full((1, 3, 4, 8), 0.5)
    module = painted(picture, threshold=0.4, mask_padding=False)
    features = torch.ones(1, 4, 1, 2)
    _, shown = module.enhance(features, torch.full((1, 3, 4, 8), 0.5), sizes)
    expected = torch.full((4, 8), 0.5)
    expected[:3, :4] = 0
    assert torch.equal(shown.difference[0, 0], expected)
    assert module.loss(shown).item() == pytest.approx(0.25 * 20 / 32)


@pytest.mark.parametrize("radius", [0.05, 0.3])
@pytest.mark.parametrize("size", [(32, 48), (33, 45)])
def test_high_frequencies_are_those_of_two_transforms(radius, size):
    image, reconstruction = torch.rand(2, 2, 3, *size, dtype=torch.float64)
    rows, columns = torch.fft.fftfreq(size[0])[:, None], torch.fft.fftfreq(size[1])[None]
    low = rows**2 + columns**2 < radius**2

    def passed(x):
        spectrum = torch.fft.fft2(x)
        spectrum[..., low] = 0
        return torch.fft.ifft2(spectrum).real

    expected = (passed(reconstruction) - passed(image)).abs().mean(1, keepdim=True)
    module = painted(reconstruction, threshold=0.1, high_frequency=radius)
    difference = module._difference(reconstruction, image, None)
    assert torch.allclose(difference, expected, atol=1e-12)


def test_a_wave_passes_from_its_frequency_on():
    wave = torch.cos(2 * math.pi * torch.arange(64) / 16).expand(1, 1, 8, 64)  # 1/16 per pixel
    assert torch.allclose(high_pass(wave, 0.0624), wave, atol=1e-6)
    assert high_pass(wave, 0.0626).abs().max() < 1e-6


def test_the_channel_gate_does_not_see_padding():
    gate = ChannelGate(8, 2)
    nn.init.normal_(gate.mlp[-1].weight)
    features = torch.randn(2, 8, 6, 7)
    weight = gate(features, torch.tensor([[6, 7], [2, 3]]))
    assert torch.allclose(weight[:1], gate(features[:1]))
    assert torch.allclose(weight[1:], gate(features[1:, :, :2, :3]))


def test_a_new_channel_gate_closes_no_channel():
    """However large the features are, of which it sees the maxima."""
    weight = ChannelGate(64)(100 * torch.randn(2, 64, 9, 9))
    assert torch.equal(weight, torch.full((2, 64, 1, 1), 0.5))


def test_half_precision_is_close():
    torch.manual_seed(0)
    module = SelfReconstruction(16, STRIDES, threshold=0.25)
    features, image = torch.randn(2, 16, 8, 8), torch.rand(2, 3, 32, 32)
    expected, _ = module.enhance(features, image)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            enhanced, shown = module.enhance(features.to(dtype), image)
            loss = module.loss(shown)
        assert enhanced.dtype == dtype
        assert shown.difference.dtype == loss.dtype == torch.float32
        # Pixels whose difference is at the threshold may fall on either side.
        assert (enhanced - expected).abs().mean() < 0.02
        (enhanced.float().sum() + loss).backward()
        assert all(p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": 5}, "level must be from 0 to 4, got 5"),
        ({"level": -1}, "level must be from 0 to 4, got -1"),
        ({"strides": (3, 6)}, "strides must be a power of 2 from 2 on at 0, got 3"),
        ({"strides": (1, 2)}, "strides must be a power of 2 from 2 on at 0, got 1"),
        ({"channels": 6}, "channels must be a positive multiple of 4, got 6"),
        ({"threshold": 4.0}, r"threshold must be None or in \[0, 1\], got 4.0"),
        ({"quantile": 0.0}, r"quantile must be in \(0, 1\], got 0.0"),
        ({"calibration": 0}, "calibration must be at least 1, got 0"),
        ({"resize": "linear"}, "resize must be 'nearest', 'area' or 'max', got 'linear'"),
        ({"ste": "sigmoid"}, "ste must be 'identity' or 'none', got 'sigmoid'"),
        ({"high_frequency": 0.6}, r"high_frequency must be None or in \(0, 0.5\], got 0.6"),
    ],
)
def test_settings_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        SelfReconstruction(**{"channels": 8, "strides": STRIDES, **options})


def test_an_image_of_another_size():
    module = SelfReconstruction(8, STRIDES)
    with pytest.raises(ValueError, match=r"image must be \[1, 3, 32, 64\] for .*got \[1, 3, 32, 6"):
        module.enhance(torch.zeros(1, 8, 8, 16), torch.zeros(1, 3, 32, 60))
