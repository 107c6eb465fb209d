"""The 3x3 convolution over upsampled levels: equal to the plain form, and cheaper."""

import pytest
import torch
import torch.nn.functional as F

from tinyops.nn.collapsed_conv import PyramidConv, pyramid_conv3x3, upsample_nearest
from tinyops.nn.complexity import complexity

LAYOUTS = [torch.contiguous_format, torch.channels_last]
SIZES = {
    "pyramid": [(16, 24), (8, 12), (4, 6), (2, 3)],
    "one pixel": [(8, 8), (4, 4), (2, 2), (1, 1)],
    "factor three": [(9, 12), (3, 4)],
    "factor five, equal": [(10, 5), (10, 5), (2, 1)],
    "no multiples": [(9, 12), (5, 7), (3, 6), (1, 1)],
    "one level": [(5, 4)],
}


def plain(levels, weight, bias):
    size = levels[0].shape[-2:]
    maps = []
    for x in levels:
        rows = torch.arange(size[0]) * x.shape[2] // size[0]
        columns = torch.arange(size[1]) * x.shape[3] // size[1]
        maps.append(x[:, :, rows][:, :, :, columns])
    return F.conv2d(torch.cat(maps, 1), weight, bias, padding=1)


def make(sizes, dtype=torch.float64, layout=torch.contiguous_format, channels=3):
    levels = [
        torch.randn(2, channels + k, *size, dtype=dtype).to(memory_format=layout).requires_grad_()
        for k, size in enumerate(sizes)
    ]
    inputs = sum(x.shape[1] for x in levels)
    weight = torch.randn(5, inputs, 3, 3, dtype=dtype, requires_grad=True)
    return levels, weight, torch.randn(5, dtype=dtype, requires_grad=True)


def test_hand_made_sums():
    levels = [torch.zeros(1, 1, 4, 4), torch.tensor([[[[1.0, 0], [0, 0]]]])]
    weight = torch.ones(1, 2, 3, 3)
    expected = [[4.0, 4, 2, 0], [4, 4, 2, 0], [2, 2, 1, 0], [0, 0, 0, 0]]
    assert pyramid_conv3x3(levels, weight)[0, 0].tolist() == expected


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_equals_the_plain_form_with_its_gradients(sizes, dtype, tolerance, layout):
    levels, weight, bias = make(sizes, dtype, layout)
    out, expected = pyramid_conv3x3(levels, weight, bias), plain(levels, weight, bias)
    scale = expected.abs().max()
    torch.testing.assert_close(out / scale, expected / scale, rtol=0, atol=tolerance)
    seed = torch.randn_like(out)
    grads = torch.autograd.grad(out, [*levels, weight, bias], seed)
    wanted = torch.autograd.grad(expected, [*levels, weight, bias], seed)
    for grad, want in zip(grads, wanted, strict=True):
        scale = want.abs().max()
        torch.testing.assert_close(grad / scale, want / scale, rtol=0, atol=tolerance)


def test_gradcheck():
    levels, weight, bias = make([(6, 3), (2, 1)], channels=1)
    assert torch.autograd.gradcheck(
        lambda *x: pyramid_conv3x3(x[:2], *x[2:]), (*levels, weight, bias)
    )


def test_channels_last_stays():
    levels, weight, bias = make(SIZES["pyramid"], layout=torch.channels_last)
    out = pyramid_conv3x3(levels, weight, bias)
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_layer_computes_the_same_collapsed_or_not():
    layer = PyramidConv(3, 4, 3).double()
    levels = [torch.randn(2, 3, 12 >> k, 8 >> k, dtype=torch.float64) for k in range(3)]
    collapsed = layer(levels)
    layer.collapse = False
    torch.testing.assert_close(layer(levels), collapsed, rtol=0, atol=1e-12)
    assert [name for name, _ in layer.named_parameters()] == ["conv.weight", "conv.bias"]


def test_autograd_keeps_no_map_of_full_size_but_the_first_level():
    levels, weight, bias = make(SIZES["pyramid"], channels=40)
    kept = {}

    def pack(x):
        if x.dim() == 4 and x.shape[0] == 2:  # a map, not a weight
            kept[x.data_ptr()] = x.numel()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        pyramid_conv3x3(levels, weight, bias)
    assert sorted(kept.values()) == sorted(x.numel() for x in levels)


def test_products_are_16_or_9_per_pixel_of_the_small_map():
    c = 8
    layer = PyramidConv(c, c, 3)
    levels = [torch.zeros(1, c, 64 >> k, 64 >> k) for k in range(3)]
    fine = 9 * 64 * 64
    twice = 16 * 33 * 33
    four_times = 9 * 16 * 16
    expected = c * c * (fine + twice + four_times) + c * 64 * 64  # and the bias
    assert complexity(layer, levels).macs == expected
    layer.collapse = False
    assert complexity(layer, levels).macs == 3 * 9 * c * c * 64 * 64 + c * 64 * 64


def test_empty_batch_gives_empty_output():
    levels = [torch.zeros(0, 2, 8 >> k, 8 >> k, requires_grad=True) for k in range(3)]
    out = pyramid_conv3x3(levels, torch.randn(4, 6, 3, 3))
    assert out.shape == (0, 4, 8, 8)
    out.sum().backward()
    assert levels[2].grad.shape == (0, 2, 2, 2)


def test_compiles_as_one_graph():
    levels, weight, bias = make([(9, 12), (3, 4), (5, 7)])
    inputs = [*levels, weight, bias]

    def run(f):
        out = f(levels, weight, bias)
        return out, *torch.autograd.grad(out.square().sum(), inputs)

    compiled = torch.compile(pyramid_conv3x3, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(compiled), run(pyramid_conv3x3))


def test_autocast_computes_in_bfloat16():
    levels, weight, bias = make(SIZES["pyramid"], torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = pyramid_conv3x3(levels, weight, bias)
    assert out.dtype == torch.bfloat16
    expected = plain(levels, weight, bias)
    error = (out.float() - expected).abs().max() / expected.abs().max()
    assert error < 0.02
    out.float().sum().backward()
    assert weight.grad.dtype == torch.float32


def test_second_derivative_is_refused():
    levels, weight, bias = make([(4, 4), (2, 2)])
    out = pyramid_conv3x3(levels, weight, bias)
    (grad,) = torch.autograd.grad(out.square().sum(), levels[1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_upsampling_reads_exact_integer_rows():
    x = torch.arange(26.0).view(1, 1, 26, 1)
    out = upsample_nearest(x, (44, 1))
    assert out.flatten().tolist() == [y * 26 // 44 for y in range(44)]


def test_bad_arguments_are_named():
    levels = [torch.zeros(1, 2, 8, 8), torch.zeros(1, 2, 4, 4)]
    with pytest.raises(ValueError, match=r"weight must be \[O, 4, 3, 3\] .* got \[4, 5, 3, 3\]"):
        pyramid_conv3x3(levels, torch.zeros(4, 5, 3, 3))
    with pytest.raises(ValueError, match=r"at most \[4, 4\], got \[8, 8\]"):
        pyramid_conv3x3(levels[::-1], torch.zeros(4, 4, 3, 3))
