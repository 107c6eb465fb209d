"""GDL's detectors: phases, turns, which losses reach which part, and what is restored."""

import pytest
import torch
import torch.nn.functional as F
from detection import target
from training import description_of, make_training, same_state

from tinyops.models import create, load, save
from tinyops.models.gdl_detectors import CropGDL, FeatureGDL, Weights
from tinyops.nn.batch import collate_images, collate_targets
from tinyops.nn.boxes import encode
from tinyops.nn.roi import Samples

SMALL = {
    "neck_channels": 8,
    "head_channels": 16,
    "rpn_samples": 32,
    "samples": 16,
    "proposals": [60, 60],
    "pre_nms": [100, 100],
    "generator_width": 8,
    "generator_blocks": 1,
    "crop_size": 8,
    "upscale": 2,
    "crop_samples": 8,
    "discriminator_width": 8,
    "discriminator_hidden": 16,
}
SIZES = (64, 96), (50, 41)
TARGETS = [target((10, 10, 18, 22), (40.5, 30, 49, 38), labels=[1, 2]), target((5, 3, 9, 40))]
NOTHING = [target(), target()]
PHASES = ("detector", "generator", "adversarial")
MODES = pytest.mark.parametrize("mode", ["crop", "feature"])
TURNS = pytest.mark.parametrize("turn", ["discriminator", "generator"])


def images(sizes=SIZES):
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(3, *size, generator=generator) for size in sizes]


def make(mode="crop", phase="adversarial", **options):
    torch.manual_seed(0)
    scale = {"scale": 0.5} if mode == "feature" else {}  # for features it is doubled
    settings = {**SMALL, "mode": mode, **scale, **options}
    model = create("faster_rcnn_gdl_resnet_nano", num_classes=2, **settings)
    model.set_phase(phase)
    return model


def values(model):
    return {name: x.clone() for name, x in model.state_dict().items()}


def changed(model, before):
    found = {name for name, x in model.state_dict().items() if not torch.equal(x, before[name])}
    return {name.partition(".")[0] for name in found}


def slopes(model, turn, targets=TARGETS):
    """Losses of a turn, and the parts that have gradients which are not 0."""
    model.turn = turn
    model.zero_grad()
    torch.manual_seed(2)
    losses = model(images(), targets)
    sum(losses.values()).backward()
    parts = {n.partition(".")[0] for n, p in model.named_parameters()
             if p.grad is not None and p.grad.abs().max() > 0}  # fmt: skip
    return losses, parts


