"""How often a classifier is right."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from tinyops.data.small_images import SmallImages
from tinyops.inference.engine import DTYPES
from tinyops.nn.distributed import world_size
from tinyops.train.processes import gather, rank


@torch.no_grad()
def accuracy(
    model: nn.Module,
    data: SmallImages,
    *,
    batch: int = 256,
    device: torch.device | str = "cpu",
    amp: Literal["none", "bf16", "fp16"] = "none",
) -> dict[str, float]:
    """Shares of images whose class is the first, or among the first five; several processes share.

    Args:
        model: `model(images)` gives logits [N, classes] in eval mode.
        data: at least one image.
        batch: images at once.
        device: of the model.
        amp: mixed precision, as in training.

    Returns:
        top1, top5 and the mean cross_entropy, the same in every process.
    """
    device = torch.device(device)
    starts = range(rank() * batch, len(data), world_size() * batch)
    rows = []
    for start in starts:
        images, labels = data.take(range(start, min(start + batch, len(data))))
        with torch.autocast(device.type, DTYPES.get(amp), enabled=amp != "none"):
            logits = model(images.to(device, non_blocking=True)).double()
        truth = labels.to(device, non_blocking=True)
        right = logits.topk(min(5, logits.shape[1])).indices == truth[:, None]
        loss = F.cross_entropy(logits, truth, reduction="sum")
        rows.append(torch.stack([right[:, 0].sum(), right.sum(), loss]))
    # Added up in the order of the images, however many processes there are.
    table = torch.stack(rows).tolist() if rows else []
    found = sorted(gather(list(zip(starts, table, strict=True))))
    sums = [sum(row[k] for _, row in found) / len(data) for k in range(3)]
    return dict(zip(("top1", "top5", "cross_entropy"), sums, strict=True))
