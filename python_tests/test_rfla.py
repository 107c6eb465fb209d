"""RFLA's systems: their settings, training and detection with any backbone."""

import pytest
import torch
from detection import target

from tinyops.models import create, load, save
from tinyops.nn.assign import HierarchicalAssigner, OverlapAssigner
from tinyops.train import Schedule, Training, make_optimizer

NAMES = [f"{d}_rfla_resnet_nano" for d in ("faster_rcnn", "cascade_rcnn", "retinanet")]
TARGETS = [target((10, 10, 18, 22), (40, 30, 42, 32), labels=[1, 2]), target()]


def small(name, **options):
    options = {"num_classes": 2, "neck_channels": 16, **options}
    if name.startswith("retinanet"):
        options = {"convs": 1, "score_threshold": 0.001, **options}
    else:
        options = {"head_channels": 32, "proposals": [60, 60], **options}
    return create(name, **options)


def images(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    sizes = ((63, 97), (50, 40))
    return [torch.rand(3, *size, generator=generator).to(dtype) for size in sizes]


def parts(model):
    """The anchors of a detector, and what assigns them."""
    head = model.head if hasattr(model, "head") else model.rpn
    return head.anchors, head.assigner


@pytest.mark.parametrize("detector", ["faster_rcnn", "cascade_rcnn", "retinanet"])
def test_published_settings(detector):
    with torch.device("meta"):
        model = create(f"{detector}_rfla_resnet50")
    anchors, assigner = parts(model)
    assert anchors.sizes == (17.5, 45.5, 133.5, 213.5, 277.5)
    assert (anchors.scales, anchors.ratios) == ((1.0,), (0.5, 1.0, 2.0))
    assert isinstance(assigner, HierarchicalAssigner)
    assert (assigner.topk, assigner.decay, assigner.distance) == ((3, 1), 0.9, "rfd_kl")
    assert (assigner.sure, assigner.ignore_above) == (0.8, 0.5)
    if detector == "retinanet":
        assert (model.head.pre_nms, model.head.regression) == (3000, "diou")
        heads = model.head
    else:
        assert model.rpn.pre_nms == model.rpn.post_nms == (3000, 3000)
        assert model.rpn.whole_anchors == (detector == "cascade_rcnn")
        heads = getattr(model.roi_heads, "stages", [model.roi_heads])[0]
    assert (heads.nms, heads.nms_threshold, heads.max_per_image) == ("nms", 0.5, 3000)
    assert heads.score_threshold == 0.05


@pytest.mark.parametrize(
    ("backbone", "sizes"),
    [
        ("bh_resnet50", (28.5, 72.5, 96.5, 112.5, 176.5)),
        ("resnet_nano", (21.5, 49.5, 105.5, 217.5, 281.5)),
        ("bh_resnet_fine", (8.5, 22.5, 50.5, 106.5, 138.5)),
        ("timm:resnet10t", (15.5, 27.5, 51.5, 99.5, 163.5)),
    ],
)
def test_anchors_are_half_the_receptive_fields_of_the_backbone(backbone, sizes):
    assert parts(small(f"faster_rcnn_rfla_{backbone}"))[0].sizes == sizes


def test_overrides():
    options = {"rf_fraction": 0.25, "rfd": "rfd_w", "rf_topk": [2, 2], "rf_decay": 0.8}
    anchors, assigner = parts(small(NAMES[0], **options))
    assert anchors.sizes[0] == 43 / 4
    assert (assigner.topk, assigner.decay, assigner.distance) == ((2, 2), 0.8, "rfd_w")
    by_stride, assigner = parts(small(NAMES[0], rf_fraction=None, anchor_scales=[2.0]))
    assert (by_stride.sizes, by_stride.scales) == (by_stride.strides, (2.0,))
    assert isinstance(assigner, HierarchicalAssigner)
    assert isinstance(parts(small(NAMES[0], rfd=None))[1], OverlapAssigner)


def test_other_systems_take_its_parts():
    anchors, assigner = parts(
        small("faster_rcnn_sspnet_resnet_nano", rf_fraction=0.5, rfd="rfd_kl")
    )
    assert anchors.sizes[0] == 21.5
    assert isinstance(assigner, HierarchicalAssigner)


def test_weights_begin_as_without_it():
    """Receptive fields are found without a random number."""
    models = []
    for name in ("faster_rcnn_fpn_resnet_nano", "faster_rcnn_rfla_resnet_nano"):
        torch.manual_seed(3)
        models.append(small(name).state_dict())
    assert list(models[0]) == list(models[1])
    assert all(torch.equal(x, models[1][name]) for name, x in models[0].items())


@pytest.mark.parametrize("backbone", ["timm:swin_tiny_patch4_window7_224", "timm:pvt_v2_b0"])
def test_backbones_that_cannot_be_followed_need_anchors_by_stride(backbone):
    name = f"retinanet_rfla_{backbone}"
    with pytest.raises(ValueError, match="rf_fraction must be None with this backbone"):
        small(name)
    assert parts(small(name, rf_fraction=None, anchor_scales=[4.0]))[0].scales == (4.0,)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("targets", [TARGETS, [target(), target()]], ids=["objects", "none"])
def test_every_parameter_learns(name, targets):
    model = small(name)
    losses = model(images(), targets)
    assert all(x.isfinite() for x in losses.values())
    sum(losses.values()).backward()
    for parameter, value in model.named_parameters():
        assert value.grad is not None, parameter
        assert value.grad.isfinite().all(), parameter


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision(name, dtype):
    torch.manual_seed(0)
    model = small(name)
    exact = model(images(), TARGETS)
    torch.manual_seed(0)
    model = small(name)
    with torch.autocast("cpu", dtype):
        mixed = model(images(), TARGETS)
        sum(mixed.values()).backward()
    first = [x for x in exact if not x.startswith(("roi", "stage"))]  # before proposals differ
    for loss in first:
        torch.testing.assert_close(mixed[loss], exact[loss], rtol=0.02, atol=0.01)
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_models_are_saved_and_loaded(name, tmp_path):
    model = small(name, rfd="rfd_w", rf_fraction=0.4).eval()
    save(model, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    assert str(again) == str(model)
    assert again.recipe == model.recipe
    with torch.no_grad():
        for one, two in zip(model(images()), again(images()), strict=True):
            assert len(one["scores"]) > 0
            assert torch.equal(one["boxes"], two["boxes"])
            assert torch.equal(one["scores"], two["scores"])


def test_a_resumed_training_is_the_same(tmp_path):
    def training():
        torch.manual_seed(0)
        model = small("cascade_rcnn_rfla_resnet_nano")
        return Training(model, make_optimizer(model), Schedule(0.01, 4, warmup=0), seed=1)

    def run(one, steps):
        return [one.update([(images(), TARGETS)]) for _ in range(steps)]

    whole, first, second = training(), training(), training()
    losses = run(whole, 4)
    run(first, 2)
    first.save(tmp_path / "state", {}, {})
    second.restore(tmp_path / "state", {}, {})
    assert run(second, 2) == losses[2:]
    one, two = whole.model.state_dict(), second.model.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
