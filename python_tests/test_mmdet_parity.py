"""Our detectors compute what mmdet 3.3.0 computes: see golden/make_mmdet.py.

Where they differ on purpose:

- Padding is no part of an image: cells that begin there have no anchors, in training and in
  evaluation. mmdet trains those up to the next multiple of 32 and predicts from all.
- mmdet divides losses of sampled anchors as if an image without positives had one; here the divisor
  is the number of anchors. The tests scale the losses.
- A positive inside an ignored region stays positive here and is ignored in mmdet, and mmdet forgets
  the ignored regions of images without objects. The case has neither.
- The order of logits: background is the first here, the last in mmdet.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import mmdet_case as case
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from tinyops.models import recipes
from tinyops.nn.anchors import AnchorGenerator, octave_scales
from tinyops.nn.batch import GroundTruth, ImageBatch, collate_images, collate_targets
from tinyops.nn.cascade import CascadeRoIHeads
from tinyops.nn.fpn import FPN
from tinyops.nn.resnet import ResNet
from tinyops.nn.retina import RetinaHead
from tinyops.nn.roi import BoxHead, RoIHeads, RoIPool
from tinyops.nn.rpn import Proposals, RegionProposalNetwork
from tinyops.nn.sampling import RandomSampler

Golden = Mapping[str, np.ndarray]
Rename = Callable[[str], str]

SSPNET = {"scales": (1.5, 2.5, 3.7, 8), "ratios": (0.4, 0.8, 1.4)}
RETINA = {"scales": octave_scales(2, 3), "ratios": (0.5, 1.0, 2.0)}
RELATIVE = 1e-5  # all is float64, except that mmdet encodes boxes in float32


RPN_LOSSES = {"rpn_objectness": "loss_rpn_cls", "rpn_boxes": "loss_rpn_bbox"}
ROI_LOSSES = {"roi_classes": "loss_cls", "roi_boxes": "loss_bbox"}
CASCADE_LOSSES = {
    f"stage{k + 1}_{ours}": f"s{k}.{theirs}"
    for k in range(3)
    for ours, theirs in ROI_LOSSES.items()
}
RETINA_LOSSES = {"retina_classes": "loss_cls", "retina_boxes": "loss_bbox"}


def golden(name: str) -> Golden:
    return np.load(Path(__file__).parent / "golden" / f"mmdet_{name}.npz")


def all_samples() -> RandomSampler:
    """Draws nothing at random: there are fewer boxes than it takes."""
    return RandomSampler(10**6, 0.5)


def float64(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).double()


def fill(module: nn.Module, rename: Rename = str) -> None:
    """Give a module mmdet's weights; `rename` makes mmdet's names from ours."""
    for name, value in module.double().state_dict().items():
        if value.is_floating_point():
            given = float64(case.weight(rename(name), tuple(value.shape)))
            value.copy_(background_first(name, given))


def background_first(name: str, rows: Tensor) -> Tensor:
    """Background is the last logit of mmdet and our first."""
    return rows.roll(1, 0) if "fc_cls" in name else rows


def background_last(name: str, rows: Tensor) -> Tensor:
    return rows.roll(-1, 0) if "fc_cls" in name else rows


def conv_name(name: str) -> str:
    """mmdet wraps convolutions: a.weight is a.conv.weight there."""
    return ".conv.".join(name.rsplit(".", 1))


def retina_name(name: str) -> str:
    return name if name.startswith("retina") else conv_name(name)


def second_stage_name(name: str) -> str:
    return name.replace("head.", "bbox_head.")


def cascade_name(name: str) -> str:
    _, stage, _, rest = name.split(".", 3)
    return f"bbox_head.{stage}.{rest}"


def neck_name(name: str) -> str:
    return conv_name(name).replace("output_convs", "fpn_convs")


def detector_name(name: str, rename_head: Rename) -> str:
    part, rest = name.split(".", 1)
    if part == "backbone":
        return name
    rename = {"neck": neck_name, "rpn": str}.get(part, rename_head)
    theirs = {"neck": "neck", "rpn": "rpn_head", "roi_heads": "roi_head", "head": "bbox_head"}
    return f"{theirs[part]}.{rename(rest)}"


def batch() -> ImageBatch:
    images = [float64(image) for image in case.images()]
    return collate_images(images, mean=case.MEAN, std=case.STD)


def targets() -> list[dict[str, Tensor]]:
    return [
        {
            "boxes": torch.tensor([*boxes, *ignored], dtype=torch.float64).reshape(-1, 4),
            "labels": torch.tensor([*labels, *[0] * len(ignored)], dtype=torch.int64),
            "ignore": torch.tensor([False] * len(boxes) + [True] * len(ignored)).bool(),
        }
        for boxes, labels, ignored in zip(case.BOXES, case.LABELS, case.IGNORED, strict=True)
    ]


def truth() -> GroundTruth:
    return collate_targets(targets(), dtype=torch.float64)


def levels() -> list[Tensor]:
    return [float64(level).requires_grad_() for level in case.levels()]


def proposals() -> Proposals:
    given = case.proposals()
    ids = [torch.full((len(boxes),), k) for k, (boxes, _) in enumerate(given)]
    return Proposals(
        torch.cat([float64(boxes) for boxes, _ in given]),
        torch.cat([float64(scores) for _, scores in given]),
        torch.cat(ids),
    )


def check_losses(losses: Mapping[str, Tensor], expected: Golden, names: Mapping[str, str]) -> None:
    """`names` gives mmdet's name of each of our losses."""
    assert set(losses) == set(names)
    assert {f"loss/{name}" for name in names.values()} == {
        key for key in expected if key.startswith("loss/")
    }
    for ours, theirs in names.items():
        assert losses[ours].item() == pytest.approx(
            expected[f"loss/{theirs}"].item(), rel=RELATIVE
        ), ours


