"""RetinaNet's head: losses and detections against plain loops."""

import pytest
import torch
import torch.nn.functional as F
from detection import STRIDES, batch_of, image_of, iou, pyramid, target, truth, without_padding

from tinyops.nn.anchors import AnchorGenerator, octave_scales
from tinyops.nn.assign import BACKGROUND, IGNORED, match_by_overlap
from tinyops.nn.boxes import clip, decode, encode
from tinyops.nn.retina import STDS, RetinaHead
from tinyops.ops import nms_reference


def head(classes=3, gain=1.0, **options):
    anchors = AnchorGenerator(STRIDES, octave_scales(2, 2), [0.5, 1.0])
    made = RetinaHead(8, anchors, classes, convs=1, **options)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(gain)
    return made


def confident(classes=3, **options):
    """A head whose scores are all over 0..1 and whose boxes differ from the anchors."""
    made = head(classes, 20.0, **options)
    with torch.no_grad():
        made.retina_cls.bias.zero_()
        made.retina_cls.weight.mul_(3)
        made.retina_reg.weight.mul_(0.5)
    return made


def test_scores_begin_at_the_prior():
    made = head(prior=0.03)
    logits, offsets = made.predict([1e-3 * x for x in pyramid(batch_of((64, 64)))])
    assert [x.shape[2] for x in logits] == [3] * 5
    assert [x.shape[2] for x in offsets] == [4] * 5
    torch.testing.assert_close(torch.cat(logits, 1).sigmoid().mean(), torch.tensor(0.03))


def plain_losses(made, levels, batch, objects):
    logits, offsets = made.predict(levels)
    anchors = made.anchors.of_batch(levels, batch)
    logits, offsets = anchors.select(logits), anchors.select(offsets)
    matches = match_by_overlap(
        anchors.boxes, anchors.image_ids, objects, positive=0.5, negative=0.4, least_best=0.0
    ).tolist()
    focal, distance, count = torch.zeros(()), torch.zeros(()), 0
    for k, match in enumerate(matches):
        if match == IGNORED:
            continue
        for c in range(made.num_classes):
            score = logits[k, c].sigmoid()
            if match >= 0 and int(objects.labels[match]) == c + 1:
                focal = focal - 0.25 * (1 - score) ** 2 * F.logsigmoid(logits[k, c])
            else:
                focal = focal - 0.75 * score**2 * F.logsigmoid(-logits[k, c])
        if match >= 0:
            wanted = encode(objects.boxes[match][None], anchors.boxes[k][None], STDS)[0]
            distance = distance + (offsets[k] - wanted).abs().sum()
            count += 1
    assert {BACKGROUND, IGNORED} < set(matches)
    return focal / count, distance / count


def test_losses_are_those_of_plain_loops():
    made = confident()
    batch = batch_of((64, 96), (50, 33))
    objects = truth(
        target((10, 10, 18, 22), (60, 50, 70, 58), labels=[1, 3]),
        target((3, 4, 9, 16), (20, 10, 30, 30), labels=[2, 1], ignore=[False, True]),
    )
    levels = pyramid(batch)
    found, losses = made(levels, batch, objects)
    focal, distance = plain_losses(made, levels, batch, objects)
    assert found is None
    assert set(losses) == {"retina_classes", "retina_boxes"}
    torch.testing.assert_close(losses["retina_classes"], focal)
    torch.testing.assert_close(losses["retina_boxes"], distance)


def test_distance_of_boxes():
    """1 - IoU + distance of the centres squared / diagonal of the hull squared (DIoU)."""
    made = confident(regression="diou")
    batch = batch_of((64, 96), (50, 33))
    objects = truth(target((10, 10, 18, 22), (60, 50, 70, 58)), target((3, 4, 9, 16)))
    levels = pyramid(batch)
    anchors = made.anchors.of_batch(levels, batch)
    matches = made.assigner(anchors.boxes, anchors.image_ids, objects)
    good = (matches >= 0).nonzero().flatten()
    boxes = decode(anchors.select(made.predict(levels)[1])[good], anchors.boxes[good], STDS)
    total = 0.0
    for box, wanted in zip(boxes.tolist(), objects.boxes[matches[good]].tolist(), strict=True):
        dx = (box[0] + box[2] - wanted[0] - wanted[2]) / 2
        dy = (box[1] + box[3] - wanted[1] - wanted[3]) / 2
        width = max(box[2], wanted[2]) - min(box[0], wanted[0])
        height = max(box[3], wanted[3]) - min(box[1], wanted[1])
        total += 1 - iou(box, wanted) + (dx**2 + dy**2) / (width**2 + height**2)
    losses = made(levels, batch, objects)[1]
    torch.testing.assert_close(losses["retina_boxes"], torch.tensor(total / len(good)))
    losses["retina_boxes"].backward()
    assert made.retina_reg.weight.grad.any()


def test_unknown_loss_of_boxes():
    with pytest.raises(ValueError, match=r"regression must be one of .* got 'giou'"):
        head(regression="giou")


def test_every_object_has_an_anchor():
    """An object of 3 pixels overlaps no anchor by half; its best one is taken."""
    made = head()
    batch = batch_of((64, 64))
    _, losses = made(pyramid(batch), batch, truth(target((21, 21, 24, 24))))
    assert losses["retina_boxes"] > 0


