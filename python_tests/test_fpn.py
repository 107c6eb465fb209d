"""The feature pyramid network."""

import pytest
import torch
import torch.nn.functional as F

from tinyops.nn.batch import ImageBatch
from tinyops.nn.fpn import FPN

CHANNELS = (3, 5, 7, 9)


def features(n=2, height=32, width=24, dtype=torch.float32):
    return [
        torch.randn(n, c, -(-height >> k), width >> k, dtype=dtype) for k, c in enumerate(CHANNELS)
    ]


def test_equals_the_textbook():
    net = FPN(CHANNELS, 8)
    for conv in [*net.lateral_convs, *net.output_convs]:
        torch.nn.init.normal_(conv.bias)
    maps = features(5)
    levels, aux = net(maps)
    merged = [conv(x) for conv, x in zip(net.lateral_convs, maps, strict=True)]
    for k in (3, 2, 1):
        merged[k - 1] = merged[k - 1] + F.interpolate(merged[k], scale_factor=2, mode="nearest")
    expected = [conv(x) for conv, x in zip(net.output_convs, merged, strict=True)]
    expected.append(expected[-1][:, :, ::2, ::2])
    torch.testing.assert_close(levels, expected)
    assert aux == {}


def test_odd_sizes_are_legal():
    maps = [torch.randn(1, c, n, n) for c, n in zip(CHANNELS, (13, 7, 4, 2), strict=True)]
    levels, _ = FPN(CHANNELS, 4)(maps)
    assert [x.shape[-1] for x in levels] == [13, 7, 4, 2, 1]


def test_channels_strides_and_names():
    net = FPN(CHANNELS, 8, strides=(2, 4, 8, 16))
    assert (net.channels, net.strides) == (8, (2, 4, 8, 16, 32))
    names = {f"{kind}_convs.{k}" for kind in ("lateral", "output") for k in range(4)}
    assert {name.rsplit(".", 1)[0] for name in net.state_dict()} == names


def test_initial_weights_are_xavier_uniform_and_biases_zero():
    net = FPN((64, 64, 64, 64), 64)
    for conv, fan in ((net.lateral_convs[0], 128), (net.output_convs[0], 9 * 128)):
        bound = (6 / fan) ** 0.5
        assert 0.98 * bound < conv.weight.abs().max() <= bound
        assert conv.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
        assert not conv.bias.any()


def test_no_losses():
    assert FPN(CHANNELS, 4).losses({}, ImageBatch(torch.zeros(1, 3, 4, 4), ((4, 4),)), None) == {}


def test_compiles_as_one_graph():
    net = FPN(CHANNELS, 4)
    maps = features()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(maps)[0], net(maps)[0])


def test_autocast_computes_in_bfloat16():
    net = FPN(CHANNELS, 4)
    maps = features()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        levels, _ = net(maps)
    assert {x.dtype for x in levels} == {torch.bfloat16}
    for x, y in zip(levels, net(maps)[0], strict=True):
        assert (x.float() - y).abs().max() < 0.03 * y.abs().max()
    sum(x.float().sum() for x in levels).backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


def test_channels_and_strides_must_agree():
    with pytest.raises(ValueError, match=r"in_channels and strides must be one number per level"):
        FPN((3, 4), 8)
