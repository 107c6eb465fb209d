"""EFPN's detector: the detector, distillation across resolutions, and a head for small boxes."""

import math

import pytest
import torch
import torch.nn.functional as F
from detection import target
from second_stage import make_proposals, make_truth
from training import make_training, same_state

from tinyops.models import create, load, save
from tinyops.models.efpn import EFPNDetector
from tinyops.nn.assign import BACKGROUND, IGNORED
from tinyops.nn.batch import collate_images, collate_targets
from tinyops.nn.efpn import SmallRoIHeads
from tinyops.nn.postprocess import split_detections, suppress
from tinyops.nn.roi import BoxHead, RoIPool
from tinyops.nn.rpn import Proposals
from tinyops.nn.sampling import HardSampler, RandomSampler

SMALL = {
    "neck_channels": 8,
    "head_channels": 16,
    "rpn_samples": 32,
    "samples": 16,
    "proposals": [60, 60],
    "pre_nms": [100, 100],
}
SIZES = (64, 96), (50, 41)
TARGETS = [target((10, 10, 18, 22), (40.5, 30, 49, 38), labels=[1, 2]), target((5, 3, 9, 40))]
WHAT = ("all", "objects")
PHASES = ("detector", "distillation", "refinement")


def images(sizes=SIZES):
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(3, *size, generator=generator) for size in sizes]


def make(phase="detector", backbone="resnet_nano", **options):
    torch.manual_seed(0)
    model = create(f"faster_rcnn_efpn_{backbone}", num_classes=2, **{**SMALL, **options})
    model.set_phase(phase)
    return model


def batch_of(model, targets=TARGETS):
    batch = collate_images(images(), mean=model.mean, std=model.std)
    return batch, collate_targets(targets)


def learning(model):
    names = [name.split(".") for name, p in model.named_parameters() if p.requires_grad]
    return {".".join(name[:2] if name[0] == "neck" else name[:1]) for name in names}


@pytest.mark.parametrize("backbone", ["resnet_nano", "bh_resnet_nano"])
@pytest.mark.parametrize("phase", PHASES)
def test_every_phase_trains_and_detects(phase, backbone):
    model = make(phase, backbone)
    for targets in (TARGETS, [target(), target()]):
        losses = model(images(), targets)
        assert all(loss.isfinite() for loss in losses.values())
        model.zero_grad()
        sum(losses.values()).backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, name
            assert parameter.grad is None or parameter.grad.isfinite().all(), name
    with torch.no_grad():
        for found, (height, width) in zip(model.eval()(images()), SIZES, strict=True):
            assert len(found["boxes"]) > 0
            assert (found["boxes"] >= 0).all()
            assert (found["boxes"] <= torch.tensor([width, height] * 2)).all()


def test_what_learns_in_which_phase():
    model = make()
    detector = {"backbone", "neck.lateral_convs", "neck.output_convs", "rpn", "roi_heads"}
    assert learning(model) == detector
    model.set_phase("distillation")
    assert learning(model) == {"neck.extension"}
    model.set_phase("refinement")
    assert learning(model) == {"neck.extension", "small_heads"}
    assert learning(make("refinement", hard_examples=False)) == {"small_heads"}


def test_the_detector_alone_is_faster_rcnn():
    model = make()
    torch.manual_seed(0)
    plain = create("faster_rcnn_fpn_resnet_nano", num_classes=2, **SMALL)
    plain.load_state_dict({k: x for k, x in model.state_dict().items() if k in plain.state_dict()})
    model.neck.extension.register_forward_hook(lambda *_: pytest.fail("it was computed"))
    model.small_heads.register_forward_hook(lambda *_: pytest.fail("it was computed"))
    torch.manual_seed(1)
    losses = model(images(), TARGETS)
    torch.manual_seed(1)
    assert losses == plain(images(), TARGETS)
    for phase in ("detector", "distillation"):
        model.set_phase(phase)
        with torch.no_grad():
            found, expected = model.eval()(images()), plain.eval()(images())
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


