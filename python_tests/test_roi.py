"""Pooling, losses and detections of the second stage."""

import math

import pytest
import torch
import torch.nn.functional as F
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

from tinyops.nn.boxes import decode, encode
from tinyops.nn.roi import BoxHead, RoIHeads, RoIPool
from tinyops.nn.sampling import RandomSampler

STDS = (0.1, 0.1, 0.2, 0.2)
NEVER = [0.0, 0.0, 0.0, 0.0]


def small_heads(num_classes=3, class_agnostic=False, **settings):
    head = BoxHead(CHANNELS, 3, 16, num_classes, class_agnostic)
    settings.setdefault("sampler", RandomSampler(32, 0.25))
    return RoIHeads(RoIPool(size=3), head, **settings)


def ramps(side=512, strides=(4, 8, 16, 32)):
    """Levels whose three channels are x and y of a cell's centre in pixels, and the stride."""
    levels = []
    for stride in strides:
        centres = (torch.arange(side // stride) + 0.5) * stride
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        levels.append(torch.stack([x, y, torch.full_like(x, stride)])[None])
    return levels


@pytest.mark.parametrize(
    ("box", "stride"),
    [
        ([41.0, 50.0, 69.0, 85.0], 4),
        ([40.5, 60.25, 47.5, 63.75], 4),
        ([50.0, 60.0, 176.0, 186.0], 8),
        ([60.0, 40.0, 340.0, 320.0], 16),
        ([20.0, 20.0, 489.0, 489.0], 32),
    ],
)
def test_bins_of_a_ramp_hold_the_place_of_their_centre(box, stride):
    pooled = RoIPool()(ramps(), torch.tensor([box]), torch.tensor([0]))[0]
    steps = (torch.arange(7) + 0.5) / 7
    x, y = box[0] + steps * (box[2] - box[0]), box[1] + steps * (box[3] - box[1])
    torch.testing.assert_close(pooled[0], x.expand(7, 7), rtol=0, atol=1e-3)
    torch.testing.assert_close(pooled[1], y[:, None].expand(7, 7), rtol=0, atol=1e-3)
    torch.testing.assert_close(pooled[2], torch.full((7, 7), float(stride)))


def test_bins_average_all_of_their_cells():
    level = torch.randn(1, 2, 40, 40)
    boxes = torch.tensor([[8.0, 16, 92, 72]])  # 21 by 14 cells of 4 pixels: bins of 3 by 2
    pooled = RoIPool((4,))([level], boxes, torch.tensor([0]))
    torch.testing.assert_close(pooled, F.avg_pool2d(level[..., 4:18, 2:23], (2, 3)))


def test_larger_boxes_are_seen_on_coarser_levels():
    sides = torch.tensor([0.0, 2.0, 56.0, 111.9, 112.0, 223.9, 224.0, 447.9, 448.0, 9000.0])
    boxes = torch.stack([sides * 0, sides * 0, sides / 2, sides * 2], 1)  # the area counts
    assert RoIPool().choose_levels(boxes).tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 3, 3]
    assert RoIPool((4, 8)).choose_levels(boxes).tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1, 1]
    assert RoIPool(finest_scale=28).choose_levels(boxes)[2] == 1


def test_features_come_in_the_order_of_the_boxes():
    levels = [torch.cat([level, -level]) for level in ramps()]
    boxes = torch.tensor([[0.0, 0, 300, 300], [8, 8, 20, 20], [9, 9, 150, 150], [8, 8, 20, 20]])
    image_ids = torch.tensor([1, 0, 1, 1])
    pool = RoIPool(size=2)
    together = pool(levels, boxes, image_ids)
    alone = [pool(levels, boxes[k : k + 1], image_ids[k : k + 1]) for k in range(4)]
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(together[1], -together[3])


