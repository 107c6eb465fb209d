"""Detectors by name."""

import copy
import json
import subprocess
import sys

import pytest
import timm
import torch
from detection import target
from torch.optim.swa_utils import AveragedModel

from tinyops.models import OneStageDetector, TwoStageDetector, create, list_models, load, save
from tinyops.nn.batch import collate_targets
from tinyops.nn.cascade import CascadeRoIHeads
from tinyops.nn.fpn import FPN
from tinyops.nn.roi import RoIHeads
from tinyops.nn.rpn import Proposals
from tinyops.nn.sampling import RandomSampler, WeightedNegativeSampler
from tinyops.nn.sspnet import SSPNet

DETECTORS = ("faster_rcnn", "cascade_rcnn", "retinanet")
PAIRS = [f"{d}_{n}" for d in DETECTORS for n in ("fpn", "sspnet", "rfla")]
BACKBONES = (
    "resnet18",
    "resnet50",
    "resnet101",
    "resnext101",
    "bh_resnet50",
    "resnet_nano",
    "bh_resnet_nano",
    "bh_resnet_fine",
)


def small(name, **options):
    """A model of few channels."""
    options = {"neck_channels": 16, **options}
    if name.startswith("retinanet"):
        options = {"score_threshold": 0.001, **options}  # below the prior: it detects something
    else:
        options = {"head_channels": 32, "proposals": [60, 60], **options}
    return create(name, **options)


def images():
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(3, *size, generator=generator) for size in ((64, 96), (50, 40))]


TARGETS = [target((10, 10, 18, 22), (40, 30, 49, 38), labels=[1, 2]), target()]
TARGETS_OF_ONE_CLASS = [target((10, 10, 18, 22), (40, 30, 49, 38)), target()]


def test_list():
    assert set(list_models()) >= {f"{pair}_{b}" for pair in PAIRS for b in BACKBONES}
    assert len(list_models()) == len(set(list_models()))