def check_gradients(
    losses: Mapping[str, Tensor],
    module: nn.Module,
    expected: Golden,
    rename: Rename = str,
    features: list[Tensor] | None = None,
) -> None:
    """Gradients of the sum of the losses, by their length and their part in one direction."""
    sum(losses.values()).backward()
    found = {rename(name): p.grad for name, p in module.named_parameters() if p.requires_grad}
    found |= {f"P{k + 2}": level.grad for k, level in enumerate(features or [])}
    seen = 0
    for name, gradient in found.items():
        wanted = expected.get(f"gradient/{name}", np.zeros(2))  # mmdet has no gradient of zero
        gradient = torch.zeros(1) if gradient is None else background_last(name, gradient)
        summary = case.gradient_summary(name, gradient.numpy())
        assert summary == pytest.approx(wanted, rel=RELATIVE, abs=RELATIVE * wanted[0]), name
        seen += f"gradient/{name}" in expected
    assert seen == sum(key.startswith("gradient/") for key in expected)


def check_boxes(found: list[dict[str, Tensor]], expected: Golden, prefix: str) -> None:
    """The same boxes with the same scores and labels, whatever the order of equal scores."""
    for k, ours in enumerate(found):
        boxes = float64(expected[f"{prefix}/{k}/boxes"])
        theirs = {"boxes": boxes, "scores": float64(expected[f"{prefix}/{k}/scores"])}
        if "labels" in ours:
            theirs["labels"] = torch.from_numpy(expected[f"{prefix}/{k}/labels"])
        assert len(boxes) > 20
        assert len(ours["boxes"]) == len(boxes)
        torch.testing.assert_close(ours["scores"], theirs["scores"], rtol=RELATIVE, atol=RELATIVE)
        distance = torch.cdist(_rows(ours), _rows(theirs), p=torch.inf)
        assert distance.amin(0).max() < 1e-4
        assert distance.amin(1).max() < 1e-4


def _rows(found: Mapping[str, Tensor]) -> Tensor:
    """[K, 6] box, 10 * score, label; the differences that count are of one order."""
    labels = found.get("labels", torch.zeros(len(found["boxes"])))
    return torch.cat([found["boxes"], 10 * found["scores"][:, None], 100.0 * labels[:, None]], 1)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("sspnet", SSPNET), ("faster", {"scales": (2,), "ratios": (0.5, 1, 2)}), ("retina", RETINA)],
)
def test_anchors_are_mmdets(name, settings):
    expected = golden("anchors")
    sizes = [(3, 5), (2, 3), (1, 2), (1, 1), (1, 1)]
    found = AnchorGenerator(case.STRIDES, **settings)([torch.zeros(1, 1, *size) for size in sizes])
    for k, anchors in enumerate(found):
        assert torch.equal(anchors, torch.from_numpy(expected[f"{name}/{k}"]))


@pytest.mark.parametrize(
    ("name", "settings"),
    [("rpn", {}), ("rpn_of_cascade", {"beta": 1 / 9, "whole_anchors": True})],
)
def test_region_proposals_are_mmdets(name, settings):
    expected, features = golden(name), levels()
    anchors = AnchorGenerator(case.STRIDES, **SSPNET)
    rpn = RegionProposalNetwork(
        case.CHANNELS,
        anchors,
        sampler=all_samples(),
        pre_nms=(60, 60),
        post_nms=(150, 150),
        **settings,
    )
    fill(rpn)
    _, losses = rpn(features, batch(), truth())
    positives, negatives, divisor = expected["sampled"].tolist()
    # mmdet counts an image without positives as if it had one
    losses = {name: loss * (positives + negatives) / divisor for name, loss in losses.items()}
    check_losses(losses, expected, RPN_LOSSES)
    check_gradients(losses, rpn, expected, features=features)
    found, none = rpn.eval()(features, batch())
    assert none == {}
    check_boxes(per_image(found), expected, "proposals")