def test_pooling_no_boxes_gives_every_level_a_gradient():
    levels = make_levels(2)
    pooled = RoIPool()(levels, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert pooled.shape == (0, CHANNELS, 7, 7)
    pooled.sum().backward()
    assert all(level.grad.abs().sum() == 0 for level in levels[:4])


def test_coordinates_are_not_rounded_to_the_dtype_of_the_levels():
    levels = [level.bfloat16() for level in ramps(1024)]
    boxes = torch.tensor([[901.3, 803.7, 909.9, 811.2]])  # bfloat16 has steps of 4 here
    pooled = RoIPool()(levels, boxes, torch.tensor([0]))
    exact = RoIPool()([level.float() for level in levels], boxes, torch.tensor([0]))
    assert pooled.dtype == torch.bfloat16
    assert torch.equal(pooled, exact.bfloat16())


def test_fewer_levels_than_strides_are_refused():
    with pytest.raises(ValueError, match="levels must be at least 4, got 3"):
        RoIPool()(ramps()[:3], torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))


def test_box_head_has_the_layers_and_the_start_of_mmdet():
    head = BoxHead(16, 7, 512, num_classes=5)
    shapes = {name: tuple(value.shape) for name, value in head.state_dict().items()}
    assert shapes["shared_fcs.0.weight"] == (512, 16 * 49)
    assert shapes["shared_fcs.1.weight"] == (512, 512)
    assert shapes["fc_cls.weight"] == (6, 512)
    assert shapes["fc_reg.weight"] == (20, 512)
    assert len(shapes) == 8
    assert math.isclose(head.fc_cls.weight.std().item(), 0.01, rel_tol=0.1)
    assert math.isclose(head.fc_reg.weight.std().item(), 0.001, rel_tol=0.1)
    bound = math.sqrt(6 / (512 + 512))
    assert 0.99 * bound < head.shared_fcs[1].weight.abs().max() <= bound
    assert all(value.eq(0).all() for name, value in head.state_dict().items() if "bias" in name)
    assert BoxHead(16, 7, 512, 5, class_agnostic=True).fc_reg.weight.shape == (4, 512)


def test_offsets_of_a_class_are_four_neighbours():
    head = BoxHead(2, 1, 4, num_classes=3)
    features = torch.randn(5, 2, 1, 1)
    logits, offsets = head(features)
    hidden = features.flatten(1)
    for layer in head.shared_fcs:
        hidden = layer(hidden).relu()
    assert logits.shape == (5, 4)
    assert torch.equal(offsets[:, 1], head.fc_reg(hidden)[:, 4:8])


def test_samples_are_filled_up_with_negatives():
    heads = small_heads(sampler=RandomSampler(16, 0.25))
    near = [[10.0 + k / 4, 10, 30 + k / 4, 30] for k in range(10)]
    far = [[60.0 + k, 60, 80 + k, 80] for k in range(30)]
    truth = make_truth([([10, 10, 30, 30], 2)], [])
    samples = heads.sample(make_proposals(near + far, far), truth, 2)
    assert samples.image_ids.bincount().tolist() == [16, 16]
    assert len(samples.objects) == 4
    assert samples.image_ids[:4].eq(0).all()
    assert samples.boxes[:4, 0].le(13).all()
    assert samples.boxes[4:, 0].ge(60).all()


def test_objects_are_proposals_of_objectness_one():
    spy = Spy(32, 0.5)
    truth = make_truth([([10, 10, 14, 14], 2)], [([50, 50, 58, 58], 3), ([90, 90, 90, 95], 1)])
    proposals = make_proposals([[70, 70, 80, 80]], [[20, 20, 40, 40]])
    samples = small_heads(sampler=spy).sample(proposals, truth, 2)
    assert spy.seen["matches"].tolist() == [-1, -1, 0, 1, 2]  # also the object without an area
    assert spy.seen["scores"].tolist() == pytest.approx([0.9, 0.9, 1, 1, 1])
    assert sorted(samples.objects.tolist()) == [0, 1, 2]
    assert samples.added.tolist() == [True] * 3 + [False] * 2
    assert torch.equal(samples.boxes[:3], truth.boxes[samples.objects])
    assert samples.scores[:3].eq(1).all()


def test_proposals_between_the_thresholds_are_not_learnt_from():
    boxes = [[10, 10, 20, 20], [10, 10, 20, 16], [10, 10, 20, 14.5], [10, 10, 20, 12]]
    truth = make_truth([([10, 10, 20, 20], 1)])
    spy = Spy(32, 0.5)
    small_heads(sampler=spy, negative=0.4).sample(make_proposals(boxes), truth, 1)
    assert spy.seen["matches"].tolist() == [0, 0, -2, -1, 0]


