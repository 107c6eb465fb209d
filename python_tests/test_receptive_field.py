"""Receptive fields: by hand, by layers, and by what really reaches a cell."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from tinyops.nn import resnet
from tinyops.nn.receptive_field import receptive_field, receptive_fields
from tinyops.nn.resnet import ResNet
from tinyops.nn.timm_backbone import TimmBackbone


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([], 1),
        ([(1, 1)], 1),
        ([(3, 1)], 3),
        ([(3, 1), (3, 1)], 5),
        ([(3, 2), (3, 1)], 7),  # the second one steps by 2 pixels
        ([(7, 2), (3, 2)], 11),
        ([(3, 1, 2)], 5),
        ([(2, 2), (3, 1, 5)], 22),  # 1 + 1 + 2 * 5 * 2
    ],
)
def test_by_hand(layers, expected):
    assert receptive_field(layers) == expected


@pytest.mark.parametrize("layer", [(3,), (3, 1, 1, 1), (0, 1), (3, 0)])
def test_wrong_layers(layer):
    with pytest.raises(ValueError, match="layers must be kernel, stride"):
        receptive_field([layer])


def test_resnet50_has_the_published_table():
    strides = (4, 8, 16, 32, 64, 128)
    table = (35, 91, 267, 427, 555, 811)
    assert receptive_fields(resnet.resnet50(), strides) == table


def layers_of(depths, strides, stem, convs):
    """Of every stage in turn: the 3x3 convolutions, the first of a stage with its stride."""
    layers, found = list(stem), []
    for depth, stride in zip(depths, strides, strict=True):
        layers += [(3, stride)] + [(3, 1)] * (convs * depth - 1)
        found.append(receptive_field(layers))
    return tuple(found)


OLD, BOTTOM_HEAVY = ((7, 2), (3, 2)), ((3, 1), (3, 2))
DOUBLING, HALVING = (1, 2, 2, 2), (2, 2, 2, 2)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", layers_of((2, 2, 2, 2), DOUBLING, OLD, convs=2)),
        ("resnet101", layers_of((3, 4, 23, 3), DOUBLING, OLD, convs=1)),
        ("resnext101", layers_of((3, 4, 23, 3), DOUBLING, OLD, convs=1)),
        ("bh_resnet50", layers_of((7, 6, 2, 1), HALVING, BOTTOM_HEAVY, convs=1)),
        ("resnet_nano", layers_of((2, 2, 2, 2), DOUBLING, OLD, convs=2)),
        ("bh_resnet_nano", layers_of((3, 3, 1, 1), HALVING, BOTTOM_HEAVY, convs=2)),
        ("bh_resnet_fine", layers_of((2, 2, 2, 2), HALVING, ((3, 1),), convs=2)),
    ],
)
def test_resnets_are_the_list_of_their_layers(name, expected):
    with torch.device("meta"):
        backbone = getattr(resnet, name)()
    assert receptive_fields(backbone, backbone.strides) == expected


def test_further_levels_add_a_convolution_on_their_own_cells():
    fields = receptive_fields(resnet.bh_resnet_fine(), (2, 4, 8, 16, 32, 64))
    assert fields[4:] == (fields[3] + 2 * 32, fields[3] + 2 * 32 + 2 * 64)


# Everything between the image and a cell passes it on: weights are positive, maxima are means.
def transparent(model):
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.MaxPool2d):
                setattr(module, name, nn.AvgPool2d(3, 2, padding=1))
    for parameter in model.parameters():
        nn.init.uniform_(parameter, 0.5, 1.0)
    return model.double().eval()


def seen_widths(model, strides, side):
    """How wide the gradient of one cell of every level is in the image."""
    image = torch.ones(1, 3, side, side, dtype=torch.float64, requires_grad=True)
    widths = []
    for level, stride in zip(model(image), strides, strict=True):
        cell = level[0, :, side // stride // 2, side // stride // 2].sum()
        (gradient,) = torch.autograd.grad(cell, image, retain_graph=True)
        columns = gradient.abs().sum((0, 1, 2)).nonzero().flatten()
        assert columns[0] > 0, "the image is too small for the test"
        assert columns[-1] < side - 1
        widths.append(int(columns[-1] - columns[0]) + 1)
    return tuple(widths)


@pytest.mark.parametrize(
    ("block", "depths", "options", "side"),
    [
        (BasicBlock, (1, 2, 1, 1), {}, 320),
        (Bottleneck, (2, 1, 2, 1), {}, 320),
        (Bottleneck, (2, 2, 1, 1), resnet.BOTTOM_HEAVY, 256),
        (BasicBlock, (1, 1, 2, 1), {**resnet.BOTTOM_HEAVY, "stem_pool": False}, 160),
    ],
    ids=["basic", "bottleneck", "bottom-heavy", "fine"],
)
def test_what_reaches_a_cell_is_as_wide(block, depths, options, side):
    model = ResNet(block, depths, widths=(4, 4, 4, 4), width_per_group=64, **options)
    transparent(model)
    assert receptive_fields(model, model.strides) == seen_widths(model, model.strides, side)


class Odd(nn.Module):
    """Branches of functions: dilation, an oblong kernel, two poolings and a sum."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Conv2d(3, 4, 3, 2, padding=3, dilation=3, bias=False)
        self.oblong = nn.Conv2d(3, 4, (9, 5), 2, padding=(4, 2), bias=False)
        self.last = nn.Conv2d(4, 4, 3, 1, padding=1, groups=2, bias=False)

    def forward(self, x):
        first = F.relu(self.wide(x)) + self.oblong(x)
        pooled = F.avg_pool2d(first, 2)
        return [first, self.last(pooled) + pooled]


