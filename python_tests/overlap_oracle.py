"""Both overlap operators as two loops over numbers: what every kernel is tested against."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tinyops.ops.max_overlap import MODES

# Modes whose order is computed without logarithms, so that an oracle can have the same bits.
EXACT_MODES = tuple(mode for mode in MODES if mode != "rfd_kl")
LOCAL_MODES = MODES[:4]  # only boxes that intersect overlap by more than 0


def quotient(a, b):
    return type(a)(0) if math.isnan(a / b) else a / b


def overlap(mode, box, target):
    """(key, value) of numpy numbers of one type; keys order pairs as values do, and finer."""
    one = box[0].dtype.type
    (px1, py1, px2, py2), (gx1, gy1, gx2, gy2) = box, target
    pw, ph, gw, gh = px2 - px1, py2 - py1, gx2 - gx1, gy2 - gy1
    box_area, target_area = pw * ph, gw * gh
    if mode in ("nwd", "rfd_w"):
        dx = one(0.5) * (px1 + px2) - one(0.5) * (gx1 + gx2)
        dy = one(0.5) * (py1 + py2) - one(0.5) * (gy1 + gy2)
        distance = dx * dx + dy * dy + one(0.25) * ((pw - gw) * (pw - gw) + (ph - gh) * (ph - gh))
        if mode == "nwd":
            return -distance, one(math.exp(-math.sqrt(distance) / 12.8))
        return one(1) / (one(1) + distance), one(1) / (one(1) + distance)
    if mode == "rfd_kl":
        if min(pw, ph, gw, gh) == 0:
            return one(0), one(0)
        pw, ph, gw, gh = map(float, (pw, ph, gw, gh))
        dx = 0.5 * (float(px1) + float(px2) - float(gx1) - float(gx2))
        dy = 0.5 * (float(py1) + float(py2) - float(gy1) - float(gy2))
        kl = 0.5 * (
            pw**2 / gw**2 + ph**2 / gh**2 + 4 * dx**2 / gw**2 + 4 * dy**2 / gh**2
            + math.log(gw**2 / pw**2) + math.log(gh**2 / ph**2) - 2
        )  # fmt: skip
        return one(1 / (1 + kl)), one(1 / (1 + kl))
    zero = one(0)
    inside = max(min(px2, gx2) - max(px1, gx1), zero) * max(min(py2, gy2) - max(py1, gy1), zero)
    union = box_area + target_area - inside
    if mode == "giou":
        hull = (max(px2, gx2) - min(px1, gx1)) * (max(py2, gy2) - min(py1, gy1))
        value = quotient(inside, union) - quotient(hull - union, hull)
    else:
        divisor = {
            "iou": union,
            "iof_target": target_area,
            "iof_box": box_area,
            "ios": min(box_area, target_area),
        }[mode]
        value = quotient(inside, divisor)
    return value, value


class Pairs(NamedTuple):
    """keys[k][m] and values[k][m]; None where target m does not count for box k."""

    keys: list
    values: list
    dtype: torch.dtype
    nothing: float


def all_pairs(boxes, targets, mode, target_mask=None, image_ids=None, target_image_ids=None):
    dtype = torch.float64 if boxes.dtype == torch.float64 else torch.float32
    boxes, targets = (x.cpu().to(dtype).numpy() for x in (boxes, targets))
    keys = [[None] * len(targets) for _ in boxes]
    values = [[None] * len(targets) for _ in boxes]
    with np.errstate(all="ignore"):
        for k, box in enumerate(boxes):
            for m, target in enumerate(targets):
                if target_mask is not None and not target_mask[m]:
                    continue
                if image_ids is not None and image_ids[k] != target_image_ids[m]:
                    continue
                keys[k][m], values[k][m] = overlap(mode, box, target)
    return Pairs(keys, values, dtype, -math.inf if mode == "giou" else 0.0)


def max_overlap(boxes, targets, *, mode, **options) -> tuple[Tensor, Tensor]:
    pairs = all_pairs(boxes, targets, mode, **options)
    value, index = [], []
    for keys, values in zip(pairs.keys, pairs.values, strict=True):
        best = -1
        for m, key in enumerate(keys):
            if key is not None and (best < 0 or key > keys[best]):
                best = m
        index.append(best)
        value.append(float(values[best]) if best >= 0 else pairs.nothing)
    return torch.tensor(value, dtype=pairs.dtype), torch.tensor(index, dtype=torch.int64)


def topk_per_target(boxes, targets, k, *, mode, min_value=0.0, **options):
    """value, index and assigned."""
    pairs = all_pairs(boxes, targets, mode, **options)
    least = torch.tensor(min_value, dtype=pairs.dtype).item()
    value = torch.full((len(targets), k), pairs.nothing, dtype=pairs.dtype)
    index = torch.full((len(targets), k), -1)
    assigned = torch.full((len(boxes),), -1)
    for m in range(len(targets)):
        there = [i for i in range(len(boxes)) if pairs.keys[i][m] is not None]
        best = sorted(there, key=lambda i: (-pairs.keys[i][m], i))[:k]
        for rank, i in enumerate(best):
            value[m, rank], index[m, rank] = float(pairs.values[i][m]), i
        for i in there:
            v = float(pairs.values[i][m])
            good = pairs.keys[i][m] >= pairs.keys[best[-1]][m] and v >= least
            if good and (mode == "giou" or v > 0):
                assigned[i] = m
    return value, index, assigned


# ---- inputs that the tests of both operators share -----------------------------------------------


def random_boxes(n, *, extent=60.0, smallest=0.0, largest=20.0, grid=None, dtype=torch.float32):
    """Boxes from torch's generator; on multiples of `grid`, so that overlaps tie."""
    size = torch.rand(n, 2, dtype=torch.float64) * (largest - smallest) + smallest
    corner = torch.rand(n, 2, dtype=torch.float64) * extent
    boxes = torch.cat([corner, corner + size], 1)
    return (boxes if grid is None else (boxes / grid).round() * grid).to(dtype)


