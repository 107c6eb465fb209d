"""The cascade: what each stage gets, learns and passes on."""

import pytest
import torch
from second_stage import (
    CHANNELS,
    FixedHead,
    Spy,
    check_gradients,
    make_batch,
    make_levels,
    make_proposals,
    make_truth,
    scatter_proposals,
    take_all,
)
from torchvision.ops import box_iou

from tinyops.nn.cascade import CascadeRoIHeads
from tinyops.nn.roi import BoxHead, RoIHeads, RoIPool
from tinyops.nn.rpn import Proposals
from tinyops.nn.sampling import RandomSampler

STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))


def small_cascade(hidden=16, **settings):
    heads = [BoxHead(CHANNELS, 3, hidden, 3, class_agnostic=True) for _ in range(3)]
    settings.setdefault("sampler", RandomSampler(32, 0.25))
    return CascadeRoIHeads(RoIPool(size=3), heads, **settings)


def fixed_cascade(logits, shifts, **settings):
    """Every stage predicts its own logits, and moves boxes to the right by shift * std widths."""
    heads = [
        FixedHead(values, [[shift, 0.0, 0.0, 0.0]])
        for values, shift in zip(logits, shifts, strict=True)
    ]
    settings.setdefault("sampler", take_all())
    return CascadeRoIHeads(RoIPool(size=1), heads, **settings)


class Recorder(Spy):
    """Remembers all calls."""

    def __init__(self, num_samples, positive_fraction):
        super().__init__(num_samples, positive_fraction)
        self.calls = []

    def forward(self, *args):
        chosen = super().forward(*args)
        self.calls.append({**self.seen, "chosen": torch.cat(chosen)})
        return chosen


def test_a_stage_gets_the_moved_samples_without_the_objects_of_the_stage_before():
    recorder = Recorder(3, 0.5)
    cascade = fixed_cascade([[0.0, 0.0]] * 3, [1.0, 2.0, 3.0], sampler=recorder)
    truth = make_truth([([10, 10, 20, 20], 1)], [])
    boxes = [[10, 10, 20, 19], [60, 60, 70, 70], [70, 60, 90, 70], [60, 80, 75, 90]]
    proposals = make_proposals(boxes, [[118, 20, 128, 30]])
    cascade(make_levels(2), proposals, make_batch((128, 128), (128, 128)), truth)
    first, second, third = recorder.calls
    assert torch.equal(first["boxes"], torch.cat([proposals.boxes, truth.boxes]))
    for before, after, std, shift in ((first, second, 0.1, 1.0), (second, third, 0.05, 2.0)):
        last = len(before["boxes"]) - 1
        passed = before["chosen"][before["chosen"] != last]  # the last box is the object's
        expected = before["boxes"][passed].clone()
        widths = expected[:, 2] - expected[:, 0]
        expected[:, ::2] += (std * shift * widths)[:, None]
        torch.testing.assert_close(after["boxes"][:-1], expected.clamp(max=128))
        assert torch.equal(after["boxes"][-1:], truth.boxes)
        assert torch.equal(after["scores"][:-1], before["scores"][passed])
        assert torch.equal(after["image_ids"][:-1], before["image_ids"][passed])
    assert len(second["boxes"]) - 1 <= 4 < len(first["boxes"])  # three of an image were drawn


def test_objects_are_added_once_in_every_stage():
    recorder = Recorder(512, 0.25)
    truth = make_truth([([10, 10, 14, 14], 1)], [([30, 30, 36, 36], 2), ([50, 50, 53, 59], 3)])
    proposals = scatter_proposals(10, 2)
    cascade = small_cascade(sampler=recorder)
    cascade(make_levels(2), proposals, make_batch((128, 128), (128, 128)), truth)
    assert [len(call["boxes"]) for call in recorder.calls] == [23] * 3
    assert all(torch.equal(call["boxes"][20:], truth.boxes) for call in recorder.calls)


