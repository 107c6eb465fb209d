"""ResNets against torchvision's, their weights, and what is frozen."""

import copy

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torchvision.models.resnet import BasicBlock
from torchvision.ops import FrozenBatchNorm2d

from tinyops.nn import resnet
from tinyops.nn.complexity import complexity
from tinyops.nn.global_norm import use_global_norms
from tinyops.nn.resnet import ResNet

TINY = {"widths": (4, 8, 8, 12)}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """torchvision's ResNet-18, in place of trained weights, and its file."""
    torch.manual_seed(1)
    model = torchvision.models.resnet18()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(model.state_dict(), path)
    return model.eval(), path


def stages_of_torchvision(model, x):
    x = model.maxpool(model.relu(model.bn1(model.conv1(x))))
    outputs = []
    for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
        x = layer(x)
        outputs.append(x)
    return outputs


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (resnet.resnet18, "resnet18"),
        (resnet.resnet50, "resnet50"),
        (resnet.resnet101, "resnet101"),
        (resnet.resnext101, "resnext101_32x8d"),
    ],
)
def test_parameters_are_torchvisions_without_fc(ours, theirs):
    with torch.device("meta"):
        state = ours().state_dict()
        expected = getattr(torchvision.models, theirs)().state_dict()
    del expected["fc.weight"], expected["fc.bias"]
    assert list(state) == list(expected)
    assert {k: x.shape for k, x in state.items()} == {k: x.shape for k, x in expected.items()}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_local_file_gives_torchvisions_features(published, tmp_path, suffix):
    model, path = published
    if suffix == ".safetensors":
        path = tmp_path / "resnet18.safetensors"
        save_file(model.state_dict(), path)
    ours = resnet.resnet18(weights=path).eval()
    x = torch.randn(2, 3, 64, 96)
    for got, expected in zip(ours(x), stages_of_torchvision(model, x), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_imagenet_weights_are_torchvisions_with_their_hash_checked(published, monkeypatch):
    model, _ = published
    calls = []

    def get_state_dict(entry, **options):
        calls.append((entry.name, options))
        return model.state_dict()

    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", get_state_dict)
    ours = resnet.resnet18(weights="imagenet")
    assert calls == [("IMAGENET1K_V1", {"progress": True, "check_hash": True})]
    assert torch.equal(ours.layer4[1].conv2.weight, model.layer4[1].conv2.weight)
    with pytest.raises(ValueError, match="fit the backbone, but imagenet_v2 lacks"):
        resnet.resnet50(weights="imagenet_v2")  # the state dict of another network
    assert calls[1][0] == "IMAGENET1K_V2"


def test_weights_that_do_not_exist_are_refused(tmp_path):
    with pytest.raises(ValueError, match="a file or None: no 'imagenet' weights are published"):
        resnet.bh_resnet50(weights="imagenet")
    with pytest.raises(ValueError, match="'imagenet' or a file or None: no 'imagenet_v2' weights"):
        resnet.resnet18(weights="imagenet_v2")
    with pytest.raises(ValueError, match=r"'imagenet', 'imagenet_v2', a file or None, got .*none"):
        resnet.resnet18(weights=tmp_path / "none.pth")


def test_files_that_do_not_fit_are_refused(published, tmp_path):
    state = published[0].state_dict()
    path = tmp_path / "bad.pth"
    torch.save({k: x for k, x in state.items() if k != "layer2.0.conv1.weight"}, path)
    with pytest.raises(ValueError, match=r"lacks 'layer2.0.conv1.weight' \(1 names"):
        resnet.resnet18(weights=path)
    torch.save({**state, "head.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"has unknown 'head.weight'"):
        resnet.resnet18(weights=path)
    torch.save({**state, "conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"has in another shape 'conv1.weight'"):
        resnet.resnet18(weights=path)
    for other in ({"optimizer": state}, {3: torch.zeros(1)}, [1], {"model": None}):
        torch.save(other, path)
        with pytest.raises(ValueError, match="must be a state dict of tensors"):
            resnet.resnet18(weights=path)
    torch.save({"state_dict": state, "log": published[0].relu}, path)
    with pytest.raises(ValueError, match=r"bad.pth cannot be read: it holds an object of torch.nn"):
        resnet.resnet18(weights=path)
    for name in ("bad.pth", "bad.safetensors"):
        (tmp_path / name).write_text("hello")
        with pytest.raises(ValueError, match=rf"must be a state dict, but .*{name} cannot be read"):
            resnet.resnet18(weights=tmp_path / name)


def test_random_weights_train_as_a_whole():
    model = resnet.resnet18(**TINY)
    assert all(p.requires_grad for p in model.parameters())
    assert all(m.training for m in model.modules())


def test_trained_weights_freeze_the_first_stage_and_the_statistics(published):
    _, path = published
    model = resnet.resnet18(weights=path).train()
    frozen = {n.partition(".")[0] for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "bn1", "layer1"}
    assert all(p.requires_grad for p in model.layer2.parameters())
    before = copy.deepcopy(dict(model.named_buffers()))
    model(torch.randn(2, 3, 32, 32))
    assert all(torch.equal(before[name], x) for name, x in model.named_buffers())

    free = resnet.resnet18(weights=path, frozen_stages=0, norm_eval=False)
    assert all(p.requires_grad for p in free.parameters())
    free(torch.randn(2, 3, 32, 32))
    assert not torch.equal(before["bn1.running_mean"], free.bn1.running_mean)


def test_frozen_stages_stay_in_eval_mode():
    model = resnet.resnet18(**TINY, frozen_stages=2).train()
    assert not any(m.training for k in (1, 2) for m in getattr(model, f"layer{k}").modules())
    assert not model.bn1.training
    assert all(m.training for m in model.layer3.modules())
    kept = model.layer2[0].bn1.running_mean.clone()
    model(torch.randn(2, 3, 32, 32))[-1].sum().backward()
    assert torch.equal(model.layer2[0].bn1.running_mean, kept)
    assert model.layer2[0].conv1.weight.grad is None
    assert model.layer3[0].conv1.weight.grad is not None


@pytest.mark.parametrize(
    "replace", [use_global_norms, nn.SyncBatchNorm.convert_sync_batchnorm, copy.deepcopy]
)
def test_frozen_stages_stay_frozen_in_copies_and_with_other_norms(replace):
    model = replace(resnet.resnet18(**TINY, frozen_stages=1)).train()
    assert not model.bn1.training
    assert not model.layer1[0].bn1.training
    assert model.layer2[0].bn1.training


def test_bottom_heavy_weights_come_from_a_file_and_freeze_nothing(tmp_path):
    options = {"widths": (4, 4, 4, 4)}
    source = resnet.bh_resnet50(**options)
    torch.save(source.state_dict(), tmp_path / "bh.pth")
    model = resnet.bh_resnet50(weights=tmp_path / "bh.pth", **options)
    assert all(p.requires_grad for p in model.parameters())
    assert not model.bn1.training
    assert torch.equal(model.layer1[6].conv3.weight, source.layer1[6].conv3.weight)


@pytest.mark.parametrize(
    "make", [resnet.resnet18, resnet.bh_resnet50, resnet.resnet_nano, resnet.bh_resnet_nano]
)
def test_channels_and_strides_are_those_of_the_maps(make):
    model = make()
    assert model.strides == (4, 8, 16, 32)
    maps = model.eval()(torch.zeros(1, 3, 64, 96))
    assert tuple(x.shape[1] for x in maps) == model.channels
    assert [x.shape[-2:] for x in maps] == [(64 // s, 96 // s) for s in model.strides]


def test_fine_levels_begin_at_stride_two():
    model = resnet.bh_resnet_fine()
    assert model.strides == (2, 4, 8, 16)
    maps = model.eval()(torch.zeros(1, 3, 64, 96))
    assert [x.shape[-2:] for x in maps] == [(64 // s, 96 // s) for s in model.strides]
    cost = complexity(model, torch.zeros(1, 3, 256, 256))
    assert (cost.parameters, cost.macs) == (1_048_608, 1_695_809_536)


def test_nano_backbones_are_small_and_cost_the_same():
    x = torch.zeros(1, 3, 256, 256)
    plain, heavy = (complexity(f(), x) for f in (resnet.resnet_nano, resnet.bh_resnet_nano))
    assert (plain.parameters, plain.macs) == (961_112, 333_807_616)
    assert (heavy.parameters, heavy.macs) == (549_288, 350_027_776)
    assert heavy.macs / plain.macs == pytest.approx(1, abs=0.05)


def test_norm_layer_is_the_callers():
    frozen = resnet.resnet18(**TINY, norm_layer=FrozenBatchNorm2d)
    assert sum(isinstance(m, FrozenBatchNorm2d) for m in frozen.modules()) == 20
    assert not any(isinstance(m, nn.BatchNorm2d) for m in frozen.modules())
    groups = resnet.resnet_nano()
    assert sum(isinstance(m, nn.GroupNorm) for m in groups.modules()) == 20


def test_frozen_batch_norm_takes_the_weights_of_batch_norm(published):
    model, path = published
    ours = resnet.resnet18(weights=path, norm_layer=FrozenBatchNorm2d)
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(ours(x), stages_of_torchvision(model, x), rtol=1e-4, atol=1e-4)


def test_compiles_as_one_graph():
    model = resnet.resnet_nano(**{**TINY, "widths": (8, 8, 8, 8)})
    x = torch.randn(1, 3, 64, 64)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), model(x))


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"one number per stage, got \[1, 1\], .*\[64, 128"):
        ResNet(BasicBlock, (1, 1))
    with pytest.raises(ValueError, match=r"frozen_stages must be in 0\.\.4, got 5"):
        ResNet(BasicBlock, (1, 1, 1, 1), frozen_stages=5)


def test_extended_features_begin_with_the_first_stage_before_the_pooling(published):
    model, path = published
    ours = resnet.resnet18(weights=path).eval()
    x = torch.randn(2, 3, 64, 96)
    finer, *others = ours(x, extended=True)
    expected = model.layer1(model.relu(model.bn1(model.conv1(x))))
    torch.testing.assert_close(finer, expected, rtol=0, atol=0)
    assert finer.shape[-2:] == (32, 48)
    torch.testing.assert_close(others, ours(x), rtol=0, atol=0)


def test_extended_features_of_a_bottom_heavy_backbone_have_half_its_first_stride():
    finer, first, *_ = resnet.bh_resnet_nano(widths=(8, 8, 8, 8))(
        torch.randn(1, 3, 64, 32), extended=True
    )
    assert (finer.shape[-2:], first.shape[-2:]) == ((32, 16), (16, 8))


def test_a_stem_without_pooling_has_no_extended_features():
    with pytest.raises(ValueError, match="extended must be False for a stem without pooling"):
        resnet.bh_resnet_fine()(torch.zeros(1, 3, 32, 32), extended=True)
