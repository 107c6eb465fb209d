"""A tiny detector and a tiny data set, for the tests of the training."""

import torch
import torch.nn.functional as F
from torch import nn

from tinyops.nn.distributed import image_generators, mean_over_processes, world_size
from tinyops.train import Schedule, Training, make_optimizer

SIZE = 32


class Squares:
    """Grey images with bright squares; every sample is a function of (epoch, index)."""

    def __init__(self, count=10, size=SIZE):
        self.count, self.size = count, size

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return self.sample(index, 0)

    def sample(self, index, epoch):
        generator = torch.Generator().manual_seed(1000 * epoch + index)
        image = torch.rand(3, self.size, self.size, generator=generator) * 0.2
        boxes = []
        for _ in range(index % 3):
            x, y = torch.randint(0, self.size - 8, (2,), generator=generator).tolist()
            image[:, y : y + 6, x : x + 6] += 0.7
            boxes.append([x, y, x + 6, y + 6])
        return image, {
            "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            "labels": torch.ones(len(boxes), dtype=torch.int64),
            "name": f"{epoch}/{index}",
        }


class Spots(nn.Module):
    """Says of every cell of 4 x 4 pixels whether it is in an object, and guesses with noise."""

    def __init__(self, width=4, noise=0.1, norm=nn.BatchNorm2d):
        super().__init__()
        self.recipe = {"name": "spots", "num_classes": 1, "width": width, "noise": noise}
        self.noise = noise
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 4, 4, bias=False), norm(width), nn.ReLU(), nn.Conv2d(width, 1, 1)
        )

    def forward(self, images, targets=None):
        logits = self.body(torch.stack(list(images)))
        if not self.training:
            return [self.detections(x[0]) for x in logits]
        truth = torch.zeros_like(logits)
        for plane, target in zip(truth, targets, strict=True):
            for x1, y1, x2, y2 in (target["boxes"] / 4).long().tolist():
                plane[0, y1 : y2 + 1, x1 : x2 + 1] = 1
        noise = [
            torch.rand(logits.shape[1:], generator=generator).to(logits.device)
            for generator in image_generators(len(images))
        ]
        positives = mean_over_processes(truth.sum()).clamp(
            min=1 / world_size()
        )  # at least 1 in all
        loss = F.binary_cross_entropy_with_logits(
            logits.float() + self.noise * torch.stack(noise), truth, reduction="sum"
        )
        size = sum(p.float().square().sum() for p in self.parameters())
        return {"loss_spots": loss / positives, "loss_size": 1e-3 * size}

    def detections(self, logits):
        y, x = (logits > 0).nonzero(as_tuple=True)
        corner = 4.0 * torch.stack([x, y], 1)
        return {
            "boxes": torch.cat([corner, corner + 4], 1).float(),
            "scores": logits[y, x].sigmoid().float(),
            "labels": torch.ones_like(x),
        }


def make_training(seed=0, *, rate=0.05, steps=100, model=None, optimizer="sgd", **options):
    torch.manual_seed(seed)
    model = Spots() if model is None else model
    schedule = Schedule(rate, steps, milestones=(steps * 2 // 3,), warmup=3)
    return Training(model, make_optimizer(model, optimizer), schedule, seed=seed, **options)


def description_of(model):
    arguments = {key: value for key, value in model.recipe.items() if key != "name"}
    return {"tinyops": "0", "name": "spots", "arguments": arguments, "categories": ["spot"]}


def same_state(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