def plain_distances(made, wanted, boxes, ids, cells_per_pixel, sizes):
    """Mean |difference| of the cells of the images, and of those that objects touch."""
    sums, counts = [0.0, 0.0], [0, 0]
    for k, (height, width) in enumerate(sizes):
        for i in range(math.ceil(height * cells_per_pixel)):
            for j in range(math.ceil(width * cells_per_pixel)):
                distance = float((made[k, :, i, j] - wanted[k, :, i, j]).abs().mean())
                hit = any(
                    int(image) == k
                    and math.floor(x1 * cells_per_pixel) <= j < math.ceil(x2 * cells_per_pixel)
                    and math.floor(y1 * cells_per_pixel) <= i < math.ceil(y2 * cells_per_pixel)
                    for (x1, y1, x2, y2), image in zip(boxes.tolist(), ids, strict=True)
                )
                for which in range(1 + hit):
                    sums[which] += distance
                    counts[which] += 1
    return [total / count for total, count in zip(sums, counts, strict=True)]


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_distillation_compares_with_the_pyramid_of_the_larger_image(scale):
    model = make("distillation", teacher_scale=scale, balance=0.5).double()
    batch, truth = batch_of(model)
    pixels = F.pad(batch.pixels.double(), (0, 32, 0, 0))  # 64 x 128: halves have whole cells
    if scale == 2:
        pixels = F.interpolate(
            batch.pixels.double(), size=(128, 192), mode="bilinear", align_corners=False
        )
    with torch.no_grad():
        within = model.neck.merge(model.backbone(pixels))
        targets = model.neck.output_convs[0](within[0]), within[1]
        halves = (
            pixels[..., ::2, ::2]
            + pixels[..., 1::2, ::2]
            + pixels[..., ::2, 1::2]
            + pixels[..., 1::2, 1::2]
        ) / 4
        features = model.backbone(halves, extended=True)
        made = model.neck.extension(features[0], model.neck.merge(features[1:]))
    with torch.no_grad():
        losses = model([x.double() for x in images()], TARGETS)
    assert set(losses) == {f"distilled_{p}_{what}" for p in ("p2", "p3") for what in WHAT}
    for level, stride, one, other in zip(("p2", "p3"), (4, 8), made, targets, strict=True):
        assert one.shape == other.shape
        expected = plain_distances(
            one, other, truth.boxes, truth.image_ids, scale / stride, batch.sizes
        )
        for what, value, weight in zip(WHAT, expected, (1, 0.5), strict=True):
            assert float(losses[f"distilled_{level}_{what}"]) == pytest.approx(
                weight * value, rel=1e-5
            )


def test_without_objects_the_whole_images_are_compared():
    losses = make("distillation")(images(), [target(), target()])
    assert losses["distilled_p2_objects"] == losses["distilled_p3_objects"] == 0
    assert losses["distilled_p2_all"] > 0


@pytest.mark.parametrize("phase", PHASES)
def test_training_lowers_the_losses_and_leaves_the_rest_alone(phase):
    model = make(phase, backbone="resnet18", widths=[4, 8, 8, 12])  # with batch normalisations
    before = {name: x.clone() for name, x in model.state_dict().items()}
    learners = learning(model)
    training = make_training(model=model, optimizer="adamw", rate=3e-3)
    parts = [(images(), TARGETS)]
    losses = [float(sum(training.update(parts).values())) for _ in range(12)]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    changed = {k for k, x in model.state_dict().items() if not torch.equal(x, before[k])}
    assert changed
    assert all(any(name.startswith(part + ".") for part in learners) for name in changed)


def test_only_small_boxes_are_learnt_from():
    heads = SmallRoIHeads(RoIPool((2,)), BoxHead(4, hidden=8), small=20)
    truth = make_truth([([0, 0, 10, 10], 1), ([40, 40, 80, 80], 1)])
    proposals = make_proposals(
        [[1, 1, 10, 10], [40, 40, 81, 80], [50, 0, 69, 20], [50, 0, 70, 20], [90, 0, 98, 40]]
    )
    every = heads.candidates(proposals, truth)
    # Sides 9, 40.5, 19.49, 20, 17.9, and of the objects 10, 40.
    expected = [0, IGNORED, BACKGROUND, IGNORED, BACKGROUND, 0, IGNORED]
    assert every.matches.tolist() == expected
    with pytest.raises(ValueError, match="small must be above 0, got 0"):
        SmallRoIHeads(RoIPool((2,)), BoxHead(4, hidden=8), small=0)


def test_the_heads_pool_from_their_levels():
    model = make()
    assert model.small_heads.pool.strides == (2,)
    assert model.roi_heads.pool.strides == (4, 8, 16, 32)
    assert model.rpn.anchors.strides == (4, 8, 16, 32, 64)