def test_ignored_regions_are_no_background():
    inside, half, outside = [[42, 42, 50, 50], [36, 42, 44, 50], [5, 5, 15, 15]]
    truth = make_truth([], [], ignored=(([40, 40, 80, 80], 0),))
    proposals = make_proposals([inside, half, outside], [inside])
    samples = small_heads(sampler=take_all()).sample(proposals, truth, 2)
    assert samples.boxes.tolist() == [half, outside, inside]
    assert samples.image_ids.tolist() == [0, 0, 1]


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_losses_by_hand(class_agnostic):
    logits = [0.3, -1.0, 0.8]  # background, class 1, class 2
    offsets = [[0.1, 0.2, 0.3, 0.4], [-0.1, -0.2, -0.3, -0.4]][: 1 if class_agnostic else 2]
    heads = RoIHeads(RoIPool(size=1), FixedHead(logits, offsets), sampler=take_all())
    truth = make_truth([([10, 10, 20, 20], 2)], [])
    proposals = make_proposals([[11, 10, 21, 22], [60, 60, 70, 70]], [[30, 30, 40, 40]])
    _, losses = heads(make_levels(2), proposals, make_batch((128, 128), (128, 128)), truth)
    log_probabilities = torch.tensor(logits).log_softmax(0)
    classes = -(2 * log_probabilities[2] + 2 * log_probabilities[0]) / 4
    # The proposal (centre 16 16, 10 x 12) and the object itself (offsets 0), centre 15 15, 10 x 10:
    true = torch.tensor([[-1 / 10 / 0.1, -1 / 12 / 0.1, 0, math.log(10 / 12) / 0.2], NEVER])
    boxes = (torch.tensor(offsets[-1]) - true).abs().sum() / 4
    torch.testing.assert_close(losses["roi_classes"], classes)
    torch.testing.assert_close(losses["roi_boxes"], boxes)
    (losses["roi_boxes"]).backward()
    used = heads.head.offsets.grad.ne(0).any(1).tolist()
    assert used == ([True] if class_agnostic else [False, True])


def test_beta_rounds_the_tip_of_the_box_loss():
    truth, proposals = make_truth([([10, 10, 20, 20], 1)]), make_proposals([])
    for beta, expected in ((0.0, 1.2), (1.0, 0.5 * 4 * 0.3**2), (0.1, 4 * (0.3 - 0.05))):
        head = FixedHead([0, 0], [[0.3, -0.3, 0.3, -0.3]])
        heads = RoIHeads(RoIPool(size=1), head, sampler=take_all(), beta=beta)
        loss = heads(make_levels(1), proposals, make_batch((128, 128)), truth)[1]["roi_boxes"]
        assert loss.item() == pytest.approx(expected)


def test_targets_are_what_detections_undo():
    truth = make_truth([([30, 31, 44, 40], 1)])
    proposal = torch.tensor([[28.0, 30, 44, 42]])
    offsets = encode(truth.boxes, proposal, STDS)
    heads = RoIHeads(RoIPool(size=1), FixedHead([0, 9], [offsets[0].tolist()]), sampler=take_all())
    levels, batch = make_levels(1), make_batch((128, 128))
    found, losses = heads(levels, make_proposals(proposal.tolist()), batch)
    assert losses == {}
    torch.testing.assert_close(found[0]["boxes"], truth.boxes, rtol=0, atol=1e-4)


@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize("objects", ["none", "in one image"])
@pytest.mark.parametrize("count", [0, 20])
def test_losses_are_finite_and_connected_without_objects_or_proposals(
    count, objects, class_agnostic
):
    heads, levels = small_heads(class_agnostic=class_agnostic), make_levels(2)
    truth = make_truth([([10, 10, 14, 14], 2)] if objects == "in one image" else [], [])
    proposals = scatter_proposals(count, 2)
    found, losses = heads(levels, proposals, make_batch((128, 128), (100, 128)), truth)
    assert found is None
    assert set(losses) == {"roi_classes", "roi_boxes"}
    assert all(loss.dim() == 0 and loss.isfinite() for loss in losses.values())
    assert losses["roi_boxes"].gt(0) == (objects == "in one image")
    sum(losses.values()).backward()
    check_gradients(heads, levels)


