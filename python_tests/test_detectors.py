"""The shells of detectors: what they check, and how boxes go in and come out."""

import pytest
import torch
from detection import STRIDES, PlainBackbone, PlainNeck, target
from torch import nn

from tinyops.models import OneStageDetector, TwoStageDetector
from tinyops.nn.anchors import AnchorGenerator
from tinyops.nn.retina import RetinaHead
from tinyops.nn.roi import BoxHead, RoIHeads, RoIPool
from tinyops.nn.rpn import RegionProposalNetwork

ANCHORS = AnchorGenerator(STRIDES, [2.0], [0.5, 1.0, 2.0])


def two_stage(num_classes=2, gain=1.0, **options):
    roi = RoIHeads(RoIPool(), BoxHead(8, hidden=16, num_classes=num_classes))
    rpn = RegionProposalNetwork(8, ANCHORS, post_nms=(100, 100))
    return finished(
        TwoStageDetector(
            PlainBackbone(), PlainNeck(), rpn, roi, num_classes=num_classes, **options
        ),
        gain,
    )


def one_stage(num_classes=2, gain=1.0, **options):
    head = RetinaHead(8, ANCHORS, num_classes, convs=0)
    return finished(
        OneStageDetector(PlainBackbone(), PlainNeck(), head, num_classes=num_classes, **options),
        gain,
    )


