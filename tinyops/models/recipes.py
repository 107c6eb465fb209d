"""Recipes: how backbone, neck and heads become a detector, with the values of the papers."""

from collections.abc import Sequence

from torch import nn

from tinyops.models.detectors import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    OneStageDetector,
    TwoStageDetector,
)
from tinyops.nn.anchors import AnchorGenerator, octave_scales
from tinyops.nn.cascade import CascadeRoIHeads
from tinyops.nn.fpn import FPN
from tinyops.nn.retina import RetinaHead
from tinyops.nn.roi import BoxHead, RoIHeads, RoIPool
from tinyops.nn.rpn import RegionProposalNetwork
from tinyops.nn.sampling import RandomSampler, WeightedNegativeSampler
from tinyops.nn.sspnet import SSPNet

Neck = FPN | SSPNet

# What the released settings of TinyPerson change with the neck: ucas-vg/TOV_mmdetection for FPN,
# MingboHong/SSPNet for SSPNet (anchors from k-means, weighted negatives, Soft-NMS).
FPN_TWO_STAGE = {
    "anchor_scales": (2.0,),
    "anchor_ratios": (0.5, 1.0, 2.0),
    "weighted_negatives": False,
    "nms": "nms",
    "nms_threshold": 0.5,
    "max_per_image": 1000,
}
SSPNET_TWO_STAGE = {
    "anchor_scales": (1.5, 2.5, 3.7, 8.0),
    "anchor_ratios": (0.4, 0.8, 1.4),
    "weighted_negatives": True,
    "nms": "soft_nms",
    "nms_threshold": 0.3,
    "max_per_image": 500,
}
FPN_ONE_STAGE = {"nms": "nms", "nms_threshold": 0.5, "max_per_image": 1000}
SSPNET_ONE_STAGE = {"nms": "soft_nms", "nms_threshold": 0.3, "max_per_image": 500}


