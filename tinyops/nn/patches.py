"""Convolutions at a few cells of a pyramid, for losses that look at samples."""

from collections.abc import Sequence

import torch
from torch import Tensor


def patches_3x3(
    levels: Sequence[Tensor], level_ids: Tensor, image_ids: Tensor, rows: Tensor, columns: Tensor
) -> Tensor:
    """What a 3x3 convolution with padding 1 sees at some cells.

    Its result there is `patches.flatten(1) @ weight.flatten(1).T + bias`. The gradient reaches
    these neighbourhoods alone, instead of a dense map that is zero nearly everywhere.

    Args:
        levels: [N, C, h_k, w_k] each.
        level_ids: [S] int64, the level of every cell.
        image_ids: [S] int64.
        rows: [S] int64.
        columns: [S] int64.

    Returns:
        [S, C, 3, 3], zero outside the maps.
    """
    around = torch.arange(-1, 2, device=rows.device)
    patches, places = [], []
    for k, level in enumerate(levels):
        place = (level_ids == k).nonzero()[:, 0]
        y = rows[place, None, None] + around[:, None]  # [S', 3, 1]
        x = columns[place, None, None] + around  # [S', 1, 3]
        height, width = level.shape[-2:]
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        image = image_ids[place, None, None]
        found = level[image, :, y.clamp(0, height - 1), x.clamp(0, width - 1)]  # [S', 3, 3, C]
        patches.append(found * inside[..., None])
        places.append(place)
    return torch.cat(patches)[torch.cat(places).argsort()].permute(0, 3, 1, 2)