def random_options(boxes, targets):
    """A mask, and image ids of which some have no boxes and others no targets."""
    return {
        "target_mask": torch.rand(targets) > 0.2,
        "image_ids": torch.randint(-1, 3, (boxes,)) * 10**12,
        "target_image_ids": torch.randint(0, 4, (targets,)) * 10**12,
    }


def matrix(boxes, targets, mode):
    """Overlaps [K, M] in the bits of torchvision's; 0/0 is 0."""
    from torchvision.ops import box_area, box_iou, generalized_box_iou

    if mode == "iou":
        return box_iou(boxes, targets).nan_to_num(0.0)
    if mode == "giou":
        return generalized_box_iou(boxes, targets)
    first = torch.maximum(boxes[:, None, :2], targets[None, :, :2])
    last = torch.minimum(boxes[:, None, 2:], targets[None, :, 2:])
    inside = (last - first).clamp(min=0).prod(2)
    of_box, of_target = box_area(boxes)[:, None], box_area(targets)[None]
    divisor = {
        "iof_target": of_target.expand_as(inside),
        "iof_box": of_box.expand_as(inside),
        "ios": torch.minimum(of_box, of_target),
    }[mode]
    return (inside / divisor).nan_to_num(0.0)


def to_device(x, device):
    if isinstance(x, dict):
        return {name: to_device(value, device) for name, value in x.items()}
    return x.to(device) if isinstance(x, Tensor) else x


def assert_values(actual, expected, mode):
    """The same bits, but for modes with an exponential or a logarithm."""
    assert actual.dtype == expected.dtype
    if mode in ("nwd", "rfd_kl"):
        relative = 1e-12 if actual.dtype == torch.float64 else 1e-5
        torch.testing.assert_close(actual.cpu(), expected, rtol=relative, atol=1e-30)
    else:
        assert torch.equal(actual.cpu(), expected)
