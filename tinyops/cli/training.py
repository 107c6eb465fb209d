"""What the commands that train have in common."""

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from tinyops.cli.device import choose_device
from tinyops.train import StateError, process_group


class InputError(Exception):
    """A mistake in what the caller gave."""


def command(name: str, work: Callable[[], int]) -> int:
    """Do the work of a command; mistakes of the caller become one line, without a traceback."""
    try:
        return work()
    except (InputError, StateError) as error:
        return _fail(name, error, 2)
    except FloatingPointError as error:
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


def is_first() -> bool:
    """Is this the process that writes?"""
    return os.environ.get("RANK", "0") == "0"