def finished(model, gain):
    """Heads with weights large enough that scores and boxes differ."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith(("backbone", "neck")):
                parameter.mul_(gain)
            if name == "head.retina_cls.bias" and gain != 1:
                parameter.zero_()
    return model


KINDS = pytest.mark.parametrize("make", [two_stage, one_stage], ids=["two_stage", "one_stage"])
LOSSES = {
    two_stage: {"rpn_objectness", "rpn_boxes", "roi_classes", "roi_boxes", "neck"},
    one_stage: {"retina_classes", "retina_boxes", "neck"},
}


def images(*sizes, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(3, *size, generator=generator) for size in sizes]


TARGETS = [target((10, 10, 18, 22), (40, 30, 49, 38), labels=[1, 2]), target()]


@KINDS
def test_losses_in_training(make):
    losses = make()(images((64, 96), (50, 40)), TARGETS)
    assert set(losses) == LOSSES[make]
    for loss in losses.values():
        assert loss.shape == ()
        assert loss.isfinite()
        assert loss.requires_grad


@KINDS
def test_detections_in_evaluation(make):
    sizes = (64, 96), (50, 40)
    found = make(gain=20.0).eval()(images(*sizes))
    assert len(found) == 2
    for one, (height, width) in zip(found, sizes, strict=True):
        assert set(one) == {"boxes", "scores", "labels"}
        assert one["boxes"].shape == (len(one["scores"]), 4)
        assert len(one["scores"]) > 3
        assert (one["scores"][1:] <= one["scores"][:-1]).all()
        assert set(one["labels"].tolist()) <= {1, 2}
        assert (one["boxes"] >= 0).all()
        assert (one["boxes"][:, 0::2] <= width).all()
        assert (one["boxes"][:, 1::2] <= height).all()
        assert (one["boxes"][:, 2:] >= one["boxes"][:, :2]).all()


@KINDS
def test_images_beside_each_other_do_not_matter(make):
    """Exactly so where neighbours do not mix, padding stays 0, and no image ends at its border.

    (RoIAlign sees the last row beyond the end of a map, and 0 beyond the end of an image.)
    """
    model = make(gain=20.0).double().eval()
    batch = [x.double() for x in images((60, 90), (50, 40), (92, 33))]
    with torch.no_grad():
        together = model(batch)
        for image, expected in zip(batch, together, strict=True):
            (alone,) = model([image])
            assert len(alone["boxes"]) > 3
            assert alone["labels"].tolist() == expected["labels"].tolist()
            torch.testing.assert_close(alone["scores"], expected["scores"])
            torch.testing.assert_close(alone["boxes"], expected["boxes"])


@KINDS
def test_order_of_images_does_not_matter(make):
    model = make(gain=20.0).double().eval()
    first, second = (x.double() for x in images((64, 64), (64, 64)))
    with torch.no_grad():
        forth, back = model([first, second]), model([second, first])
    for one, two in zip(forth, back[::-1], strict=True):
        torch.testing.assert_close(one["boxes"], two["boxes"])
        torch.testing.assert_close(one["scores"], two["scores"])


class Recorder(nn.Module):
    """A head that keeps what it gets and finds one box, that of the whole batch."""

    def forward(self, levels, batch, truth=None):
        self.batch, self.truth = batch, truth
        height, width = batch.pixels.shape[-2:]
        box = torch.tensor([[2.0, 4, 6, 8], [0, 0, width, height]])
        one = {"boxes": box, "scores": torch.ones(2), "labels": torch.ones(2).long()}
        losses = {"head": levels[0].sum()}
        return (None, losses) if truth is not None else ([one for _ in batch.sizes], {})


def recording(**options):
    options = {"num_classes": 2, **options}
    return OneStageDetector(PlainBackbone(), PlainNeck(), Recorder(), **options)


def test_scale_enlarges_images_and_boxes_and_shrinks_detections():
    model = recording(scale=2.0)
    region = target((1, 2, 3, 5), (0, 0, 7, 7), ignore=[False, True])
    model(images((40, 30), (32, 32)), [target(), region])
    assert model.head.batch.sizes == ((80, 60), (64, 64))
    assert model.head.truth.boxes.tolist() == [[2, 4, 6, 10]]
    assert model.head.truth.ignored_boxes.tolist() == [[0, 0, 14, 14]]
    found = model.eval()(images((40, 30), (32, 32)))
    assert model.head.truth is None
    assert found[0]["boxes"].tolist() == [[1, 2, 3, 4], [0, 0, 30, 40]]
    assert found[1]["boxes"].tolist() == [[1, 2, 3, 4], [0, 0, 32, 32]]


def test_boxes_follow_the_true_size_of_a_resized_image():
    model = recording(scale=1.5)
    model(images((33, 31)), [target((0, 0, 31, 33))])
    ((height, width),) = model.head.batch.sizes
    assert (height, width) == (50, 46)
    torch.testing.assert_close(model.head.truth.boxes, torch.tensor([[0.0, 0, width, height]]))


def test_images_are_normalised():
    model = recording(mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))
    image = images((32, 32))[0]
    model.eval()([image])
    expected = torch.stack([2 * image[0] - 1, 4 * image[1] - 1, image[2]])
    torch.testing.assert_close(model.head.batch.pixels[0], expected)


def test_targets_are_not_looked_at_in_evaluation():
    model = recording().eval()
    model(images((32, 32)), [{"anything": torch.zeros(1)}])
    assert model.head.truth is None


def test_boxes_in_half_precision_are_computed_in_float32():
    model = recording()
    half = target((1, 2, 3, 4))
    half["boxes"] = half["boxes"].half()
    model(images((32, 32)), [half])
    assert model.head.truth.boxes.dtype == torch.float32


def test_parts_are_within_reach():
    two, one = two_stage(), one_stage()
    assert isinstance(two.rpn, RegionProposalNetwork)
    assert isinstance(two.roi_heads, RoIHeads)
    assert isinstance(one.head, RetinaHead)
    assert isinstance(one.backbone, PlainBackbone)
    assert isinstance(two.neck, PlainNeck)


@KINDS
def test_wrong_calls(make):
    model = make()
    with pytest.raises(ValueError, match="targets must be given in training, got None"):
        model(images((32, 32)))
    with pytest.raises(ValueError, match=r"images\[0\] must be \[3, H, W\]"):
        model([torch.rand(32, 32)], [target()])
    with pytest.raises(ValueError, match=r"targets\[0\]\['labels'\]\[0\] must be in 1\.\.2, got 3"):
        model(images((32, 32)), [target((1, 1, 2, 2), labels=[3])])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"scale": 0.0}, r"scale must be above 0, got 0\.0"),
        ({"mean": (0.5,)}, "mean and std must be 3 numbers"),
        ({"std": (1.0, 1.0, 0.0)}, "mean and std must be 3 numbers, std above 0"),
    ],
)
def test_wrong_settings(options, text):
    with pytest.raises(ValueError, match=text):
        recording(**options)


@KINDS
def test_images_without_objects_train(make):
    model = make()
    losses = model(images((64, 64), (40, 50)), [target(), target()])
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@KINDS
def test_ignored_regions_change_the_loss(make):
    model = make(gain=3.0)
    batch = images((64, 64))
    boxes = (10, 10, 18, 22), (30, 30, 60, 60)
    values = []
    for ignore in ([False, False], [False, True]):
        torch.manual_seed(0)
        values.append(float(sum(model(batch, [target(*boxes, ignore=ignore)]).values()).detach()))
    torch.manual_seed(0)
    alone = float(sum(model(batch, [target(boxes[0])]).values()).detach())
    assert len({round(x, 6) for x in (*values, alone)}) == 3


@KINDS
def test_same_seed_same_losses(make):
    model, batch = make(), images((64, 96), (50, 40))
    values = []
    for seed in (0, 0):
        torch.manual_seed(seed)
        values.append({k: float(v.detach()) for k, v in model(batch, TARGETS).items()})
    assert values[0] == values[1]


@KINDS
def test_a_few_steps_lower_the_loss(make):
    model, batch = make(), images((64, 96), (50, 40))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    history = []
    for _ in range(15):
        loss = sum(model(batch, TARGETS).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    assert history[-1] < 0.7 * history[0]


@KINDS
def test_autocast(make):
    model, batch = make(gain=3.0), images((64, 96), (50, 40))
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(batch, TARGETS)
        sum(losses.values()).backward()
        found = model.eval()(batch)
    assert all(x.dtype == torch.float32 for name, x in losses.items() if name != "neck")
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert all(x["boxes"].dtype == x["scores"].dtype == torch.float32 for x in found)
