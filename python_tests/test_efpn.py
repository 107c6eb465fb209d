"""The extended pyramid: feature texture transfer, and a level below the finest one."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tinyops.nn.complexity import complexity
from tinyops.nn.efpn import EFPN, FeatureTextureTransfer
from tinyops.nn.fpn import FPN

CHANNELS = (3, 5, 7, 9)


def conv(layer, x):
    return F.conv2d(x, layer.weight, layer.bias, padding=layer.kernel_size[0] // 2)


def double(x):
    """Nearest neighbour."""
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def shuffle(x, order):
    """Eq. 4 cell by cell, or with the channels of torch.nn.PixelShuffle."""
    n, c, h, w = x.shape
    c //= 4
    out = x.new_zeros(n, c, 2 * h, 2 * w)
    for i in range(2 * h):
        for j in range(2 * w):
            for k in range(c):
                at = 2 * c * (i % 2) + c * (j % 2) + k
                if order == "crd":
                    at = 4 * k + 2 * (i % 2) + j % 2
                out[:, k, i, j] = x[:, at, i // 2, j // 2]
    return out


def plain_transfer(net, coarse, reference):
    """What was released, line by line."""

    def leaky(x):
        return torch.where(x > 0, x, 0.1 * x)

    def blocks(parts, x):
        for part in parts:
            x = (x + conv(part.conv2, conv(part.conv1, x).clamp(min=0))).clamp(min=0)
        return x

    x = leaky(conv(net.content_conv, coarse))
    x = blocks(net.content_blocks, x) + x
    content = leaky(shuffle(conv(net.subpixel_conv, x), net.order))
    texture = leaky(conv(net.texture_conv, torch.cat([content, reference], 1)))
    x = blocks(net.texture_blocks, texture) + content
    return conv(net.output_conv, leaky(conv(net.tail_conv, x))) + double(coarse)


def with_biases(net):
    for part in net.modules():
        if isinstance(part, nn.Conv2d) and part.bias is not None:
            nn.init.normal_(part.bias)
    return net


@pytest.mark.parametrize("order", ["crd", "dcr"])
@pytest.mark.parametrize("settings", [{}, {"width": 3, "content_blocks": 2, "texture_blocks": 1}])
def test_transfer_is_what_was_released(order, settings):
    torch.manual_seed(0)
    net = with_biases(FeatureTextureTransfer(4, order=order, **settings).double())
    coarse, reference = torch.randn(2, 4, 3, 5).double(), torch.randn(2, 4, 6, 10).double()
    torch.testing.assert_close(net(coarse, reference), plain_transfer(net, coarse, reference))


def test_the_orders_are_one_function_with_other_channels():
    torch.manual_seed(0)
    one, other = (FeatureTextureTransfer(4, width=6, order=order) for order in ("crd", "dcr"))
    state = one.state_dict()
    for name in ("subpixel_conv.weight", "subpixel_conv.bias"):
        state[name] = state[name].unflatten(0, (6, 4)).transpose(0, 1).flatten(0, 1)
    other.load_state_dict(state)
    maps = torch.randn(1, 4, 3, 2), torch.randn(1, 4, 6, 4)
    torch.testing.assert_close(other(*maps), one(*maps))


@pytest.mark.parametrize(
    ("settings", "parameters", "billions"),
    [
        ({}, 31_857_408, 814),  # as released: 31.9 M
        ({"width": 256, "content_blocks": 2}, 10_031_104, 242),
    ],
)
def test_costs_at_800_by_800(settings, parameters, billions):
    with torch.device("meta"):
        net = FeatureTextureTransfer(256, **settings)
        found = complexity(net, torch.empty(1, 256, 100, 100), torch.empty(1, 256, 200, 200))
    assert found.parameters == parameters
    assert round(found.macs / 1e9) == billions


def test_a_reference_of_another_size_is_refused():
    net = FeatureTextureTransfer(4)
    with pytest.raises(ValueError, match=r"twice the size of coarse, \[8, 6\], got \[7, 6\]"):
        net(torch.zeros(1, 4, 4, 3), torch.zeros(1, 4, 7, 6))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"content_blocks": 0}, "content_blocks must be at least 1, got 0"),
        ({"texture_blocks": 0}, "texture_blocks must be at least 1, got 0"),
        ({"order": "rcd"}, "order must be 'crd' or 'dcr', got 'rcd'"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FeatureTextureTransfer(4, **settings)


def features(n=2, height=16, width=24, dtype=torch.float32):
    """C2' to C5."""
    sizes = [(2 * height, 2 * width)] + [(height >> k, width >> k) for k in range(4)]
    return [
        torch.randn(n, c, *size, dtype=dtype)
        for c, size in zip((CHANNELS[0], *CHANNELS), sizes, strict=True)
    ]