def per_image(found: Proposals) -> list[dict[str, Tensor]]:
    here = [found.image_ids == k for k in range(len(case.SIZES))]
    return [{"boxes": found.boxes[k], "scores": found.scores[k]} for k in here]


def test_second_stage_is_mmdets():
    expected, features = golden("roi"), levels()
    heads = RoIHeads(
        RoIPool(),
        BoxHead(case.CHANNELS, hidden=case.HIDDEN, num_classes=case.NUM_CLASSES),
        sampler=all_samples(),
        max_per_image=30,
    )

    fill(heads, second_stage_name)
    _, losses = heads(features, proposals(), batch(), truth())
    check_losses(losses, expected, ROI_LOSSES)
    check_gradients(losses, heads, expected, second_stage_name, features)
    found, _ = heads.eval()(features, proposals(), batch())
    check_boxes(found, expected, "detections")


def test_cascade_is_mmdets():
    expected, features = golden("cascade"), levels()
    heads = CascadeRoIHeads(
        RoIPool(),
        [BoxHead(case.CHANNELS, 7, case.HIDDEN, case.NUM_CLASSES, True) for _ in range(3)],
        sampler=all_samples(),
        max_per_image=30,
    )

    fill(heads, cascade_name)
    _, losses = heads(features, proposals(), batch(), truth())
    check_losses(losses, expected, CASCADE_LOSSES)
    check_gradients(losses, heads, expected, cascade_name, features)
    found, _ = heads.eval()(features, proposals(), batch())
    check_boxes(found, expected, "detections")


def test_retina_head_is_mmdets():
    expected, features = golden("retina"), levels()
    anchors = AnchorGenerator(case.STRIDES, **RETINA)
    head = RetinaHead(
        case.CHANNELS, anchors, case.NUM_CLASSES, convs=2, pre_nms=30, max_per_image=60
    )

    fill(head, retina_name)
    _, losses = head(features, batch(), truth())
    positives, _, divisor = expected["sampled"].tolist()
    # mmdet counts an image without positives as if it had one
    losses = {name: loss * positives / divisor for name, loss in losses.items()}
    check_losses(losses, expected, RETINA_LOSSES)
    check_gradients(losses, head, expected, retina_name, features)
    found, _ = head.eval()(features, batch())
    check_boxes(found, expected, "detections")


def test_pyramid_is_mmdets():
    expected = golden("fpn")
    neck = FPN([8, 12, 16, 20], 4)
    fill(neck, neck_name)
    found, _ = neck([float64(level) for level in case.backbone_levels()])
    assert len(found) == len(expected)
    for k, level in enumerate(found):
        torch.testing.assert_close(level, float64(expected[str(k)]), rtol=1e-6, atol=1e-6)


def body() -> tuple[ResNet, FPN]:
    widths = (16, 32, 64, 128)
    backbone = ResNet(BasicBlock, (2, 2, 2, 2), widths=widths, frozen_stages=1, norm_eval=True)
    return backbone, FPN(backbone.channels, case.CHANNELS, backbone.strides)


TWO_STAGE = {
    "anchor_scales": SSPNET["scales"],
    "anchor_ratios": SSPNET["ratios"],
    "weighted_negatives": False,
    "nms": "nms",
    "nms_threshold": 0.5,
    "max_per_image": 30,
    "head_channels": case.HIDDEN,
    "rpn_samples": 10**6,
    "samples": 10**6,
    "pre_nms": (60, 60),
    "proposals": (150, 150),
}
ONE_STAGE = {"nms": "nms", "nms_threshold": 0.5, "max_per_image": 60, "convs": 2, "pre_nms": 30}


@pytest.mark.parametrize(
    ("name", "settings", "rename", "losses_of_head"),
    [
        ("faster_rcnn", TWO_STAGE, second_stage_name, ROI_LOSSES),
        ("cascade_rcnn", TWO_STAGE, cascade_name, CASCADE_LOSSES),
        ("retinanet", ONE_STAGE, retina_name, RETINA_LOSSES),
    ],
)
def test_detector_is_mmdets(name, settings, rename, losses_of_head):
    expected = golden(name)
    model = getattr(recipes, name)(*body(), case.NUM_CLASSES, **settings)
    fill(model, lambda ours: detector_name(ours, rename))
    images = [float64(image) for image in case.images()]
    losses = model(images, targets())
    positives, negatives, divisor = expected["sampled"].tolist()
    for loss in losses:
        if loss in RPN_LOSSES:
            losses[loss] = losses[loss] * (positives + negatives) / divisor
        if loss in RETINA_LOSSES:
            losses[loss] = losses[loss] * positives / divisor
    names = losses_of_head if name == "retinanet" else {**RPN_LOSSES, **losses_of_head}
    check_losses(losses, expected, names)
    check_gradients(losses, model, expected, lambda ours: detector_name(ours, rename))
    check_boxes(model.eval()(images), expected, "detections")
