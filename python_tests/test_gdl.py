"""The losses of GDL against their equations, and parts that are constants for a while."""

import torch
import torch.nn.functional as F
from torch import nn

from tinyops.nn.gdl import (
    as_constant,
    objectness_of_classes,
    realness_loss,
    squared_error,
    total_variation,
)


def test_squared_error_is_a_mean_over_elements():
    generated, real = torch.tensor([[1.0, 2], [3, 4]]), torch.tensor([[1.0, 0], [0, 4]])
    assert squared_error(generated, real).item() == (4 + 9) / 4
    assert squared_error(generated[:0], real[:0]).item() == 0


def test_total_variation_by_hand():
    # Of the four pixels, (right, down): (3, 4), (-, -3), (-4, -), (-, -).
    x = torch.tensor([[[[0.0, 3], [4, 0]]]])
    assert abs(total_variation(x, eps=1e-12).item() - (5 + 3 + 4 + 0) / 4) < 1e-5
    both = torch.cat([x, x], 1)  # a vector at each pixel: sqrt(2) as long
    assert abs(total_variation(both, eps=1e-12).item() - 2**0.5 * 3) < 1e-5


def test_total_variation_of_many_is_their_mean_and_its_slope_is_finite():
    x = torch.randn(3, 2, 5, 7, requires_grad=True)
    alone = torch.stack([total_variation(one[None]) for one in x])
    torch.testing.assert_close(total_variation(x), alone.mean())
    flat = torch.zeros(1, 3, 4, 4, requires_grad=True)
    total_variation(flat).backward()
    assert flat.grad.isfinite().all()
    assert total_variation(x[:0]).item() == 0


def test_objectness_is_the_logarithm_of_the_slides():
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 3, 0, 2, 1])
    p = 1 - logits.softmax(1)[:, 0]
    truth = (labels >= 1).double()
    expected = -(p * truth + (1 - p) * (1 - truth)).log().sum()
    torch.testing.assert_close(objectness_of_classes(logits, labels), expected)


def test_objectness_is_finite_where_all_is_sure():
    logits = torch.tensor([[200.0, -200, 0], [-200, 200, 0]], requires_grad=True)
    loss = objectness_of_classes(logits, torch.tensor([2, 0]))
    loss.backward()
    assert loss.item() == 200 + 400
    assert logits.grad.isfinite().all()


def test_objectness_of_one_class_is_its_cross_entropy():
    logits, labels = torch.randn(5, 2), torch.tensor([0, 1, 1, 0, 1])
    expected = F.cross_entropy(logits, labels, reduction="sum")
    torch.testing.assert_close(objectness_of_classes(logits, labels), expected)


def test_realness_is_the_logarithm_of_the_slides():
    logits = torch.tensor([-2.0, 0.5, 3], dtype=torch.float64)
    d = logits.sigmoid()
    torch.testing.assert_close(realness_loss(logits, True), -d.log().mean())
    torch.testing.assert_close(realness_loss(logits, False), -(1 - d).log().mean())
    assert realness_loss(logits[:0], True).item() == 0


def test_half_precision_is_summed_in_float32():
    x = torch.full((1, 1, 300, 300), 3.0).half()
    assert abs(squared_error(x, torch.zeros_like(x)).item() - 9) < 1e-5
    assert total_variation(x).dtype == torch.float32


def test_a_constant_module_passes_gradients_on_and_stays_as_it_is():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.PReLU())
    before = {name: x.clone() for name, x in module.state_dict().items()}
    x = torch.randn(4, 2, 3, 3, requires_grad=True)
    constant = as_constant(module, x)
    constant.square().sum().backward()
    slope = x.grad.clone()
    assert all(p.grad is None for p in module.parameters())
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    x.grad = None
    plain = module(x)
    plain.square().sum().backward()
    assert torch.equal(plain, constant)
    assert torch.equal(x.grad, slope)
    assert all(p.requires_grad and p.grad is not None for p in module.parameters())
    assert module[1].num_batches_tracked == 1
