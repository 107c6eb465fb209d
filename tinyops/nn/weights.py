"""Weights of backbones, from files of several kinds."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

_NAMED = re.compile(r"Unsupported global: GLOBAL (\S+)")  # in what torch.load says
_OUTER = ("state_dict", "model")  # of checkpoints: mmpretrain's, and torchvision's references


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a backbone, without those of its classifier.

    A file is a state dict as torchvision and timm write it, or a checkpoint with one in it under
    "state_dict" or "model". Names lose the prefix "module." of a model in several processes; where
    names begin with "backbone." (mmpretrain, mmdetection) these are taken, without that prefix, and
    no others; "fc." is left out. Nothing in the file is executed.

    Args:
        path: a .safetensors file, or one that torch.load reads with weights_only=True.

    Raises:
        ValueError: for a file that is no state dict.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # of any class, where the file is no pickle
        reason = _NAMED.search(str(error))
        why = f": it holds an object of {reason[1]}" if reason else ""
        raise ValueError(f"weights must be a state dict, but {path} cannot be read{why}") from error
    if isinstance(state, dict):
        state = next((state[key] for key in _OUTER if isinstance(state.get(key), dict)), state)
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(x, Tensor) for name, x in state.items()
    ):
        raise ValueError(f"weights must be a state dict of tensors, got another object in {path}")
    state = {name.removeprefix("module."): x for name, x in state.items()}
    body = {name: x for name, x in state.items() if name.startswith("backbone.")}
    state = {name.removeprefix("backbone."): x for name, x in (body or state).items()}
    return {name: x for name, x in state.items() if not name.startswith("fc.")}


def load_weights(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Give a model these tensors; every name must fit, but counters of batches are optional.

    Args:
        model: for example a ResNet.
        state: by name.
        source: where they are from, for messages.

    Raises:
        ValueError: for names or shapes that do not fit.
    """
    own = model.state_dict()
    problems = {
        "lacks": own.keys() - state.keys(),
        "has unknown": state.keys() - own.keys(),
        "has in another shape": {k for k in own.keys() & state if own[k].shape != state[k].shape},
    }
    for what, found in problems.items():
        names = sorted(name for name in found if not name.endswith(".num_batches_tracked"))
        if names:
            raise ValueError(
                f"weights must fit the backbone, but {source} {what} {names[0]!r} "
                f"({len(names)} names in all)"
            )
    model.load_state_dict(state, strict=False)
