"""Whole detectors cost what the papers print (bottom-heavy backbones, table 6), at 640 x 512."""

import pytest
import torch
from torch import nn

from tinyops.models import create
from tinyops.nn.complexity import complexity

# name -> billions of multiply-accumulates as published, parameters
PUBLISHED = {
    "faster_rcnn_fpn_resnet50": (75.58, 41_348_181),
    "faster_rcnn_fpn_bh_resnet50": (75.79, 28_788_309),
    "faster_rcnn_rfla_resnet50": (75.58, 41_348_181),
    "faster_rcnn_sspnet_resnet50": (158.82, 47_007_366),
    "faster_rcnn_sspnet_bh_resnet50": (159.03, 34_447_494),
    "cascade_rcnn_sspnet_resnet50": (186.62, 74_811_026),
    "retinanet_sspnet_resnet50": (260.06, 37_324_401),
}


class Parts(nn.Module):
    """All layers of a detector once, at 1,000 proposals; on the meta device nothing is computed."""

    def __init__(self, detector):
        super().__init__()
        self.detector = detector

    def forward(self, pixels):
        detector = self.detector
        levels, _ = detector.neck(detector.backbone(pixels))
        if hasattr(detector, "head"):
            detector.head.predict(levels)
            return
        detector.rpn.predict(levels)
        pooled = pixels.new_empty(1000, 256, 7, 7)
        for stage in getattr(detector.roi_heads, "stages", [detector.roi_heads]):
            stage.head(pooled)


def costs(name, **overrides):
    model = create(name, **overrides).to("meta")
    return complexity(Parts(model), torch.empty(1, 3, 512, 640, device="meta"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_costs(name):
    overrides = {"collapse": False} if "sspnet" in name else {}
    found = costs(name, **overrides)
    # The counter sees layers; RetinaNet's eight ReLUs are layers in mmdet and functions here.
    functions = 8 * 256 * 27280 if name.startswith("retinanet") else 0  # cells of P2..P6
    macs, parameters = PUBLISHED[name]
    assert round((found.macs + functions) / 1e9, 2) == macs
    assert found.parameters == parameters


def test_the_collapsed_attention_saves_what_convolutions_share():
    plain = costs("faster_rcnn_sspnet_resnet50", collapse=False)
    collapsed = costs("faster_rcnn_sspnet_resnet50")
    # The fuse convolution, 1024 -> 256 channels at 128 x 160: 48.3 to 18.5 billion products, those
    # of 1 + 16/36 + 9/144 + 9/576 quarters and of borders; two of the chain, 15.1 to 8.4, and
    # about 1.5 for their kernels and borders.
    assert round((plain.macs - collapsed.macs) / 1e9, 1) == 34.8
    assert collapsed.parameters == plain.parameters
