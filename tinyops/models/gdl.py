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

from typing import Any, cast

from torch import nn

from tinyops.models.detectors import TwoStageDetector
from tinyops.models.gdl_detectors import CropGDL, FeatureGDL, GDLDetector, Weights
from tinyops.nn.discriminator import SLOPE, Discriminator
from tinyops.nn.generator import Generator
from tinyops.nn.roi import RoIHeads
from tinyops.nn.sampling import RandomSampler


def extend(
    detector: TwoStageDetector,
    *,
    mode: str = "crop",
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
) -> GDLDetector:
    """Faster R-CNN that restores small objects, or features, with a generator.

    Args:
        detector: whose parts are taken; its second stage must be `RoIHeads`.
        mode: what is restored: "crop", see `CropGDL`, or "feature", see `FeatureGDL`: then images
            are enlarged twice as much as the detector does.
        crop_size: height and width of a crop at low resolution. This, all down to `upscale`, and
            the discriminator's are for crops alone.
        crop_context: sides of a crop / sides of the box.
        crop_samples: crops per image that generator and discriminator learn from, up to a quarter
            of them with objects.
        crops: per image at most, in evaluation.
        small: boxes with a shorter side than this, in pixels, are restored in evaluation.
        upscale: of crops; features are always enlarged by 2.
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

    Raises:
        ValueError: for settings out of range, and another second stage.
    """
    heads = detector.roi_heads
    if not isinstance(heads, RoIHeads):
        raise ValueError(f"detector must have RoIHeads, got {type(heads).__name__}")
    if mode not in ("crop", "feature"):
        raise ValueError(f"mode must be 'crop' or 'feature', got {mode!r}")
    weights = Weights(
        mse_weight, tv_weight, adversarial_weight, class_weight, box_weight, saturating
    )
    parts = detector.backbone, detector.neck, detector.rpn, heads
    facts: dict[str, Any] = {
        "num_classes": detector.num_classes,
        "mean": detector.mean,
        "std": detector.std,
    }
    body: dict[str, Any] = {
        "width": generator_width,
        "blocks": generator_blocks,
        "norms": generator_norms,
    }
    game = adversarial_weight > 0
    if mode == "feature":
        channels: int = cast("Any", detector.neck).channels
        return FeatureGDL(
            *parts,
            generator=Generator(channels, upscale=2, kernel=3, **body),
            critic=_critic(channels, heads.pool.size, heads.head.fc_cls.in_features)
            if game
            else None,
            weights=weights,
            scale=2 * detector.scale,
            **facts,
        )
    return CropGDL(
        *parts,
        generator=Generator(upscale=upscale, **body),
        discriminator=Discriminator(
            3,
            upscale * crop_size,
            detector.num_classes,
            width=discriminator_width,
            hidden=discriminator_hidden,
            class_agnostic=heads.head.class_agnostic,
            realness=game,
        ),
        weights=weights,
        sampler=RandomSampler(crop_samples, 0.25),
        size=crop_size,
        context=crop_context,
        small=small,
        most=crops,
        scale=detector.scale,
        **facts,
    )


def _critic(channels: int, size: int, hidden: int) -> nn.Module:
    """Pooled features [S, channels, size, size] -> logits [S] of being real."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * size * size, hidden),
        nn.LeakyReLU(SLOPE),
        nn.Linear(hidden, 1),
        nn.Flatten(0),
    )