def test_loss_of_a_batch_is_the_mean_over_the_samples_of_its_images():
    heads, levels = small_heads(sampler=take_all()), make_levels(2)
    objects = [([10, 10, 14, 14], 2)], [([k, k, k + 6, k + 5], 1 + k % 3) for k in range(0, 90, 9)]
    proposals = [scatter_proposals(n, 1, n).boxes.tolist() for n in (7, 30)]
    both = heads(
        levels, make_proposals(*proposals), make_batch((128, 128), (128, 128)), make_truth(*objects)
    )[1]
    parts, counts = [], []
    for k in range(2):
        alone = [level[k : k + 1] for level in levels]
        proposal, truth = make_proposals(proposals[k]), make_truth(objects[k])
        counts.append(len(heads.sample(proposal, truth, 1).boxes))
        parts.append(heads(alone, proposal, make_batch((128, 128)), truth)[1])
    for name, loss in both.items():
        expected = sum(p[name] * n for p, n in zip(parts, counts, strict=True)) / sum(counts)
        torch.testing.assert_close(loss, expected)


def test_a_step_lowers_the_loss():
    heads, levels = small_heads(), make_levels(2)
    truth = make_truth([([10, 10, 14, 14], 2)], [([50, 50, 58, 58], 3)])
    optimizer = torch.optim.SGD(heads.parameters(), lr=0.05)
    values = []
    for _ in range(2):
        torch.manual_seed(3)
        batch = make_batch((128, 128), (128, 128))
        loss = sum(heads(levels, scatter_proposals(20, 2), batch, truth)[1].values())
        values.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert values[1] < values[0] - 1e-3


def test_autocast_changes_the_losses_little():
    heads, levels = small_heads(sampler=take_all()), make_levels(2)
    truth = make_truth([([10, 10, 14, 14], 2)], [([50, 50, 58, 58], 3)])
    proposals, batch = scatter_proposals(20, 2), make_batch((128, 128), (128, 128))
    exact = heads(levels, proposals, batch, truth)[1]
    with torch.autocast("cpu", torch.bfloat16):
        rough = heads(levels, proposals, batch, truth)[1]
        halves = [level.bfloat16() for level in levels]
        rougher = heads(halves, proposals, batch, truth)[1]
        found = heads(halves, proposals, batch)[0]
    for losses in (rough, rougher):
        for name, loss in losses.items():
            assert loss.dtype == torch.float32
            torch.testing.assert_close(loss, exact[name], rtol=0.02, atol=0.01)
    assert rough["roi_classes"] != exact["roi_classes"]
    assert {x.dtype for x in found[0].values()} == {torch.float32, torch.int64}
    sum(rougher.values()).backward()
    check_gradients(heads, levels)


def test_detections_are_decoded_cut_and_labelled_from_one():
    probabilities = torch.tensor([0.1, 0.2, 0.04, 0.66])  # background first
    offsets = [[1.0, 0, 0, 0], [0, 0, 0, 0], [0, -1.0, math.log(2) / 0.2, 0]]
    heads = RoIHeads(RoIPool(size=1), FixedHead(probabilities.log().tolist(), offsets))
    proposals = make_proposals([[80, 40, 90, 60]], [], [[0, 0, 10, 10]])
    batch = make_batch((128, 90), (50, 50), (128, 128))
    found, _ = heads(make_levels(3), proposals, batch)
    assert [len(d["boxes"]) for d in found] == [2, 0, 2]
    for detections in found[::2]:  # class 2 is below the threshold of 0.05
        assert detections["labels"].tolist() == [3, 1]
        torch.testing.assert_close(detections["scores"], torch.tensor([0.66, 0.2]))
    expected = torch.tensor([[75.0, 38, 90, 58], [81, 40, 90, 60]])  # cut at 90, the width
    torch.testing.assert_close(found[0]["boxes"], expected)
    expected = torch.tensor([[0.0, 0, 15, 9], [1, 0, 11, 10]])
    torch.testing.assert_close(found[2]["boxes"], expected)


