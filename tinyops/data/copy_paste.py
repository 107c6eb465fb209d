"""Copies of small objects, pasted elsewhere (Kisantal et al., Augmentation for small object
detection, 2019).

There are no masks here, so what is copied is an ellipse through the corners of the box: the whole
object with a little of what is around it, and no straight edge at the sides of the box, which a
detector would learn instead of the object.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors

from tinyops.data.pixels import read_pixels
from tinyops.data.types import AnnotatedSet

Shape = Literal["ellipse", "box"]
_AT_ONCE = 256  # objects that are compared with all others at a time
_TRIES = 50  # places that are drawn for a copy, of which the first free one is taken


@dataclass(frozen=True)
class Crop:
    """An object and what is around it.

    Attributes:
        pixels: uint8 [3, h, w].
        box: x1 y1 x2 y2 of the object in these pixels.
        label: of the object.
    """

    pixels: Tensor
    box: tuple[float, ...]
    label: int

    @classmethod
    def of(cls, image: Tensor, box: Tensor, label: int) -> "Crop":
        """As much of an image [3, H, W] as copies need of the object in a box x1 y1 x2 y2."""
        low, high = _around(box[None])[0].view(2, 2)
        x1, y1 = (low.floor().long() - 1).clamp(min=0).tolist()
        x2, y2 = (high.ceil().long() + 1).tolist()
        moved = box.double() - box.new_tensor([x1, y1, x1, y1])
        return cls(image[:, y1:y2, x1:x2].clone(), tuple(moved.tolist()), label)


class CopyPaste:
    """Paste copies of the small objects of an image, and of a bank, where there is nothing.

    A transform: it is called with a uint8 image [3, H, W] and a target with boxes, labels and
    ignore, and draws from torch's generator. An object is copied if it is small, not to be ignored,
    off the border of the image, and if no other box reaches into what would be copied. No pasted
    pixel lies in another box (regions to be ignored are boxes, too), on another copy, or nearer to
    the border than `margin`. A copy for which 50 random places are all taken is left out.

    The box of a turned copy is the tight one around the turned ellipse in the object's box: around
    the turned box it would be too large for most objects.

    Args:
        copies: of each small object of the image.
        bank: objects of other images, see `crop_bank`.
        from_bank: how many of them an image gets.
        largest: sqrt(area) in pixels up to which objects are small; the paper's 32.
        scale: least and greatest factor of a copy's sides.
        turn: greatest angle in degrees, either way.
        margin: pixels to the border.
        shape: of what is copied: the ellipse through the corners of the box, or the box.
        soft: pixels in which the edge of a copy becomes transparent; the paper found 0 best.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self,
        copies: int = 1,
        *,
        bank: Sequence[Crop] = (),
        from_bank: int = 0,
        largest: float = 32,
        scale: tuple[float, float] = (0.8, 1.2),
        turn: float = 15,
        margin: int = 5,
        shape: Shape = "ellipse",
        soft: float = 0,
    ) -> None:
        for name, number in (
            ("copies", copies),
            ("from_bank", from_bank),
            ("largest", largest),
            ("turn", turn),
            ("margin", margin),
            ("soft", soft),
        ):
            if not 0 <= number < math.inf:
                raise ValueError(f"{name} must be at least 0 and finite, got {number}")
        if not 0 < scale[0] <= scale[1] < math.inf:
            raise ValueError(f"scale must be positive and rising, got {scale}")
        if shape not in ("ellipse", "box"):
            raise ValueError(f'shape must be "ellipse" or "box", got {shape!r}')
        if from_bank and not bank:
            raise ValueError(f"bank must have objects for from_bank={from_bank}, got none")
        self.copies, self.bank, self.from_bank = copies, tuple(bank), from_bank
        self.largest, self.scale, self.turn, self.margin = largest, scale, turn, margin
        self.shape, self.soft = shape, soft

    def __call__(self, image: Tensor, target: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        boxes = target["boxes"].as_subclass(Tensor)
        size = (image.shape[-1], image.shape[-2])
        own = copyable(boxes, target["ignore"], size, self.largest).nonzero()[:, 0].tolist()
        pixels = image.as_subclass(Tensor)
        crops = [Crop.of(pixels, boxes[k], int(target["labels"][k])) for k in own]
        sources = [crop for crop in crops for _ in range(self.copies)]
        if self.from_bank:
            chosen = torch.randint(len(self.bank), (self.from_bank,)).tolist()
            sources += [self.bank[k] for k in chosen]
        canvas = pixels.clone()
        taken = boxes.double().numpy()
        pasted: list[tuple[float, ...]] = []
        labels = []
        for source in sources:
            patch = self._patch(source)
            corner = self._place(patch, size, taken)
            if corner is None:
                continue
            taken = np.vstack([taken, [*corner, corner[0] + patch.width, corner[1] + patch.height]])
            patch.paste(canvas, corner)
            pasted.append(tuple(a + b for a, b in zip(patch.box, 2 * corner, strict=True)))
            labels.append(source.label)
        if not pasted:
            return image, target
        new = {
            "boxes": torch.cat([boxes, boxes.new_tensor(pasted)]),
            "labels": torch.cat([target["labels"], target["labels"].new_tensor(labels)]),
            "ignore": torch.cat([target["ignore"], target["ignore"].new_zeros(len(labels))]),
        }
        new["boxes"] = tv_tensors.wrap(new["boxes"], like=target["boxes"])
        return tv_tensors.wrap(canvas, like=image), {**target, **new}

    def _patch(self, source: Crop) -> "_Patch":
        drawn = torch.rand(2, dtype=torch.float64).tolist()
        scale = self.scale[0] + drawn[0] * (self.scale[1] - self.scale[0])
        return _turned(source, scale, math.radians(self.turn) * (2 * drawn[1] - 1), self)

    def _place(
        self, patch: "_Patch", size: tuple[int, int], taken: NDArray[np.float64]
    ) -> tuple[int, int] | None:
        """x and y of a free place, if one was found."""
        free = np.array(size) - 2 * self.margin - (patch.width, patch.height)
        places = torch.rand(_TRIES, 2, dtype=torch.float64).numpy()
        if free.min() < 0:
            return None
        low = (places * (free + 1)).astype(int) + self.margin  # [T, 2]
        high = low + np.array((patch.width, patch.height))
        apart = (low[:, None] >= taken[:, 2:]) | (high[:, None] <= taken[:, :2])  # [T, K, 2]
        good = np.flatnonzero(apart.any(2).all(1))
        return None if len(good) == 0 else (int(low[good[0], 0]), int(low[good[0], 1]))


def crop_bank(
    data: AnnotatedSet, most: int = 300, *, largest: float = 32, seed: int = 0
) -> list[Crop]:
    """Small objects of a data set, drawn among those that are `copyable`.

    Args:
        data: with the folder of its images.
        most: as many, or all there are.
        largest: sqrt(area) in pixels up to which objects are small.
        seed: of the choice.

    Raises:
        ValueError: no object is good, or an image is not what the set says.
        OSError: an image cannot be decoded.
    """
    good = [
        (number, k)
        for number, image in enumerate(data.images)
        for k in copyable(
            image.boxes, torch.from_numpy(image.ignore), (image.width, image.height), largest
        )
        .nonzero()[:, 0]
        .tolist()
    ]
    if not good:
        raise ValueError(f"data must have objects of up to {largest:g} px to be copied, got none")
    chosen = np.random.default_rng(seed).permutation(len(good))[:most]
    crops, last, pixels = [], -1, torch.empty(0)
    for number, k in sorted(good[i] for i in chosen.tolist()):
        image = data.images[number]
        if number != last:
            last, pixels = number, torch.tensor(read_pixels(data, image)).permute(2, 0, 1)
        crops.append(Crop.of(pixels, image.boxes[k], int(image.labels[k])))
    return crops


def copyable(boxes: Tensor, ignore: Tensor, size: tuple[int, int], largest: float) -> Tensor:
    """[K] bool: small objects off the border that no other box is near enough to be copied with.

    Args:
        boxes: [K, 4] x1 y1 x2 y2 in pixels.
        ignore: [K] bool.
        size: width and height of the image.
        largest: sqrt(area) in pixels up to which objects are small.
    """
    sides = boxes[:, 2:] - boxes[:, :2]
    around = _around(boxes)
    whole = (around[:, :2] >= 0).all(1) & (around[:, 2:] <= boxes.new_tensor(size)).all(1)
    candidates = (~ignore & whole & (sides > 0).all(1) & (sides.prod(1) <= largest**2)).nonzero()
    result = torch.zeros_like(ignore)
    for part in candidates[:, 0].split(_AT_ONCE):
        low, high = around[part, None, :2], around[part, None, 2:]
        meets = ((boxes[:, :2] < high) & (boxes[:, 2:] > low)).all(2)  # [P, K]
        result[part] = meets.sum(1) == 1  # itself
    return result


def _around(boxes: Tensor) -> Tensor:
    """The boxes around the ellipses through the corners, [K, 4]."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    halves = (boxes[:, 2:] - boxes[:, :2]) * (0.5 * math.sqrt(2))
    return torch.cat([centres - halves, centres + halves], 1)


@dataclass(frozen=True)
class _Patch:
    """A copy that is ready to be pasted.

    Attributes:
        colors: float [3, h, w].
        opacity: [h, w] in 0..1.
        box: of the object in it.
    """

    colors: Tensor
    opacity: Tensor
    box: tuple[float, ...]

    @property
    def height(self) -> int:
        return self.opacity.shape[0]

    @property
    def width(self) -> int:
        return self.opacity.shape[1]

    def paste(self, image: Tensor, corner: tuple[int, int]) -> None:
        x, y = corner
        window = image[:, y : y + self.height, x : x + self.width]
        window.copy_((window + self.opacity * (self.colors - window)).round().clamp(0, 255))


def _turned(source: Crop, scale: float, angle: float, options: CopyPaste) -> _Patch:
    """Sample a copy: every pixel of it is looked up in the source.

    The copy's box has the source's fractions of a pixel, so that without scaling and turning the
    pixels are those of the source.
    """
    x1, y1, x2, y2 = source.box
    halves = np.array([x2 - x1, y2 - y1]) / 2
    centre = np.array([x1 + x2, y1 + y2]) / 2
    cosine, sine = math.cos(angle), math.sin(angle)
    turn = np.array([[cosine, -sine], [sine, cosine]])
    round_ = options.shape == "ellipse"
    ellipse = scale * np.sqrt(turn**2 @ halves**2)  # half sides of the turned ellipse's box
    reach = math.sqrt(2) * ellipse if round_ else scale * np.abs(turn) @ halves
    before = np.ceil(reach - centre % 1).astype(int)  # whole pixels left of and above the centre's
    middle = before + centre % 1
    width, height = np.ceil(middle + reach).astype(int).tolist()
    y, x = np.mgrid[:height, :width] + 0.5
    offsets = np.stack([x, y], -1) - middle  # [h, w, 2]
    back = offsets @ turn / scale  # in pixels of the source, by the inverse turn
    relative = back / halves
    if round_:
        radius = np.sqrt((relative**2).sum(-1) / 2)
        depth = (1 - radius) * math.sqrt(2) * halves.min() * scale
    else:
        depth = ((1 - np.abs(relative)) * halves * scale).min(-1)
    opacity = (depth / options.soft).clip(0, 1) if options.soft else (depth > 0).astype(float)
    colors = F.grid_sample(
        source.pixels[None].double(),
        torch.from_numpy((back + centre) / source.pixels.shape[:0:-1] * 2 - 1)[None],
        padding_mode="border",
        align_corners=False,
    )[0]
    low, high = (middle - ellipse).tolist(), (middle + ellipse).tolist()
    return _Patch(colors, torch.from_numpy(opacity), (*low, *high))
