"""Classifiers, and detectors that begin with their backbones or with those of other people."""

import json

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from tinyops._files import MODEL, TRAINING, read_tensors, write_tensors
from tinyops.models import create, create_classifier, load, save
from tinyops.models.backbones import make_backbone
from tinyops.nn.resnet import resnet18
from tinyops.train import Schedule, Training, make_optimizer

SMALL = {"neck_channels": 8, "head_channels": 8, "proposals": [10, 10], "samples": 8}
THIN = {"widths": [4, 4, 8, 8]}


def detector(backbone, weights, **options):
    return create(f"faster_rcnn_fpn_{backbone}", weights=weights, **{**SMALL, **options})


def saved(path, backbone="resnet18", **options):
    """A classifier with statistics of its own, and its file."""
    torch.manual_seed(3)
    model = create_classifier(f"classifier_{backbone}", 4, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    save(model, path, categories=["a", "b", "c", "d"])
    return model.eval()


@pytest.mark.parametrize(
    ("backbone", "parameters"),
    [("resnet50", 23_508_032), ("bh_resnet50", 10_948_160)],  # and a linear layer
)
def test_parameters_are_those_of_the_backbone_and_a_linear_layer(backbone, parameters):
    with torch.device("meta"):
        model = create_classifier(f"classifier_{backbone}", 100)
    assert sum(p.numel() for p in model.backbone.parameters()) == parameters
    assert sum(p.numel() for p in model.parameters()) == parameters + 2048 * 100 + 100


def test_logits_are_a_linear_layer_on_the_mean_of_the_last_level():
    model = create_classifier("classifier_resnet_nano", 5, mean=[0.1, 0.2, 0.3], std=[0.5, 1, 2])
    images = torch.randint(256, (3, 3, 64, 64), dtype=torch.uint8)
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 1, 2])
    pixels = (images / 255 - mean[:, None, None]) / std[:, None, None]
    expected = model.head(model.backbone(pixels)[-1].mean((2, 3)))
    losses = model(images, torch.tensor([0, 4, 2]))
    torch.testing.assert_close(
        losses, {"cross_entropy": F.cross_entropy(expected, torch.tensor([0, 4, 2]))}
    )
    model.eval()
    torch.testing.assert_close(model(images), expected)
    torch.testing.assert_close(model(images / 255), expected)


def test_branches_side_by_side_all_learn():
    model = create_classifier("classifier_timm:hrnet_w18_small", 3)
    assert model.head.in_features == 16 + 32 + 64 + 128
    images, labels = torch.rand(2, 3, 32, 32), torch.tensor([0, 2])
    model(images, labels)["cross_entropy"].backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_mistakes_are_named():
    for name in ("resnet18", "classifier_resnet19", "faster_rcnn_fpn_resnet18"):
        with pytest.raises(ValueError, match="name must be 'classifier_' and one of resnet18, "):
            create_classifier(name, 3)
    with pytest.raises(ValueError, match=r"among block.*pool.*std.*; got 'neck_channels'|among .*"):
        create_classifier("classifier_resnet_nano", 3, neck_channels=3)
    for options, message in (
        ({"num_classes": 1}, "num_classes must be at least 2, got 1"),
        ({"pool": "first"}, "pool must be 'last' or 'all', got 'first'"),
        ({"std": [1, 1, 0]}, "std above 0"),
        ({"std": 3}, "mean and std must be 3 numbers"),
        ({"mean": ["a", "b", "c"]}, "mean and std must be 3 numbers"),
        ({"mean": [1, float("nan"), 0]}, "mean and std must be 3 numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            create_classifier("classifier_resnet_nano", **{"num_classes": 3, **options})
    model = create_classifier("classifier_resnet_nano", 3)
    with pytest.raises(ValueError, match="labels must be given in training"):
        model(torch.rand(1, 3, 32, 32))
    with pytest.raises(ValueError, match=r"images must be \[N, 3, H, W\], got \[3, 32, 32\]"):
        model(torch.rand(3, 32, 32))


def test_a_classifier_comes_back_from_its_file(tmp_path):
    model = saved(tmp_path / "a.safetensors", **THIN, mean=[0.5, 0.5, 0.5])
    again = load(tmp_path / "a.safetensors", build=create_classifier)
    assert again.recipe == model.recipe
    assert again.categories == ("a", "b", "c", "d")
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(again(images), model(images))


@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        ("resnet18", THIN),
        ("bh_resnet_nano", {}),
        ("bh_resnet_fine", {"widths": [8, 8, 8, 8]}),
        ("timm:resnet10t", {}),
    ],
)
def test_a_detector_sees_the_features_of_the_classifier(tmp_path, backbone, options):
    classifier = saved(tmp_path / "a.safetensors", backbone, **options)
    model = detector(backbone, tmp_path / "a.safetensors", **options).eval()
    for name, value in classifier.backbone.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], value)
    seen = {}
    for key, one in (("classifier", classifier), ("detector", model)):
        one.backbone.register_forward_hook(lambda *x, key=key: seen.update({key: x[2]}))
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    classifier(images)
    model(list(images / 255))
    assert len(seen["classifier"]) == 4
    for a, b in zip(seen["classifier"], seen["detector"], strict=True):
        torch.testing.assert_close(a, b)
    assert "weights" not in model.recipe


