"""Recipes: how backbone, neck and heads become a detector, with the values of the papers.

The published rows that they stand for, on TinyPerson, by backbone; AP50 tiny as the sources print
it, not as measured here:

    faster_rcnn_fpn      resnet50     49.81 (TOV_mmdetection), 47.35 (BH)
                         bh_resnet50  52.03 (BH)
    faster_rcnn_sspnet   resnet50     59.13 (SSPNet), 58.58 (BH)
                         bh_resnet50  58.97 (BH)
    cascade_rcnn_sspnet  resnet50     58.59 (SSPNet), 56.60 (BH)
                         bh_resnet50  57.89 (BH)
    retinanet_sspnet     resnet50     54.66 (SSPNet), 50.98 (BH)
                         bh_resnet50  52.70 (BH)
    faster_rcnn_rfla     resnet50     48.86 (BH)
                         bh_resnet50  52.27 (BH)

and of SR-TOD (Hiyuur/SR-TOD) with resnet50, AP of AI-TOD's protocol on three data sets:

                                    DroneSwarms   VisDrone      AI-TOD
    faster_rcnn_fpn                 35.0          23.9          11.7
    faster_rcnn_srtod               36.3          26.3          20.6
    cascade_rcnn_fpn                36.4          25.2          14.0
    cascade_rcnn_srtod              38.3          27.3          21.9
    retinanet_fpn                   27.3
    retinanet_srtod                 28.7
    faster_rcnn_rfla                                            21.1 (RFLA)
    cascade_rcnn_rfla               36.9          27.2          21.7
    cascade_rcnn_rfla_srtod         39.0          27.8          21.8

Rows without SR-TOD have other anchors and fewer proposals, at least on AI-TOD. RetinaNet with
SR-TOD is not released: P3 is what the paper says. No source has SR-TOD on SSPNet's neck; these
systems keep SSPNet's settings.

Each recipe names where it is known to differ. All rows begin with ImageNet weights. Those of
bh_resnet50 are not torchvision's: its authors link to a file, whose tensors their configuration
(freshn/Anti-aliasing-Tiny-Object-Detection) reads by mmpretrain's names, as `weights` does.
"""

from collections.abc import Sequence

from torch import nn

from tinyops.models.detectors import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    OneStageDetector,
    TwoStageDetector,
)
from tinyops.nn.anchors import AnchorGenerator, octave_scales
from tinyops.nn.assign import Assigner, HierarchicalAssigner
from tinyops.nn.cascade import CascadeRoIHeads
from tinyops.nn.fpn import FPN
from tinyops.nn.receptive_field import receptive_fields
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

# RFLA as released for AI-TOD (Chasel-Tsui/mmdet-rfla).
RFLA = {
    "anchor_scales": (1.0,),
    "anchor_ratios": (0.5, 1.0, 2.0),
    "rf_fraction": 0.5,
    "rfd": "rfd_kl",
    "nms": "nms",
    "nms_threshold": 0.5,
    "max_per_image": 3000,
}
RFLA_TWO_STAGE = {
    **RFLA,
    "weighted_negatives": False,
    "pre_nms": (3000, 3000),
    "proposals": (3000, 3000),
}
RFLA_ONE_STAGE = {**RFLA, "pre_nms": 3000, "regression": "diou"}

# SR-TOD as released for DroneSwarms; AI-TOD has anchor_scales (4,), VisDrone (6,). The proposals
# and detections, which are many, are those of its AI-TOD and VisDrone.
SRTOD_TWO_STAGE = {
    **FPN_TWO_STAGE,
    "max_per_image": 3000,
    "pre_nms": (3000, 3000),
    "proposals": (3000, 3000),
}
SRTOD_ONE_STAGE = {**FPN_ONE_STAGE, "max_per_image": 3000, "pre_nms": 3000, "level": 1}