@pytest.mark.parametrize("pair", PAIRS)
def test_models_train_and_detect(pair):
    model = small(f"{pair}_resnet_nano", num_classes=2)
    losses = model(images(), TARGETS)
    assert all(x.isfinite() for x in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    with torch.no_grad():
        found = model.eval()(images())
    for one, (height, width) in zip(found, ((64, 96), (50, 40)), strict=True):
        assert len(one["scores"]) > 0
        assert one["boxes"].shape == (len(one["scores"]), 4)
        assert (one["boxes"] >= 0).all()
        assert (one["boxes"] <= torch.tensor([width, height, width, height])).all()
    kinds = {"faster_rcnn": RoIHeads, "cascade_rcnn": CascadeRoIHeads}
    detector, _, neck = pair.rpartition("_")
    assert isinstance(model, OneStageDetector if detector == "retinanet" else TwoStageDetector)
    if detector in kinds:
        assert isinstance(model.roi_heads, kinds[detector])
    assert isinstance(model.neck, {"fpn": FPN, "sspnet": SSPNet, "rfla": FPN}[neck])


@pytest.mark.parametrize("backbone", BACKBONES)
def test_backbones(backbone):
    with torch.device("meta"):  # shapes alone
        model = create(f"faster_rcnn_fpn_{backbone}")
    first = 2 if backbone == "bh_resnet_fine" else 4
    assert model.backbone.strides == tuple(first * 2**k for k in range(4))
    assert model.neck.strides == tuple(first * 2**k for k in range(5))


def test_parameters_of_faster_rcnn_resnet50():
    """41.40 M with one class and 3 anchors per cell: 23.51 + FPN 3.34 + RPN 0.59 + head 13.90."""
    with torch.device("meta"):
        model = create("faster_rcnn_fpn_resnet50")
    fpn = sum(256 * c + 256 for c in (256, 512, 1024, 2048)) + 4 * (256 * 256 * 9 + 256)
    rpn = 256 * 256 * 9 + 256 + 15 * 257
    head = 12544 * 1024 + 1024 + 1024 * 1024 + 1024 + (2 + 4) * 1025
    assert sum(p.numel() for p in model.parameters()) == 23_508_032 + fpn + rpn + head


def test_settings_of_sspnet():
    model = small("faster_rcnn_sspnet_resnet_nano")
    assert model.rpn.anchors.scales == (1.5, 2.5, 3.7, 8.0)
    assert model.rpn.anchors.ratios == (0.4, 0.8, 1.4)
    assert isinstance(model.rpn.sampler, WeightedNegativeSampler)
    assert (model.rpn.sampler.num_samples, model.rpn.sampler.positive_fraction) == (256, 0.5)
    heads = model.roi_heads
    assert type(heads.sampler) is RandomSampler
    assert (heads.sampler.num_samples, heads.sampler.positive_fraction) == (512, 0.25)
    assert (heads.nms, heads.nms_threshold, heads.max_per_image) == ("soft_nms", 0.3, 500)
    assert heads.score_threshold == 0.05


@pytest.mark.parametrize("detector", ["faster_rcnn", "cascade_rcnn"])
@pytest.mark.parametrize("neck", ["fpn", "sspnet"])
def test_weighted_proposals_are_drawn_by_their_objectness(detector, neck):
    name = f"{detector}_{neck}_resnet_nano"
    model = small(name, weighted_proposals=True, weighted_negatives=False, samples=8)
    assert type(model.rpn.sampler) is RandomSampler
    scores = torch.randperm(200) / 200
    corners = 50 * torch.rand(200, 2)
    proposals = Proposals(torch.cat([corners, corners + 9], 1), scores, torch.zeros(200).long())
    for stage in getattr(model.roi_heads, "stages", [model.roi_heads]):
        assert isinstance(stage.sampler, WeightedNegativeSampler)
        assert (stage.sampler.num_samples, stage.sampler.positive_fraction) == (8, 0.25)
        stage.sampler.temperature = 1e-4  # the weights of neighbours differ by exp(20)
        drawn = stage.sample(proposals, collate_targets([target()]), 1).scores
        assert sorted(drawn.tolist()) == sorted(scores.tolist())[-8:]
    losses = model(images(), TARGETS_OF_ONE_CLASS)
    assert all(x.isfinite() for x in losses.values())


def test_proposals_by_their_objectness_are_not_the_default():
    for name in ("faster_rcnn_sspnet_resnet_nano", "cascade_rcnn_sspnet_resnet_nano"):
        heads = small(name).roi_heads
        assert type(getattr(heads, "stages", [heads])[0].sampler) is RandomSampler


def test_settings_of_fpn():
    model = small("faster_rcnn_fpn_resnet_nano")
    assert (model.rpn.anchors.scales, model.rpn.anchors.ratios) == ((2.0,), (0.5, 1.0, 2.0))
    assert type(model.rpn.sampler) is RandomSampler
    assert (model.roi_heads.nms, model.roi_heads.nms_threshold) == ("nms", 0.5)


def test_settings_of_retinanet():
    model = small("retinanet_fpn_resnet_nano")
    assert model.head.anchors.scales == pytest.approx((2, 2 ** (4 / 3), 2 ** (5 / 3)))
    assert model.head.anchors.ratios == (0.5, 1.0, 2.0)
    assert len(model.head.cls_convs) == len(model.head.reg_convs) == 4


def test_overrides_reach_their_parts():
    model = create(
        "faster_rcnn_sspnet_resnet_nano",
        num_classes=3,
        neck_channels=16,
        head_channels=24,
        frozen_stages=1,
        dice="full",
        anchor_scales=[2.0, 4.0],
        anchor_ratios=[1.0],
        weighted_negatives=False,
        rpn_samples=32,
        samples=64,
        pre_nms=[50, 40],
        proposals=[30, 20],
        score_threshold=0.2,
        nms="nms",
        nms_threshold=0.6,
        max_per_image=7,
        scale=2.0,
        mean=[0.0, 0.0, 0.0],
        std=[1.0, 1.0, 1.0],
    )
    assert model.neck.channels == 16
    assert model.roi_heads.head.fc_cls.weight.shape == (4, 24)
    assert not model.backbone.conv1.weight.requires_grad
    assert model.neck.attention_loss.dice == "full"
    assert model.rpn.anchors.per_cell == 2
    assert type(model.rpn.sampler) is RandomSampler
    assert model.rpn.sampler.num_samples == 32
    assert model.roi_heads.sampler.num_samples == 64
    assert (model.rpn.pre_nms, model.rpn.post_nms) == ((50, 40), (30, 20))
    heads = model.roi_heads
    assert (heads.score_threshold, heads.nms, heads.nms_threshold) == (0.2, "nms", 0.6)
    assert heads.max_per_image == 7
    assert (model.scale, model.mean, model.std) == (2.0, (0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cascade_rcnn_fpn_bh_resnet_nano", {"anchor_scales": (2.0, 3.0), "head_channels": 16}),
        ("retinanet_sspnet_resnet_nano", {"convs": 1, "widths": (8, 16, 24, 32)}),
    ],
)
def test_recipe_makes_the_model_anew(name, options):
    options["score_threshold"] = 0.001
    model = create(name, num_classes=3, neck_channels=16, **options)
    recipe = json.loads(json.dumps(model.recipe))
    assert recipe == model.recipe
    assert recipe["name"] == name
    assert recipe["num_classes"] == 3
    assert "weights" not in recipe
    again = create(**recipe)
    again.load_state_dict(model.state_dict())
    assert str(again) == str(model)
    with torch.no_grad():
        for one, two in zip(model.eval()(images()), again.eval()(images()), strict=True):
            assert len(one["scores"]) > 0
            assert torch.equal(one["boxes"], two["boxes"])
            assert torch.equal(one["scores"], two["scores"])


def test_copies_are_independent_and_detect_the_same():
    model = small("cascade_rcnn_sspnet_resnet_nano", frozen_stages=1).eval()
    copies = [copy.deepcopy(model), AveragedModel(model).module.eval()]
    with torch.no_grad():
        expected = model(images())
        for parameter in model.parameters():
            parameter.zero_()
        for again in copies:
            assert again.recipe == model.recipe
            assert not again.train().backbone.layer1.training
            for one, two in zip(again.eval()(images()), expected, strict=True):
                assert len(one["scores"]) > 0
                assert torch.equal(one["boxes"], two["boxes"])
                assert torch.equal(one["scores"], two["scores"])


def test_backbones_of_timm():
    model = small("faster_rcnn_fpn_timm:resnet10t")
    assert model.backbone.channels == (64, 128, 256, 512)
    sum(model(images(), [target((10, 10, 18, 22)), target()]).values()).backward()
    assert len(model.eval()(images())) == 2


def test_branches_of_timm_hrnets():
    model = small("retinanet_fpn_timm:hrnet_w18_small")
    assert model.backbone.channels == (16, 32, 64, 128)
    assert model.backbone.strides == (4, 8, 16, 32)


def test_weights_of_the_backbone_from_a_file(tmp_path):
    source = small("faster_rcnn_fpn_resnet_nano")
    path = tmp_path / "weights.pt"
    torch.save(source.backbone.state_dict(), path)
    model = small("faster_rcnn_fpn_resnet_nano", weights=str(path))
    for name, value in source.backbone.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], value)
    assert "weights" not in model.recipe


