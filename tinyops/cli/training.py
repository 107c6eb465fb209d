"""What the commands that train have in common."""

import dataclasses
import importlib.util
import math
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tinyops.cli.device import choose_device
from tinyops.config import to_plain
from tinyops.train import Schedule, StateError, Training, make_optimizer, process_group


class InputError(Exception):
    """A mistake in what the caller gave."""


def command(name: str, work: Callable[[], int]) -> int:
    """Do the work of a command; mistakes of the caller become one line, without a traceback."""
    try:
        return work()
    except (InputError, StateError) as error:
        return _fail(name, error, 2)
    except (FloatingPointError, OSError) as error:  # such as a full disk
        return _fail(name, error, 1)
    except KeyboardInterrupt:
        return _fail(name, "interrupted; the same command without --fresh goes on", 130)


def _fail(name: str, error: object, code: int) -> int:
    number = f" (process {os.environ['RANK']})" if "RANK" in os.environ else ""
    print(f"tinyops {name}{number}: {error}", file=sys.stderr)
    return code


@contextmanager
def training_device(name: str, *, tensorboard: bool) -> Iterator[torch.device]:
    """Join the other processes, if there are any, once it is clear that the training can begin.

    Raises:
        InputError: if there is no such device, or no package for TensorBoard.
    """
    try:
        wanted = choose_device(name)
        if tensorboard and importlib.util.find_spec("tensorboard") is None:
            raise ValueError('tensorboard needs the package: pip install "tinyops[log]"')
    except ValueError as error:
        raise InputError(error) from error
    with process_group(wanted) as device:
        yield device


def check_ranges(settings: Any, least: Mapping[str, int]) -> None:
    """Raise ValueError for a value out of range; `least` has the lowest one of some settings."""
    for name, low in least.items():
        if getattr(settings, name) < low:
            raise ValueError(f"{name} must be at least {low}, got {getattr(settings, name)}")
    for name in ("lr", "clip", "epochs", "steps"):
        value = getattr(settings, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} must be above 0 and finite, got {value}")
    if settings.batch % settings.parts:
        raise ValueError(
            f"batch must be a multiple of parts, {settings.parts}, got {settings.batch}"
        )
    if settings.ema is not None and not 0 <= settings.ema < 1:
        raise ValueError(f"ema must be in [0, 1), got {settings.ema}")


def make_training(
    model: nn.Module, settings: Any, schedule: Schedule, device: torch.device
) -> Training:
    """The training that settings ask for; InputError if nothing learns."""
    try:
        optimizer = make_optimizer(
            model,
            settings.optimizer,
            weight_decay=settings.weight_decay,
            decay_all=settings.decay_all,
        )
    except ValueError as error:
        raise InputError(error) from error
    return Training(
        model,
        optimizer,
        schedule,
        device=device,
        amp=settings.amp,
        average_decay=settings.ema,
        clip=settings.clip,
        channels_last=settings.channels_last,
        seed=settings.seed,
    )


def progress(settings: Any, free: Collection[str], **facts: Any) -> dict[str, Any]:
    """How `fit` writes states and goes on from them.

    Args:
        settings: of the command.
        free: those that the result does not depend on.
        facts: which it depends on, too.
    """
    bound = [field for field in dataclasses.fields(settings) if field.name not in free]
    plain = to_plain(settings)
    return {
        "configuration": {**{field.name: plain[field.name] for field in bound}, **facts},
        # A setting that is newer than a state had no effect then, as by default now.
        "defaults": {
            field.name: to_plain(field.default)
            for field in bound
            if field.default is not dataclasses.MISSING
        },
        "save_every": settings.save_every,
        "resume": not settings.fresh,
        "tensorboard": settings.tensorboard,
    }


def is_first() -> bool:
    """Is this the process that writes?"""
    return os.environ.get("RANK", "0") == "0"
