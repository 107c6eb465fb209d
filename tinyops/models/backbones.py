"""Backbones by name, and the weights that they begin with."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tinyops._files import MODEL, TRAINING, kind_of
from tinyops.models.checkpoint import read_model, refuse_other_files
from tinyops.models.detectors import IMAGENET_MEAN, IMAGENET_STD
from tinyops.nn import resnet
from tinyops.nn.timm_backbone import TimmBackbone, check_weights
from tinyops.nn.weights import load_weights

Recipe = Callable[..., Any]

BACKBONES: dict[str, Recipe] = {
    "resnet18": resnet.resnet18,
    "resnet50": resnet.resnet50,
    "resnet101": resnet.resnet101,
    "resnext101": resnet.resnext101,
    "bh_resnet50": resnet.bh_resnet50,
    "resnet_nano": resnet.resnet_nano,
    "bh_resnet_nano": resnet.bh_resnet_nano,
    "bh_resnet_fine": resnet.bh_resnet_fine,
}
TIMM = "timm:"
CLASSIFIER = "classifier_"  # and the name of a backbone: the name of its classifier
HIDDEN = ("weights", "norm_layer", "refiner")  # keyword arguments that are no overrides


def make_backbone(
    name: str,
    weights: str | Path | None,
    settings: Mapping[str, Any],
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> nn.Module:
    """A backbone with weights.

    Args:
        name: in BACKBONES, or "timm:" and any model of timm.
        weights: "imagenet" (a download); the folder of a run of `tinyops pretrain`, or a model or
            state of it; a file that `tinyops.nn.weights.read_weights` reads, for timm's models one
            with the names of timm; None: random ones.
        settings: keyword arguments of the backbone.
        mean: that images are normalised with, and so is std.
        std: likewise.

    Raises:
        FileNotFoundError: if there is no model in the folder.
        ValueError: naming the file and what differs, if its weights are not, one for one, those of
            this backbone, or were made for images that were normalised in another way.
    """
    make = maker(name)
    path = Path(weights or "imagenet")
    if not path.is_dir() and not (path.is_file() and kind_of(path) in (MODEL, TRAINING)):
        model: nn.Module = make(weights=weights, **settings)
        return model
    path, tensors, facts = read_model(path)
    if facts["name"] != CLASSIFIER + name:
        raise ValueError(f"{path}: expected a classifier with {name}, got {facts['name']}")
    arguments = facts["arguments"]
    for key, own, usual in (("mean", mean, IMAGENET_MEAN), ("std", std, IMAGENET_STD)):
        theirs = arguments.get(key, usual)
        if list(theirs) != list(own):
            raise ValueError(
                f"{path}: expected weights for images normalised with {key} {list(own)}, "
                f"got {list(theirs)}; {key} can be overridden"
            )
    body = "backbone."
    state = {key.removeprefix(body): x for key, x in tensors.items() if key.startswith(body)}
    known = keywords(make)
    try:
        refuse_other_files(facts["name"], arguments)
        there = make(**{key: value for key, value in arguments.items() if key in known})
        model = make(**settings, weights=state)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path}: {error}") from error
    # Networks with equal tensors can still differ, by a stride or a pooling.
    for theirs, ours in zip_longest(repr(there).splitlines(), repr(model).splitlines()):
        if theirs != ours:
            raise ValueError(
                f"{path}: expected weights of this backbone with the same settings, "
                f"got {str(theirs).strip()!r} where it has {str(ours).strip()!r}"
            )
    return model


def maker(name: str) -> Recipe:
    """What makes a backbone from keyword arguments."""
    return partial(_timm, name.removeprefix(TIMM)) if name.startswith(TIMM) else BACKBONES[name]


def _timm(
    name: str,
    *,
    weights: str | Path | Mapping[str, Tensor] | None = None,
    timm_options: Mapping[str, Any] | None = None,
) -> TimmBackbone:
    """A model of timm with its own weights ("imagenet"), given ones, those of a file, or none."""
    options = dict(timm_options or {})
    if name.startswith("hrnet"):  # the branches, not the wider maps of the classifier
        options = {"feature_location": ""} | options
    try:
        if isinstance(weights, (str, Path)) and weights != "imagenet":
            if not Path(weights).is_file():
                raise ValueError(f"weights must be 'imagenet', a file or None, got {weights!r}")
            check_weights(name, weights, **options)
            options["pretrained_cfg_overlay"] = {"file": str(weights)}
        is_given = isinstance(weights, Mapping)
        model = TimmBackbone(name, pretrained=weights is not None and not is_given, **options)
    except RuntimeError as error:  # of timm, for a name or weights
        raise ValueError(f"timm cannot make {name!r}: {error}") from error
    if isinstance(weights, Mapping):
        load_weights(model, weights, "the given state dict")
    return model


def share_out(
    settings: Mapping[str, Any], makers: Mapping[str, Recipe], name: str, *others: str
) -> dict[str, dict[str, Any]]:
    """Every setting to the part that has a keyword argument of this name; `others` are taken."""
    shares: dict[str, dict[str, Any]] = {part: {} for part in makers}
    owners = {keyword: part for part, make in makers.items() for keyword in keywords(make)}
    for keyword, value in settings.items():
        if keyword not in owners:
            words = ", ".join(sorted({*owners, *others}))
            raise ValueError(f"overrides of {name} must be among {words}; got {keyword!r}")
        shares[owners[keyword]][keyword] = value
    return shares


def keywords(make: Recipe) -> list[str]:
    """The keyword arguments of a part that are settings."""
    parameters = inspect.signature(make).parameters
    found = [
        keyword
        for keyword, parameter in parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and keyword not in HIDDEN
    ]
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):  # a factory of ResNets
        found += keywords(resnet.ResNet)
    return found
