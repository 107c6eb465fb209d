"""RFLA's assignment by rank: by hand, against whole matrices, and what it is there for."""

import pytest
import torch
from detection import STRIDES, Everything, batch_of, pyramid, target, truth
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.ops import box_iou, generalized_box_iou

from tinyops.nn.anchors import AnchorGenerator
from tinyops.nn.assign import (
    BACKGROUND,
    DISTANCES,
    IGNORED,
    HierarchicalAssigner,
    OverlapAssigner,
)
from tinyops.nn.batch import collate_targets
from tinyops.nn.boxes import decode, encode
from tinyops.nn.rpn import STDS, RegionProposalNetwork

RESNET50 = (17.5, 45.5, 133.5, 213.5, 277.5)  # half the receptive fields of P2..P6


def squares(*centres_and_sides):
    return torch.tensor(
        [(x - s / 2, y - s / 2, x + s / 2, y + s / 2) for x, y, s in centres_and_sides]
    )


def assign(boxes, objects, **options):
    ids = torch.zeros(len(boxes), dtype=torch.int64)
    return HierarchicalAssigner(**options)(boxes, ids, objects).tolist()


# Squares of side 4 at a distance d from an object of that size: KL = d^2 / 8.
OBJECT = target((8, 8, 12, 12))


def test_the_first_step_by_hand():
    boxes = squares((10, 10, 4), (12, 10, 4), (8, 10, 4), (10, 14, 4), (10, 12, 4), (16, 10, 4))
    # 1, 2/3, 2/3, 1/3, 2/3, 2/11: the third place is shared by two.
    found = assign(boxes, truth(OBJECT), topk=(3, 1), decay=1.0)
    assert found == [0, 0, 0, BACKGROUND, 0, BACKGROUND]
    assert assign(boxes, truth(OBJECT), topk=(5, 1), decay=1.0)[3] == 0


def test_the_second_step_by_hand():
    boxes = squares((10, 10, 4), (11, 10, 4), (10, 11, 4), (10, 10, 8), (10, 10, 12))
    # KL of sides 4, 8, 12 in place: 0, 3 - ln 4 = 1.61, 8 - ln 9 = 5.80. At half their size the
    # side of 8 is the object's.
    assert assign(boxes, truth(OBJECT), topk=(3, 1), decay=1.0) == [0, 0, 0, BACKGROUND, BACKGROUND]
    assert assign(boxes, truth(OBJECT), topk=(3, 1), decay=0.5) == [0, 0, 0, 0, BACKGROUND]


def test_near_boxes_that_nobody_takes_are_ignored():
    boxes = squares((10, 10, 4), (11, 10, 4), (10, 12, 4))  # 1, 8/9, 2/3
    found = assign(boxes, truth(OBJECT), topk=(1, 1), decay=1.0)
    assert found == [0, IGNORED, BACKGROUND]
    assert assign(boxes, truth(OBJECT), topk=(1, 1), decay=1.0, sure=0.9)[1] == BACKGROUND


def test_the_second_step_does_not_take_from_the_first():
    objects = truth(target((8, 8, 12, 12), (8, 8, 10, 10)))
    boxes = squares((10, 10, 4), (9, 9, 2.5))
    # The first box is the first object's; at half its size it would be the second one's best.
    first = assign(boxes, objects, topk=(1, 1), decay=1.0)
    assert first == [0, 1]
    assert assign(boxes, objects, topk=(1, 1), decay=0.5) == first


def test_later_objects_overwrite_earlier_ones():
    boxes = squares((10, 10, 4), (11, 10, 4), (30, 30, 4))
    twins = truth(target((8, 8, 12, 12), (8, 8, 12, 12)))
    assert assign(boxes, twins, topk=(2, 1)) == [1, 1, BACKGROUND]


def test_ignored_regions_leave_matches_alone():
    objects = truth(target((8, 8, 12, 12), (0, 0, 40, 40), ignore=[False, True]))
    boxes = squares((10, 10, 4), (30, 30, 4), (40, 30, 4), (60, 60, 4))
    found = assign(boxes, objects, topk=(1, 1))
    assert found == [0, IGNORED, BACKGROUND, BACKGROUND]  # the third is in it by half, no more


def nearness(boxes, objects, distance):
    """[K, M], from the equations."""
    if distance == "iou":
        return box_iou(boxes, objects)
    if distance == "giou":
        return generalized_box_iou(boxes, objects)
    (px, py), (gx, gy) = (((x[:, :2] + x[:, 2:]) / 2).T for x in (boxes, objects))
    (pw, ph), (gw, gh) = ((x[:, 2:] - x[:, :2]).T for x in (boxes, objects))
    px, py, pw, ph = (x[:, None] for x in (px, py, pw, ph))
    dx, dy = px - gx, py - gy
    wasserstein = dx**2 + dy**2 + ((pw - gw) ** 2 + (ph - gh) ** 2) / 4
    if distance == "rfd_w":
        return 1 / (1 + wasserstein)
    if distance == "nwd":
        return (-wasserstein.sqrt() / 12.8).exp()
    kl = pw**2 / gw**2 + ph**2 / gh**2 + 4 * dx**2 / gw**2 + 4 * dy**2 / gh**2
    kl = (kl + (gw**2 / pw**2).log() + (gh**2 / ph**2).log() - 2) / 2
    return 1 / (1 + kl)