@pytest.mark.parametrize("options", [{}, {"frozen_stages": 2, "norm_eval": False}])
def test_what_weights_freeze_stays_frozen_in_a_model_made_anew(options, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(create("retinanet_fpn_resnet18").backbone.state_dict(), path)
    model = small("retinanet_fpn_resnet18", weights=str(path), **options)
    again = create(**model.recipe)
    stages, norm_eval = options.get("frozen_stages", 1), options.get("norm_eval", True)
    for one in (model.backbone, again.backbone):
        assert (one.frozen_stages, one.norm_eval) == (stages, norm_eval)
        assert not one.layer1[0].conv1.weight.requires_grad
        assert one.layer4[0].bn1.training != norm_eval


def test_weights_of_timm_from_a_file(tmp_path):
    source = timm.create_model("resnet10t")
    path = tmp_path / "weights.pth"
    torch.save(source.state_dict(), path)
    model = small("retinanet_fpn_timm:resnet10t", weights=str(path))
    state = {name.replace("body.", ""): x for name, x in model.backbone.state_dict().items()}
    same = [name for name, x in source.state_dict().items() if name in state]
    assert len(same) > 50
    assert all(torch.equal(state[name], source.state_dict()[name]) for name in same)


def test_weights_that_are_no_file():
    for backbone in ("resnet_nano", "timm:resnet10t"):
        with pytest.raises(ValueError, match=r"weights must be .* got 'no/such/file'"):
            create(f"retinanet_fpn_{backbone}", weights="no/such/file")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("faster_rcnn_fpn_resnet51", "faster_rcnn_fpn_resnet50"),
        ("faster_rcnn_sspnt_resnet50", "faster_rcnn_sspnet_resnet50"),
        ("retinanet_resnet50", "retinanet_fpn_resnet50"),
    ],
)
def test_unknown_name(name, near):
    with pytest.raises(ValueError, match=f"such as .*{near}.*got '{name}'"):
        create(name)