def test_what_weights_freeze_is_what_the_papers_freeze(tmp_path):
    saved(tmp_path / "a.safetensors", **THIN)
    path = tmp_path / "a.safetensors"
    model = detector("resnet18", path, **THIN).train()
    assert (model.backbone.frozen_stages, model.backbone.norm_eval) == (1, True)
    assert not model.backbone.layer2[0].bn1.training
    free = detector("resnet18", path, **THIN, frozen_stages=0, norm_eval=False).train()
    assert all(p.requires_grad for p in free.parameters())
    assert free.backbone.bn1.training
    again = create_classifier("classifier_resnet18", 7, path, **THIN)  # learns as a whole
    assert all(p.requires_grad for p in again.parameters())
    assert again.backbone.bn1.training
    assert torch.equal(again.backbone.conv1.weight, model.backbone.conv1.weight)


def test_the_folder_of_a_run_gives_its_best_model_or_the_average_of_its_state(tmp_path):
    model = create_classifier("classifier_resnet_nano", 3)
    training = Training(model, make_optimizer(model), Schedule(0.5, 2, warmup=0), average_decay=0.9)
    batch = (torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 0]))
    training.update([batch])
    facts = {"tinyops": "0", "name": "classifier_resnet_nano", "categories": None}
    facts["arguments"] = {"num_classes": 3}
    training.save(tmp_path / "last.safetensors", facts, {})
    for path in (tmp_path, tmp_path / "last.safetensors"):
        first = detector("resnet_nano", path).backbone.conv1.weight
        assert torch.equal(first, training.average.model.backbone.conv1.weight)
        assert not torch.equal(first, model.backbone.conv1.weight)
    save(create_classifier("classifier_resnet_nano", 3), tmp_path / "best.safetensors")
    _, best, _ = read_tensors(tmp_path / "best.safetensors", [MODEL])
    first = detector("resnet_nano", tmp_path).backbone.conv1.weight
    assert torch.equal(first, best["backbone.conv1.weight"])


@pytest.mark.parametrize(
    ("backbone", "trained", "wanted", "message"),
    [
        ("resnet_nano", {}, {}, "expected a classifier with resnet_nano, got classifier_resnet18"),
        ("resnet18", {}, {"stem_kernel": 3}, "in another shape 'conv1.weight'"),
        ("resnet18", {}, {"widths": [4, 4, 4, 8]}, "in another shape 'layer3.0.bn1.bias'"),
        ("resnet18", {"stem_pool": False}, {}, r"got '\(maxpool\): Identity\(\)' where it has '\("),
        ("resnet18", {}, {"stem_stride": 1}, r"got '\(conv1\): Conv2d\(3, 4, .*stride=\(2, 2\)"),
        ("resnet18", {"mean": [0, 0, 0]}, {}, r"with mean \[0.485, 0.456, 0.406\], got \[0, 0, 0"),
        ("resnet18", {}, {"std": [1, 1, 1]}, r"with std \[1, 1, 1\], got \[0.229, 0.224, 0.225\]"),
    ],
    ids=str,
)
def test_weights_of_another_network_are_refused(tmp_path, backbone, trained, wanted, message):
    path = tmp_path / "a.safetensors"
    saved(path, "resnet18", **{**THIN, **trained})
    with pytest.raises(ValueError, match=message) as caught:
        detector(backbone, path, **{**(THIN if backbone == "resnet18" else {}), **wanted})
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_the_same_unusual_settings_fit(tmp_path):
    unusual = {**THIN, "stem_kernel": 3, "stem_stride": 1, "mean": [0, 0, 0]}
    saved(tmp_path / "a.safetensors", **unusual)
    assert detector("resnet18", tmp_path / "a.safetensors", **unusual).mean == (0, 0, 0)