def test_overlap_of_a_positive_rises_from_stage_to_stage():
    heights = [4.9, 5.5, 6.5, 7.5]  # of 10: their IoU with the object is a tenth of that
    truth = make_truth([([10, 10, 20, 20], 1)])
    proposals = make_proposals([[10, 10, 20, 10 + height] for height in heights])
    recorder = Recorder(512, 1.0)
    cascade = fixed_cascade([[0.0, 0.0]] * 3, [0.0] * 3, sampler=recorder)
    cascade(make_levels(1), proposals, make_batch((128, 128)), truth)
    found = [(call["matches"][:-1] == 0).sum().item() for call in recorder.calls]
    assert found == [3, 2, 1]
    assert all((call["matches"] != -2).all() for call in recorder.calls)  # the rest is background


def test_losses_are_weighted_and_those_of_the_single_stages():
    torch.manual_seed(1)
    cascade = small_cascade(sampler=take_all())
    truth = make_truth([([10, 10, 14, 14], 2)], [([50, 50, 58, 58], 3)])
    levels, batch = make_levels(2), make_batch((128, 128), (128, 128))
    proposals = scatter_proposals(20, 2)
    losses = cascade(levels, proposals, batch, truth)[1]
    assert len(losses) == 6
    settings = zip(cascade.stages, (0.5, 0.6, 0.7), STDS, (1, 0.5, 0.25), strict=True)
    for k, (stage, overlap, stds, weight) in enumerate(settings):
        single = RoIHeads(
            stage.pool,
            stage.head,
            sampler=take_all(),
            positive=overlap,
            negative=overlap,
            stds=stds,
            beta=1.0,
        )
        for name, loss in single(levels, proposals, batch, truth)[1].items():
            torch.testing.assert_close(losses[f"stage{k + 1}_{name}"], weight * loss)
        samples = single.sample(proposals, truth, 2)
        offsets = single.predict(levels, samples.boxes, samples.image_ids)[1][:, 0]
        boxes = single.move(offsets, samples.boxes, samples.image_ids, batch)
        own = ~samples.added
        proposals = Proposals(boxes[own], samples.scores[own], samples.image_ids[own])


def test_classes_are_of_the_mean_logits_and_boxes_of_the_last_stage():
    logits = [[0.0, 3.0, 0.0], [0.0, -1.0, 0.5], [1.0, 0.0, 1.0]]
    cascade = fixed_cascade(logits, [1.0, -2.0, 5.0])
    proposals = make_proposals([[40, 40, 60, 50]], [[110, 30, 130, 60]])
    found, losses = cascade(make_levels(2), proposals, make_batch((128, 128), (128, 120)))
    assert losses == {}
    expected = torch.tensor(logits).mean(0).softmax(0)
    shift = 20 * (1.0 * 0.1 - 2.0 * 0.05 + 5.0 * 0.033)
    for detections in found:
        assert detections["labels"].tolist() == [1, 2]
        torch.testing.assert_close(detections["scores"], expected[1:])
        assert torch.equal(detections["boxes"][0], detections["boxes"][1])
    torch.testing.assert_close(
        found[0]["boxes"][0], torch.tensor([40 + shift, 40, 60 + shift, 50.0])
    )
    # Stage 1 moves 110..130 by 2 and cuts it at 120; stage 2 moves back by 0.8, stage 3 by 1.32.
    width = 120 - 112
    left = 112 - 0.1 * width + 0.165 * width
    torch.testing.assert_close(
        found[1]["boxes"][0],
        torch.tensor([left, 30, min(120, left + width), 60.0]),
    )


def test_a_cascade_of_one_stage_is_a_single_second_stage():
    head = BoxHead(CHANNELS, 3, 16, 3, class_agnostic=True)
    pool, sampler = RoIPool(size=3), take_all()
    single = RoIHeads(pool, head, sampler=sampler, beta=1.0)
    cascade = CascadeRoIHeads(
        pool, [head], sampler=sampler, overlaps=(0.5,), stds=STDS[:1], weights=(1,)
    )
    levels, batch, proposals = make_levels(1), make_batch((128, 128)), scatter_proposals(20, 1)
    truth = make_truth([([10, 10, 14, 14], 2)])
    losses = single(levels, proposals, batch, truth)[1]
    for name, loss in cascade(levels, proposals, batch, truth)[1].items():
        torch.testing.assert_close(loss, losses[name.removeprefix("stage1_")])
    found, expected = (heads(levels, proposals, batch)[0][0] for heads in (cascade, single))
    assert len(found["boxes"]) > 10
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("objects", ["none", "in one image", "in both"])
@pytest.mark.parametrize("count", [0, 20])
def test_gradients_reach_all_stages_and_levels(count, objects):
    cascade, levels = small_cascade(), make_levels(2)
    first = [] if objects == "none" else [([10, 10, 14, 14], 2)]
    second = [([50, 50, 58, 58], 3), ([20, 20, 60, 60], 1)] if objects == "in both" else []
    batch = make_batch((128, 128), (100, 128))
    losses = cascade(levels, scatter_proposals(count, 2), batch, make_truth(first, second))[1]
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    check_gradients(cascade, levels)
    if objects != "none":
        assert all(p.grad.ne(0).any() for p in cascade.parameters())


