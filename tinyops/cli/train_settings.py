"""The settings of `tinyops train`."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
import yaml

from tinyops.cli.training import InputError, check_ranges
from tinyops.config import load_yaml, parse_yaml
from tinyops.data.formats import Format
from tinyops.evaluation.tinyperson import BANDS, THRESHOLDS

_PROGRAM = "tinyops train"
# Name -> (band, threshold), as `sized_ap` has it.
METRICS = {f"ap{round(100 * t)}_{band}": (band, t) for t in THRESHOLDS for band in BANDS}
# What the result does not depend on, so that it may change when a training is resumed.
# (A training with empty boxes has not begun unless they are dropped.)
FREE = ("out", "drop_empty_boxes", "workers", "device", "save_every", "tensorboard", "fresh")


def _overrides(words: Sequence[str]) -> dict[str, Any]:
    """Settings from words such as neck_channels=64."""
    result = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not (key and equals):
            raise ValueError(f"override must be NAME=VALUE, got {word!r}")
        try:
            result[key] = parse_yaml(value)
        except yaml.YAMLError:
            raise ValueError(f"override {key} must be a value of YAML, got {value!r}") from None
    return result


OVERRIDES = tyro.constructors.PrimitiveConstructorSpec(
    nargs="*",
    metavar="NAME=VALUE",
    instance_from_str=_overrides,
    is_instance=lambda value: isinstance(value, dict),
    str_from_instance=lambda value: [f"{k}={json.dumps(v)}" for k, v in value.items()],
)


@dataclass
class Train:
    """The settings of a training. Defaults are SSPNet's released ones where it has any."""

    annotations: Path
    """File or folder of the training set, in any format that `tinyops data convert` reads."""
    out: Path
    """Folder of the run: config.yaml, last.safetensors, best.safetensors, log.jsonl, *.csv."""
    images: Path | None = None
    """Folder that its file names refer to; needed for COCO. None: where the format has it."""
    format: Format | None = None
    """Of the sets; None: what lies there tells."""
    split: str | None = None
    """Such as train, where annotations has several."""
    val_annotations: Path | None = None
    """File or folder of the validation set; None: no validation, and no best model."""
    val_images: Path | None = None
    """Folder that its file names refer to; None: images."""
    val_split: str | None = None
    """Such as val, where val_annotations has several."""
    drop_empty_boxes: bool = False
    """Leave out boxes without area, which are errors otherwise."""

    model: str = "faster_rcnn_sspnet_resnet50"
    """A name that tinyops.models.create knows."""
    override: Annotated[dict[str, Any], OVERRIDES] = field(default_factory=dict)
    """Settings of the model in YAML, such as neck_channels=64 "anchor_scales=[2, 4]"."""
    weights: str | None = None
    """Of the backbone: imagenet (a download), the folder of a run of `tinyops pretrain`, a file of
    tensors as torchvision, timm and mmpretrain write them, or None: random ones."""
    start: Path | None = None
    """A model, or the folder of a run, to begin with: all its tensors that fit are taken."""

    tile: tuple[int, int] = (640, 512)
    """Width and height in pixels of the tiles that images are cut into."""
    overlap: int = 30
    """Pixels that neighbouring tiles share."""
    keep_empty: bool = True
    """Train on tiles without objects, too."""
    repeat_small: int = 1
    """How often every epoch has each tile with an object of up to 32 px (Kisantal et al.: 3)."""
    augment: Literal["none", "simple", "sspnet"] = "simple"
    """simple: flip and colours. sspnet: the released pipeline with scales of 1 to 1.5."""
    copy_paste: int = 0
    """Copies of each small object of a tile, pasted elsewhere in it (Kisantal et al.)."""
    copy_paste_bank: int = 0
    """Small objects of other images, pasted into each tile."""
    scale_match: Path | None = None
    """Data set with objects of the sizes that tiles are resized to (Scale Match), such as
    TinyPerson's for a training on COCO."""
    monotone: bool = False
    """Monotone Scale Match, which draws nothing."""

    batch: int = 4
    """Tiles of a step, in all parts and processes together."""
    parts: int = 1
    """Parts of a batch, one after the other, where memory does not suffice."""
    epochs: float = 12
    """How often every tile is seen."""
    steps: int | None = None
    """Length of the training in steps, instead of epochs."""
    phase_steps: tuple[int, ...] = ()
    """Of a model that is trained in phases, the steps of each; none given: all have `steps`. 0: the
    phase is left out, for a start that has it behind it."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd has a momentum of 0.9."""
    lr: float | None = None
    """Learning rate; None: 0.002 * batch with sgd (SSPNet: 0.002 at batch 1), 1e-4 with adamw."""
    weight_decay: float = 1e-4
    """Of all parameters; see decay_all."""
    decay_all: bool = True
    """Off: norms and biases do not decay."""
    schedule: Literal["steps", "cosine"] = "steps"
    """steps: the rate falls tenfold at each milestone."""
    milestones: tuple[float, ...] = (8, 11)
    """Epochs."""
    warmup: int = 500
    """Steps in which the rate rises linearly from a thousandth."""
    clip: float | None = None
    """Largest norm of the gradients."""
    amp: Literal["none", "bf16", "fp16"] = "none"
    """Mixed precision."""
    ema: float | None = None
    """Decay of a moving average of the model, such as 0.999; it is what is validated and kept."""
    channels_last: bool = False
    """Memory layout of the weights; faster on GPUs, above all with amp."""
    seed: int = 0
    """Of everything that is random."""

    val_batch: int = 4
    """Tiles that the model sees at once in validation."""
    val_every: int = 1
    """Epochs between two validations."""
    best: str = "ap50_tiny"
    """What the best model is chosen by: ap<25, 50 or 75>_<band>, with the bands of TinyPerson."""
    max_detections: int = 200
    """Per image and class in validation."""

    workers: int = 2
    """Processes that load images, for each process that trains."""
    device: str = "auto"
    """auto: a GPU if there is one; or cpu, cuda, cuda:1."""
    save_every: int = 500
    """Steps between two states on disk, besides those at the end of every epoch."""
    tensorboard: bool = False
    """Write events for TensorBoard."""
    fresh: bool = False
    """Start anew even if there is a state to go on from, which is then overwritten."""

    def check(self) -> None:
        """Raise ValueError for a value out of range."""
        counts = ["batch", "parts", "val_batch", "val_every", "max_detections", "save_every"]
        counts += ["repeat_small"]
        least_0 = ("warmup", "workers", "weight_decay", "seed", "copy_paste", "copy_paste_bank")
        check_ranges(self, dict.fromkeys(counts, 1) | dict.fromkeys(least_0, 0))
        if self.phase_steps and (min(self.phase_steps) < 0 or self.phase_steps[-1] < 1):
            raise ValueError(
                f"phase_steps must be at least 0, and the last 1, got {self.phase_steps}"
            )
        if self.best not in METRICS:
            raise ValueError(f"best must be one of {', '.join(METRICS)}, got {self.best!r}")


def parse(
    arguments: Sequence[str],
    description: str | None = None,
    kind: type[Any] = Train,
    program: str = _PROGRAM,
) -> Any:
    """The settings of a command line.

    Args:
        arguments: of the command.
        description: for its help.
        kind: of the settings; they have `override` and `check`.
        program: for the help.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path)
    first.add_argument("--override", nargs="*", action="append")  # tyro would take the last alone
    known, rest = first.parse_known_args(list(arguments))
    words = [word for group in known.override or () for word in group]
    try:
        override = _overrides(words)
        if known.config is None:
            settings = tyro.cli(kind, prog=program, description=description, args=rest)
        else:
            given = load_yaml(kind, known.config, missing=tyro.MISSING)
            settings = tyro.cli(
                kind, prog=program, description=description, args=rest, default=given
            )
        settings = replace(settings, override={**settings.override, **override})
        settings.check()
    except (ValueError, OSError) as error:
        raise InputError(error) from error
    return settings
