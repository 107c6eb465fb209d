"""Counts of parameters and multiply-accumulates, against those that the papers print."""

import torch
from torch import nn

from tinyops.nn.complexity import complexity
from tinyops.nn.fpn import FPN
from tinyops.nn.resnet import bh_resnet50, resnet50
from tinyops.nn.sspnet import ContextAttention, SSPNet

CHANNELS = (256, 512, 1024, 2048)


def of_backbone(make):
    with torch.device("meta"):
        return complexity(make(), torch.empty(1, 3, 512, 640))


def of_neck(make, channels=CHANNELS):
    with torch.device("meta"):
        maps = [torch.empty(1, c, 128 >> k, 160 >> k) for k, c in enumerate(channels)]
        return complexity(make(), maps)


def test_resnet50_is_as_printed():
    count = of_backbone(resnet50)
    assert count.parameters == 23_508_032
    assert count.macs == 26_904_657_920  # 26.91 G
    assert count.by_operator["convolution"] == 26_691_502_080


def test_bh_resnet50_is_as_printed():
    count = of_backbone(bh_resnet50)
    assert count.parameters == 10_948_160
    assert count.macs == 27_115_028_480  # 27.12 G
    assert count.by_operator["convolution"] == 26_738_688_000


def test_context_attention():
    count = of_neck(lambda: ContextAttention(collapse=False), (256,) * 4)
    assert count.parameters == 5_647_620
    assert count.macs == 82_921_597_568
    cells, all_cells = 20480, 20480 + 5120 + 1280 + 320
    weights = 9 * 1024 * 256 + 256 * 64 + 2 * 9 * 256 * 64 + 9 * 256 * 256  # at stride 4
    products = weights * cells + 256 * 64 + (9 * 256 * 256 + 9 * 256) * all_cells
    biases = (2 * 256 + 3 * 64) * cells + 64 + (256 + 1) * all_cells
    assert round(products / 1e9, 2) == 82.88
    assert count.by_operator["convolution"] == products + biases
    assert list(count.by_operator) == ["convolution", "BatchNorm2d", "AdaptiveAvgPool2d", "ReLU"]


def test_exact_rearrangements_save_two_fifths_of_the_attention():
    count = of_neck(ContextAttention, (256,) * 4)
    assert count.parameters == 5_647_620
    assert count.macs == 48_079_327_360


def test_sspnet_is_an_fpn_with_attention():
    fpn = of_neck(lambda: FPN(CHANNELS))
    sspnet = of_neck(lambda: SSPNet(CHANNELS, collapse=False))
    assert fpn.macs == 18_573_721_600
    assert sspnet.macs - fpn.macs == 82_921_597_568
    assert sspnet.parameters - fpn.parameters == 5_647_620


def test_two_fully_connected_layers_of_a_head():
    head = nn.Sequential(nn.Linear(12544, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU())
    count = complexity(head, torch.zeros(100, 12544))
    products = 100 * 1024 * (12544 + 1024)
    assert dict(count.by_operator) == {"matrices": products, "ReLU": 2 * 100 * 1024}
    assert count.macs == products + 2 * 100 * 1024


def test_grouped_and_transposed_convolutions():
    x = torch.zeros(2, 8, 5, 6)
    grouped = complexity(nn.Conv2d(8, 12, 3, stride=2, groups=4, bias=False), x)
    assert grouped.macs == 2 * 12 * (2 * 2) * 2 * 9
    transposed = complexity(nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1), x)
    assert transposed.macs == 2 * 8 * (5 * 6) * 4 * 16 + 2 * 4 * 10 * 12


def test_layers_count_and_functions_are_free():
    x = torch.zeros(1, 4, 6, 6)
    layers = nn.Sequential(
        nn.GroupNorm(2, 4),  # 2 * 144
        nn.BatchNorm2d(4, affine=False),  # 144
        nn.MaxPool2d(2),  # 144
        nn.Upsample(scale_factor=4),  # 4 * 144
    )
    assert complexity(layers, x).macs == 8 * 144

    class Functions(nn.Module):
        def forward(self, x):
            return nn.functional.interpolate(nn.functional.relu(x), scale_factor=2)

    assert complexity(Functions(), x).macs == 0


def test_mode_is_restored_and_statistics_are_not_touched():
    model = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2).eval())
    complexity(model, torch.ones(1, 2, 3, 3))
    assert (model.training, model[0].training, model[1].training) == (True, True, False)
    assert not model[0].running_mean.any()
    assert not model[0]._forward_hooks