def test_no_proposals_give_no_detections():
    found, _ = small_cascade()(make_levels(2), scatter_proposals(0, 2), make_batch((9, 9), (8, 8)))
    assert [tuple(d["boxes"].shape) for d in found] == [(0, 4)] * 2


def test_no_gradient_flows_through_boxes_that_are_passed_on():
    cascade, levels = small_cascade(sampler=take_all()), make_levels(1)
    truth, batch = make_truth([([40, 40, 60, 60], 1)]), make_batch((128, 128))
    losses = cascade(levels, make_proposals([[42, 40, 60, 60]]), batch, truth)[1]
    (losses["stage2_roi_boxes"] + losses["stage3_roi_classes"]).backward()
    assert all(p.grad is None for p in cascade.stages[0].parameters())


def test_autocast_losses_are_float32():
    cascade, levels = small_cascade(), make_levels(2)
    truth = make_truth([([10, 10, 14, 14], 2)], [])
    with torch.autocast("cpu", torch.bfloat16):
        batch = make_batch((128, 128), (128, 128))
        losses = cascade(levels, scatter_proposals(20, 2), batch, truth)[1]
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    check_gradients(cascade, levels)


def test_trained_stages_bring_boxes_closer_to_the_objects():
    torch.manual_seed(0)
    cascade, levels = small_cascade(64, sampler=RandomSampler(64, 0.5)), make_levels(2)
    objects = [[20.0, 20, 32, 36], [70, 30, 90, 44], [40, 80, 56, 96]]
    truth = make_truth([(box, 1) for box in objects], [(box, 2) for box in objects[:2]])
    batch = make_batch((128, 128), (128, 128))
    optimizer = torch.optim.Adam([*cascade.parameters(), *levels[:4]], lr=3e-3)

    def shaken(seed):
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(5, 8, 4, generator=generator) * 1.3
        boxes = truth.boxes[:, None] + noise
        return Proposals(boxes.flatten(0, 1), torch.ones(40), truth.image_ids.repeat_interleave(8))

    first = None
    for step in range(60):
        losses = cascade(levels, shaken(step), batch, truth)[1]
        loss = sum(losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first = first or loss.item()
    assert loss.item() < 0.5 * first
    proposals = shaken(1000)
    boxes, quality = proposals.boxes, []
    own = torch.arange(5).repeat_interleave(8)
    for stage in cascade.stages:
        quality.append(box_iou(boxes, truth.boxes)[torch.arange(40), own].mean().item())
        offsets = stage.predict(levels, boxes, proposals.image_ids)[1][:, 0]
        boxes = stage.move(offsets, boxes, proposals.image_ids, batch).detach()
    quality.append(box_iou(boxes, truth.boxes)[torch.arange(40), own].mean().item())
    assert quality[1] > quality[0] + 0.05
    assert quality[3] > quality[1]


def test_settings_of_another_number_of_stages_are_refused():
    heads = [BoxHead(2, 1, 2, 1, class_agnostic=True) for _ in range(2)]
    with pytest.raises(ValueError, match=r"overlaps must be one per head \(2\), got 3"):
        CascadeRoIHeads(RoIPool(), heads)
    with pytest.raises(ValueError, match=r"weights must be one per head \(2\), got 1"):
        CascadeRoIHeads(RoIPool(), heads, overlaps=(0.5, 0.6), stds=STDS[:2], weights=(1,))


def test_heads_with_boxes_per_class_are_refused():
    with pytest.raises(ValueError, match="heads must be class-agnostic"):
        CascadeRoIHeads(RoIPool(), [BoxHead(2, 1, 2, 1) for _ in range(3)])