@pytest.mark.parametrize("keep_coarse", [True, False])
def test_both_heads_vote(keep_coarse):
    """Small proposals twice, or by the new head alone; then one suppression by class."""
    model = make("refinement", small=20, keep_coarse=keep_coarse, score_threshold=0.0).eval()
    batch, _ = batch_of(model)
    with torch.no_grad():
        for parameter in (*model.small_heads.parameters(), *model.roi_heads.parameters()):
            parameter.mul_(3)
        levels, _ = model.neck(model.backbone(batch.pixels, extended=True))
        proposals = model.rpn(levels[1:], batch)[0]
        assert 0 < int(model.small_heads.are_small(proposals.boxes).sum()) < len(proposals.boxes)
        boxes, scores, labels, ids = [], [], [], []
        for box, image in zip(proposals.boxes, proposals.image_ids, strict=True):
            side = float((box[2:] - box[:2]).prod().sqrt())
            stages = [(model.roi_heads, levels[1:])] if side >= 20 or keep_coarse else []
            stages += [(model.small_heads, levels[:1])] if side < 20 else []
            for stage, maps in stages:
                logits, offsets = stage.predict(maps, box[None], image[None])
                for label in (1, 2):
                    scores.append(logits.softmax(1)[0, label])
                    boxes.append(stage.move(offsets[:, label - 1], box[None], image[None], batch))
                    labels.append(label)
                    ids.append(image)
        boxes, scores, ids = torch.cat(boxes), torch.stack(scores), torch.stack(ids)
        labels = torch.tensor(labels)
        keep, kept = suppress(boxes, scores, labels, ids, iou_threshold=0.5, max_per_image=1000)
        expected = split_detections(boxes[keep], kept, labels[keep], ids[keep], 2)
        found, _ = model.heads(levels, batch, None)
    for one, other in zip(found, expected, strict=True):
        assert len(one["boxes"]) == len(other["boxes"]) > 0
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_the_hardest_of_all_proposals_are_learnt_from():
    torch.manual_seed(0)
    heads = SmallRoIHeads(
        RoIPool((2,), size=3), BoxHead(4, 3, 8, 2), small=30, sampler=HardSampler(8, 0.25)
    )
    for parameter in heads.head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    levels = [torch.randn(2, 4, 64, 64)]
    truth = make_truth([([10, 10, 30, 30], 1), ([60, 60, 80, 84], 2)], [])
    near = torch.rand(30, 4) * 4 + truth.boxes[torch.arange(30) % 2]
    corners = torch.rand(50, 2) * 90
    far = torch.cat([corners, corners + 5 + 20 * torch.rand(50, 2)], 1)
    boxes = torch.cat([near, far, far])
    ids = torch.tensor([0] * 80 + [1] * 50)
    proposals = Proposals(boxes, torch.rand(130), ids)
    every = heads.candidates(proposals, truth)
    losses = []
    for k, match in enumerate(every.matches.tolist()):
        logits, offsets = heads.predict(levels, every.boxes[k : k + 1], every.image_ids[k : k + 1])
        label = 0 if match < 0 else int(truth.labels[match])
        loss = -logits.log_softmax(1)[0, label]
        if match >= 0:
            (x1, y1, x2, y2), (a1, b1, a2, b2) = (
                every.boxes[k].tolist(),
                truth.boxes[match].tolist(),
            )
            wanted = [
                ((a1 + a2) - (x1 + x2)) / 2 / (x2 - x1) / 0.1,
                ((b1 + b2) - (y1 + y2)) / 2 / (y2 - y1) / 0.1,
                math.log((a2 - a1) / (x2 - x1)) / 0.2,
                math.log((b2 - b1) / (y2 - y1)) / 0.2,
            ]
            loss = loss + (offsets[0, label - 1] - torch.tensor(wanted)).abs().sum()
        losses.append(loss.item())
    expected = []
    for image in (0, 1):
        mine = [k for k in range(len(losses)) if int(every.image_ids[k]) == image]
        hard = sorted(mine, key=lambda k: -losses[k])
        positives = [k for k in hard if every.matches[k] >= 0][:2]
        rest = [k for k in hard if every.matches[k] == BACKGROUND]
        expected.append((positives, rest[: 8 - len(positives)]))
    order = [*expected[0][0], *expected[1][0], *expected[0][1], *expected[1][1]]
    samples = heads.sample(proposals, truth, 2, levels)
    torch.testing.assert_close(samples.boxes, every.boxes[order], rtol=0, atol=0)
    assert len(samples.objects) == 2
    batch = collate_images([torch.zeros(3, 128, 128)] * 2, mean=(0, 0, 0), std=(1, 1, 1))
    _, found = heads(levels, proposals, batch, truth)
    mean = sum(losses[k] for k in order) / 16
    assert sum(found.values()).item() == pytest.approx(mean, rel=1e-4)


