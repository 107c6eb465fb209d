"""Detectors that are trained in phases, and parts that take turns."""

import pytest
import torch
from training import Squares, description_of

from tinyops.models import create
from tinyops.models.phases import PhasedDetector
from tinyops.train import Schedule, Training, make_optimizer

OVERRIDES = {"neck_channels": 16, "head_channels": 16, "samples": 16, "rpn_samples": 16}


class Phased(PhasedDetector):
    """First everything learns, then proposals and second stage take turns."""

    phases = ("all", "heads")

    def __init__(self, frozen_stages=0):
        plain = create("faster_rcnn_fpn_resnet_nano", **OVERRIDES, frozen_stages=frozen_stages)
        super().__init__(
            plain.backbone, plain.neck, plain.rpn, plain.roi_heads, num_classes=plain.num_classes
        )
        self.recipe = plain.recipe
        self.set_phase("all")

    def learners(self):
        return [self] if self.phase == "all" else [self.rpn, self.roi_heads]

    @property
    def turns(self):
        return () if self.phase == "all" else ("rpn", "roi")

    def forward(self, images, targets=None):
        found = super().forward(images, targets)
        if not self.training or not self.turn:
            return found
        return {name: loss for name, loss in found.items() if name.startswith(self.turn)}


def batch():
    data = Squares(size=64)
    return [tuple(zip(*[data[1], data[2]], strict=True))]


def make(model):
    return Training(model, make_optimizer(model, "adamw"), Schedule(1e-2, 10, warmup=0), seed=1)


def values(part):
    return {name: x.clone() for name, x in part.state_dict().items()}


def changed(before, part):
    return {name for name, x in part.state_dict().items() if not torch.equal(x, before[name])}


def test_a_new_model_is_in_the_first_phase_and_others_are_refused():
    model = Phased()
    assert (model.phase, model.turn) == ("all", "")
    with pytest.raises(ValueError, match=r"phase must be one of \('all', 'heads'\), got 'x'"):
        model.set_phase("x")


def test_only_learners_have_gradients_and_train():
    model = Phased(frozen_stages=1)
    model.set_phase("heads")
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad} == {
        "rpn",
        "roi_heads",
    }
    model.train()
    assert model.training
    assert model.rpn.training
    assert not any(m.training for m in model.backbone.modules())
    before = values(model.backbone)  # running statistics, too
    make(model).update(batch())
    assert changed(before, model.backbone) == set()


def test_what_was_frozen_before_stays_frozen():
    model = Phased(frozen_stages=1)
    model.set_phase("heads")
    model.set_phase("all")
    assert not any(p.requires_grad for p in model.backbone.layer1.parameters())
    assert all(p.requires_grad for p in model.backbone.layer2.parameters())


def test_each_turn_updates_what_its_losses_reach():
    model = Phased()
    model.set_phase("heads")
    training, seen = make(model), []
    rpn, roi = values(model.rpn), values(model.roi_heads)
    step = training.optimizer.step

    def watched():
        step()
        seen.append(
            (model.turn, bool(changed(rpn, model.rpn)), bool(changed(roi, model.roi_heads)))
        )

    training.optimizer.step = watched
    losses = training.update(batch())
    assert seen == [("rpn", True, False), ("roi", True, True)]
    assert set(losses) == {"rpn_objectness", "rpn_boxes", "roi_classes", "roi_boxes"}
    assert training.step == 1


def test_the_state_has_the_phase(tmp_path):
    model = Phased()
    model.set_phase("heads")
    training = make(model)
    training.update(batch())
    training.save(tmp_path / "state", description_of(model), {})
    other = Phased()
    again = make(other)
    again.optimizer = make_optimizer(model, "adamw")
    again.restore(tmp_path / "state", description_of(model), {})
    assert other.phase == "heads"
    assert not any(p.requires_grad for p in other.neck.parameters())
    new = Phased()
    new.load_state_dict(model.state_dict())
    assert new.phase == "heads"
