"""Classifiers, from which detectors take their backbones."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyops.models.backbones import (
    BACKBONES,
    CLASSIFIER,
    TIMM,
    make_backbone,
    maker,
    share_out,
)
from tinyops.models.detectors import IMAGENET_MEAN, IMAGENET_STD


class Classifier(nn.Module):
    """A backbone, global average pooling and a linear layer.

    `model(images, labels)` in training gives a dict with the loss, `model(images)` in evaluation
    the logits [N, num_classes].

    Args:
        backbone: pixels [N, 3, H, W] -> levels; it has their `channels`.
        num_classes: labels are 0..num_classes-1.
        pool: "last", the level of the greatest stride, or "all": every level is pooled, for
            backbones whose levels are branches that run side by side (HRNet).
        mean: of the three channels of images in 0..1; by default those of the detectors.
        std: likewise; the network sees (image - mean) / std.

    Raises:
        ValueError: for settings out of range.
    """

    mean: Tensor
    std: Tensor
    recipe: dict[str, Any]  # the arguments of `create_classifier`, if that made the model

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        pool: str = "last",
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        if pool not in ("last", "all"):
            raise ValueError(f"pool must be 'last' or 'all', got {pool!r}")
        if not (_are_three(mean) and _are_three(std) and min(std) > 0):
            raise ValueError(f"mean and std must be 3 numbers, std above 0, got {mean} and {std}")
        self.backbone = backbone
        self.num_classes = num_classes
        self.first = 0 if pool == "all" else -1
        channels: Any = backbone.channels
        self.head = nn.Linear(sum(channels[self.first :]), num_classes)
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        """The loss in training, logits in evaluation.

        Args:
            images: [N, 3, H, W], floats in 0..1 or uint8 in 0..255.
            labels: [N] int64 in 0..num_classes-1; needed in training, not looked at in evaluation.

        Raises:
            ValueError: where images have another shape, or labels are missing.
        """
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be [N, 3, H, W], got {list(images.shape)}")
        if not images.is_floating_point():
            images = images.to(self.mean.dtype) / 255
        levels = self.backbone((images - self.mean) / self.std)
        pooled = torch.cat([x.mean((2, 3)) for x in levels[self.first :]], 1)  # [N, channels]
        logits: Tensor = self.head(pooled)
        if not self.training:
            return logits
        if labels is None:
            raise ValueError("labels must be given in training, got None")
        return {"cross_entropy": F.cross_entropy(logits.float(), labels)}


def _are_three(values: Any) -> bool:
    return (
        isinstance(values, Sequence)
        and len(values) == 3
        and all(isinstance(x, (int, float)) and math.isfinite(x) for x in values)
    )


def create_classifier(
    name: str, num_classes: int, weights: str | Path | None = None, **overrides: Any
) -> Classifier:
    """A classifier whose backbone is, in every setting, that of the detectors.

    So the stem is that of the backbone, too: with 32 x 32 pixels the last level of most is one
    cell. That is how BH-ResNet-50 and ResNet-50 are compared by Ning et al., as far as they say.

    Args:
        name: "classifier_" and a backbone, as detectors have it: "classifier_bh_resnet50" or
            "classifier_timm:hrnet_w18".
        num_classes: labels are 0..num_classes-1.
        weights: of the backbone, to begin with; see `tinyops.models.backbones.make_backbone`.
            Nothing is frozen by default.
        overrides: settings of the backbone and of `Classifier`; pool is "all" for HRNets by
            default.

    Returns:
        The model; with its attribute `recipe`, `create_classifier(**recipe)` makes it anew. Files
        of it are loaded by `tinyops.models.load(path, build=create_classifier)`.

    Raises:
        ValueError: for an unknown name, override or value; weights that are not of this backbone.
    """
    backbone = name.removeprefix(CLASSIFIER)
    if backbone == name or not (backbone in BACKBONES or backbone.startswith(TIMM)):
        raise ValueError(
            f"name must be {CLASSIFIER!r} and one of {', '.join(BACKBONES)} or {TIMM}NAME, "
            f"got {name!r}"
        )
    try:
        recipe = json.loads(json.dumps({"name": name, "num_classes": num_classes, **overrides}))
    except TypeError as error:
        raise ValueError(f"overrides must be numbers, words or lists of them: {error}") from error
    settings = {"pool": "all" if "hrnet" in backbone else "last", **overrides}
    parts = share_out(settings, {"backbone": maker(backbone), "classifier": Classifier}, name)
    body, head = parts["backbone"], parts["classifier"]
    pixels = {key: head[key] for key in ("mean", "std") if key in head}
    if weights is not None and not backbone.startswith(TIMM):
        body = {"frozen_stages": 0, "norm_eval": False} | body
    model = Classifier(make_backbone(backbone, weights, body, **pixels), num_classes, **head)
    model.recipe = recipe
    return model
