"""SSPNet: the neck against the plain formulation, and the attention loss against loops."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tinyops.nn import distributed
from tinyops.nn.attention_loss import AttentionLoss
from tinyops.nn.batch import GroundTruth, ImageBatch
from tinyops.nn.sspnet import ContextAttention, SSPNet
from tinyops.ops.attention_targets import attention_targets_reference

CHANNELS = (3, 5, 7, 9)
STRIDES = (4, 8, 16, 32)


def features(n=2, height=32, width=24):
    return [
        torch.randn(n, c, height >> k, width >> k, requires_grad=True)
        for k, c in enumerate(CHANNELS)
    ]


def plain_attention(net, laterals):
    """CAM as the released code writes it."""
    size = laterals[0].shape[-2:]
    x = torch.cat([F.interpolate(x, size=size, mode="nearest") for x in laterals], 1)
    x = net.fuse.conv(x)
    branches = [F.relu(conv(x)) for conv in net.branches[:3]]
    whole = F.relu(net.branches[3](x.mean((2, 3), keepdim=True)))
    x = torch.cat([*branches, whole.expand(-1, -1, *size)], 1)
    x = F.relu(net.context_norm(net.context_conv(x)))
    if not net.down_convs:
        return [torch.sigmoid(conv(x)) for conv in net.attention_convs]
    gates = []
    for down, conv in zip(net.down_convs, net.attention_convs, strict=True):
        x = down(x)
        gates.append(torch.sigmoid(conv(x)))
    return gates


def plain_neck(net, maps):
    laterals = [conv(x) for conv, x in zip(net.lateral_convs, maps, strict=True)]
    gates = plain_attention(net.attention, laterals)
    laterals = [(1 + a) * x for a, x in zip(gates, laterals, strict=True)]
    for k in (3, 2, 1):
        size = laterals[k - 1].shape[-2:]
        up = F.interpolate(laterals[k], size=size, mode="nearest")
        both = gates[k - 1] * F.interpolate(gates[k], size=size, mode="nearest")
        laterals[k - 1] = laterals[k - 1] + both * up
    outputs = [conv(x) for conv, x in zip(net.output_convs, laterals, strict=True)]
    if net.enhance_outputs:
        outputs = [(1 + a) * x for a, x in zip(gates, outputs, strict=True)]
    return [*outputs, F.max_pool2d(outputs[-1], 1, stride=2)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"collapse": False},
        {"attention": "parallel"},
        {"enhance_outputs": False},
        {"norm_layer": lambda c: nn.GroupNorm(2, c)},
    ],
)
def test_equals_the_plain_formulation_with_its_gradients(options):
    net = SSPNet(CHANNELS, 8, **options).double().train()
    for parameter in net.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter)
    maps = [x.detach().double().requires_grad_() for x in features(5)]
    leaves = [*maps, *net.parameters()]
    results = []
    for forward in (lambda x: net(x)[0], lambda x: plain_neck(net, x)):
        levels = forward(maps)
        seeds = [torch.full_like(x, 0.1).cumsum(2).cos() for x in levels]
        loss = sum((x * s).sum() for x, s in zip(levels, seeds, strict=True))
        results.append((levels, torch.autograd.grad(loss, leaves)))
    (levels, grads), (expected, wanted) = results
    torch.testing.assert_close(levels, expected, rtol=1e-9, atol=1e-9)
    for grad, want in zip(grads, wanted, strict=True):
        torch.testing.assert_close(grad, want, rtol=1e-9, atol=1e-9)


def test_attention_logits_have_the_size_of_their_levels():
    for attention in ("chain", "parallel"):
        net = SSPNet(CHANNELS, 8, attention=attention)
        sizes = [(13, 11), (7, 6), (4, 3), (2, 2)]
        maps = [torch.randn(1, c, *size) for c, size in zip(CHANNELS, sizes, strict=True)]
        levels, aux = net(maps)
        assert [tuple(x.shape[-2:]) for x in levels] == [*sizes, (1, 1)]
        assert [tuple(x.shape) for x in aux["attention_logits"]] == [(1, 1, *s) for s in sizes]


def test_channels_and_strides():
    net = SSPNet(CHANNELS, 8)
    assert (net.channels, net.strides) == (8, (4, 8, 16, 32, 64))


def test_initial_weights_are_xavier_uniform():
    net = ContextAttention(64)
    bound = (6 / (9 * 128)) ** 0.5
    assert 0.98 * bound < net.down_convs[2].weight.abs().max() <= bound
    assert not net.fuse.conv.bias.any()


def test_compiles_as_one_graph():
    net = SSPNet(CHANNELS, 8).eval()
    maps = [x.detach() for x in features(1, 16, 16)]
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(maps), net(maps))


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="channels must be a positive multiple of 4, got 6"):
        SSPNet(CHANNELS, 6)
    with pytest.raises(ValueError, match="attention must be 'chain' or 'parallel', got 'tree'"):
        SSPNet(CHANNELS, 8, attention="tree")
    with pytest.raises(ValueError, match="dice must be 'positives' or 'full', got 'half'"):
        SSPNet(CHANNELS, 8, dice="half")


# ---- the loss ----


def make_truth(boxes, ignored=()):
    """From lists of (image, x1, y1, x2, y2)."""

    def split(rows):
        table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)
        return table[:, 1:], table[:, 0].long()

    inside, ids = split(boxes)
    regions, region_ids = split(ignored)
    return GroundTruth(inside, torch.ones_like(ids), ids, regions, region_ids)


def make_batch(n, height=64, width=96):
    return ImageBatch(torch.zeros(n, 3, height, width), ((height, width),) * n)


def make_logits(n, height=64, width=96):
    return [
        torch.randn(n, 1, height // s, width // s, requires_grad=True) for s in STRIDES
    ]  # no two equal


def looped_loss(logits, batch, truth, dice_over="positives", strict=True):
    """The order of operations of the released code, cell by cell, in float64."""
    n, _, height, width = batch.pixels.shape
    targets = attention_targets_reference(
        truth.boxes, truth.image_ids, (n, height, width), strict=strict
    )
    bce_sum = dice_sum = 0.0
    for x, target, stride in zip(logits, targets, STRIDES, strict=True):
        total = kept = 0.0
        dices = []
        for image in range(n):
            p = 1 / (1 + np.exp(-x[image, 0].detach().numpy().astype(np.float64)))
            t = target[image, 0].numpy().astype(np.float64)
            free = np.ones_like(t, dtype=bool)
            for box, owner in zip(truth.ignored_boxes, truth.ignored_image_ids, strict=True):
                if owner == image:
                    free &= ~touched(box.tolist(), stride, t.shape, height, width)
            background = (t == 0) & free
            positives = int((t > 0).sum())
            k = 3 * positives if positives else int(0.05 * t.size)
            k = min(k, int(background.sum()))
            mask = t != 0
            if k:
                ranked = sorted(p[background], reverse=True)
                mask |= background & (p >= ranked[k - 1])
            for i, j in np.argwhere(mask):
                goal = max(t[i, j], 0)
                weight = 3 if t[i, j] < 0 else 1
                total -= weight * (goal * math.log(p[i, j]) + (1 - goal) * math.log(1 - p[i, j]))
                kept += 1
            counted = t > 0 if dice_over == "positives" else (t != 0) | background
            one = (t > 0).astype(float)
            shared, squares = (p * one)[counted].sum(), (p**2)[counted].sum()
            dices.append(1 - 2 * (shared + 1) / (squares + one.sum() + 2) if positives else 0)
        bce_sum += total / max(kept, 1)
        dice_sum += np.mean(dices)
    return 0.01 * bce_sum, dice_sum


def touched(box, stride, shape, height, width):
    """Cells whose bilinear taps read a pixel of the box."""
    x1, y1, x2, y2 = box
    left, top = int(x1), int(y1)
    right, bottom = min(math.ceil(x2), width - 1), min(math.ceil(y2), height - 1)
    cells = np.zeros(shape, dtype=bool)
    for i in range(shape[0]):
        for j in range(shape[1]):
            rows = {i * stride + stride // 2 - 1, i * stride + stride // 2}
            columns = {j * stride + stride // 2 - 1, j * stride + stride // 2}
            cells[i, j] = any(top <= y < bottom for y in rows) and any(
                left <= x < right for x in columns
            )
    return cells


OBJECTS = [
    (0, 3.2, 4.1, 12.7, 15.0),
    (0, 30, 30, 34, 34),  # 4 pixels
    (0, 50, 10, 53, 12.5),
    (2, 5, 5, 70, 60),  # large: out of scale at stride 4 and 8
    (2, 20, 20, 31, 27),
    (3, 60, 40, 200, 90),  # out of the image
]
LAYOUTS = {
    "objects": make_truth(OBJECTS),
    "none": make_truth([]),
    "regions": make_truth(OBJECTS, [(0, 0, 0, 40, 40), (1, 5, 5, 90, 60), (2, 40, 0, 96, 30)]),
    "regions alone": make_truth([], [(1, 0, 0, 96, 64), (3, 8, 8, 24, 24)]),
}


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("dice", ["positives", "full"])
@pytest.mark.parametrize("truth", LAYOUTS.values(), ids=LAYOUTS)
def test_loss_equals_the_loops(truth, dice, strict):
    logits, batch = make_logits(5), make_batch(5)
    losses = AttentionLoss(dice=dice, strict_bands=strict)(logits, batch, truth)
    bce, dice_loss = looped_loss(logits, batch, truth, dice, strict)
    assert list(losses) == ["attention_bce", "attention_dice"]
    assert losses["attention_bce"].item() == pytest.approx(bce, rel=1e-5)
    assert losses["attention_dice"].item() == pytest.approx(dice_loss, rel=1e-5, abs=1e-7)
    sum(losses.values()).backward()
    assert all(x.grad.isfinite().all() for x in logits)
    assert all(x.grad[0].any() for x in logits[:1])


def test_loss_of_one_level_by_hand():
    loss = AttentionLoss((4,))
    batch, truth = make_batch(1, 16, 16), make_truth([(0, 0, 0, 8, 8)])  # cells (0..1, 0..1)
    logits = torch.full((1, 1, 4, 4), -2.0)
    logits[0, 0, :2, :2] = 1.0
    logits[0, 0, 3, 3] = 3.0  # the hardest; the eleven others are equal and count as well
    losses = loss([logits], batch, truth)
    p = torch.tensor([1.0, -2, 3]).sigmoid()
    bce = -(4 * p[0].log() + 11 * (1 - p[1]).log() + (1 - p[2]).log()) / 16
    dice = 1 - 2 * (4 * p[0] + 1) / (4 * p[0] ** 2 + 4 + 2)
    assert losses["attention_bce"].item() == pytest.approx(0.01 * bce.item(), rel=1e-5)
    assert losses["attention_dice"].item() == pytest.approx(dice.item(), rel=1e-5)


def test_easy_background_has_no_gradient():
    logits, batch = make_logits(1), make_batch(1)
    losses = AttentionLoss()(logits, batch, make_truth([(0, 10, 10, 18, 18)]))
    sum(losses.values()).backward()
    positives = 9  # the taps of cells 2, 3 and 4 read pixels 9..10, 13..14 and 17..18
    assert int((logits[0].grad != 0).sum()) == positives + 3 * positives


def test_objects_of_four_pixels_are_positive_unless_bands_are_strict():
    truth, batch = make_truth([(0, 8, 8, 12, 12)]), make_batch(1)
    logits = [torch.zeros_like(x) for x in make_logits(1)]
    assert AttentionLoss()(logits, batch, truth)["attention_dice"] == 0
    loose = AttentionLoss(strict_bands=False)(logits, batch, truth)
    assert loose["attention_dice"] > 0


def test_counts_are_shared_by_processes(monkeypatch):
    logits, batch, truth = make_logits(2), make_batch(2), LAYOUTS["none"]
    alone = AttentionLoss()(logits, batch, truth)["attention_bce"]
    monkeypatch.setattr(distributed, "mean_over_processes", lambda count: 2 * count)
    assert AttentionLoss()(logits, batch, truth)["attention_bce"] == alone / 2


def test_losses_keep_double_precision():
    logits, batch = [x.detach().double() for x in make_logits(2)], make_batch(2)
    losses = AttentionLoss()(logits, batch, LAYOUTS["regions"])
    for name, loss in AttentionLoss()(
        [x.float() for x in logits], batch, LAYOUTS["regions"]
    ).items():
        assert losses[name].dtype == torch.float64
        assert 0 < abs(losses[name].item() - loss.item()) < 1e-5


def test_extreme_logits_give_finite_losses():
    logits = [torch.full_like(x, 100.0).requires_grad_() for x in make_logits(1)]
    losses = AttentionLoss()(logits, make_batch(1), make_truth([(0, 10, 10, 18, 18)]))
    assert losses["attention_bce"].isfinite()
    sum(losses.values()).backward()
    assert all(x.grad.isfinite().all() for x in logits)


def test_a_step_under_autocast_is_finite_and_close():
    net = SSPNet(CHANNELS, 8)
    maps = [torch.randn(5, c, 64 // s, 96 // s) for c, s in zip(CHANNELS, STRIDES, strict=True)]
    batch, truth = make_batch(5), LAYOUTS["regions"]

    def step():
        levels, aux = net(maps)
        return levels, net.losses(aux, batch, truth)

    exact = step()[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        levels, losses = step()
    assert {x.dtype for x in levels} == {torch.bfloat16}
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(exact[name].item(), rel=0.05)
    (sum(losses.values()) + sum(x.float().sum() for x in levels)).backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


def test_the_loss_reaches_every_parameter_of_the_attention_without_objects():
    net = SSPNet(CHANNELS, 8)
    maps = [torch.randn(2, c, 64 // s, 96 // s) for c, s in zip(CHANNELS, STRIDES, strict=True)]
    _, aux = net(maps)
    sum(net.losses(aux, make_batch(2), LAYOUTS["none"]).values()).backward()
    assert all(p.grad.isfinite().all() for p in net.attention.parameters())
    assert net.attention.down_convs[0].weight.grad.any()


def test_training_the_loss_lights_up_the_objects():
    logits, batch = make_logits(1), make_batch(1)
    truth = make_truth([(0, 10, 10, 26, 26)])
    optimizer = torch.optim.SGD(logits, lr=20)
    for _ in range(150):
        optimizer.zero_grad()
        sum(AttentionLoss()(logits, batch, truth).values()).backward()
        optimizer.step()
    attention = logits[0].detach().sigmoid()[0, 0]
    assert attention[3:6, 3:6].min() > 0.9
