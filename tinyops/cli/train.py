"""Train a detector on a data set in COCO form.

--config FILE reads the settings from a YAML file, such as the config.yaml of another run; what is
given on the command line wins. The same command again goes on with a training that was interrupted.
`torchrun --nproc-per-node N -m tinyops train ...` trains with N processes, which share each batch.
"""

import argparse
import functools
import gc
import importlib.util
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
import tyro
import yaml
from rich.console import Console

from tinyops.cli.device import choose_device
from tinyops.config import dump_yaml, load_yaml, parse_yaml, to_plain
from tinyops.data.coco import CocoSet, read_coco
from tinyops.data.dataset import CocoTiles, Transform, check_headers
from tinyops.data.transforms import simple_augmentation, sspnet_augmentation
from tinyops.evaluation.sized_ap import TINYPERSON_BANDS, sized_ap
from tinyops.models import Detector, create
from tinyops.models.checkpoint import describe
from tinyops.models.phases import PhasedDetector
from tinyops.train import (
    Order,
    Schedule,
    StateError,
    Training,
    evaluate,
    fit,
    make_optimizer,
    process_group,
)

_PROGRAM = "tinyops train"
THRESHOLDS = (0.25, 0.5, 0.75)
# Name -> (band, threshold), as `sized_ap` has it.
METRICS = {f"ap{round(100 * t)}_{band}": (band, t) for t in THRESHOLDS for band in TINYPERSON_BANDS}
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


