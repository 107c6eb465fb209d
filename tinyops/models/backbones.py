"""Backbones by name, and the weights that they begin with."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from torch import Tensor

from tinyops._files import MODEL, TRAINING, kind_of
from tinyops.models.checkpoint import read_model, refuse_other_files
from tinyops.models.detectors import IMAGENET_MEAN, IMAGENET_STD
from tinyops.nn import resnet
from tinyops.nn.timm_backbone import TimmBackbone, read_timm_weights
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
) -> Any:
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
    if weights in (None, "imagenet", "imagenet_v2") or not _is_run(Path(weights)):
        return make(weights=weights, **settings)
    path, tensors, facts = read_model(weights)
    try:
        return _of_classifier(make, name, settings, tensors, facts, {"mean": mean, "std": std})
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _is_run(path: Path) -> bool:
    return path.is_dir() or (path.is_file() and kind_of(path) in (MODEL, TRAINING))


def _of_classifier(
    make: Recipe,
    name: str,
    settings: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    pixels: Mapping[str, Sequence[float]],
) -> Any:
    """A backbone with the weights of a classifier that has the same one."""
    if facts.get("name") != CLASSIFIER + name:
        raise ValueError(f"expected a classifier with {name}, got {facts.get('name')}")
    arguments = facts["arguments"]
    refuse_other_files(facts["name"], arguments)
    for key, usual in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
        theirs, ours = list(arguments.get(key, usual)), list(pixels[key])
        if theirs != ours:
            raise ValueError(
                f"expected weights for images normalised with {key} {ours}, got {theirs}; "
                f"{key} can be overridden"
            )
    known, body = keywords(make), "backbone."
    there = make(**{key: value for key, value in arguments.items() if key in known})
    state = {key.removeprefix(body): x for key, x in tensors.items() if key.startswith(body)}
    model = make(**settings, weights=state)
    # Networks with equal tensors can still differ, by a stride or a pooling.
    for old, new in zip_longest(repr(there).splitlines(), repr(model).splitlines()):
        if old != new:
            raise ValueError(
                f"expected weights of this backbone with the same settings, "
                f"got {str(old).strip()!r} where it has {str(new).strip()!r}"
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
            state = read_timm_weights(name, weights, **options)
            options["pretrained_cfg_overlay"] = {"state_dict": state}
        is_given = isinstance(weights, Mapping)
        model = TimmBackbone(name, pretrained=weights is not None and not is_given, **options)
    except RuntimeError as error:  # of timm, for a name or weights
        raise ValueError(f"timm cannot make {name!r}: {error}") from error
    for module in model.modules():  # timm would keep the tensors of the file
        if isinstance(kept := getattr(module, "pretrained_cfg", None), dict):
            kept.pop("state_dict", None)
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