@MODES
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("targets", [TARGETS, NOTHING])
def test_every_phase_trains_and_detects(mode, phase, targets):
    model = make(mode, phase, adversarial_weight=0.1, generator_norms=True)
    seen = set()
    for turn in model.turns or ("",):
        model.turn = turn
        model.zero_grad()
        losses = model(images(), targets)
        assert all(x.isfinite() and x.dtype == torch.float32 for x in losses.values())
        sum(losses.values()).backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        seen |= {name for name, p in model.named_parameters() if p.grad is not None}
    assert seen == {name for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for found, (height, width) in zip(model.eval()(images()), SIZES, strict=True):
            assert len(found["boxes"]) > 0
            assert (found["boxes"] >= 0).all()
            assert (found["boxes"] <= torch.tensor([width, height] * 2)).all()


@MODES
def test_what_learns_in_which_phase(mode):
    def learning(model):
        return {n.partition(".")[0] for n, p in model.named_parameters() if p.requires_grad}

    model = make(mode, "detector")
    assert learning(model) == {"backbone", "neck", "rpn", "roi_heads"}
    model.set_phase("generator")
    assert learning(model) == {"generator"}
    model.set_phase("adversarial")
    judges = {"discriminator"} if mode == "crop" else {"rpn", "roi_heads"}
    assert learning(model) == {"generator"} | judges
    critic = "discriminator" if mode == "crop" else "critic"
    assert learning(make(mode, adversarial_weight=0.1)) == {"generator", critic} | judges


@pytest.mark.parametrize("phase", ["detector", "generator"])
def test_the_detector_alone_is_faster_rcnn(phase):
    model = make(phase=phase)
    torch.manual_seed(0)
    options = {k: v for k, v in SMALL.items() if not k.startswith(("gen", "crop", "disc", "up"))}
    plain = create("faster_rcnn_fpn_resnet_nano", num_classes=2, **options)
    plain.load_state_dict({k: x for k, x in model.state_dict().items() if k in plain.state_dict()})
    if phase == "detector":
        torch.manual_seed(1)
        losses = model(images(), TARGETS)
        torch.manual_seed(1)
        assert losses == plain(images(), TARGETS)
    with torch.no_grad():
        found, expected = model.eval()(images()), plain.eval()(images())
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@MODES
@pytest.mark.parametrize("adversarial", [0.0, 0.1])
def test_each_turn_changes_its_own_part_alone(mode, adversarial):
    """Running statistics and momenta, too."""
    model = make(mode, adversarial_weight=adversarial, generator_norms=True)
    training, seen = make_training(model=model, optimizer="adamw", rate=1e-2), {}
    step, before = training.optimizer.step, values(model)

    def watched():
        nonlocal before
        step()
        seen.setdefault(model.turn, set()).update(changed(model, before))
        before = values(model)

    training.optimizer.step = watched
    for _ in range(3):
        training.update([(images(), TARGETS)])
    judges = {"discriminator"} if mode == "crop" else {"rpn", "roi_heads"}
    judges |= {"critic"} if mode == "feature" and adversarial else set()
    assert seen == {"discriminator": judges, "generator": {"generator"}}


ONLY = {"mse_weight": 0, "tv_weight": 0, "class_weight": 0, "box_weight": 0}


@MODES
@pytest.mark.parametrize(
    ("weight", "reaches"),
    [("class_weight", True), ("box_weight", True), ("adversarial_weight", True), ("", False)],
)
def test_every_loss_of_the_discriminator_reaches_the_generator_alone(mode, weight, reaches):
    model = make(mode, **{**ONLY, **({weight: 1} if weight else {})})
    _, parts = slopes(model, "generator")
    assert parts == ({"generator"} if reaches else set())
    if reaches:
        grads = [p.grad for p in model.generator.parameters()]
        assert all(grad.abs().max() > 0 for grad in grads)


@MODES
def test_names_of_the_losses(mode):
    for adversarial, game in ((0.0, set()), (0.1, {"game"})):
        model = make(mode, adversarial_weight=adversarial)
        common = {"classes", "boxes"} | game
        losses, _ = slopes(model, "discriminator")
        assert set(losses) == {f"discriminator_{x}" for x in common}
        losses, _ = slopes(model, "generator")
        assert set(losses) == {f"generator_{x}" for x in common | {"mse", "tv"}}
    model.set_phase("generator")
    assert set(model(images(), TARGETS)) == {"generator_mse", "generator_tv"}


def test_without_a_weight_there_is_no_game():
    assert make().discriminator.fc_real is None
    assert make("feature").critic is None


def verdict_case():
    """Three samples, two of them objects of classes 2 and 1, and what was said of them."""
    truth = collate_targets([target((1, 1, 9, 9), (20, 20, 30, 26), labels=[1, 2])])
    boxes = torch.tensor([[19.0, 20, 31, 27], [0, 2, 8, 11], [40, 40, 50, 50]])
    samples = Samples(
        boxes, torch.ones(3), torch.zeros(3).long(), torch.tensor([1, 0]), torch.zeros(3).bool()
    )
    torch.manual_seed(3)
    said = [(torch.randn(3, 3), torch.randn(3, 2, 4), torch.randn(3)) for _ in range(2)]
    return truth, samples, *said


def smooth_l1(x):
    return sum(0.5 * v * v if abs(v) < 1 else abs(v) - 0.5 for v in x.tolist())


@TURNS
@pytest.mark.parametrize("saturating", [True, False])
def test_losses_are_those_of_the_slides(turn, saturating):
    model = make(class_weight=2.0, box_weight=3.0, adversarial_weight=0.1, saturating=saturating)
    model.turn = turn
    truth, samples, fake, real = verdict_case()
    of_discriminator = turn == "discriminator"
    found = model.verdict_losses(fake, real if of_discriminator else None, samples, truth)
    classes = boxes = 0.0
    for k, label in enumerate((2, 1, 0)):
        p = fake[0][k].softmax(0)
        objectness = 1 - p[0] if label else p[0]
        classes -= objectness.log() + p[label].log()
        if of_discriminator:
            classes -= real[0][k].softmax(0)[label].log()
        if label:
            goal = encode(
                truth.boxes[label - 1][None], samples.boxes[k][None], (0.1, 0.1, 0.2, 0.2)
            )
            boxes += smooth_l1(fake[1][k, label - 1] - goal[0])
    d_fake, d_real = fake[2].sigmoid(), real[2].sigmoid()
    if of_discriminator:
        game = -d_real.log().mean() - (1 - d_fake).log().mean()
    else:
        game = 0.1 * ((1 - d_fake).log().mean() if saturating else -d_fake.log().mean())
    expected = {"classes": 2 * classes / 3, "boxes": 3 * boxes / 3, "game": game}
    assert set(found) == {f"{turn}_{name}" for name in expected}
    for name, value in expected.items():
        torch.testing.assert_close(float(found[f"{turn}_{name}"]), float(value), rtol=1e-5, atol=0)


def test_objectness_of_anchors_takes_the_place_of_that_of_classes():
    model = make("feature")
    model.turn = "generator"
    truth, samples, (logits, offsets, _), _ = verdict_case()
    anchors = {"rpn_objectness": torch.tensor(5.0), "rpn_boxes": torch.tensor(7.0)}
    none = {name: torch.zeros(()) for name in anchors}
    a, b = (
        model.verdict_losses((logits, offsets, None), None, samples, truth, anchors=x)
        for x in (anchors, none)
    )
    assert float(a["generator_classes"] - b["generator_classes"]) == pytest.approx(5, abs=1e-5)
    assert float(a["generator_boxes"] - b["generator_boxes"]) == pytest.approx(7, abs=1e-5)
    labels = torch.tensor([2, 1, 0])
    expected = F.cross_entropy(logits, labels)
    torch.testing.assert_close(b["generator_classes"], expected)


def test_one_box_for_all_classes_is_the_box_of_each():
    model = make()
    model.turn = "generator"
    truth, samples, (logits, offsets, _), _ = verdict_case()
    one = offsets[:, :1]
    found, expected = (
        model.verdict_losses((logits, x, None), None, samples, truth)["generator_boxes"]
        for x in (one, one.expand(-1, 2, -1))
    )
    torch.testing.assert_close(found, expected)


@MODES
def test_training_lowers_the_losses(mode):
    model = make(mode)
    training = make_training(model=model, optimizer="adamw", rate=5e-3)
    losses = [float(sum(training.update([(images(), TARGETS)]).values())) for _ in range(10)]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


@MODES
def test_a_resumed_training_is_the_same(mode, tmp_path):
    def training(phase):
        return make_training(model=make(mode, phase), optimizer="adamw", rate=1e-2, seed=3)

    parts = [(images(), TARGETS)]
    whole = training("adversarial")
    for k in range(4):
        whole.update(parts)
        if k == 1:
            whole.save(tmp_path / "state", description_of(whole.model), {})
    rest = training("adversarial")
    rest.restore(tmp_path / "state", description_of(whole.model), {})
    for _ in range(2):
        rest.update(parts)
    assert same_state(whole.model, rest.model)


@MODES
def test_a_saved_model_detects_the_same(mode, tmp_path):
    model = make(mode, adversarial_weight=0.1, generator_norms=True).eval()
    save(model, tmp_path / "model.safetensors")
    other = load(tmp_path / "model.safetensors")
    assert other.phase == "adversarial"
    assert same_state(model, other)
    with torch.no_grad():
        for one, two in zip(model(images()), other(images()), strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=0)


@MODES
def test_autocast(mode):
    model = make(mode, adversarial_weight=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        for turn in model.turns:
            losses, _ = slopes(model, turn)
            assert all(x.dtype == torch.float32 and x.isfinite() for x in losses.values())
        with torch.no_grad():
            found = model.eval()(images())
    assert all(x["boxes"].dtype == x["scores"].dtype == torch.float32 for x in found)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"mode": "both"}, "mode must be 'crop' or 'feature', got 'both'"),
        ({"crop_size": 0}, "size must be"),
        ({"crop_context": 0.0}, r"context must be above 0, got 0\.0"),
        ({"small": -1}, "small must be above 0, got -1"),
        ({"crops": 0}, "most must be at least 1, got 0"),
        ({"tv_weight": -1}, "weight tv must be at least 0, got -1"),
        ({"upscale": 3}, "upscale must be a power of 2"),
    ],
)
def test_wrong_settings(options, text):
    with pytest.raises(ValueError, match=text):
        make(**options)


