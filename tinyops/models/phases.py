"""Detectors that are trained in phases."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from tinyops.models.detectors import TwoStageDetector


class PhasedDetector(TwoStageDetector):
    """A detector the parts of which are trained one after the other.

    Phase by phase: `model.set_phase(name)`, then a training of its own with a new optimizer;
    `tinyops train` does so. A new model is in the first phase. In each, `learners` have gradients;
    the others have none and stay in eval mode. In evaluation, a model works with what it has in the
    phase that it is in. The state of a model includes its phase.

    Attributes:
        phases: their names in order.
        phase: the present one.
        turn: of `turns`, the one whose losses `forward` returns.
    """

    phases: tuple[str, ...] = ()
    phase = ""
    turn = ""

    def learners(self) -> Iterable[nn.Module]:
        """The parts that learn in the present phase."""
        raise NotImplementedError

    @property
    def turns(self) -> tuple[str, ...]:
        """What takes turns in every step of the present phase; () where nothing does."""
        return ()

    def set_phase(self, phase: str) -> None:
        """Go to a phase: what learns, and what `forward` does.

        Raises:
            ValueError: for a word that is not in `phases`.
        """
        if phase not in self.phases:
            raise ValueError(f"phase must be one of {self.phases}, got {phase!r}")
        if not self.phase:  # the first call: what is frozen now is so in all phases
            self._fixed = {name for name, p in self.named_parameters() if not p.requires_grad}
        self.phase = phase
        self.turn = self.turns[0] if self.turns else ""
        learning = {id(p) for part in self.learners() for p in part.parameters()}
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(id(parameter) in learning and name not in self._fixed)
        self.train(self.training)

    def train(self, mode: bool = True) -> "PhasedDetector":
        """Set the mode, except of what does not learn in this phase."""
        super().train(mode)
        if mode and self.phase:
            learning = {module for part in self.learners() for module in part.modules()}
            for module in self.modules():
                if learning.isdisjoint(module.modules()):
                    module.training = False
        return self

    def get_extra_state(self) -> Tensor:
        """The number of the phase, for `state_dict`."""
        return torch.tensor(self.phases.index(self.phase))

    def set_extra_state(self, state: Tensor) -> None:
        """Go to a phase by its number."""
        self.set_phase(self.phases[int(state)])
