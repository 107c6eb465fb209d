"""A detector of torchvision in images of any size, by tiles.

    python examples/torchvision_detector.py photos/*.jpg --weights fasterrcnn.pth --out found

Without --weights it has random ones, and shows only that everything works.
"""

import argparse
from pathlib import Path

import torch
from torchvision.models.detection import fasterrcnn_resnet50_fpn_v2
from torchvision.models.detection.faster_rcnn import FasterRCNN_ResNet50_FPN_V2_Weights

import tinyops

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("images", type=Path, nargs="+")
parser.add_argument("--weights", type=Path, help="a state dict of fasterrcnn_resnet50_fpn_v2")
parser.add_argument("--min-score", type=float, default=0.5)
parser.add_argument("--out", type=Path, default=Path("found"))
options = parser.parse_args()

model = fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None)
if options.weights is not None:
    model.load_state_dict(torch.load(options.weights, weights_only=True))
names = FasterRCNN_ResNet50_FPN_V2_Weights.DEFAULT.meta["categories"][1:]

options.out.mkdir(parents=True, exist_ok=True)
for path in options.images:
    # Union: cars and boats may be larger than the overlap, so that no tile shows them whole.
    result = tinyops.detect(
        model, path, min_score=options.min_score, merge="union", categories=names
    )
    result.save(options.out / f"{path.stem}.json")
    result.plot(path=options.out / f"{path.stem}.jpg", min_score=options.min_score)
    print(f"{path}: {len(result['boxes'])} objects in {len(result.tiles)} tiles")
