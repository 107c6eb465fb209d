"""Models as files that need no code of their own to be read: tensors, and how to build the rest."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tinyops
from tinyops._files import MODEL, TRAINING, read_tensors, write_tensors

EMBEDDED = Path(__file__).parent / "embedded" / "model.safetensors"


def describe(model: nn.Module, categories: Sequence[str] | None = None) -> dict[str, Any]:
    """What a file says of a model besides its tensors: version, name, arguments, categories.

    Args:
        model: made by `tinyops.models.create`, which leaves its arguments in `model.recipe`.
        categories: names of the labels 1, 2, ...; None: those of `model.categories`, if any.

    Raises:
        ValueError: if the model has no recipe, or one that JSON would change.
    """
    recipe = getattr(model, "recipe", None)
    if not isinstance(recipe, dict) or not isinstance(recipe.get("name"), str):
        raise ValueError(
            "model must be made by tinyops.models.create, which gives it a recipe, "
            f"got {type(model).__name__} with recipe {recipe!r}"
        )
    arguments = {key: value for key, value in recipe.items() if key != "name"}
    try:
        same = json.loads(json.dumps(arguments)) == arguments
    except TypeError:
        same = False
    if not same:
        raise ValueError(f"the recipe of a model must consist of values of JSON, got {recipe!r}")
    if categories is None:
        categories = getattr(model, "categories", None)
    return {
        "tinyops": tinyops.__version__,
        "name": recipe["name"],
        "arguments": arguments,
        "categories": None if categories is None else list(categories),
    }


def save(model: nn.Module, path: Path | str, *, categories: Sequence[str] | None = None) -> None:
    """Write a model to a safetensors file, whole or not at all.

    Args:
        model: made by `tinyops.models.create`.
        path: of the file; an older one is replaced.
        categories: as in `describe`.

    Raises:
        ValueError: as in `describe`.
    """
    write_tensors(path, MODEL, model.state_dict(), describe(model, categories))


def load(
    path: Path | str,
    device: torch.device | str = "cpu",
    *,
    build: Callable[..., nn.Module] | None = None,
) -> nn.Module:
    """A model as it was saved, bit by bit, in eval mode. Nothing in the file is executed.

    Args:
        path: a file of `save`, the state of a training (its averaged model if it has one), or the
            folder of a run: the best model if there is one, otherwise the last state. "embedded":
            the small detector of people in this package, kept in float16 and given in float32,
            in the layout channels_last, in which it is fastest.
        device: of the model.
        build: makes a model from name=..., num_classes=..., ...; None: `tinyops.models.create`.

    Returns:
        The model; `model.categories` is the tuple of names of its labels, or None.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, if it is incomplete, of another kind or of another model.
    """
    if path == "embedded":
        model = load(EMBEDDED, device, build=build)
        return model.float().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    path, tensors, facts = read_model(path, device)
    if build is None:
        import tinyops.models  # it imports this file

        build = tinyops.models.create
    try:
        refuse_other_files(facts["name"], facts["arguments"])
        model = build(name=facts["name"], **facts["arguments"]).to(device)
        for name, value in model.state_dict(keep_vars=True).items():
            if name in tensors:  # of a model in half precision, say
                value.data = value.data.to(tensors[name].dtype)
        model.load_state_dict(tensors)
        names = facts["categories"]
        model.categories = None if names is None else tuple(names)  # type: ignore[assignment]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{path}: expected the tensors of {facts.get('name')} with {facts.get('arguments')}, "
            f"written by tinyops {facts.get('tinyops')}: {error}"
        ) from error
    return model.eval()


def read_model(
    path: Path | str, device: torch.device | str = "cpu"
) -> tuple[Path, dict[str, Tensor], dict[str, Any]]:
    """The file, the tensors and the facts of what `load` loads; raises what that raises."""
    path = _file_of(Path(path))
    kind, tensors, facts = read_tensors(path, (MODEL, TRAINING), device)
    if kind == TRAINING:
        has_average = any(name.startswith("average.") for name in tensors)
        prefix = "average." if has_average else "model."
        tensors = {
            name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)
        }
    return path, tensors, facts


def refuse_other_files(name: str, arguments: dict[str, Any]) -> None:
    """A file from elsewhere must not make `create` read other files, or download."""
    options = {**arguments, **(arguments.get("timm_options") or {})}
    bad = [key for key in options if key.startswith(("weights", "pretrained", "checkpoint"))]
    if bad or ":" in name.partition("timm:")[2]:
        raise ValueError("its weights must be in the file itself")


def _file_of(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in ("best.safetensors", "last.safetensors"):
        if (path / name).is_file():
            return path / name
    raise FileNotFoundError(f"{path}: expected best.safetensors or last.safetensors, found neither")
