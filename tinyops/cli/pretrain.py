"""Train a backbone as a classifier of small images, for detectors to begin with.

The folder of the run is what `tinyops train --weights` takes, with a detector of this backbone.
--config FILE reads the settings from a YAML file, such as the config.yaml of another run; what is
given on the command line wins. The same command again goes on with a training that was interrupted.
`torchrun --nproc-per-node N -m tinyops pretrain ...` trains with N processes, which share each
batch.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from rich.console import Console

from tinyops.cli.train_settings import OVERRIDES, parse
from tinyops.cli.training import (
    InputError,
    check_ranges,
    command,
    is_first,
    make_training,
    progress,
    training_device,
)
from tinyops.config import dump_yaml
from tinyops.data.cifar100 import read_cifar100
from tinyops.data.imagenet32 import read_imagenet32
from tinyops.data.small_images import CHANNELS, SIDE, Augmented, SmallImages
from tinyops.models.backbones import CLASSIFIER
from tinyops.models.checkpoint import describe
from tinyops.models.classifier import Classifier, create_classifier
from tinyops.train import Order, Schedule, accuracy, fit

EPOCHS = {"cifar100": 200, "imagenet32": 40}
GAMMA = 0.2  # of a milestone
# What the result does not depend on, so that it may change when a training is resumed.
FREE = ("out", "workers", "device", "save_every", "tensorboard", "fresh")


@dataclass
class Pretrain:
    """The settings of a pre-training.

    The paper of the bottom-heavy backbones does not say how it trained. The defaults are
    mmpretrain's for ResNet-50 on CIFAR-100.
    """

    data: Path
    """Folder of the data set, or for cifar100 its archive."""
    out: Path
    """Folder of the run: config.yaml, last.safetensors, best.safetensors, log.jsonl, *.csv."""
    format: Literal["cifar100", "imagenet32"] = "cifar100"
    """cifar100: the edition for Python or the binary one. imagenet32: pickles or npz files."""

    backbone: str = "bh_resnet50"
    """As in the names of detectors: resnet50, bh_resnet_nano, timm:hrnet_w18."""
    override: Annotated[dict[str, Any], OVERRIDES] = field(default_factory=dict)
    """Settings of the backbone and the classifier in YAML, such as stem_kernel=3 pool=all."""
    weights: str | None = None
    """To begin with, as of `tinyops train`; None: random ones."""

    augment: Literal["none", "crop"] = "crop"
    """crop: 4 black pixels around, cut out anew, and half of the images mirrored."""
    batch: int = 128
    """Images of a step, in all parts and processes together."""
    parts: int = 1
    """Parts of a batch, one after the other, where memory does not suffice."""
    epochs: float | None = None
    """How often every image is seen; None: 200 times with cifar100, 40 times with imagenet32."""
    steps: int | None = None
    """Length of the training in steps, instead of epochs."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd has a momentum of 0.9."""
    lr: float | None = None
    """Learning rate; None: 0.1 * batch / 128 with sgd, 1e-3 with adamw."""
    weight_decay: float = 5e-4
    """Of all parameters; see decay_all."""
    decay_all: bool = True
    """Off: norms and biases do not decay."""
    schedule: Literal["steps", "cosine"] = "steps"
    """steps: the rate falls to a fifth at each milestone."""
    milestones: tuple[float, ...] = (0.3, 0.6, 0.8)
    """Shares of the training."""
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

    val_batch: int = 256
    """Images that the model sees at once in validation."""
    val_every: int = 1
    """Epochs between two validations."""

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
        counts = ("batch", "parts", "val_batch", "val_every", "save_every")
        least_0 = ("warmup", "workers", "weight_decay", "seed")
        check_ranges(self, dict.fromkeys(counts, 1) | dict.fromkeys(least_0, 0))
        if self.batch < 2 * self.parts:  # batch norms need two where the last level is one cell
            raise ValueError(f"batch must be 2 or more for each of the parts, got {self.batch}")
        if not all(0 < share <= 1 for share in self.milestones):
            raise ValueError(f"milestones must be in (0, 1], got {self.milestones}")


def main(arguments: Sequence[str]) -> int:
    """Run `tinyops pretrain <arguments>`; returns the exit code."""
    return command("pretrain", lambda: run(parse(arguments, __doc__, Pretrain, "tinyops pretrain")))


def run(settings: Pretrain) -> int:
    """The `pretrain` command."""
    with training_device(settings.device, tensorboard=settings.tensorboard) as device:
        return _train(settings, device)


def _train(settings: Pretrain, device: torch.device) -> int:
    console = Console()
    try:
        train, val = (_read(settings, split) for split in ("train", "val"))
        torch.manual_seed(settings.seed)
        model = _model(settings, len(train.classes))
        epochs = settings.epochs or EPOCHS[settings.format]
        steps = settings.steps or math.ceil(epochs * len(train) / settings.batch)
        Order(len(train), settings.batch, parts=settings.parts, last=steps)  # to share out
        training = make_training(model, settings, _schedule(settings, steps), device)
        settings.out.mkdir(parents=True, exist_ok=True)
        if is_first() and (settings.fresh or not (settings.out / "last.safetensors").is_file()):
            dump_yaml(replace(settings, fresh=False), settings.out / "config.yaml")
    except (ValueError, OSError) as error:
        raise InputError(error) from error
    if is_first():
        size = sum(p.numel() for p in model.parameters())
        console.print(
            f"{settings.backbone}: {size:,} parameters with the classifier, "
            f"{len(train.classes)} classes; {len(train):,} images, {len(val):,} for validation; "
            f"{steps:,} steps at a rate of {_rate(settings):g} on {device}",
            highlight=False,
            soft_wrap=True,
        )
    fit(
        training,
        Augmented(train) if settings.augment == "crop" else Augmented(train, 0, flip=False),
        settings.out,
        steps=steps,
        batch=settings.batch,
        description=describe(model, train.classes),
        parts=settings.parts,
        workers=settings.workers,
        measure=functools.partial(
            accuracy, data=val, batch=settings.val_batch, device=device, amp=settings.amp
        ),
        best="top1",
        measure_every=settings.val_every,
        console=console,
        **progress(settings, FREE, images=len(train)),
    )
    return 0


def _read(settings: Pretrain, split: Literal["train", "val"]) -> SmallImages:
    read = read_cifar100 if settings.format == "cifar100" else read_imagenet32
    return read(settings.data, split)


def _model(settings: Pretrain, classes: int) -> Classifier:
    name, override = CLASSIFIER + settings.backbone, settings.override
    try:
        model = create_classifier(name, classes, settings.weights, **override)
        with torch.no_grad():  # some models of timm take images of one size alone
            model.eval()(torch.zeros(1, CHANNELS, SIDE, SIDE))
    # Of values that no part of the model looked at.
    except (TypeError, RuntimeError, AssertionError) as error:
        raise ValueError(
            f"override does not fit {settings.backbone} on {SIDE} x {SIDE} pixels, "
            f"got {override}: {error}"
        ) from error
    return model


def _schedule(settings: Pretrain, steps: int) -> Schedule:
    milestones = tuple(math.ceil(share * steps) for share in settings.milestones)
    return Schedule(
        _rate(settings), steps, settings.schedule, milestones, GAMMA, warmup=settings.warmup
    )


def _rate(settings: Pretrain) -> float:
    if settings.lr is not None:
        return settings.lr
    return 0.1 * settings.batch / 128 if settings.optimizer == "sgd" else 1e-3