def test_unknown_override():
    with pytest.raises(ValueError, match=r"must be among .*head_channels.*got 'head_chanels'"):
        create("faster_rcnn_fpn_resnet_nano", head_chanels=3)
    with pytest.raises(ValueError, match=r"got 'head_channels'"):  # RetinaNet has no such layers
        create("retinanet_fpn_resnet_nano", head_channels=3)


@pytest.mark.parametrize("name", ["pre_nms", "proposals"])
@pytest.mark.parametrize("value", [[10], [10, 20, 30], 10])
def test_numbers_of_proposals_are_pairs(name, value):
    with pytest.raises(ValueError, match=f"{name} must be two numbers"):
        create("faster_rcnn_fpn_resnet_nano", **{name: value})


def test_overrides_that_json_does_not_know():
    with pytest.raises(ValueError, match="overrides must be numbers, words or lists"):
        create("faster_rcnn_fpn_resnet_nano", anchor_scales=torch.ones(2))


def test_unknown_model_of_timm():
    with pytest.raises(ValueError, match="timm cannot make 'nothing'"):
        create("faster_rcnn_fpn_timm:nothing")


@pytest.mark.parametrize(
    "name", ["cascade_rcnn_sspnet_resnet_nano", "retinanet_fpn_bh_resnet_nano"]
)
def test_models_are_saved_and_loaded(name, tmp_path):
    model = small(name, num_classes=2, anchor_scales=(2.0, 3.5), scale=1.5).eval()
    assert len(model(images())[0]["scores"]) > 0
    save(model, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    assert again.recipe == model.recipe
    with torch.no_grad():
        for one, two in zip(model(images()), again(images()), strict=True):
            assert torch.equal(one["boxes"], two["boxes"])
            assert torch.equal(one["scores"], two["scores"])


@pytest.mark.parametrize("package", ["torchvision", "safetensors"])
def test_without_a_package_the_import_says_what_to_install(package):
    code = f"import sys; sys.modules[{package!r}] = None; import tinyops.models"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert 'pip install "tinyops[zoo]"' in done.stderr
    assert f"needs the package {package}" in done.stderr
