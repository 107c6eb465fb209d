"""Region proposal network: proposals and losses against plain loops."""

import pytest
import torch
import torch.nn.functional as F
from detection import (
    STRIDES,
    Everything,
    batch_of,
    image_of,
    pyramid,
    target,
    truth,
    without_padding,
)

from tinyops.nn.anchors import AnchorGenerator
from tinyops.nn.assign import BACKGROUND, OverlapAssigner, match_by_overlap
from tinyops.nn.boxes import clip, decode, encode
from tinyops.nn.dense import best_of_rows
from tinyops.nn.rpn import STDS, RegionProposalNetwork
from tinyops.nn.sampling import WeightedNegativeSampler
from tinyops.ops import nms_reference


def network(gain=30.0, **options):
    """A network with weights large enough that scores and boxes differ."""
    anchors = AnchorGenerator(STRIDES, [1.5, 3.0], [0.5, 1.0])
    made = RegionProposalNetwork(8, anchors, **options)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(gain)
    return made


def plain_proposals(rpn, levels, batch, phase):
    """Image after image: best of every level, decode, clip, NMS by level, best of all."""
    logits, offsets = rpn.predict(levels)
    anchors = rpn.anchors(levels)
    boxes, scores, image_ids = [], [], []
    for image, (height, width) in enumerate(batch.sizes):
        found, values, ids = [], [], []
        for k, stride in enumerate(STRIDES):
            cells = torch.arange(len(anchors[k])) // rpn.anchors.per_cell
            columns = levels[k].shape[3]
            inside = (cells // columns * stride < height) & (cells % columns * stride < width)
            order = logits[k][image][inside].argsort(descending=True, stable=True)
            order = order[: rpn.pre_nms[phase]]
            box = decode(offsets[k][image][inside][order], anchors[k][inside][order], STDS)
            size = torch.tensor([[height, width]]).expand(len(box), 2)
            found.append(clip(box, size))
            values.append(logits[k][image][inside][order].sigmoid())
            ids.append(torch.full((len(box),), k))
        box, value, level = torch.cat(found), torch.cat(values), torch.cat(ids)
        good = (box[:, 2] > box[:, 0]) & (box[:, 3] > box[:, 1])
        box, value, level = box[good], value[good], level[good]
        keep = nms_reference(box, value, rpn.nms_threshold, labels=level)[: rpn.post_nms[phase]]
        boxes.append(box[keep])
        scores.append(value[keep])
        image_ids.append(torch.full((len(keep),), image))
    return torch.cat(boxes), torch.cat(scores), torch.cat(image_ids)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("sizes", [((96, 128), (96, 128)), ((96, 128), (50, 33))])
def test_proposals_are_those_of_plain_loops(training, sizes):
    rpn = network(pre_nms=(300, 40), post_nms=(500, 60)).train(training)
    batch = batch_of(*sizes)
    levels = pyramid(batch)
    proposals, losses = rpn(levels, batch)
    boxes, scores, image_ids = plain_proposals(rpn, levels, batch, 0 if training else 1)
    assert losses == {}
    assert proposals.image_ids.tolist() == image_ids.tolist()
    torch.testing.assert_close(proposals.scores, scores)
    torch.testing.assert_close(proposals.boxes, boxes)
    assert len(boxes) > 60
    assert not proposals.boxes.requires_grad
    assert not proposals.scores.requires_grad


def test_proposals_come_best_first_inside_their_image():
    rpn = network()
    batch = batch_of((96, 128), (50, 33))
    proposals, _ = rpn(pyramid(batch), batch)
    for k, (height, width) in enumerate(batch.sizes):
        mine = proposals.image_ids == k
        scores, boxes = proposals.scores[mine], proposals.boxes[mine]
        assert (scores[1:] <= scores[:-1]).all()
        assert (boxes >= 0).all()
        assert (boxes[:, 2] <= width).all()
        assert (boxes[:, 3] <= height).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_predictions_of_samples_are_those_of_the_dense_layers_and_so_are_gradients():
    rpn = network(gain=3.0).double()
    batch = batch_of((96, 128), (50, 33))
    levels = [x.double().requires_grad_() for x in pyramid(batch)]
    inputs = [*levels, *rpn.parameters()]
    anchors = rpn.anchors.of_batch(levels, batch)
    ends = torch.tensor([0, 1, len(anchors.boxes) - 2, len(anchors.boxes) - 1])  # corners
    chosen = torch.cat([ends, torch.randperm(len(anchors.boxes))[:400], ends])  # some twice
    few = rpn.predict_at(levels, anchors, chosen)
    every = tuple(anchors.select(x)[chosen] for x in rpn.predict(levels))
    weights = [torch.randn_like(x) for x in every]
    first, second = (
        torch.autograd.grad(sum((x * w).sum() for x, w in zip(found, weights, strict=True)), inputs)
        for found in (few, every)
    )
    for a, b in zip((*few, *first), (*every, *second), strict=True):
        torch.testing.assert_close(a, b)


def test_no_samples_give_losses_and_gradients_of_zero():
    rpn = network(assigner=OverlapAssigner(positive=0.7, negative=0.0, least_best=2.0))
    batch = batch_of((64, 64))
    levels = [x.requires_grad_() for x in pyramid(batch)]
    _, losses = rpn(levels, batch, truth(target()))
    sum(losses.values()).backward()
    assert [x.item() for x in losses.values()] == [0, 0]
    assert all(p.grad is not None and not p.grad.any() for p in rpn.parameters())


def test_losses_are_those_of_all_anchors_when_all_are_sampled():
    rpn = network(gain=3.0, sampler=Everything())
    batch = batch_of((96, 128), (50, 33))
    objects = truth(
        target((10, 10, 18, 22), (60, 50, 70, 55)),
        target((3, 4, 9, 16), (20, 10, 40, 40), ignore=[False, True]),
    )
    levels = pyramid(batch)
    _, losses = rpn(levels, batch, objects)
    logits, offsets = rpn.predict(levels)
    anchors = rpn.anchors.of_batch(levels, batch)
    logits, offsets = anchors.select(logits), anchors.select(offsets)
    matches = match_by_overlap(
        anchors.boxes, anchors.image_ids, objects, positive=0.7, negative=0.3, least_best=0.3
    ).tolist()
    cross_entropy = distance = count = 0
    for k, match in enumerate(matches):
        if match >= 0:
            cross_entropy = cross_entropy - F.logsigmoid(logits[k])
            wanted = encode(objects.boxes[match][None], anchors.boxes[k][None], STDS)[0]
            distance = distance + (offsets[k] - wanted).abs().sum()
        elif match == BACKGROUND:
            cross_entropy = cross_entropy - F.logsigmoid(-logits[k])
        count += match >= BACKGROUND
    torch.testing.assert_close(losses["rpn_objectness"], cross_entropy / count)
    torch.testing.assert_close(losses["rpn_boxes"], distance / count)
    assert max(matches) == 2
    assert -2 in matches


def test_smooth_loss_of_boxes():
    sharp, smooth = network(gain=3.0, sampler=Everything()), network(sampler=Everything(), beta=1e3)
    smooth.load_state_dict(sharp.state_dict())
    batch = batch_of((64, 64))
    levels, objects = pyramid(batch), truth(target((10, 10, 18, 22)))
    first, second = (x(levels, batch, objects)[1]["rpn_boxes"] for x in (sharp, smooth))
    assert second < first / 100  # d^2 / 2000 instead of |d|


def test_images_of_different_sizes_are_as_one_by_one():
    rpn = network().double().eval()
    batch = batch_of((96, 128), (50, 33), (64, 32))
    levels = [x.double() for x in without_padding(pyramid(batch), batch)]
    together, _ = rpn(levels, batch)
    for k in range(3):
        alone, _ = rpn(*image_of(levels, batch, k))
        mine = together.image_ids == k
        torch.testing.assert_close(together.scores[mine], alone.scores)
        torch.testing.assert_close(together.boxes[mine], alone.boxes)


def test_default_sampler_draws_256_of_every_image():
    counts = []

    class Spy(type(network().sampler)):
        def forward(self, matches, *rest):
            positives, negatives = super().forward(matches, *rest)
            counts.append((len(positives), len(negatives)))
            return positives, negatives

    rpn = network(sampler=Spy(256, 0.5))
    batch = batch_of((96, 128), (96, 128))
    rpn(pyramid(batch), batch, truth(target((10, 10, 18, 22)), target()))
    ((positives, negatives),) = counts
    assert positives + negatives == 512
    assert 0 < positives < 128
    default = network().sampler
    assert (default.num_samples, default.positive_fraction) == (256, 0.5)


@pytest.mark.parametrize("sampler", [None, WeightedNegativeSampler(64, 0.5)])
def test_images_without_objects_train(sampler):
    rpn = network(sampler=sampler)
    batch = batch_of((64, 64), (64, 64))
    _, losses = rpn(pyramid(batch), batch, truth(target(), target()))
    assert losses["rpn_boxes"] == 0
    assert losses["rpn_objectness"] > 0
    sum(losses.values()).backward()
    for name, parameter in rpn.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_no_anchor_to_sample_gives_no_loss_and_gradients_of_zero():
    rpn = network()
    batch = batch_of((64, 64))
    everywhere = target((-500, -500, 600, 600), ignore=[True])
    _, losses = rpn(pyramid(batch), batch, truth(everywhere))
    sum(losses.values()).backward()
    assert losses["rpn_boxes"] == losses["rpn_objectness"] == 0
    assert all((p.grad == 0).all() for p in rpn.parameters())


def test_ignored_regions_take_negatives_away():
    rpn = network(gain=3.0, sampler=Everything())
    batch = batch_of((64, 64))
    levels = pyramid(batch)
    region = (0, 0, 64, 32)
    _, all_count = rpn(levels, batch, truth(target()))
    _, some_count = rpn(levels, batch, truth(target(region, ignore=[True])))
    logits, _ = rpn.predict(levels)
    anchors = rpn.anchors.of_batch(levels, batch)
    logits, boxes = anchors.select(logits), anchors.boxes
    cut = clip(boxes, torch.tensor([[32, 64]]).expand(len(boxes), 2))
    areas = [(x[:, 2:] - x[:, :2]).prod(1) for x in (cut, boxes)]
    kept = areas[0] / areas[1] <= 0.5
    assert 0 < kept.sum() < len(kept)
    torch.testing.assert_close(all_count["rpn_objectness"], F.softplus(logits).mean())
    torch.testing.assert_close(some_count["rpn_objectness"], F.softplus(logits[kept]).mean())


def test_a_few_steps_lower_the_loss():
    rpn = network(gain=1.0)
    batch = batch_of((64, 96))
    levels, objects = pyramid(batch), truth(target((10, 10, 18, 22), (60, 30, 72, 40)))
    optimizer = torch.optim.Adam(rpn.parameters(), 1e-2)
    history = []
    for _ in range(20):
        loss = sum(rpn(levels, batch, objects)[1].values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    assert history[-1] < 0.5 * history[0]


def test_objects_become_proposals_after_training():
    rpn = network(gain=1.0)
    batch = batch_of((64, 96))
    levels, boxes = pyramid(batch, 8), [(10, 10, 18, 22), (60, 30, 72, 40)]
    optimizer = torch.optim.Adam(rpn.parameters(), 1e-2)
    for _ in range(60):
        loss = sum(rpn(levels, batch, truth(target(*boxes)))[1].values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = rpn.eval()(levels, batch)[0].boxes
    for box in boxes:
        assert ((found[:10] - torch.tensor(box)).abs().max(1).values < 2).any()


def test_autocast_computes_losses_and_boxes_in_float32():
    rpn = network(gain=3.0, sampler=Everything())
    batch = batch_of((64, 96))
    levels, objects = pyramid(batch), truth(target((10, 10, 18, 22)))
    plain = rpn(levels, batch, objects)[1]
    with torch.autocast("cpu", torch.bfloat16):
        proposals, losses = rpn(levels, batch, objects)
    assert proposals.boxes.dtype == proposals.scores.dtype == torch.float32
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, plain[name], rtol=0.02, atol=0)


def test_float64_stays_float64():
    rpn = network().double()
    batch = batch_of((64, 64))
    levels = [x.double() for x in pyramid(batch)]
    objects = truth(target((10, 10, 18, 22)))
    objects = type(objects)(**{**vars(objects), "boxes": objects.boxes.double()})
    proposals, losses = rpn(levels, batch, objects)
    assert proposals.boxes.dtype == torch.float64
    assert losses["rpn_boxes"].dtype == torch.float64


def test_numbers_that_are_not_finite_give_no_proposals():
    rpn = network().eval()
    batch = batch_of((64, 64))
    levels = pyramid(batch)
    levels[0][:, :, :8] = torch.nan
    proposals, _ = rpn(levels, batch)
    assert proposals.boxes.isfinite().all()
    assert len(proposals.boxes) > 0


def test_equal_scores_come_in_the_order_of_the_anchors():
    values = torch.tensor([[1.0, 3, 2, 3, 2, 2, 0, 3], [5, 5, 5, 5, 5, 5, 5, 6]])
    top, index = best_of_rows(values, 5)
    assert top.tolist() == [[3, 3, 3, 2, 2], [6, 5, 5, 5, 5]]
    assert index[0, :3].tolist() == [1, 3, 7]
    assert index[1, 0] == 7
    assert (index[1, 2:] > index[1, 1:-1]).all()
    assert best_of_rows(values, 50)[1].tolist() == [
        [1, 3, 7, 2, 4, 5, 0, 6],
        [7, 0, 1, 2, 3, 4, 5, 6],
    ]