def detect(settings, *images, logits=(0.0, 1.0, 0.5)):
    heads = RoIHeads(RoIPool(size=1), FixedHead(list(logits), [NEVER]), **settings)
    batch = make_batch(*[(128, 128)] * len(images))
    return heads(make_levels(len(images)), make_proposals(*images), batch)[0]


def test_overlapping_boxes_of_a_class_and_image_are_thinned():
    apart, pair = [[10, 10, 20, 20], [40, 10, 50, 20]], [[10, 10, 20, 20], [10, 11, 20, 21]]
    found = detect({}, apart, pair)  # the IoU of the pair is 9 / 11
    assert [d["labels"].tolist() for d in found] == [[1, 1, 2, 2], [1, 2]]
    found = detect({"nms_threshold": 0.9}, apart, pair)
    assert [d["labels"].tolist() for d in found] == [[1, 1, 2, 2]] * 2


def test_soft_nms_takes_score_and_drops_what_falls_below_the_threshold():
    pair = [[10, 10, 20, 20], [10, 11, 20, 21]]
    full = torch.tensor([0.0, 1.0]).softmax(0)[1].item()
    found = detect({"nms": "soft_nms", "nms_threshold": 0.3}, pair, logits=(0.0, 1.0))[0]
    assert found["scores"].tolist() == pytest.approx([full, full * 2 / 11])
    settings = {"nms": "soft_nms", "nms_threshold": 0.3, "score_threshold": 0.2}
    assert len(detect(settings, pair, logits=(0.0, 1.0))[0]["scores"]) == 1


def test_the_best_of_every_image_are_kept():
    grid = [[x, y, x + 8, y + 8] for x in range(0, 100, 10) for y in range(0, 100, 10)]
    found = detect({"max_per_image": 130}, grid, grid[:60])
    assert [len(d["scores"]) for d in found] == [130, 120]
    assert found[0]["labels"].eq(1).sum() == 100
    for detections in found:
        assert detections["scores"].diff().le(0).all()


def test_images_of_a_batch_do_not_change_each_other():
    heads, levels = small_heads(score_threshold=0.2), make_levels(2)
    with torch.no_grad():
        heads.head.fc_cls.weight.mul_(300)
        heads.head.fc_reg.weight.mul_(300)
    proposals, batch = scatter_proposals(40, 2), make_batch((128, 128), (90, 77))
    together = heads(levels, proposals, batch)[0]
    for k in range(2):
        own = make_proposals(proposals.boxes[proposals.image_ids == k].tolist())
        alone = heads([x[k : k + 1] for x in levels], own, make_batch(batch.sizes[k]))[0][0]
        assert len(alone["boxes"]) > 5
        assert alone["labels"].unique().tolist() == [1, 2, 3]
        for name, value in alone.items():
            torch.testing.assert_close(together[k][name], value)


def test_detections_follow_their_equations():
    heads, levels = small_heads(score_threshold=0.0, nms_threshold=1.0), make_levels(1)
    with torch.no_grad():
        heads.head.fc_reg.weight.mul_(300)
    proposals, batch = scatter_proposals(5, 1), make_batch((1000, 1000))
    logits, offsets = heads.predict(levels, proposals.boxes, proposals.image_ids)
    found = heads(levels, proposals, batch)[0][0]
    scores = F.softmax(logits, 1)[:, 1:]
    expected, order = scores.T.flatten().sort(descending=True)
    torch.testing.assert_close(found["scores"], expected)
    assert found["labels"].tolist() == (1 + order // 5).tolist()
    boxes = torch.cat([decode(offsets[:, c], proposals.boxes, STDS) for c in range(3)])
    torch.testing.assert_close(found["boxes"], boxes[order].clamp(0, 1000))


def test_unknown_suppression_is_refused():
    with pytest.raises(ValueError, match=r"nms must be one of .* got 'fast'"):
        small_heads(nms="fast")