_OVERRIDES = tyro.constructors.PrimitiveConstructorSpec(
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
    """COCO json of the training images."""
    images: Path
    """Folder that its file names refer to."""
    out: Path
    """Folder of the run: config.yaml, last.safetensors, best.safetensors, log.jsonl, *.csv."""
    val_annotations: Path | None = None
    """COCO json of the validation images; None: no validation, and no best model."""
    val_images: Path | None = None
    """Folder that its file names refer to; None: that of the training images."""
    drop_empty_boxes: bool = False
    """Leave out boxes without area, which are errors otherwise."""

    model: str = "faster_rcnn_sspnet_resnet50"
    """A name that tinyops.models.create knows."""
    override: Annotated[dict[str, Any], _OVERRIDES] = field(default_factory=dict)
    """Settings of the model in YAML, such as neck_channels=64 "anchor_scales=[2, 4]"."""
    weights: str | None = None
    """Of the backbone: imagenet (a download), a file, or None: random ones."""

    tile: tuple[int, int] = (640, 512)
    """Width and height in pixels of the tiles that images are cut into."""
    overlap: int = 30
    """Pixels that neighbouring tiles share."""
    keep_empty: bool = True
    """Train on tiles without objects, too."""
    augment: Literal["none", "simple", "sspnet"] = "simple"
    """simple: flip and colours. sspnet: the released pipeline with scales of 1 to 1.5."""

    batch: int = 4
    """Tiles of a step, in all parts and processes together."""
    parts: int = 1
    """Parts of a batch, one after the other, where memory does not suffice."""
    epochs: float = 12
    """How often every tile is seen."""
    steps: int | None = None
    """Length of the training in steps, instead of epochs."""
    phase_steps: tuple[int, ...] = ()
    """Of a model that is trained in phases, the steps of each; none given: all have `steps`."""
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
        counts = ("batch", "parts", "val_batch", "val_every", "max_detections", "save_every")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("warmup", "workers", "weight_decay", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("lr", "clip", "epochs", "steps"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be above 0 and finite, got {value}")
        if any(steps < 1 for steps in self.phase_steps):
            raise ValueError(f"phase_steps must be at least 1, got {self.phase_steps}")
        if self.batch % self.parts:
            raise ValueError(f"batch must be a multiple of parts, {self.parts}, got {self.batch}")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise ValueError(f"ema must be in [0, 1), got {self.ema}")
        if self.best not in METRICS:
            raise ValueError(f"best must be one of {', '.join(METRICS)}, got {self.best!r}")


def main(arguments: Sequence[str]) -> int:
    """Run `tinyops train <arguments>`; returns the exit code."""
    try:
        settings = parse(arguments)
        return run(settings)
    except (_InputError, StateError) as error:  # the caller's mistakes: one line, no traceback
        return _fail(error, 2)
    except FloatingPointError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return _fail("interrupted; the same command without --fresh goes on", 130)


class _InputError(Exception):
    """A mistake in what the caller gave."""


def _fail(error: object, code: int) -> int:
    number = f" (process {os.environ['RANK']})" if "RANK" in os.environ else ""
    print(f"tinyops train{number}: {error}", file=sys.stderr)
    return code


def parse(arguments: Sequence[str]) -> Train:
    """The settings of a command line."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path)
    first.add_argument("--override", nargs="*", action="append")  # tyro would take the last alone
    known, rest = first.parse_known_args(list(arguments))
    words = [word for group in known.override or () for word in group]
    try:
        override = _overrides(words)
        if known.config is None:
            settings = tyro.cli(Train, prog=_PROGRAM, description=__doc__, args=rest)
        else:
            given = load_yaml(Train, known.config, missing=tyro.MISSING)
            settings = tyro.cli(Train, prog=_PROGRAM, description=__doc__, args=rest, default=given)
        settings = replace(settings, override={**settings.override, **override})
        settings.check()
    except (ValueError, OSError) as error:
        raise _InputError(error) from error
    return settings


def run(settings: Train) -> int:
    """The `train` command."""
    try:
        wanted = choose_device(settings.device)
        if settings.tensorboard and importlib.util.find_spec("tensorboard") is None:
            raise ValueError('tensorboard needs the package: pip install "tinyops[log]"')
    except ValueError as error:
        raise _InputError(error) from error
    with process_group(wanted) as device:
        return _train(settings, device)


def _train(settings: Train, device: torch.device) -> int:
    console = Console()
    is_first = os.environ.get("RANK", "0") == "0"
    try:
        data, tiles, val = _data(settings)
        torch.manual_seed(settings.seed)
        model = _model(settings, len(data.classes))
        phases = _phases(model, settings, len(tiles))
        for phase in phases:
            Order(
                len(tiles), settings.batch, parts=settings.parts, last=phase.steps
            )  # to share out
        states = [phase.folder / "last.safetensors" for phase in phases]
        settings.out.mkdir(parents=True, exist_ok=True)
        if is_first and (settings.fresh or not any(path.is_file() for path in states)):
            dump_yaml(replace(settings, fresh=False), settings.out / "config.yaml")
        if is_first and settings.fresh:  # of later phases, too
            for path in states:
                path.unlink(missing_ok=True)
    except (ValueError, OSError) as error:
        raise _InputError(error) from error
    if is_first:
        size = sum(p.numel() for p in model.parameters())
        console.print(
            f"{settings.model}: {size:,} parameters, {len(data.classes)} classes; "
            f"{len(data.images):,} images, {len(tiles):,} tiles; "
            f"{sum(phase.steps for phase in phases):,} steps at a rate of {_rate(settings):g} "
            f"on {device}",
            highlight=False,
            soft_wrap=True,
        )
    measure = None
    if val is not None:
        measure = functools.partial(
            evaluate,
            tiles=val,
            iou_thresholds=THRESHOLDS,
            max_detections=settings.max_detections,
            batch=settings.val_batch,
            workers=settings.workers,
            device=device,
            amp=settings.amp,
        )
    configuration = {k: v for k, v in to_plain(settings).items() if k not in FREE}
    for number, phase in enumerate(phases, 1):
        if isinstance(model, PhasedDetector):
            model.set_phase(phase.name)
            if is_first:
                console.print(f"phase {number} of {len(phases)}: {phase.name}, {phase.steps} steps")
        training = _training(model, settings, phase.steps, len(tiles), device)
        fit(
            training,
            tiles,
            phase.folder,
            steps=phase.steps,
            batch=settings.batch,
            description=describe(model, data.classes),
            configuration={**configuration, "tiles": len(tiles)},
            parts=settings.parts,
            workers=settings.workers,
            measure=measure,
            best=settings.best,
            measure_every=settings.val_every,
            save_every=settings.save_every,
            resume=not settings.fresh,
            tensorboard=settings.tensorboard,
            console=console,
        )
        model.load_state_dict(training.result.state_dict())  # the next phase begins with it
        del training
        gc.collect()  # its hooks on the parameters would count gradients of the next phase
    return 0


class _Phase(NamedTuple):
    """A training in a row of them."""

    name: str
    folder: Path
    steps: int


def _phases(model: Detector, settings: Train, tiles: int) -> list[_Phase]:
    """The last phase has the folder of the run itself."""
    steps = settings.steps or math.ceil(settings.epochs * tiles / settings.batch)
    names = model.phases if isinstance(model, PhasedDetector) else ("",)
    lengths = settings.phase_steps or (steps,) * len(names)
    if len(lengths) != len(names):
        raise ValueError(
            f"phase_steps must be one for each phase of {settings.model}, "
            f"{', '.join(names) if names[0] else 'which has one'}; got {lengths}"
        )
    folders = [settings.out / f"phase{k + 1}_{name}" for k, name in enumerate(names[:-1])]
    return list(map(_Phase, names, [*folders, settings.out], lengths))


def _training(
    model: Detector, settings: Train, steps: int, tiles: int, device: torch.device
) -> Training:
    try:
        optimizer = make_optimizer(
            model,
            settings.optimizer,
            weight_decay=settings.weight_decay,
            decay_all=settings.decay_all,
        )
    except ValueError as error:  # nothing learns
        raise _InputError(error) from error
    return Training(
        model,
        optimizer,
        _schedule(settings, tiles, steps),
        device=device,
        amp=settings.amp,
        average_decay=settings.ema,
        clip=settings.clip,
        channels_last=settings.channels_last,
        seed=settings.seed,
    )


def _data(settings: Train) -> tuple[CocoSet, CocoTiles, CocoTiles | None]:
    """The training set, its tiles, and those of validation."""
    read = functools.partial(read_coco, drop_empty_boxes=settings.drop_empty_boxes)
    data = read(settings.annotations, settings.images)
    check_headers(data.images)
    tiles = CocoTiles(
        data,
        tile=settings.tile,
        overlap=settings.overlap,
        keep_empty=settings.keep_empty,
        transform=_transform(settings),
        seed=settings.seed,
    )
    if len(tiles) == 0:
        raise ValueError(f"{settings.annotations}: expected tiles to train on, got none")
    if settings.val_annotations is None:
        return data, tiles, None
    other = read(settings.val_annotations, settings.val_images or settings.images)
    check_headers(other.images)
    if (other.classes, other.category_ids) != (data.classes, data.category_ids):
        raise ValueError(
            f"{settings.val_annotations}: expected the categories of {settings.annotations}, "
            f"{data.classes}, got {other.classes}"
        )
    # The AP of nothing is -1, whatever the model: the first model would stay the best.
    band, threshold = METRICS[settings.best]
    bands = {band: TINYPERSON_BANDS[band]}
    if (
        sized_ap(other.ground_truth, [], bands=bands, iou_thresholds=[threshold])[band, threshold]
        < 0
    ):
        raise ValueError(
            f"{settings.val_annotations}: best is {settings.best}, "
            "but there is no object of its size"
        )
    return data, tiles, CocoTiles(other, tile=settings.tile, overlap=settings.overlap)


def _model(settings: Train, classes: int) -> Detector:
    override = settings.override
    try:
        return create(settings.model, classes, weights=settings.weights, **override)
    except (TypeError, RuntimeError) as error:  # of values that no part of the model looked at
        raise ValueError(
            f"override does not fit {settings.model}, got {override}: {error}"
        ) from error


def _transform(settings: Train) -> Transform | None:
    if settings.augment == "none":
        return None
    if settings.augment == "simple":
        return simple_augmentation()
    # Released for tiles of 640x512: to (640, 512)..(960, 768).
    long, short = max(settings.tile), min(settings.tile)
    return sspnet_augmentation((long, round(1.5 * long)), (short, round(1.5 * short)))


def _rate(settings: Train) -> float:
    if settings.lr is not None:
        return settings.lr
    return 0.002 * settings.batch if settings.optimizer == "sgd" else 1e-4


def _schedule(settings: Train, tiles: int, steps: int) -> Schedule:
    milestones = tuple(math.ceil(epoch * tiles / settings.batch) for epoch in settings.milestones)
    return Schedule(_rate(settings), steps, settings.schedule, milestones, warmup=settings.warmup)
