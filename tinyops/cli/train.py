"""Train a detector on a data set in any format that `tinyops data convert` reads.

--config FILE reads the settings from a YAML file, such as the config.yaml of another run; what is
given on the command line wins. The same command again goes on with a training that was interrupted.
`torchrun --nproc-per-node N -m tinyops train ...` trains with N processes, which share each batch.
"""

import functools
import gc
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console

from tinyops.cli.augmentation import make_transform
from tinyops.cli.train_settings import FREE, METRICS, THRESHOLDS, Train, parse
from tinyops.cli.training import (
    InputError,
    command,
    is_first,
    make_training,
    progress,
    training_device,
)
from tinyops.config import dump_yaml
from tinyops.data import read
from tinyops.data.dataset import CocoTiles, check_headers
from tinyops.data.formats.coco import to_coco
from tinyops.data.types import AnnotatedSet
from tinyops.evaluation.tinyperson import BANDS, sized_ap
from tinyops.models import Detector, create, load
from tinyops.models.checkpoint import describe
from tinyops.models.phases import PhasedDetector
from tinyops.train import Order, Schedule, evaluate, fit


def main(arguments: Sequence[str]) -> int:
    """Run `tinyops train <arguments>`; returns the exit code."""
    return command("train", lambda: run(parse(arguments, __doc__)))


def run(settings: Train) -> int:
    """The `train` command."""
    with training_device(settings.device, tensorboard=settings.tensorboard) as device:
        return _train(settings, device)


def _train(settings: Train, device: torch.device) -> int:
    console = Console()
    try:
        data, tiles, val = _data(settings)
        torch.manual_seed(settings.seed)
        model = _model(settings, len(data.classes))
        taken = None if settings.start is None else _take(model, settings.start)
        phases = _phases(model, settings, len(tiles))
        for phase in phases:
            Order(
                len(tiles), settings.batch, parts=settings.parts, last=phase.steps
            )  # to share out
        states = [phase.folder / "last.safetensors" for phase in phases]
        settings.out.mkdir(parents=True, exist_ok=True)
        if is_first() and (settings.fresh or not any(path.is_file() for path in states)):
            dump_yaml(replace(settings, fresh=False), settings.out / "config.yaml")
        if is_first() and settings.fresh:  # of later phases, too
            for path in states:
                path.unlink(missing_ok=True)
    except (ValueError, OSError) as error:
        raise InputError(error) from error
    if is_first():
        size = sum(p.numel() for p in model.parameters())
        console.print(
            f"{settings.model}: {size:,} parameters, {len(data.classes)} classes; "
            f"{len(data.images):,} images, {len(tiles):,} tiles; "
            f"{sum(phase.steps for phase in phases):,} steps at a rate of {_rate(settings):g} "
            f"on {device}",
            highlight=False,
            soft_wrap=True,
        )
        if taken is not None:
            console.print(taken, highlight=False, soft_wrap=True)
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
    for number, phase in enumerate(phases, 1):
        if isinstance(model, PhasedDetector):
            model.set_phase(phase.name)
            if is_first():
                console.print(f"phase {number} of {len(phases)}: {phase.name}, {phase.steps} steps")
        schedule = _schedule(settings, len(tiles), phase.steps)
        training = make_training(model, settings, schedule, device)
        fit(
            training,
            tiles,
            phase.folder,
            steps=phase.steps,
            batch=settings.batch,
            description=describe(model, data.classes),
            parts=settings.parts,
            workers=settings.workers,
            measure=measure,
            best=settings.best,
            measure_every=settings.val_every,
            console=console,
            **progress(settings, FREE, tiles=len(tiles)),
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
    phases = map(_Phase, names, [*folders, settings.out], lengths)
    return [phase for phase in phases if phase.steps]


def _take(model: Detector, start: Path) -> str:
    """Give the model the tensors of another that have their names and shapes; says how many."""
    found, own = load(start).state_dict(), model.state_dict()
    found.pop("_extra_state", None)  # its phase
    fit = [name for name, x in found.items() if name in own and own[name].shape == x.shape]
    if not fit:
        raise ValueError(f"start must have tensors that fit the model, got none in {start}")
    own.update({name: found[name] for name in fit})
    model.load_state_dict(own)
    return f"{start}: took {len(fit)} of its {len(found)} tensors; the model has {len(own)}"


def _data(settings: Train) -> tuple[AnnotatedSet, CocoTiles, CocoTiles | None]:
    """The training set, its tiles, and those of validation."""
    drop = settings.drop_empty_boxes
    data = _read(settings.annotations, settings.format, settings.images, settings.split, drop)
    tiles = CocoTiles(
        data,
        tile=settings.tile,
        overlap=settings.overlap,
        keep_empty=settings.keep_empty,
        repeat_small=settings.repeat_small,
        transform=make_transform(settings, data),
        seed=settings.seed,
    )
    if len(tiles) == 0:
        raise ValueError(f"{settings.annotations}: expected tiles to train on, got none")
    if settings.val_annotations is None:
        return data, tiles, None
    folder = settings.val_images or settings.images
    other = _read(settings.val_annotations, settings.format, folder, settings.val_split, drop)
    if (other.classes, other.category_ids) != (data.classes, data.category_ids):
        raise ValueError(
            f"{settings.val_annotations}: expected the categories of {settings.annotations}, "
            f"{data.classes}, got {other.classes}"
        )
    # The AP of nothing is -1, whatever the model: the first model would stay the best.
    band, threshold = METRICS[settings.best]
    bands = {band: BANDS[band]}
    nothing = sized_ap(to_coco(other), [], bands=bands, thresholds=[threshold])
    if nothing[band, threshold] < 0:
        raise ValueError(
            f"{settings.val_annotations}: best is {settings.best}, "
            "but there is no object of its size"
        )
    return data, tiles, CocoTiles(other, tile=settings.tile, overlap=settings.overlap)


def _read(
    path: Path, format: str | None, images: Path | None, split: str | None, drop: bool
) -> AnnotatedSet:
    data = read(path, format, images, split, drop_empty_boxes=drop)
    if data.folder is None:
        raise ValueError(f"{path}: it says not where its images are; give images")
    check_headers(data)
    return data


def _model(settings: Train, classes: int) -> Detector:
    override = settings.override
    try:
        return create(settings.model, classes, weights=settings.weights, **override)
    except (TypeError, RuntimeError) as error:  # of values that no part of the model looked at
        raise ValueError(
            f"override does not fit {settings.model}, got {override}: {error}"
        ) from error


def _rate(settings: Train) -> float:
    if settings.lr is not None:
        return settings.lr
    return 0.002 * settings.batch if settings.optimizer == "sgd" else 1e-4


def _schedule(settings: Train, tiles: int, steps: int) -> Schedule:
    milestones = tuple(math.ceil(epoch * tiles / settings.batch) for epoch in settings.milestones)
    return Schedule(_rate(settings), steps, settings.schedule, milestones, warmup=settings.warmup)