def faster_rcnn(
    backbone: nn.Module,
    neck: Neck,
    num_classes: int,
    *,
    refiner: nn.Module | None = None,
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
    weighted_proposals: bool = False,
    pre_nms: Sequence[int] = (2000, 1000),
    proposals: Sequence[int] = (1000, 1000),
    rf_fraction: float | None = None,
    rfd: str | None = None,
    rf_topk: Sequence[int] = (3, 1),
    rf_decay: float = 0.9,
    scale: float = 1.0,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> TwoStageDetector:
    """Faster R-CNN on a pyramid.

    With fpn the baseline of ucas-vg/TOV_mmdetection, whose backbone learns no weights of
    normalisations; here those beyond the frozen stage do. With sspnet the released configuration of
    MingboHong/SSPNet. It differs from the paper: weighted negatives are drawn among anchors alone,
    which have no confidence; 1000 proposals in training, not 2000; and L1, not smooth L1. It is
    tested at two scales, 2 and 3, the results of which are merged; here `scale` is one number.

    With RFLA's settings the released configuration of Chasel-Tsui/mmdet-rfla, but for two things.
    There offsets are learnt from anchors that the assignment has shrunk, while detection moves
    whole ones. And its receptive fields are those of ResNet-50, whatever the backbone.

    Different from mmdet on purpose: padding has no anchors, and a positive in an ignored region
    stays positive.

    Args:
        backbone: of the detector, and so is the neck.
        neck: levels of strides 4 to 64, say.
        num_classes: objects only.
        refiner: of the levels, see `Detector`.
        anchor_scales: anchor size / size of the level, which is its stride by default.
        anchor_ratios: height / width.
        weighted_negatives: hard anchors are drawn more often (SSPNet, eq. 4).
        nms: how duplicates are suppressed, "nms" or "soft_nms".
        nms_threshold: overlap above which they are.
        max_per_image: detections.
        score_threshold: detections have a greater score.
        head_channels: width of the two linear layers of the second stage.
        rpn_samples: anchors per image that the first stage learns from.
        samples: proposals per image that the second stage learns from.
        weighted_proposals: hard proposals are drawn more often, too; their confidence is their
            objectness. The paper's text; the released code does not.
        pre_nms: anchors of every level that become boxes, in training and in evaluation.
        proposals: at most so many per image, likewise. More of them when detecting than in training
            can be of sizes that the second stage never saw, and that it is sure of for no reason.
        rf_fraction: size of a level as a share of its receptive field (RFLA), see
            `receptive_fields`; None: its stride.
        rfd: distance in which anchors are assigned to objects by rank (RFLA), "rfd_kl" or "rfd_w",
            see `HierarchicalAssigner`; None: by IoU.
        rf_topk: then, anchors per object in the two steps.
        rf_decay: then, by which anchors shrink for the second step.
        scale: of the images, see `Detector`; mean and std, too.
        mean: of the channels.
        std: of the channels.

    Raises:
        ValueError: for settings that are not of two phases, or are out of range.
    """
    anchors = _anchors(backbone, neck, anchor_scales, anchor_ratios, rf_fraction)
    assigner = _assigner(rfd, rf_topk, rf_decay)
    head = BoxHead(neck.channels, hidden=head_channels, num_classes=num_classes)
    return TwoStageDetector(
        backbone,
        neck,
        _rpn(neck, anchors, assigner, weighted_negatives, rpn_samples, pre_nms, proposals),
        RoIHeads(
            RoIPool(neck.strides[:-1]),
            head,
            sampler=_sampler(samples, 0.25, weighted_proposals),
            score_threshold=score_threshold,
            nms=nms,
            nms_threshold=nms_threshold,
            max_per_image=max_per_image,
        ),
        refiner=refiner,
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
    refiner: nn.Module | None = None,
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
    weighted_proposals: bool = False,
    pre_nms: Sequence[int] = (2000, 1000),
    proposals: Sequence[int] = (2000, 1000),
    rf_fraction: float | None = None,
    rfd: str | None = None,
    rf_topk: Sequence[int] = (3, 1),
    rf_decay: float = 0.9,
    scale: float = 1.0,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> TwoStageDetector:
    """Cascade R-CNN on a pyramid: three second stages. See `faster_rcnn` for the arguments.

    Heads, losses and proposals are those of mmdet's cascade-rcnn_r50_fpn, anchors and suppression
    those of `faster_rcnn` with the same neck. That is our reading: SSPNet's configuration is not
    released, its author says to replace the neck and to draw weighted negatives
    (MingboHong/SSPNet, issue 20). With `weighted_proposals` every second stage draws by the
    objectness that the first stage gave. Anchors that cross the border of their image are in no
    loss, as configured there; of RFLA's, which are large, few are left on the coarse levels of
    small images.
    """
    anchors = _anchors(backbone, neck, anchor_scales, anchor_ratios, rf_fraction)
    assigner = _assigner(rfd, rf_topk, rf_decay)
    heads = [
        BoxHead(neck.channels, hidden=head_channels, num_classes=num_classes, class_agnostic=True)
        for _ in range(3)
    ]
    return TwoStageDetector(
        backbone,
        neck,
        _rpn(
            neck,
            anchors,
            assigner,
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
            sampler=_sampler(samples, 0.25, weighted_proposals),
            score_threshold=score_threshold,
            nms=nms,
            nms_threshold=nms_threshold,
            max_per_image=max_per_image,
        ),
        refiner=refiner,
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
    refiner: nn.Module | None = None,
    regression: str = "l1",
    nms: str,
    nms_threshold: float,
    max_per_image: int,
    anchor_scales: Sequence[float] = octave_scales(2, 3),
    anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    score_threshold: float = 0.05,
    convs: int = 4,
    pre_nms: int = 1000,
    rf_fraction: float | None = None,
    rfd: str | None = None,
    rf_topk: Sequence[int] = (3, 1),
    rf_decay: float = 0.9,
    scale: float = 1.0,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> OneStageDetector:
    """RetinaNet from stride 4 on, with anchors from twice the stride ("adap" of TOV_mmdetection).

    See `faster_rcnn` for the arguments, and `RetinaHead` for regression, convs and pre_nms.

    With sspnet it is our reading: that configuration is not released (levels of strides 4 to 64
    reproduce the cost that BH prints, 260 GMAC; anchors are those of fpn, and no negatives are
    drawn, since all count: MingboHong/SSPNet, issue 20). RFLA's is released from stride 8 on, with
    convolutions for its last levels. Different from mmdet, whose RetinaNet does not look at ignored
    regions: background anchors in them are left out of the loss.
    """
    anchors = _anchors(backbone, neck, anchor_scales, anchor_ratios, rf_fraction)
    assigner = _assigner(rfd, rf_topk, rf_decay)
    head = RetinaHead(
        neck.channels,
        anchors,
        num_classes,
        convs=convs,
        assigner=assigner,
        regression=regression,
        pre_nms=pre_nms,
        score_threshold=score_threshold,
        nms=nms,
        nms_threshold=nms_threshold,
        max_per_image=max_per_image,
    )
    return OneStageDetector(
        backbone,
        neck,
        head,
        refiner=refiner,
        num_classes=num_classes,
        mean=mean,
        std=std,
        scale=scale,
    )


def _anchors(
    backbone: nn.Module,
    neck: Neck,
    scales: Sequence[float],
    ratios: Sequence[float],
    rf_fraction: float | None,
) -> AnchorGenerator:
    if rf_fraction is None:
        return AnchorGenerator(neck.strides, scales, ratios)
    try:
        fields = receptive_fields(backbone, neck.strides)
    except (ValueError, AssertionError) as error:  # assertions are timm's, of the image's size
        raise ValueError(f"rf_fraction must be None with this backbone: {error}") from error
    sizes = [rf_fraction * field for field in fields]
    return AnchorGenerator(neck.strides, scales, ratios, sizes=sizes)


def _assigner(rfd: str | None, topk: Sequence[int], decay: float) -> Assigner | None:
    return None if rfd is None else HierarchicalAssigner(topk, decay=decay, distance=rfd)


def _rpn(
    neck: Neck,
    anchors: AnchorGenerator,
    assigner: Assigner | None,
    weighted_negatives: bool,
    samples: int,
    pre_nms: Sequence[int],
    proposals: Sequence[int],
    beta: float = 0.0,
    whole_anchors: bool = False,
) -> RegionProposalNetwork:
    for name, values in (("pre_nms", pre_nms), ("proposals", proposals)):
        if not isinstance(values, Sequence) or len(values) != 2:
            raise ValueError(f"{name} must be two numbers, in training and else, got {values}")
    return RegionProposalNetwork(
        neck.channels,
        anchors,
        sampler=_sampler(samples, 0.5, weighted_negatives),
        assigner=assigner,
        pre_nms=(pre_nms[0], pre_nms[1]),
        post_nms=(proposals[0], proposals[1]),
        beta=beta,
        whole_anchors=whole_anchors,
    )


def _sampler(count: int, positive_fraction: float, weighted: bool) -> RandomSampler:
    draw = WeightedNegativeSampler if weighted else RandomSampler
    return draw(count, positive_fraction)
