"""What changes the parameters: optimizer, learning rates, averages."""

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn


def make_optimizer(
    model: nn.Module,
    kind: Literal["sgd", "adamw"] = "sgd",
    *,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    decay_all: bool = True,
) -> torch.optim.Optimizer:
    """An optimizer of all parameters that want gradients; a `Schedule` sets its rate.

    A module names own parameters that 0 is no natural value of in `no_decay`; they never decay. In
    `rate_factors`, name -> factor, it names those that want another rate than the rest.

    Args:
        model: the model, on its device.
        kind: stochastic gradient descent with momentum, or AdamW.
        momentum: of "sgd"; "adamw" has betas 0.9 and 0.999.
        weight_decay: decoupled from the gradient with "adamw".
        decay_all: False: parameters with fewer than two dimensions, which are biases and the
            weights of norms, do not decay.
    """
    kept: set[int] = set()
    factors: dict[int, float] = {}
    for module in model.modules():
        kept |= {id(getattr(module, name)) for name in getattr(module, "no_decay", ())}
        for name, factor in getattr(module, "rate_factors", {}).items():
            factors[id(getattr(module, name))] = factor
    chosen: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for p in model.parameters():
        if p.requires_grad:
            decays = id(p) not in kept and (decay_all or p.dim() > 1)
            chosen.setdefault((decays, factors.get(id(p), 1.0)), []).append(p)
    groups: list[dict[str, Any]] = [
        {"params": chosen[key], "rate_factor": key[1]} | ({} if key[0] else {"weight_decay": 0.0})
        for key in sorted(chosen, reverse=True)
    ]
    if not groups:
        raise ValueError("model must have parameters that want gradients, got none")
    if kind == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=momentum, weight_decay=weight_decay)
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, weight_decay=weight_decay)
    raise ValueError(f"kind must be 'sgd' or 'adamw', got {kind!r}")


@dataclass(frozen=True)
class Schedule:
    """The learning rate of every step.

    It rises linearly from `warmup_factor` * rate to the rate of its step in the first `warmup`
    steps. "steps": rate * gamma^(milestones behind); "cosine": a half wave from rate to 0.

    Attributes:
        rate: the learning rate.
        total: steps of the training.
        kind: "steps" or "cosine".
        milestones: steps from which on the rate is another `gamma` times smaller.
        gamma: the factor of a milestone.
        warmup: steps.
        warmup_factor: 0.001 is that of mmdetection's schedule_1x.
    """

    rate: float
    total: int
    kind: Literal["steps", "cosine"] = "steps"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    warmup: int = 500
    warmup_factor: float = 0.001

    def at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        rate = self.rate
        if self.kind == "steps":
            rate *= self.gamma ** sum(step >= milestone for milestone in self.milestones)
        else:
            rate *= (1 + math.cos(math.pi * min(1.0, step / self.total))) / 2
        if step < self.warmup:
            rate *= self.warmup_factor + (1 - self.warmup_factor) * step / self.warmup
        return rate


class Average:
    """The exponential moving average of a model.

    After step k, counted from 1: average += (1 - min(decay, (1 + k) / (10 + k))) * (model -
    average), so that the first steps are forgotten sooner. Buffers are copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the model after `step` steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        mine, other = _values(self.model.parameters()), _values(model.parameters())
        torch._foreach_lerp_(mine, other, 1 - decay)
        for own, new in zip(self.model.buffers(), model.buffers(), strict=True):
            own.copy_(new)


def _values(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    return [p.data for p in parameters]
