"""Detectors by name: `<detector>_<neck>_<backbone>`."""

import difflib
import inspect
import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from tinyops.models import recipes
from tinyops.models.detectors import Detector
from tinyops.nn import resnet
from tinyops.nn.fpn import FPN
from tinyops.nn.sspnet import SSPNet
from tinyops.nn.timm_backbone import TimmBackbone

Recipe = Callable[..., Any]

DETECTORS: dict[str, Recipe] = {
    "faster_rcnn": recipes.faster_rcnn,
    "cascade_rcnn": recipes.cascade_rcnn,
    "retinanet": recipes.retinanet,
}
NECKS: dict[str, Recipe] = {"fpn": FPN, "sspnet": SSPNet}
BACKBONES: dict[str, Recipe] = {
    "resnet18": resnet.resnet18,
    "resnet50": resnet.resnet50,
    "resnet101": resnet.resnet101,
    "resnext101": resnet.resnext101,
    "bh_resnet50": resnet.bh_resnet50,
    "resnet_nano": resnet.resnet_nano,
    "bh_resnet_nano": resnet.bh_resnet_nano,
}
SETTINGS: dict[tuple[str, str], Mapping[str, Any]] = {
    ("faster_rcnn", "fpn"): recipes.FPN_TWO_STAGE,
    ("faster_rcnn", "sspnet"): recipes.SSPNET_TWO_STAGE,
    ("cascade_rcnn", "fpn"): recipes.FPN_TWO_STAGE,
    ("cascade_rcnn", "sspnet"): recipes.SSPNET_TWO_STAGE,
    ("retinanet", "fpn"): recipes.FPN_ONE_STAGE,
    ("retinanet", "sspnet"): recipes.SSPNET_ONE_STAGE,
}
TIMM = "timm:"


def list_models() -> list[str]:
    """The names that `create` knows, besides those with `timm:` and the name of a timm model."""
    return [f"{d}_{n}_{b}" for d in DETECTORS for n in NECKS for b in BACKBONES]


def create(
    name: str, num_classes: int = 1, weights: str | None = None, **overrides: Any
) -> Detector:
    """A detector with the settings of its paper.

    Args:
        name: one of `list_models()`; or with `timm:` and any model of timm as the backbone:
            "faster_rcnn_fpn_timm:hrnet_w18".
        num_classes: objects only: labels are 1..num_classes.
        weights: of the backbone, see `tinyops.nn.resnet`; None: random ones.
        overrides: settings of the backbone, the neck and the detector, by the names of their
            keyword arguments; see `tinyops.models.recipes`. Values are numbers, words, lists.

    Returns:
        The model. Its attribute `recipe` is a dict of JSON values from which `create(**recipe)`
        makes it anew, with random weights.

    Raises:
        ValueError: for an unknown name, with the nearest known ones; an unknown override, with the
            known ones; or a value that JSON does not know.
    """
    detector, neck, backbone = _parse(name)
    try:
        recipe = json.loads(json.dumps({"name": name, "num_classes": num_classes, **overrides}))
    except TypeError as error:
        raise ValueError(f"overrides must be numbers, words or lists of them: {error}") from error
    settings = {**SETTINGS[detector, neck], **overrides}
    parts = {"backbone": _backbone(backbone), "neck": NECKS[neck], "detector": DETECTORS[detector]}
    options = _share_out(settings, parts, name)
    body = parts["backbone"](weights=weights, **options["backbone"])
    pyramid = parts["neck"](body.channels, body.strides, **options["neck"])
    model: Detector = parts["detector"](body, pyramid, num_classes, **options["detector"])
    model.recipe = recipe
    return model


def _parse(name: str) -> tuple[str, str, str]:
    """Detector, neck and backbone of a name."""
    for detector, neck in SETTINGS:
        backbone = name.removeprefix(f"{detector}_{neck}_")
        if backbone != name and (backbone in BACKBONES or backbone.startswith(TIMM)):
            return detector, neck, backbone
    near = difflib.get_close_matches(name, list_models(), n=3, cutoff=0.3)
    raise ValueError(f"name must be one of list_models(), such as {', '.join(near)}; got {name!r}")


def _backbone(name: str) -> Recipe:
    if name.startswith(TIMM):
        return partial(TimmBackbone, name.removeprefix(TIMM))
    return BACKBONES[name]


def _share_out(
    settings: Mapping[str, Any], parts: Mapping[str, Recipe], name: str
) -> dict[str, dict[str, Any]]:
    """Every setting to the part that has a keyword argument of this name."""
    shares: dict[str, dict[str, Any]] = {part: {} for part in parts}
    known = {
        keyword: part
        for part, make in parts.items()
        for keyword, parameter in inspect.signature(make).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and keyword != "weights"
    }
    for keyword, value in settings.items():
        if keyword not in known:
            words = ", ".join(sorted(known))
            raise ValueError(f"overrides of {name} must be among {words}; got {keyword!r}")
        shares[known[keyword]][keyword] = value
    return shares