def plain_detections(made, levels, batch):
    logits, offsets = made.predict(levels)
    anchors = made.anchors(levels)
    results = []
    for image, (height, width) in enumerate(batch.sizes):
        boxes, scores, labels = [], [], []
        for k, stride in enumerate(STRIDES):
            columns, candidates = levels[k].shape[3], []
            for a in range(len(anchors[k])):
                cell = a // made.anchors.per_cell
                if cell // columns * stride >= height or cell % columns * stride >= width:
                    continue
                for c in range(made.num_classes):
                    candidates.append((float(logits[k][image, a, c].sigmoid()), a, c))
            candidates.sort(key=lambda x: -x[0])  # stable
            for score, a, c in candidates[: made.pre_nms]:
                box = decode(offsets[k][image, a][None], anchors[k][a][None], STDS)
                box = clip(box, torch.tensor([[height, width]]))[0]
                if score > made.score_threshold and (box[2:] > box[:2]).all():
                    boxes.append(box)
                    scores.append(score)
                    labels.append(c + 1)
        boxes, labels = torch.stack(boxes), torch.tensor(labels)
        scores = torch.tensor(scores, dtype=boxes.dtype)
        keep = nms_reference(boxes, scores, made.nms_threshold, labels=labels)
        keep = keep[: made.max_per_image]
        results.append({"boxes": boxes[keep], "scores": scores[keep], "labels": labels[keep]})
    return results


def assert_same_detections(found, expected):
    assert len(found) == len(expected)
    for one, two in zip(found, expected, strict=True):
        assert list(one) == list(two) == ["boxes", "scores", "labels"]
        assert one["labels"].tolist() == two["labels"].tolist()
        torch.testing.assert_close(one["scores"], two["scores"])
        torch.testing.assert_close(one["boxes"], two["boxes"], rtol=1e-5, atol=1e-4)


def test_detections_are_those_of_plain_loops():
    made = confident(pre_nms=70, score_threshold=0.55, max_per_image=50).double().eval()
    batch = batch_of((64, 64), (50, 33))
    levels = [x.double() for x in pyramid(batch)]
    found, losses = made(levels, batch)
    assert losses == {}
    with torch.no_grad():
        assert_same_detections(found, plain_detections(made, levels, batch))
    assert [len(x["boxes"]) for x in found] == [50, 50]
    assert {1, 2, 3} == set(found[0]["labels"].tolist())
    assert not found[0]["boxes"].requires_grad


def test_images_of_different_sizes_are_as_one_by_one():
    made = confident(score_threshold=0.4).double().eval()
    batch = batch_of((96, 128), (50, 33), (64, 32))
    levels = [x.double() for x in without_padding(pyramid(batch), batch)]
    with torch.no_grad():  # towers of no convolution: a second 3x3 would see past the border
        made.cls_convs, made.reg_convs = torch.nn.ModuleList(), torch.nn.ModuleList()
    together, _ = made(levels, batch)
    for k in range(3):
        assert_same_detections(together[k : k + 1], made(*image_of(levels, batch, k))[0])
        assert len(together[k]["boxes"]) == 100


def test_soft_nms_lowers_scores():
    hard, soft = (
        confident(1, nms=kind, nms_threshold=0.3, max_per_image=10_000).eval()
        for kind in ("nms", "soft_nms")
    )
    soft.load_state_dict(hard.state_dict())
    batch = batch_of((64, 64))
    levels = pyramid(batch)
    (few,), (many,) = hard(levels, batch)[0], soft(levels, batch)[0]
    assert len(many["boxes"]) > len(few["boxes"]) > 0
    assert (many["scores"][1:] <= many["scores"][:-1]).all()
    assert many["scores"].min() >= 0.05


def test_no_detections():
    found, _ = head().eval()(pyramid(batch := batch_of((64, 64), (64, 64))), batch)
    for one in found:
        assert one["boxes"].shape == (0, 4)
        assert one["scores"].shape == one["labels"].shape == (0,)
        assert one["labels"].dtype == torch.int64


def test_images_without_objects_train():
    made = head()
    batch = batch_of((64, 64), (64, 64))
    _, losses = made(pyramid(batch), batch, truth(target(), target()))
    assert losses["retina_boxes"] == 0
    assert losses["retina_classes"] > 0
    sum(losses.values()).backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_ignored_regions_take_negatives_away():
    made = head()
    batch = batch_of((64, 64))
    levels = pyramid(batch)
    losses = [
        made(levels, batch, truth(one))[1]["retina_classes"].item()
        for one in (
            target(),
            target((0, 0, 64, 32), ignore=[True]),
            target((-500, -500, 600, 600), ignore=[True]),
        )
    ]
    assert losses[0] > 1.2 * losses[1] > 0
    assert losses[2] == 0


def test_a_few_steps_find_the_objects():
    made = head(2)
    batch = batch_of((64, 96))
    boxes, labels = [(10, 10, 18, 22), (60, 30, 72, 40)], [1, 2]
    levels, objects = pyramid(batch), truth(target(*boxes, labels=labels))
    optimizer = torch.optim.Adam(made.parameters(), 2e-2)
    history = []
    for _ in range(60):
        loss = sum(made(levels, batch, objects)[1].values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    assert history[-1] < 0.2 * history[0]
    (found,), _ = made.eval()(levels, batch)
    for box, label in zip(boxes, labels, strict=True):
        near = (found["boxes"][:4] - torch.tensor(box)).abs().max(1).values < 2
        assert (near & (found["labels"][:4] == label)).any()


def test_autocast_computes_losses_and_boxes_in_float32():
    made = confident()
    batch = batch_of((64, 64))
    levels, objects = pyramid(batch), truth(target((10, 10, 18, 22)))
    plain = made(levels, batch, objects)[1]
    with torch.autocast("cpu", torch.bfloat16):
        losses = made(levels, batch, objects)[1]
        (found,), _ = made.eval()(levels, batch)
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, plain[name], rtol=0.05, atol=0)


def test_unknown_suppression():
    with pytest.raises(ValueError, match=r"nms must be one of \('nms', 'soft_nms'\), got 'wbf'"):
        head(nms="wbf")