def test_functions_branches_dilation_and_oblong_kernels():
    model = transparent(Odd())
    found = receptive_fields(model, (2, 4))
    assert found == (7, 7 + 2 + 2 * 4)  # dilated: 1 + 2 * 3; oblong: 5 along the width
    assert found == seen_widths(model, (2, 4), 64)


class Mixing(nn.Module):
    """A convolution among what looks at the whole image."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.gate = nn.Sequential(
            nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        )  # no batch of 1 in training
        self.across = nn.Conv1d(1, 1, 5, padding=2)

    def forward(self, x):
        x = self.norm(self.conv(x))
        x = x * self.gate(F.adaptive_avg_pool2d(x, 1)).sigmoid()
        x = x * self.gate(F.avg_pool2d(x, x.shape[-2:])).sigmoid()
        channels = self.across(x.mean((2, 3))[:, None])[:, 0, :, None, None]
        return [x * channels.softmax(1)]


def test_what_mixes_the_whole_image_is_left_out():
    assert receptive_fields(Mixing(), (2,)) == (3,)


class Exchange(nn.Module):
    """Two resolutions that give to each other, as in HRNet."""

    def __init__(self):
        super().__init__()
        self.fine = nn.Conv2d(3, 4, 3, 2, padding=1)
        self.coarse = nn.Conv2d(4, 4, 3, 2, padding=1)
        self.deep = nn.Conv2d(4, 4, 9, padding=4)
        self.mode = "nearest"

    def forward(self, x):
        fine = self.fine(x)
        coarse = self.deep(self.coarse(fine))
        return [fine + F.interpolate(coarse, scale_factor=2, mode=self.mode), coarse]


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_upsampled_maps_do_not_count(mode):
    model = Exchange()
    model.mode = mode
    assert receptive_fields(model, (2, 4)) == (3, 7 + 8 * 4)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # 7x7 in 2, 2, 6 and 2 blocks, after 4x4 and 2x2 of the same stride
        ("convnext_atto", (52, 152, 736, 1136)),
        # stem 7, a bottleneck 8 and a transition 8, then three modules of two blocks: 3 * 32
        ("hrnet_w18_small", (119, None, None, None)),
        ("seresnet50", (35, 91, 267, 427)),
    ],
)
def test_backbones_of_timm(name, expected):
    options = {"feature_location": ""} if name.startswith("hrnet") else {}
    backbone = TimmBackbone(name, **options)
    found = receptive_fields(backbone, backbone.strides)
    pairs = zip(found, expected, strict=True)
    assert all(value in (None, width) for width, value in pairs), found
    assert list(found) == sorted(found)


def test_maps_that_cannot_be_followed():
    backbone = TimmBackbone("pvt_v2_b0")  # its attention convolves what it looks at
    with pytest.raises(ValueError, match=r"must have maps of strides \[4, 8, 16, 32\].*gives"):
        receptive_fields(backbone, backbone.strides)

    class Decoder(Exchange):
        def forward(self, x):
            return [F.interpolate(super().forward(x)[1], scale_factor=2)]

    with pytest.raises(ValueError, match=r"strides \[2\].*gives \[0\]"):
        receptive_fields(Decoder(), (2,))


def test_the_backbone_and_the_random_numbers_stay_as_they_are():
    backbone = resnet.resnet18(widths=(4, 4, 4, 4)).train()
    backbone.layer2.eval()
    backbone.dropped = nn.Dropout()
    state, random = copy.deepcopy(backbone.state_dict()), torch.get_rng_state()
    modes = [module.training for module in backbone.modules()]
    receptive_fields(backbone, backbone.strides)
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in backbone.modules()] == modes
    assert backbone.conv1.weight.device.type == "cpu"
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_half_precision():
    backbone = resnet.resnet18(widths=(4, 4, 4, 4))
    expected = receptive_fields(backbone, backbone.strides)
    assert receptive_fields(backbone.to(torch.bfloat16), backbone.strides) == expected
