"""Two convolutions as one."""

import pytest
import torch
from torch import nn

from tinyops.nn.complexity import complexity
from tinyops.nn.composed_conv import composed_conv


def convolutions(stride, channels=(3, 5, 4)):
    torch.manual_seed(0)
    first = nn.Conv2d(channels[0], channels[1], 3, padding=1)
    second = nn.Conv2d(channels[1], channels[2], 3, stride=stride, padding=1)
    return first.double(), second.double()


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [(1, 1), (1, 6), (2, 2), (3, 5), (8, 6), (7, 9), (10, 11)])
def test_values_and_gradients_are_those_of_both(stride, size):
    first, second = convolutions(stride)
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    inputs = [x, *first.parameters(), *second.parameters()]
    results = composed_conv(x, first, second), second(first(x))
    weight = torch.randn_like(results[1])
    gradients = [torch.autograd.grad((y * weight).sum(), inputs) for y in results]
    for a, b in zip((results[0], *gradients[0]), (results[1], *gradients[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_float32_is_as_exact_as_two_convolutions():
    first, second = convolutions(2, (64, 64, 64))
    x = torch.randn(1, 64, 16, 20, dtype=torch.float64)
    exact = second(first(x))
    found = composed_conv(x.float(), first.float(), second.float())
    torch.testing.assert_close(found, exact.float(), rtol=1e-5, atol=1e-5)


def test_autocast_composes_kernels_in_full_precision():
    first, second = convolutions(2, (8, 8, 8))
    x = torch.randn(1, 8, 16, 16)
    first, second = first.float(), second.float()
    with torch.autocast("cpu", torch.bfloat16):
        found = composed_conv(x, first, second)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), second(first(x)), rtol=0.02, atol=0.02)


def test_it_costs_less():
    first, second = convolutions(2, (16, 16, 16))

    class Composed(nn.Module):
        def forward(self, x):
            return composed_conv(x, first, second)

    x = torch.zeros(1, 16, 64, 64, dtype=torch.float64)
    assert complexity(Composed(), x).macs < 0.7 * complexity(nn.Sequential(first, second), x).macs