def plain_assign(boxes, image_ids, truth, topk, decay, distance):
    """The matrix of every image, object after object."""
    centres, halves = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    shrunk = torch.cat([centres - decay * halves, centres + decay * halves], 1)
    found = torch.full_like(image_ids, BACKGROUND)
    for image in image_ids.unique():
        here = (image_ids == image).nonzero().flatten()
        objects = (truth.image_ids == image).nonzero().flatten()
        if not len(objects):
            continue
        steps = []
        for k, priors in zip(topk, (boxes, shrunk), strict=True):
            near = nearness(priors[here], truth.boxes[objects], distance)
            taken = torch.full_like(here, BACKGROUND)
            for m, column in zip(objects, near.T, strict=True):
                last = column.sort(descending=True).values[min(k, len(column)) - 1]
                taken[(column >= last) & ((column > 0) | (distance == "giou"))] = m
            steps.append(taken)
        matches = torch.where(steps[0] != BACKGROUND, *steps)
        sure = (near.max(dim=1).values >= 0.8) & (matches == BACKGROUND)
        found[here] = torch.where(sure, IGNORED, matches)
    return found


def random_case(seed, grid):
    """Boxes of four images, the third without objects, the fourth with few boxes; many ties."""
    generator = torch.Generator().manual_seed(seed)

    def draw(count):
        corners = 40 * torch.rand(count, 2, generator=generator, dtype=torch.float64)
        sizes = 1 + 15 * torch.rand(count, 2, generator=generator, dtype=torch.float64)
        if grid:
            corners, sizes = corners.div(2).round() * 2, sizes.div(2).ceil() * 2
        return torch.cat([corners, corners + sizes], 1)

    counts = (120, 120, 60, 2)
    boxes = torch.cat([draw(count // 2).repeat(2, 1) for count in counts])  # all of them twice
    image_ids = torch.arange(4).repeat_interleave(torch.tensor(counts))
    targets = [target(*draw(count).tolist()) for count in (7, 4, 0, 1)]
    return boxes, image_ids, collate_targets(targets, dtype=torch.float64)


# On a grid many distances are equal; by logarithms, equal ones differ in their last bits.
CASES = [(d, grid) for d in DISTANCES for grid in (False, True) if (d, grid) != ("rfd_kl", True)]


@pytest.mark.parametrize(("distance", "grid"), CASES)
@pytest.mark.parametrize("topk", [(3, 1), (1, 2), (200, 1)])
def test_whole_matrices(distance, grid, topk):
    seen = set()
    for seed in range(6):
        boxes, image_ids, objects = random_case(seed, grid)
        found = HierarchicalAssigner(topk, decay=0.5, distance=distance)(boxes, image_ids, objects)
        assert torch.equal(found, plain_assign(boxes, image_ids, objects, topk, 0.5, distance)), (
            seed
        )
        seen |= set(found.tolist())
    assert {BACKGROUND, 0, 11} <= seen or topk[0] == 200


def test_images_do_not_know_each_other():
    boxes, image_ids, objects = random_case(0, grid=True)
    together = HierarchicalAssigner()(boxes, image_ids, objects)
    for image in range(4):
        here, mine = image_ids == image, objects.image_ids == image
        alone = collate_targets(
            [{"boxes": objects.boxes[mine], "labels": objects.labels[mine]}], dtype=torch.float64
        )
        found = HierarchicalAssigner()(boxes[here], torch.zeros(int(here.sum())).long(), alone)
        first = int(mine.nonzero()[0]) if mine.any() else 0
        assert torch.equal(torch.where(found >= 0, found + first, found), together[here])


def test_nothing_to_assign():
    boxes, ids = squares((1, 1, 2), (9, 9, 2)), torch.tensor([0, 1])
    assigner = HierarchicalAssigner()
    assert assigner(boxes, ids, truth(target(), target())).tolist() == [BACKGROUND] * 2
    assert assigner(boxes[:0], ids[:0], truth(OBJECT)).shape == (0,)
    flat = truth(target((5, 5, 5, 9)))  # without width it is infinitely far
    assert assigner(boxes[:1], ids[:1], flat).tolist() == [BACKGROUND]


def priors(*sizes):
    """The anchors of a batch, at the receptive fields of ResNet-50, and its pyramid."""
    batch = batch_of(*sizes)
    levels = pyramid(batch)
    generator = AnchorGenerator(STRIDES, [1.0], [0.5, 1.0, 2.0], sizes=RESNET50)
    return generator, generator.of_batch(levels, batch), levels, batch


def tiny_objects():
    """Objects of 2 pixels, far from each other, some of them at the border of their image."""
    corners = [(0, 0), (31, 17), (61.5, 40.25), (94, 62), (10, 50)]
    one = target(*((x, y, x + 2, y + 2) for x, y in corners))
    return truth(one, target((40, 20, 42, 22)))


def test_objects_of_two_pixels_have_boxes_by_rank_and_none_by_overlap():
    _, anchors, levels, batch = priors((64, 96), (50, 70))
    objects = tiny_objects()
    found = HierarchicalAssigner()(anchors.boxes, anchors.image_ids, objects)
    for m in range(len(objects.boxes)):
        mine = anchors.boxes[found == m]
        assert len(mine) >= 3
        assert (anchors.image_ids[found == m] == objects.image_ids[m]).all()
        distance = (mine[:, :2] + mine[:, 2:] - objects.boxes[m, :2] - objects.boxes[m, 2:]) / 2
        assert distance.abs().max() < 8
    overlap = OverlapAssigner(positive=0.7, negative=0.3, least_best=0.3)
    usual = AnchorGenerator(STRIDES, [2.0], [0.5, 1.0, 2.0]).of_batch(levels, batch)
    for boxes in (anchors, usual):
        assert (overlap(boxes.boxes, boxes.image_ids, objects) == BACKGROUND).all()


def test_the_boxes_stay_as_they_are():
    _, anchors, _, _ = priors((64, 96))
    before = anchors.boxes.clone()
    HierarchicalAssigner(decay=0.5)(anchors.boxes, anchors.image_ids, truth(OBJECT))
    assert torch.equal(anchors.boxes, before)


class InPlace(nn.Module):
    """The released code: the boxes that come in shrink for good."""

    def forward(self, boxes, image_ids, truth):
        centres, halves = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
        boxes.copy_(torch.cat([centres - 0.9 * halves, centres + 0.9 * halves], 1))
        return HierarchicalAssigner(decay=1.0)(boxes, image_ids, truth)


@pytest.mark.parametrize(
    ("assigner", "growth"), [(HierarchicalAssigner(), 1.0), (InPlace(), 1 / 0.9)]
)
def test_what_the_loss_asks_for_is_the_object_when_decoded(assigner, growth, monkeypatch):
    generator, anchors, levels, batch = priors((64, 96), (50, 70))
    objects = tiny_objects()
    seen = {}

    def recorded(*arguments):
        seen["matches"] = assigner(*arguments)
        return seen["matches"]

    def predict_at(levels, anchors, chosen):
        """The offsets at which the loss of boxes is 0."""
        seen["boxes"] = chosen[seen["matches"][chosen] >= 0]
        seen["objects"] = objects.boxes[seen["matches"][seen["boxes"]]]
        seen["offsets"] = encode(seen["objects"], anchors.boxes[seen["boxes"]], STDS)
        padding = torch.zeros(len(chosen) - len(seen["boxes"]), 4)
        return torch.zeros(len(chosen)), torch.cat([seen["offsets"], padding])

    rpn = RegionProposalNetwork(8, generator, sampler=Everything(), assigner=recorded)
    monkeypatch.setattr(rpn, "predict_at", predict_at)
    assert rpn.losses(levels, anchors, batch, objects)["rpn_boxes"] == 0
    whole = generator.of_batch(levels, batch).boxes[seen["boxes"]]
    found = decode(seen["offsets"], whole, STDS)  # as when detecting
    assert len(found) >= 3 * len(objects.boxes)
    torch.testing.assert_close(
        found[:, 2:] - found[:, :2], growth * torch.full((len(found), 2), 2.0)
    )


class Largest(TorchDispatchMode):
    """The most elements that a tensor has."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        self.size = max([self.size, *sizes])
        return out


def test_there_is_no_matrix():
    corners = 90 * torch.rand(2000, 2)
    boxes, objects = torch.cat([corners, corners + 4], 1), 90 * torch.rand(500, 2)
    objects = truth(
        {"boxes": torch.cat([objects, objects + 3], 1), "labels": torch.ones(500).long()}
    )
    with Largest() as largest:
        HierarchicalAssigner()(boxes, torch.zeros(2000, dtype=torch.int64), objects)
    assert largest.size <= 4 * 2000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"topk": (3,)}, r"topk must be two numbers from 1 on, got \(3,\)"),
        ({"topk": (3, 0)}, "topk must be two numbers from 1 on"),
        ({"decay": 0.0}, "decay must be above 0 and at most 1, got 0"),
        ({"decay": 1.1}, "decay must be above 0 and at most 1, got 1.1"),
        ({"distance": "kl"}, "distance must be one of .* got 'kl'"),
    ],
)
def test_wrong_settings(options, message):
    with pytest.raises(ValueError, match=message):
        HierarchicalAssigner(**options)
