"""Detectors by name: `<detector>_<neck or what the paper adds>_<backbone>`."""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyops.models import gdl, recipes
from tinyops.models.backbones import BACKBONES, TIMM, Recipe, make_backbone, maker, share_out
from tinyops.models.detectors import Detector
from tinyops.models.efpn import EFPNDetector
from tinyops.nn import resnet
from tinyops.nn.efpn import EFPN
from tinyops.nn.fpn import FPN
from tinyops.nn.srtod import SelfReconstruction
from tinyops.nn.sspnet import SSPNet


@dataclass(frozen=True)
class System:
    """What a backbone becomes.

    Attributes:
        detector: (backbone, neck, number of classes, refiner=, settings) -> the model.
        neck: (channels of the backbone, own channels, strides, settings) -> the neck.
        settings: what its paper changes, by the names of keyword arguments.
        refiner: (channels, strides of the neck, settings) -> the refiner, or None.
        extension: (what `detector` made, settings) -> the model, or None: that is the model.
        without: names of backbones that it cannot have.
    """

    detector: Recipe
    neck: Recipe
    settings: Mapping[str, Any]
    refiner: Recipe | None = None
    extension: Recipe | None = None
    without: tuple[str, ...] = ()


SYSTEMS: dict[str, System] = {
    "faster_rcnn_fpn": System(recipes.faster_rcnn, FPN, recipes.FPN_TWO_STAGE),
    "faster_rcnn_sspnet": System(recipes.faster_rcnn, SSPNet, recipes.SSPNET_TWO_STAGE),
    "cascade_rcnn_fpn": System(recipes.cascade_rcnn, FPN, recipes.FPN_TWO_STAGE),
    "cascade_rcnn_sspnet": System(recipes.cascade_rcnn, SSPNet, recipes.SSPNET_TWO_STAGE),
    "retinanet_fpn": System(recipes.retinanet, FPN, recipes.FPN_ONE_STAGE),
    "retinanet_sspnet": System(recipes.retinanet, SSPNet, recipes.SSPNET_ONE_STAGE),
    "faster_rcnn_srtod": System(
        recipes.faster_rcnn, FPN, recipes.SRTOD_TWO_STAGE, SelfReconstruction
    ),
    "cascade_rcnn_srtod": System(
        recipes.cascade_rcnn, FPN, recipes.SRTOD_TWO_STAGE, SelfReconstruction
    ),
    "retinanet_srtod": System(recipes.retinanet, FPN, recipes.SRTOD_ONE_STAGE, SelfReconstruction),
    "faster_rcnn_sspnet_srtod": System(
        recipes.faster_rcnn, SSPNet, recipes.SSPNET_TWO_STAGE, SelfReconstruction
    ),
    "cascade_rcnn_sspnet_srtod": System(
        recipes.cascade_rcnn, SSPNet, recipes.SSPNET_TWO_STAGE, SelfReconstruction
    ),
    "faster_rcnn_rfla": System(recipes.faster_rcnn, FPN, recipes.RFLA_TWO_STAGE),
    "cascade_rcnn_rfla": System(recipes.cascade_rcnn, FPN, recipes.RFLA_TWO_STAGE),
    "retinanet_rfla": System(recipes.retinanet, FPN, recipes.RFLA_ONE_STAGE),
    "faster_rcnn_rfla_srtod": System(
        recipes.faster_rcnn, FPN, recipes.RFLA_TWO_STAGE, SelfReconstruction
    ),
    "cascade_rcnn_rfla_srtod": System(
        recipes.cascade_rcnn, FPN, recipes.RFLA_TWO_STAGE, SelfReconstruction
    ),
    "faster_rcnn_efpn": System(
        recipes.faster_rcnn,
        EFPN,
        recipes.FPN_TWO_STAGE,
        extension=EFPNDetector.extend,
        without=("bh_resnet_fine",),
    ),
    "faster_rcnn_gdl": System(
        recipes.faster_rcnn, FPN, recipes.FPN_TWO_STAGE, extension=gdl.extend
    ),
}


def list_models() -> list[str]:
    """The names that `create` knows, besides those with `timm:` and the name of a timm model."""
    return [
        f"{name}_{backbone}"
        for name, system in SYSTEMS.items()
        for backbone in BACKBONES
        if backbone not in system.without
    ]


def create(
    name: str, num_classes: int = 1, weights: str | Path | None = None, **overrides: Any
) -> Detector:
    """A detector with the settings of its paper; which these are, see `tinyops.models.recipes`.

    Args:
        name: one of `list_models()`; or with `timm:` and any model of timm as the backbone:
            "faster_rcnn_fpn_timm:hrnet_w18".
        num_classes: objects only: labels are 1..num_classes.
        weights: of the backbone: "imagenet" (a download), a file, the folder of a run of
            `tinyops pretrain`, or None: random ones; see `tinyops.models.backbones.make_backbone`.
            With weights a ResNet is partly frozen by default, see `tinyops.nn.resnet`; a backbone
            of timm is not.
        overrides: settings of the backbone, the neck and the detector by the names of their
            keyword arguments, such as frozen_stages, dice, anchor_scales, and neck_channels. Values
            are numbers, words and lists. See `tinyops.models.recipes`.

    Returns:
        The model. Its attribute `recipe` is a dict of JSON values from which `create(**recipe)`
        makes it anew, with random weights; what weights freeze stays frozen.

    Raises:
        ValueError: for an unknown name, with the nearest known ones; an unknown override, with the
            known ones; a value that JSON does not know; weights that are not of this backbone.
    """
    system, backbone = _parse(name)
    try:
        recipe = json.loads(json.dumps({"name": name, "num_classes": num_classes, **overrides}))
    except TypeError as error:
        raise ValueError(f"overrides must be numbers, words or lists of them: {error}") from error
    settings = {**system.settings, **overrides}
    neck_channels = settings.pop("neck_channels", 256)
    makers = {"backbone": maker(backbone), "neck": system.neck, "detector": system.detector}
    makers |= {
        part: make
        for part in ("refiner", "extension")
        if (make := getattr(system, part)) is not None
    }
    parts = share_out(settings, makers, name, "neck_channels")
    pixels = {key: settings[key] for key in ("mean", "std") if key in settings}
    body = make_backbone(backbone, weights, parts["backbone"], **pixels)
    pyramid = system.neck(body.channels, neck_channels, body.strides, **parts["neck"])
    if system.refiner is not None:
        refiner = system.refiner(pyramid.channels, pyramid.strides, **parts["refiner"])
        parts["detector"]["refiner"] = refiner
    model: Detector = system.detector(body, pyramid, num_classes, **parts["detector"])
    if system.extension is not None:
        model = system.extension(model, **parts["extension"])
    if weights is not None and isinstance(body, resnet.ResNet):  # these follow from weights
        frozen = {"frozen_stages": body.frozen_stages, "norm_eval": body.norm_eval}
        recipe = {**recipe, **frozen}
    model.recipe = recipe
    return model


def _parse(name: str) -> tuple[System, str]:
    """System and backbone of a name."""
    for prefix, system in SYSTEMS.items():
        backbone = name.removeprefix(f"{prefix}_")
        if name != backbone and (backbone in BACKBONES or backbone.startswith(TIMM)):
            return system, backbone
    near = difflib.get_close_matches(name, list_models(), n=3, cutoff=0)
    raise ValueError(f"name must be one of list_models(), such as {', '.join(near)}; got {name!r}")
