"""SR-TOD in a detector of torchvision: one map of its pyramid enhanced, and one loss more.

    python examples/torchvision_srtod.py --steps 20

trains on a drawn picture, and prints the losses.
"""

import argparse
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, fasterrcnn_resnet50_fpn

from tinyops.nn.srtod import Reconstruction, SelfReconstruction


class EnhancedPyramid(nn.Module):
    """A pyramid of torchvision whose finest map, of stride 4, is enhanced."""

    mean: Tensor
    std: Tensor

    def __init__(self, pyramid: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.pyramid = pyramid
        self.out_channels: Any = pyramid.out_channels  # torchvision asks for it
        self.srtod = SelfReconstruction(self.out_channels, strides=(4,))
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.sizes: list[tuple[int, int]] = []  # height and width without padding
        self.shown: Reconstruction | None = None

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        levels: dict[str, Tensor] = self.pyramid(pixels)
        image = pixels * self.std + self.mean  # as it was before it was normalised
        sizes = torch.tensor(self.sizes, device=pixels.device)
        levels["0"], self.shown = self.srtod.enhance(levels["0"], image, sizes)
        return levels


class SelfReconstructedRCNN(nn.Module):
    """Any Faster R-CNN of torchvision with a pyramid, and SR-TOD."""

    def __init__(self, model: FasterRCNN) -> None:
        super().__init__()
        transform: Any = model.transform
        self.pyramid = EnhancedPyramid(model.backbone, transform.image_mean, transform.image_std)
        model.backbone = self.pyramid
        transform.register_forward_hook(self.note_sizes)
        self.model = model

    def note_sizes(self, transform: nn.Module, inputs: Any, outputs: Any) -> None:
        """Keep what the pyramid is not told."""
        self.pyramid.sizes = outputs[0].image_sizes

    def forward(self, images: list[Tensor], targets: Any = None) -> Any:
        result = self.model(images, targets)
        if self.training:
            assert self.pyramid.shown is not None
            result["loss_reconstruction"] = self.pyramid.srtod.loss(self.pyramid.shown)
        return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    torch.manual_seed(0)
    image = 0.3 * torch.rand(3, 240, 320)
    boxes = torch.tensor([[40.0, 50, 52, 60], [200, 90, 210, 104], [120, 180, 128, 188]])
    for x1, y1, x2, y2 in boxes.int().tolist():
        image[:, y1:y2, x1:x2] += 0.6
    target = {"boxes": boxes, "labels": torch.ones(len(boxes), dtype=torch.int64)}
    model = SelfReconstructedRCNN(
        fasterrcnn_resnet50_fpn(
            weights=None, weights_backbone=None, num_classes=2, min_size=240, max_size=320
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for step in range(options.steps):
        losses = model([image], [target])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        print(step, *(f"{name} {loss.item():.4f}" for name, loss in losses.items()))


if __name__ == "__main__":
    main()