def test_a_random_sampler_is_that_of_the_first_head():
    model = make(hard_examples=False)
    assert model.small_heads.sampler is model.roi_heads.sampler
    assert type(model.small_heads.sampler) is RandomSampler
    hard = make().small_heads.sampler
    assert isinstance(hard, HardSampler)
    assert (hard.num_samples, hard.positive_fraction) == (16, 0.25)


@pytest.mark.parametrize("phase", PHASES)
def test_autocast(phase):
    model = make(phase)
    expected = model(images(), TARGETS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(images(), TARGETS)
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    if phase == "distillation":  # the others sample
        for name, loss in losses.items():
            assert float(loss) == pytest.approx(float(expected[name]), rel=0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("phase", PHASES)
def test_a_gpu_computes_the_same(phase):
    torch.use_deterministic_algorithms(False)  # torchvision compiles another roi_align for it
    model, found = make(phase).double(), []
    for device in ("cpu", "cuda"):
        model.to(device).zero_grad()
        torch.manual_seed(1)
        losses = model(
            [x.to(device, torch.float64) for x in images()],
            [{key: x.to(device) for key, x in one.items()} for one in TARGETS],
        )
        sum(losses.values()).backward()
        gradients = [p.grad.cpu() for p in model.parameters() if p.requires_grad]
        found.append(([x.detach().cpu() for x in losses.values()], gradients))
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-9)


def test_a_saved_model_detects_the_same_in_its_phase(tmp_path):
    model = make("refinement").eval()
    model.categories = ("a", "b")
    save(model, tmp_path / "m.safetensors", categories=["a", "b"])
    back = load(tmp_path / "m.safetensors")
    assert back.phase == "refinement"
    assert same_state(back, model)
    with torch.no_grad():
        for one, other in zip(back(images()), model(images()), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("phase", PHASES)
def test_a_training_goes_on_as_if_it_had_not_stopped(phase, tmp_path):
    def start():
        return make_training(model=make(phase), optimizer="adamw", rate=1e-3)

    whole, parts = start(), [(images(), TARGETS)]
    description = {"name": "m", "arguments": {}, "categories": ["a", "b"]}
    whole.update(parts)
    whole.save(tmp_path / "state", description, {})
    whole.update(parts)
    again = start()
    again.restore(tmp_path / "state", description, {})
    again.update(parts)
    assert same_state(whole.model, again.model)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bh_resnet_fine", {}, "backbone must be a ResNet whose stem ends in a pooling"),
        ("timm:resnet10t", {}, "backbone must be a ResNet .* got another TimmBackbone"),
        ("resnet_nano", {"teacher_scale": 0.5}, "teacher_scale must be at least 1, got 0.5"),
        ("resnet_nano", {"balance": -1}, "balance must be at least 0, got -1"),
        ("resnet_nano", {"small": 0}, "small must be above 0, got 0"),
    ],
)
def test_bad_settings_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        create(f"faster_rcnn_efpn_{name}", **SMALL, **options)


def test_the_new_head_learns_what_the_old_one_decodes():
    """All boxes are decoded with the stds of the first second stage."""
    detector = create("faster_rcnn_efpn_resnet_nano", **SMALL)
    settings = {
        "positive": 0.6,
        "negative": 0.4,
        "ignore_above": 0.3,
        "stds": (0.2, 0.2, 0.4, 0.4),
        "beta": 1.0,
    }
    for name, value in settings.items():
        setattr(detector.roi_heads, name, value)
    extended = EFPNDetector.extend(detector)
    small = extended.small_heads
    assert {name: getattr(small, name) for name in settings} == settings
    small.stds = (0.1, 0.1, 0.2, 0.2)
    parts = extended.backbone, extended.neck, extended.rpn, extended.roi_heads
    with pytest.raises(ValueError, match="small_heads must have the stds of roi_heads"):
        EFPNDetector(*parts, small, num_classes=1)


def test_other_detectors_cannot_be_extended():
    wanted = "detector must have an EFPN, RoIHeads and no refiner, got"
    with pytest.raises(ValueError, match=f"{wanted} FPN, RoIHeads and NoneType"):
        EFPNDetector.extend(create("faster_rcnn_fpn_resnet_nano", **SMALL))
    refined = make()
    refined.refiner = torch.nn.Identity()
    with pytest.raises(ValueError, match=f"{wanted} EFPN, RoIHeads and Identity"):
        EFPNDetector.extend(refined)
