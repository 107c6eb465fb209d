"""Limits per image, suppression of a whole batch, and lists of detections."""

import pytest
import torch

from tinyops.nn.postprocess import first_per_image, split_detections, suppress
from tinyops.ops import nms_reference, soft_nms


def crowd(count, images=3, classes=2):
    corners = 40 * torch.rand(count, 2)
    boxes = torch.cat([corners, corners + 4 + 8 * torch.rand(count, 2)], 1)
    labels, ids = (torch.randint(0, n, (count,)) for n in (classes, images))
    return boxes, torch.rand(count), labels + 1, ids


def test_first_per_image():
    ids = torch.tensor([2, 0, 2, 2, 0, 5, 2])
    assert first_per_image(ids, 2).tolist() == [1, 4, 0, 2, 5]
    assert first_per_image(ids, 1).tolist() == [1, 0, 5]
    assert first_per_image(ids, 100).tolist() == [1, 4, 0, 2, 3, 6, 5]
    assert first_per_image(ids, 0).tolist() == []
    assert first_per_image(ids[:0], 3).tolist() == []


@pytest.mark.parametrize("limit", [5, 1000])
def test_nms_of_a_batch_is_that_of_its_images(limit):
    boxes, scores, labels, ids = crowd(300)
    keep, kept_scores = suppress(
        boxes, scores, labels, ids, iou_threshold=0.3, min_score=0.2, max_per_image=limit
    )
    expected = []
    for image in range(3):
        rows = (ids == image).nonzero()[:, 0]
        found = nms_reference(boxes[rows], scores[rows], 0.3, labels=labels[rows])
        found = [k for k in rows[found].tolist() if scores[k] >= 0.2]
        expected += found[:limit]
    assert keep.tolist() == expected
    assert torch.equal(kept_scores, scores[keep])
    assert 3 * 5 <= len(expected) < 300


def test_soft_nms_of_a_batch_is_that_of_its_images():
    boxes, scores, labels, ids = crowd(300)
    keep, kept_scores = suppress(
        boxes,
        scores,
        labels,
        ids,
        method="soft_nms",
        iou_threshold=0.3,
        min_score=0.2,
        max_per_image=60,
    )
    rows, values = [], []
    for image in range(3):
        here = (ids == image).nonzero()[:, 0]
        found, value = soft_nms(
            boxes[here], scores[here], iou_threshold=0.3, min_score=0.2, labels=labels[here]
        )
        rows.append(here[found][:60])
        values.append(value[:60])
    assert keep.tolist() == torch.cat(rows).tolist()
    assert torch.equal(kept_scores, torch.cat(values))
    assert (kept_scores < scores[keep]).any()


def test_no_boxes_give_no_boxes():
    boxes, scores, labels, ids = (x[:0] for x in crowd(3))
    for method in ("nms", "soft_nms"):
        keep, kept_scores = suppress(boxes, scores, labels, ids, method=method)
        assert keep.shape == kept_scores.shape == (0,)
        for one in split_detections(boxes, scores, labels, ids, 2):
            assert [len(x) for x in one.values()] == [0, 0, 0]


def test_detections_are_split_by_image():
    boxes, scores, labels, _ = crowd(5)
    found = split_detections(boxes, scores, labels, torch.tensor([0, 0, 2, 2, 2]), 4)
    assert [len(x["boxes"]) for x in found] == [2, 0, 3, 0]
    assert torch.equal(torch.cat([x["boxes"] for x in found]), boxes)
    assert torch.equal(torch.cat([x["scores"] for x in found]), scores)
    assert torch.equal(torch.cat([x["labels"] for x in found]), labels)


def test_unknown_method():
    with pytest.raises(ValueError, match="method must be one of"):
        suppress(*crowd(3), method="wbf")