def test_incomplete_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    saved(path, **THIN)
    _, tensors, facts = read_tensors(path, [MODEL])
    for name, change, message in (
        ("lacks", lambda x: x.pop("backbone.layer1.0.conv1.weight"), "lacks 'layer1.0.conv1.weigh"),
        ("more", lambda x: x.update({"backbone.a": torch.ones(1)}), "has unknown 'a'"),
    ):
        other = dict(tensors)
        change(other)
        write_tensors(tmp_path / name, MODEL, other, facts)
        with pytest.raises(ValueError, match=message):
            detector("resnet18", tmp_path / name, **THIN)
    save(detector("resnet18", None, **THIN), tmp_path / "detector.safetensors")
    with pytest.raises(ValueError, match="expected a classifier with resnet18, got faster_rcnn_fp"):
        detector("resnet18", tmp_path / "detector.safetensors", **THIN)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"expected best\.safetensors or last"):
        detector("resnet18", tmp_path / "empty")
    facts = {**facts, "name": "classifier_timm:resnet10t"}
    facts["arguments"] = {"num_classes": 4, "timm_options": {"pretrained": True}}
    write_tensors(tmp_path / "reads", MODEL, tensors, facts)
    with pytest.raises(ValueError, match="its weights must be in the file itself"):
        detector("timm:resnet10t", tmp_path / "reads")
    write_tensors(tmp_path / "state", TRAINING, {f"model.{k}": x for k, x in tensors.items()}, {})
    with pytest.raises(ValueError, match="expected a classifier with resnet18, got None"):
        detector("resnet18", tmp_path / "state", **THIN)


@pytest.mark.parametrize("kind", ["plain", "safetensors", "checkpoint", "parallel", "mmpretrain"])
def test_files_of_other_people(tmp_path, kind):
    body = resnet18(**THIN).state_dict()  # torchvision's names, see test_resnet.py
    state = {**body, "fc.weight": torch.ones(3, 8), "fc.bias": torch.ones(3)}
    path = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pth")
    if kind == "safetensors":
        save_file(state, path)
    else:
        mmpretrain = {f"backbone.{k}": x for k, x in body.items()} | {"head.fc.bias": torch.ones(3)}
        content = {
            "plain": state,
            "checkpoint": {"model": state, "epoch": 3},
            "parallel": {"state_dict": {f"module.{k}": x for k, x in state.items()}},
            "mmpretrain": {"meta": {}, "state_dict": mmpretrain},
        }
        torch.save(content[kind], path)
    own = make_backbone("resnet18", str(path), THIN).state_dict()
    assert own.keys() == body.keys()
    assert all(torch.equal(x, body[name]) for name, x in own.items())


def test_a_folder_called_imagenet_is_not_taken_for_the_download(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "imagenet").mkdir()
    with pytest.raises(ValueError, match="no 'imagenet' weights are published"):
        make_backbone("bh_resnet_nano", "imagenet", {})


def test_timms_resnets_are_resnets(tmp_path):
    state = timm.create_model("resnet18", num_classes=3).state_dict()
    torch.save(state, tmp_path / "a.pth")
    own = make_backbone("resnet18", str(tmp_path / "a.pth"), {}).state_dict()
    assert all(torch.equal(x, state[name]) for name, x in own.items())


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto", "hrnet_w18_small"])
def test_files_of_timm_fit_tensor_by_tensor(tmp_path, name):
    path = tmp_path / "a.pth"
    state = timm.create_model(name, num_classes=3).state_dict()
    torch.save(state, path)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        body = make_backbone(f"timm:{name}", str(path), {}).body
    others = {key: x + 1 for key, x in state.items()}
    inside = {f"backbone.{key}": x for key, x in state.items()}
    torch.save({"state_dict": inside, "state_dict_ema": others, "model": others}, path)
    wrapped = make_backbone(f"timm:{name}", path, {}).body
    theirs = {key.replace(".", "_"): x for key, x in state.items()}
    for one in (body, wrapped):
        for key, value in one.state_dict().items():
            assert torch.equal(value, theirs[key.replace(".", "_")]), key
    kept = [getattr(module, "pretrained_cfg", {}) for module in body.modules()]
    assert "state_dict" not in {key for facts in kept for key in facts}
    key = next(k for k in state if k.endswith("weight") and "." in k)
    for change, message in (
        (lambda x: x.pop(key), f"lacks '{key}'"),
        (lambda x: x.update(other=torch.ones(1)), "has unknown 'other'"),
        (lambda x: x.update({key: torch.ones(7)}), f"has in another shape '{key}'"),
    ):
        other = dict(state)
        change(other)
        torch.save(other, path)
        with pytest.raises(ValueError, match=message):
            make_backbone(f"timm:{name}", path, {})


def test_recipes_are_values_of_json():
    model = create_classifier("classifier_resnet18", 3, widths=(4, 4, 4, 4))
    assert json.loads(json.dumps(model.recipe)) == model.recipe
    assert create_classifier(**model.recipe).recipe == model.recipe
    with pytest.raises(ValueError, match="overrides must be numbers, words or lists"):
        create_classifier("classifier_resnet18", 3, widths=torch.ones(4))