def test_the_level_below_is_eq_1_on_the_maps_within():
    net = with_biases(EFPN(CHANNELS, 4).double())
    finer, *maps = features(dtype=torch.float64)
    within = [conv(layer, x) for layer, x in zip(net.lateral_convs, maps, strict=True)]
    for k in (2, 1, 0):
        within[k] = within[k] + double(within[k + 1])
    extension = net.extension
    transferred = plain_transfer(extension.transfer, within[1], within[0])
    summed = conv(extension.lateral_conv, finer) + double(transferred)
    levels, aux = net([finer, *maps])
    torch.testing.assert_close(levels[0], conv(extension.output_conv, summed))
    assert extension.lateral_conv.bias is None
    assert extension.output_conv.bias is None
    assert aux == {}


def test_the_other_levels_are_those_of_fpn_with_the_same_names():
    plain = with_biases(FPN(CHANNELS, 4))
    net = EFPN(CHANNELS, 4)
    missing, unexpected = net.load_state_dict(plain.state_dict(), strict=False)
    assert all(name.startswith("extension.") for name in missing)
    assert unexpected == []
    maps = features()
    expected, _ = plain(maps[1:])
    torch.testing.assert_close(net(maps)[0][1:], expected, rtol=0, atol=0)
    torch.testing.assert_close(net(maps[1:])[0], expected, rtol=0, atol=0)


def test_everything_within_has_a_gradient_from_the_level_below():
    net = EFPN(CHANNELS, 4)
    net(features())[0][0].square().sum().backward()
    for name, parameter in net.extension.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_settings_of_the_neck_reach_the_transfer():
    net = EFPN(
        CHANNELS, 4, texture_width=3, content_blocks=2, texture_blocks=4, shuffle_order="dcr"
    )
    transfer = net.extension.transfer
    assert (transfer.width, transfer.order) == (3, "dcr")
    assert (len(transfer.content_blocks), len(transfer.texture_blocks)) == (2, 4)
    assert EFPN(CHANNELS, 4).extension.transfer.width == 8


def test_strides():
    net = EFPN(CHANNELS, 4)
    assert (net.strides, net.finer_stride) == ((4, 8, 16, 32, 64), 2)
    for strides in ((4, 4, 8, 16), (3, 6, 12, 24)):
        with pytest.raises(ValueError, match="strides must begin with an even number and its"):
            EFPN(CHANNELS, 4, strides)


def test_autocast_computes_in_bfloat16():
    torch.manual_seed(0)
    net, maps = EFPN(CHANNELS, 8), features()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        levels, _ = net(maps)
    assert {x.dtype for x in levels} == {torch.bfloat16}
    expected = net(maps)[0][0]
    assert (levels[0].float() - expected).abs().max() < 0.05 * expected.abs().max()
    levels[0].float().sum().backward()
    assert all(p.grad.isfinite().all() for p in net.extension.parameters())


def test_compiles_as_one_graph():
    net, maps = EFPN(CHANNELS, 4), features()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(maps)[0], net(maps)[0])
