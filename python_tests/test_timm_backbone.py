"""Backbones of timm."""

import sys

import pytest
import timm
import torch

from tinyops.nn.timm_backbone import TimmBackbone


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("resnet10t", (64, 128, 256, 512)),  # maps from stride 2 on
        ("convnext_atto", (40, 80, 160, 320)),  # maps from stride 4 on
        ("swin_tiny_patch4_window7_224", (96, 192, 384, 768)),  # channels last in the shape
    ],
)
def test_maps_of_stride_4_to_32(name, channels):
    backbone = TimmBackbone(name).eval()
    assert (backbone.channels, backbone.strides) == (channels, (4, 8, 16, 32))
    with torch.no_grad():
        maps = backbone(torch.zeros(1, 3, 224, 224))
    assert [tuple(x.shape) for x in maps] == [
        (1, c, 224 // s, 224 // s) for c, s in zip(channels, (4, 8, 16, 32), strict=True)
    ]


def test_maps_are_timms_own():
    backbone = TimmBackbone("resnet10t").eval()
    body = timm.create_model("resnet10t", features_only=True).eval()
    body.load_state_dict(backbone.body.state_dict())
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(backbone(x), body(x)[1:], rtol=0, atol=0)


def test_out_indices_are_the_callers():
    backbone = TimmBackbone("resnet10t", out_indices=(0, 2)).eval()
    assert (backbone.channels, backbone.strides) == ((64, 128), (2, 8))
    assert [x.shape[-1] for x in backbone(torch.zeros(1, 3, 64, 64))] == [32, 8]


def test_options_reach_timm():
    backbone = TimmBackbone("resnet10t", output_stride=16, out_indices=(3, 4))
    assert backbone.strides == (16, 16)


def test_a_model_without_such_maps_is_refused():
    with pytest.raises(ValueError, match="must be a model with maps of stride 4 to 32, got vgg"):
        TimmBackbone("vgg11", out_indices=())


def test_without_timm_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"pip install tinyops\[timm\]"):
        TimmBackbone("resnet10t")