def faster_rcnn(
    backbone: nn.Module,
    neck: Neck,
    num_classes: int,
    *,
    anchor_scales: Sequence[float],
    anchor_ratios: Sequence[float],
    weighted_negatives: bool,
    nms: str,
    nms_threshold: float,
    max_per_image: int,
    score_threshold: float = 0.05,
    head_channels: int = 1024,
    rpn_samples: int = 256,
    samples: int = 512,
    pre_nms: Sequence[int] = (2000, 1000),
    proposals: Sequence[int] = (1000, 1000),
    scale: float = 1.0,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> TwoStageDetector:
    """Faster R-CNN on a pyramid.

    Args:
        backbone: of the detector, and so is the neck.
        neck: levels of strides 4 to 64, say.
        num_classes: objects only.
        anchor_scales: anchor size / stride.
        anchor_ratios: height / width.
        weighted_negatives: hard anchors are drawn more often (SSPNet, eq. 4).
        nms: how duplicates are suppressed, "nms" or "soft_nms".
        nms_threshold: overlap above which they are.
        max_per_image: detections.
        score_threshold: detections have a greater score.
        head_channels: width of the two linear layers of the second stage.
        rpn_samples: anchors per image that the first stage learns from.
        samples: proposals per image that the second stage learns from.
        pre_nms: anchors of every level that become boxes, in training and in evaluation.
        proposals: at most so many per image, likewise.
        scale: of the images, see `Detector`; mean and std, too.
        mean: of the channels.
        std: of the channels.
    """
    head = BoxHead(neck.channels, hidden=head_channels, num_classes=num_classes)
    return TwoStageDetector(
        backbone,
        neck,
        _rpn(
            neck, anchor_scales, anchor_ratios, weighted_negatives, rpn_samples, pre_nms, proposals
        ),
        RoIHeads(
            RoIPool(neck.strides[:-1]),
            head,
            sampler=RandomSampler(samples, 0.25),
            score_threshold=score_threshold,
            nms=nms,
            nms_threshold=nms_threshold,
            max_per_image=max_per_image,
        ),
        num_classes=num_classes,
        mean=mean,
        std=std,
        scale=scale,
    )


def cascade_rcnn(
    backbone: nn.Module,
    neck: Neck,
    num_classes: int,
    *,
    anchor_scales: Sequence[float],
    anchor_ratios: Sequence[float],
    weighted_negatives: bool,
    nms: str,
    nms_threshold: float,
    max_per_image: int,
    score_threshold: float = 0.05,
    head_channels: int = 1024,
    rpn_samples: int = 256,
    samples: int = 512,
    pre_nms: Sequence[int] = (2000, 1000),
    proposals: Sequence[int] = (2000, 1000),
    scale: float = 1.0,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> TwoStageDetector:
    """Cascade R-CNN on a pyramid: three second stages. See `faster_rcnn` for the arguments."""
    heads = [
        BoxHead(neck.channels, hidden=head_channels, num_classes=num_classes, class_agnostic=True)
        for _ in range(3)
    ]
    return TwoStageDetector(
        backbone,
        neck,
        _rpn(
            neck,
            anchor_scales,
            anchor_ratios,
            weighted_negatives,
            rpn_samples,
            pre_nms,
            proposals,
            beta=1 / 9,
            whole_anchors=True,
        ),
        CascadeRoIHeads(
            RoIPool(neck.strides[:-1]),
            heads,
            sampler=RandomSampler(samples, 0.25),
            score_threshold=score_threshold,
            nms=nms,
            nms_threshold=nms_threshold,
            max_per_image=max_per_image,
        ),
        num_classes=num_classes,
        mean=mean,
        std=std,
        scale=scale,
    )


def retinanet(
    backbone: nn.Module,
    neck: Neck,
    num_classes: int,
    *,
    nms: str,
    nms_threshold: float,
    max_per_image: int,
    anchor_scales: Sequence[float] = octave_scales(2, 3),
    anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    score_threshold: float = 0.05,
    convs: int = 4,
    pre_nms: int = 1000,
    scale: float = 1.0,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> OneStageDetector:
    """RetinaNet from stride 4 on, with anchors from twice the stride ("adap" of TOV_mmdetection).

    Args:
        backbone: of the detector, and so is the neck.
        neck: levels of strides 4 to 64, say.
        num_classes: objects only.
        nms: how duplicates are suppressed, "nms" or "soft_nms".
        nms_threshold: overlap above which they are.
        max_per_image: detections.
        anchor_scales: anchor size / stride.
        anchor_ratios: height / width.
        score_threshold: detections have a greater score.
        convs: 3x3 convolutions of each tower of the head.
        pre_nms: the best of every level that become boxes in evaluation.
        scale: of the images, see `Detector`; mean and std, too.
        mean: of the channels.
        std: of the channels.
    """
    head = RetinaHead(
        neck.channels,
        AnchorGenerator(neck.strides, anchor_scales, anchor_ratios),
        num_classes,
        convs=convs,
        pre_nms=pre_nms,
        score_threshold=score_threshold,
        nms=nms,
        nms_threshold=nms_threshold,
        max_per_image=max_per_image,
    )
    return OneStageDetector(
        backbone, neck, head, num_classes=num_classes, mean=mean, std=std, scale=scale
    )


def _rpn(
    neck: Neck,
    scales: Sequence[float],
    ratios: Sequence[float],
    weighted_negatives: bool,
    samples: int,
    pre_nms: Sequence[int],
    proposals: Sequence[int],
    beta: float = 0.0,
    whole_anchors: bool = False,
) -> RegionProposalNetwork:
    draw = WeightedNegativeSampler if weighted_negatives else RandomSampler
    return RegionProposalNetwork(
        neck.channels,
        AnchorGenerator(neck.strides, scales, ratios),
        sampler=draw(samples, 0.5),
        pre_nms=(pre_nms[0], pre_nms[1]),
        post_nms=(proposals[0], proposals[1]),
        beta=beta,
        whole_anchors=whole_anchors,
    )
