"""Matching of boxes to objects, against MaxIoUAssigner written as plain loops."""

import pytest
import torch
from detection import iou, share_inside, target, truth

from tinyops.nn.assign import BACKGROUND, IGNORED, match_by_overlap


def plain_match(boxes, image_ids, truth, positive, negative, least_best, ignore_above):
    """The rules of mmdet's MaxIoUAssigner, then the ignored regions."""
    found = []
    overlaps = [
        [
            iou(box, object_) if image == other else -1.0
            for object_, other in zip(truth.boxes, truth.image_ids.tolist(), strict=True)
        ]
        for box, image in zip(boxes, image_ids.tolist(), strict=True)
    ]
    for row in overlaps:
        best = max(row, default=-1.0)
        match = IGNORED
        if best < negative:
            match = BACKGROUND
        if best >= positive and best >= 0:
            match = row.index(best)
        found.append(match)
    if least_best is not None:
        for m in range(len(truth.boxes)):
            column = [row[m] for row in overlaps]
            best = max(column, default=-1.0)
            for k, value in enumerate(column):
                if value == best and best >= least_best and best > 0:
                    found[k] = m
    for k, (box, image) in enumerate(zip(boxes, image_ids.tolist(), strict=True)):
        for region, other in zip(
            truth.ignored_boxes, truth.ignored_image_ids.tolist(), strict=True
        ):
            if (
                image == other
                and found[k] == BACKGROUND
                and share_inside(box, region) > ignore_above
            ):
                found[k] = IGNORED
    return found


def grid_boxes(generator, count):
    """Boxes with corners on multiples of 2, so that overlaps are often equal."""
    corners = 2 * torch.randint(0, 16, (count, 2), generator=generator)
    sizes = 2 * torch.randint(1, 6, (count, 2), generator=generator)
    return torch.cat([corners, corners + sizes], 1).float()


RULES = [
    {"positive": 0.7, "negative": 0.3, "least_best": 0.3},
    {"positive": 0.5, "negative": 0.4, "least_best": 0.0},
    {"positive": 0.5, "negative": 0.5, "least_best": None},
]


@pytest.mark.parametrize("rules", RULES, ids=["rpn", "retinanet", "rcnn"])
@pytest.mark.parametrize("seed", range(8))
def test_plain_loops(rules, seed):
    generator = torch.Generator().manual_seed(seed)
    targets = []
    for count in (5, 0, 9):  # the second image has only ignored regions
        regions = int(torch.randint(0, 3, (1,), generator=generator)) + (count == 0)
        boxes = grid_boxes(generator, count + regions)
        ignore = [False] * count + [True] * regions
        targets.append(target(*boxes.tolist(), ignore=ignore))
    objects = truth(*targets)
    boxes = grid_boxes(generator, 200)
    image_ids = torch.randint(0, 3, (200,), generator=generator).sort().values
    found = match_by_overlap(boxes, image_ids, objects, **rules)
    assert found.tolist() == plain_match(boxes, image_ids, objects, ignore_above=0.5, **rules)


def test_by_hand():
    objects = truth(target((0, 0, 10, 10), (20, 0, 30, 10)))
    boxes = torch.tensor(
        [
            [0.0, 0, 10, 8],  # 0.8: a match
            [0, 0, 10, 5],  # 0.5: neither
            [0, 0, 10, 2],  # 0.2: background
            [20, 0, 30, 4],  # 0.4: the best that the second object has
            [20, 6, 30, 10],  # 0.4: as good
            [50, 50, 60, 60],
        ]
    )
    found = match_by_overlap(boxes, torch.zeros(6, dtype=torch.int64), objects, **RULES[0])
    assert found.tolist() == [0, IGNORED, BACKGROUND, 1, 1, BACKGROUND]


def test_low_quality_match_takes_a_box_from_its_better_object():
    # The box overlaps the first object more, but it is the best that the second one has.
    objects = truth(target((0, 0, 10, 10), (0, 0, 10, 20)))
    boxes = torch.tensor([[0.0, 0, 10, 12]])
    zero = torch.zeros(1, dtype=torch.int64)
    rules = {"positive": 0.7, "negative": 0.3}
    assert match_by_overlap(boxes, zero, objects, **rules).tolist() == [0]
    assert match_by_overlap(boxes, zero, objects, **rules, least_best=0.3).tolist() == [1]


def test_no_objects_make_everything_background():
    boxes = torch.rand(7, 2).repeat(1, 2) + torch.tensor([0.0, 0, 1, 1])
    ids = torch.tensor([0, 0, 0, 1, 1, 1, 1])
    for rules in RULES:
        found = match_by_overlap(boxes, ids, truth(target(), target()), **rules)
        assert found.tolist() == [BACKGROUND] * 7


def test_no_boxes():
    empty = torch.zeros(0, 4)
    ids = torch.zeros(0, dtype=torch.int64)
    found = match_by_overlap(empty, ids, truth(target((0, 0, 1, 1))), **RULES[0])
    assert found.shape == (0,)


def test_objects_of_other_images_do_not_count():
    objects = truth(target((0, 0, 10, 10)), target())
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10]])
    found = match_by_overlap(boxes, torch.tensor([0, 1]), objects, **RULES[0])
    assert found.tolist() == [0, BACKGROUND]


def test_ignored_regions_leave_matches_alone():
    objects = truth(target((0, 0, 10, 10), (0, 0, 40, 40), ignore=[False, True]))
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [35, 0, 45, 10], [34, 0, 44, 10]])
    found = match_by_overlap(boxes, torch.zeros(4, dtype=torch.int64), objects, **RULES[2])
    # The third box is inside by half, which is not more than half; the fourth by 0.6.
    assert found.tolist() == [0, IGNORED, BACKGROUND, IGNORED]
