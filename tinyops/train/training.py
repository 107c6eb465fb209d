"""A model, what changes it, and how far it got."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tinyops._files import TRAINING, read_facts, read_tensors, write_tensors
from tinyops.inference.engine import DTYPES
from tinyops.nn.distributed import world_size
from tinyops.nn.global_norm import use_global_norms
from tinyops.train.batches import mix
from tinyops.train.optim import Average, Schedule

Batch = tuple[Any, Any]  # images and targets as the model takes them


class StateError(ValueError):
    """A file of `Training.save` that this training cannot go on from."""


class Training:
    """All that a step needs and changes.

    Every step is a function of the state and of (seed, step): random numbers start anew before it.

    Args:
        model: `model(images, targets)` gives a dict of losses in train mode. In several processes
            its BatchNorm2d take their statistics from all of them. Where its parts take turns
            (`turns` of `tinyops.models.phases.PhasedDetector`), a step is one update for each.
        optimizer: of its parameters.
        schedule: gives the rate of every step.
        device: to train on.
        amp: "none", "bf16", or "fp16" with scaled losses.
        average_decay: of an exponential moving average of the model; None: there is none.
        clip: largest norm of all gradients together; None: any.
        channels_last: keep the weights in this layout.
        seed: of the steps.

    Attributes:
        step: how many steps are done.
        best: the best value so far of what the best model is chosen by, or None.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        *,
        device: torch.device | str = "cpu",
        amp: Literal["none", "bf16", "fp16"] = "none",
        average_decay: float | None = None,
        clip: float | None = None,
        channels_last: bool = False,
        seed: int = 0,
    ) -> None:
        if amp != "none" and amp not in DTYPES:
            raise ValueError(f"amp must be 'none', 'bf16' or 'fp16', got {amp!r}")
        self.device = torch.device(device)
        self.optimizer, self.schedule = optimizer, schedule
        self.amp, self.clip, self.seed = amp, clip, seed
        self.step = 0
        self.best: float | None = None
        self.model = model.to(self.device)
        if channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network = self.model
        self.turns: tuple[str, ...] = getattr(model, "turns", ()) or ("",)
        if world_size() > 1:
            use_global_norms(self.model)
            self.network = DistributedDataParallel(
                self.model,
                device_ids=[self.device] if self.device.type == "cuda" else None,
                broadcast_buffers=False,  # they are equal, as batch norms are global
                find_unused_parameters=len(self.turns) > 1,
            )
        self.average = None if average_decay is None else Average(self.model, average_decay)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=amp == "fp16")

    @property
    def result(self) -> nn.Module:
        """The model to evaluate and to keep: the average if there is one."""
        return self.model if self.average is None else self.average.model

    def update(self, parts: Sequence[Batch]) -> dict[str, Tensor]:
        """Do one step with the mean of the losses of all parts; gives these means, detached.

        Losses are divided by counts in their own part, so that several parts are not quite the
        same as one part with all the images.
        """
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = group.get("rate_factor", 1.0) * self.schedule.at(self.step)
        sums: dict[str, Tensor] = {}
        for number, turn in enumerate(self.turns):
            if turn:
                self.model.turn = turn  # type: ignore[assignment]
            sums |= self._take_turn(parts, number * len(parts))
        self.step += 1
        if self.average is not None:
            self.average.update(self.model, self.step)
        return sums

    def _take_turn(self, parts: Sequence[Batch], first: int) -> dict[str, Tensor]:
        """Update once; `first` is the number of the first part in this step, of all turns."""
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        for k, (images, targets) in enumerate(parts):
            torch.manual_seed(mix(self.seed, self.step, first + k))
            with contextlib.ExitStack() as stack:
                if k + 1 < len(parts) and isinstance(self.network, DistributedDataParallel):
                    stack.enter_context(self.network.no_sync())
                with torch.autocast(
                    self.device.type, DTYPES.get(self.amp), enabled=self.amp != "none"
                ):
                    losses = self.network(self._moved(images), self._moved(targets))
                if k and losses.keys() != sums.keys():
                    raise ValueError(
                        f"the losses must have the same names in every part, "
                        f"got {sorted(sums)} and {sorted(losses)}"
                    )
                total = torch.stack([loss.float() for loss in losses.values()]).sum()
                self.scaler.scale(total / len(parts)).backward()
            for name, loss in losses.items():
                share = loss.detach().float() / len(parts)
                sums[name] = sums[name] + share if name in sums else share
        if self.clip is not None:
            self.scaler.unscale_(self.optimizer)
            wanted = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(wanted, self.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return sums

    def check_weights(self) -> None:
        """Finite losses may have gradients that are not: a state with their results is lost.

        Raises:
            FloatingPointError: if a weight is not finite.
        """
        norms = torch._foreach_norm([p.detach() for p in self.model.parameters()], torch.inf)
        if not torch.stack(norms).isfinite().all():
            raise FloatingPointError(
                f"the weights must be finite, but are not after step {self.step}; "
                "a lower rate, a longer warm-up or clipped gradients may help"
            )

    def _moved(self, x: Any) -> Any:
        """Tensors in lists, tuples and dicts on the device; the rest as it is."""
        if isinstance(x, Tensor):
            return x.to(self.device, non_blocking=True)
        if isinstance(x, Mapping):
            return {key: self._moved(value) for key, value in x.items()}
        return [self._moved(value) for value in x] if isinstance(x, (list, tuple)) else x

    def save(
        self, path: Path | str, description: Mapping[str, Any], configuration: Mapping[str, Any]
    ) -> None:
        """Write everything to one file, whole or not at all.

        Args:
            path: of the file.
            description: of the model, so that the file can be loaded as a model.
            configuration: values of JSON; `restore` refuses another one.
        """
        tensors = {f"model.{name}": x for name, x in self.model.state_dict().items()}
        if self.average is not None:
            average = self.average.model.state_dict()
            tensors |= {f"average.{name}": x for name, x in average.items()}
        numbers: dict[str, dict[str, Any]] = {}
        for index, state in self.optimizer.state_dict()["state"].items():
            for name, value in state.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{index}.{name}"] = value
                else:
                    numbers.setdefault(str(index), {})[name] = value
        progress = {"step": self.step, "best": self.best, "optimizer": numbers}
        facts = {**description, **progress, "scaler": self.scaler.state_dict()}
        write_tensors(path, TRAINING, tensors, {**facts, "configuration": dict(configuration)})

    def restore(
        self,
        path: Path | str,
        description: Mapping[str, Any],
        configuration: Mapping[str, Any],
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        """Go on from a file of `save`.

        Args:
            path: of the file.
            description: as of `save`, and so is configuration.
            configuration: likewise.
            defaults: what a configuration means that lacks them, as it is older than they are.

        Raises:
            FileNotFoundError: if there is no such file.
            StateError: naming the file, if it is incomplete, or of another model or configuration,
                and then what differs.
        """
        try:
            _, facts = read_facts(path, [TRAINING])
        except ValueError as error:
            raise StateError(str(error)) from error
        model = ("name", "arguments", "categories")
        found = differences(
            {k: facts.get(k) for k in model} | dict(defaults or {}) | facts["configuration"],
            {k: description.get(k) for k in model} | dict(configuration),
        )
        if found:
            raise StateError(f"{path}: expected the same configuration, but {'; '.join(found)}")
        # On the CPU, where AdamW counts its steps: on a GPU every count would be waited for.
        _, tensors, _ = read_tensors(path, [TRAINING])
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        state: dict[int, dict[str, Any]] = {
            int(index): dict(values) for index, values in facts["optimizer"].items()
        }
        for name, tensor in parts["optimizer"].items():
            index, _, rest = name.partition(".")
            state.setdefault(int(index), {})[rest] = tensor
        try:
            self.model.load_state_dict(parts["model"])
            if self.average is not None:
                self.average.model.load_state_dict(parts["average"])
                self.average.model.requires_grad_(False)  # which the phase in a state turns on
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        except (RuntimeError, ValueError) as error:
            raise StateError(f"{path}: expected the state of this model: {error}") from error
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(facts["scaler"])
        self.step, self.best = facts["step"], facts["best"]


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """Where two nested dicts differ, as texts that name the dotted path and both values."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found = []
        for key in dict.fromkeys([*old, *new]):
            path = f"{where}.{key}" if where else str(key)
            if key not in old or key not in new:
                there, value = ("was", old[key]) if key in old else ("is", new[key])
                found.append(f"{path} {there} {value!r} and {'is' if key in old else 'was'} absent")
            else:
                found += differences(old[key], new[key], path)
        return found
    return [] if old == new else [f"{where} was {old!r} and is {new!r}"]