def test_kinds_and_sizes():
    crop, feature = make(), make("feature")
    assert isinstance(crop, CropGDL)
    assert isinstance(feature, FeatureGDL)
    assert (crop.scale, feature.scale, make("feature", scale=1.5).scale) == (1, 1, 3)
    assert crop.weights == Weights(1.0, 1e-4, 0.0, 1.0, 1.0, False)


def batch_of(model):
    batch = collate_images(images(), mean=model.mean, std=model.std, scale=model.scale)
    return batch, collate_targets(TARGETS)


class Fixed(torch.nn.Module):
    """A discriminator that always says the same, and counts what it sees."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, crops):
        self.seen.append(crops)
        logits = crops.new_tensor([[-9.0, 9, 0]]).expand(len(crops), -1)
        return logits, crops.new_zeros(len(crops), 2, 4), None


def test_small_boxes_are_restored_and_others_keep_their_word():
    model = make(small=7.0, crops=7, score_threshold=0.0).eval()
    model.discriminator = Fixed()
    batch, _ = batch_of(model)
    with torch.no_grad():
        levels, _ = model.neck(model.backbone(batch.pixels))
        proposals, _ = model.rpn(levels, batch)
        boxes, ids = proposals.boxes, proposals.image_ids
        logits, offsets = model.roi_heads.predict(levels, boxes, ids)
        background = logits.softmax(1)[:, 0].tolist()
        rows = []
        for image in (0, 1):
            mine = [
                k for k, (x1, y1, x2, y2) in enumerate(boxes.tolist())
                if ids[k] == image and min(x2 - x1, y2 - y1) < 7
            ]  # fmt: skip
            assert 7 < len(mine) < int((ids == image).sum())
            rows += sorted(mine, key=lambda k: background[k])[:7]
        logits[rows], offsets[rows] = torch.tensor([-9.0, 9, 0]), 0.0
        expected = model.roi_heads.detect(logits, offsets, boxes, ids, batch)
        found = model.detect(levels, batch)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    (seen,) = model.discriminator.seen
    assert seen.shape == (14, 3, 16, 16)
    high = model.cut(batch, boxes[rows], ids[rows], 2)
    torch.testing.assert_close(seen, model.generator(F.avg_pool2d(high, 2)), rtol=1e-4, atol=1e-4)


def test_without_proposals_nothing_is_restored():
    model = make(small=1e-6).eval()
    with torch.no_grad():
        plain = make(phase="detector").eval()(images())
        for one, other in zip(model(images()), plain, strict=True):
            torch.testing.assert_close(one, other)


def test_restored_levels_have_the_strides_of_the_others():
    for sizes in (SIZES, ((33, 31), (20, 47)), ((96, 160),)):
        model = make("feature").eval()
        batch = collate_images(images(sizes), mean=model.mean, std=model.std, scale=model.scale)
        with torch.no_grad():
            levels, _ = model.neck(model.backbone(batch.pixels))
            low = model.low_levels(batch)
            restored = [model.generator(low[0]), *low[:-1]]
        assert [x.shape for x in restored] == [x.shape for x in levels]


def test_the_backbone_sees_the_smaller_image_alone_when_features_are_restored():
    model, seen = make("feature").eval(), []
    model.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(images())
    batch, _ = batch_of(model)
    assert [x.shape for x in seen] == [(2, 3, 32, 48)]
    torch.testing.assert_close(seen[0], F.avg_pool2d(batch.pixels, 2))
