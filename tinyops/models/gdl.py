"""GDL: small object detection by generative and discriminative learning (Gu et al., ICPR 2020).

A generator restores what small objects have lost; a discriminator finds class and box in what it
restored, and its gradients teach the generator.

The published numbers, on COCO, as the slides print them, not measured here (AP, AP50, AP75, and AP
of small, medium and large objects):

    ResNet-50        34.8  55.2  37.6  23.5  44.2  35.7
    ResNet-50-FPN    37.3  58.0  40.6  28.4  44.2  36.4
    ResNet-101       37.9  58.0  40.7  26.3  47.5  40.4
    ResNet-101-FPN   39.2  59.7  43.0  28.8  46.8  38.8

    Faster R-CNN     34.2  55.0  36.4  20.0  37.5  43.9   (their baseline, ResNet-50-FPN)

and their ablation with ResNet-50-FPN:

    all of it        35.1  55.9  38.0  23.7  38.7  28.6
    without L_adv    35.2  56.2  37.9  23.9  39.1  28.5
    without L_cls    35.1  55.9  38.0   5.2  14.6  31.0
    without all      35.7  56.8  38.4  15.1  30.0  35.3

So L_adv is worth nothing, and is off by default; that the loss of the classes reaches the generator
is what decides. AP of small objects rises by 8 to 9, that of large ones falls by 7, and by the
ablation AP falls by 0.6. The two tables disagree about the same model (37.3 and 35.1), which the
slides do not explain.

Only the slides are public. They have the losses (see `tinyops.nn.gdl`), not the networks, the
weights of the losses, the regions, nor the training, all of which are our reading.
"""

from collections.abc import Sequence

from torch import nn

from tinyops.models.detectors import IMAGENET_MEAN, IMAGENET_STD
from tinyops.models.gdl_detectors import CropGDL, GDLDetector, Weights
from tinyops.models.recipes import Neck, faster_rcnn
from tinyops.nn.discriminator import Discriminator
from tinyops.nn.generator import Generator
from tinyops.nn.sampling import RandomSampler


def faster_rcnn_gdl(
    backbone: nn.Module,
    neck: Neck,
    num_classes: int,
    *,
    refiner: nn.Module | None = None,
    crop_size: int = 32,
    crop_context: float = 1.5,
    crop_samples: int = 64,
    crops: int = 100,
    small: float = 32.0,
    upscale: int = 4,
    generator_width: int = 64,
    generator_blocks: int = 8,
    generator_norms: bool = False,
    discriminator_width: int = 64,
    discriminator_hidden: int = 1024,
    mse_weight: float = 1.0,
    tv_weight: float = 1e-4,
    adversarial_weight: float = 0.0,
    class_weight: float = 1.0,
    box_weight: float = 1.0,
    saturating: bool = False,
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
    scale: float = 1.0,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> GDLDetector:
    """Faster R-CNN that restores small objects before it looks at them again. See the module.

    Args:
        backbone: of the detector, and so is the neck.
        neck: levels of strides 4 to 64, say.
        num_classes: objects only.
        refiner: of the levels, see `Detector`.
        crop_size: height and width of a crop at low resolution; see `CropGDL`.
        crop_context: sides of a crop / sides of the box.
        crop_samples: crops per image that generator and discriminator learn from, up to a quarter
            of them with objects.
        crops: per image at most, in evaluation.
        small: boxes with a shorter side than this, in pixels, are restored in evaluation.
        upscale: of the generator.
        generator_width: channels; see `Generator`.
        generator_blocks: residual blocks.
        generator_norms: with batch norms.
        discriminator_width: channels of the first convolution; see `Discriminator`.
        discriminator_hidden: width of the linear layer.
        mse_weight: of the losses, and so are the next four; see `Weights`.
        tv_weight: of the total variation.
        adversarial_weight: alpha; SRGAN's is 0.001.
        class_weight: beta.
        box_weight: gamma.
        saturating: L_adv as printed.
        anchor_scales: as in `faster_rcnn`, and so is all that follows.
        anchor_ratios: height / width.
        weighted_negatives: hard anchors are drawn more often.
        nms: how duplicates are suppressed.
        nms_threshold: overlap above which they are.
        max_per_image: detections.
        score_threshold: detections have a greater score.
        head_channels: width of the linear layers of the second stage.
        rpn_samples: anchors per image that the first stage learns from.
        samples: proposals per image that the second stage learns from.
        weighted_proposals: hard proposals are drawn more often.
        pre_nms: anchors of every level that become boxes, in training and in evaluation.
        proposals: at most so many per image, likewise.
        scale: of the images, see `Detector`; mean and std, too.
        mean: of the channels.
        std: of the channels.

    Raises:
        ValueError: for settings out of range.
    """
    base = faster_rcnn(
        backbone,
        neck,
        num_classes,
        refiner=refiner,
        anchor_scales=anchor_scales,
        anchor_ratios=anchor_ratios,
        weighted_negatives=weighted_negatives,
        nms=nms,
        nms_threshold=nms_threshold,
        max_per_image=max_per_image,
        score_threshold=score_threshold,
        head_channels=head_channels,
        rpn_samples=rpn_samples,
        samples=samples,
        weighted_proposals=weighted_proposals,
        pre_nms=pre_nms,
        proposals=proposals,
    )
    weights = Weights(
        mse_weight, tv_weight, adversarial_weight, class_weight, box_weight, saturating
    )
    generator = Generator(
        3,
        width=generator_width,
        blocks=generator_blocks,
        upscale=upscale,
        norms=generator_norms,
    )
    discriminator = Discriminator(
        3,
        upscale * crop_size,
        num_classes,
        width=discriminator_width,
        hidden=discriminator_hidden,
        realness=adversarial_weight > 0,
    )
    return CropGDL(
        backbone,
        neck,
        base.rpn,
        base.roi_heads,
        generator=generator,
        discriminator=discriminator,
        weights=weights,
        sampler=RandomSampler(crop_samples, 0.25),
        size=crop_size,
        context=crop_context,
        small=small,
        most=crops,
        refiner=refiner,
        num_classes=num_classes,
        mean=mean,
        std=std,
        scale=scale,
    )
