"""Results of detection for tests."""

import torch

from tinyops.inference.result import Result


def make_result(boxes, scores=None, labels=None, *, name="a.png", width=640, height=512, **more):
    """Boxes are rows x1 y1 x2 y2; scores fall from 0.9, labels are 1."""
    count = len(boxes)
    detections = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "scores": torch.tensor(scores or [0.9 - 0.1 * k for k in range(count)]),
        "labels": torch.tensor(labels or [1] * count, dtype=torch.int64),
    }
    return Result(detections, name=name, width=width, height=height, **more)


def random_results(count, objects, *, seed=0, categories=None, labels=3):
    """Results a/0.png, a/1.png, ...; boxes in 640x512 with more decimals than files have."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(shape, generator=generator)

    results = []
    for k in range(count):
        corners = uniform(objects, 2) * torch.tensor([600.0, 480.0])
        detections = {
            "boxes": torch.cat([corners, corners + 1 + 20 * uniform(objects, 2)], 1),
            "scores": uniform(objects).sort(descending=True).values,
            "labels": torch.randint(1, labels + 1, (objects,), generator=generator),
        }
        facts = {"name": f"a/{k}.png", "width": 640, "height": 512, "categories": categories}
        results.append(Result(detections, **facts))
    return results
