"""A batch of images of any sizes, and what is in them, as flat tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Target = Mapping[str, Tensor]


@dataclass(frozen=True)
class ImageBatch:
    """Images below and right of which there is padding.

    Attributes:
        pixels: [N, 3, H, W] normalised images; padding is 0, the mean colour.
        sizes: height and width of every image in these pixels, without padding.
        mean, std: pixels are (image - mean) / std.
    """

    pixels: Tensor
    sizes: tuple[tuple[int, int], ...]
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    def size_table(self) -> Tensor:
        """[N, 2] height and width of every image, int64, on the device of the pixels."""
        return torch.tensor(self.sizes, dtype=torch.int64, device=self.pixels.device)

    def colours(self) -> Tensor:
        """[N, 3, H, W] the images in 0..1; padding has the mean colour."""
        mean = self.pixels.new_tensor(self.mean).view(3, 1, 1)
        return torch.addcmul(mean, self.pixels, self.pixels.new_tensor(self.std).view(3, 1, 1))


@dataclass(frozen=True)
class GroundTruth:
    """The objects of a batch, image after image.

    Attributes:
        boxes: [M, 4] x1 y1 x2 y2 in pixels of the batch.
        labels: [M] int64 in 1..num_classes; 0 is the background.
        image_ids: [M] int64, the image of every object, rising.
        ignored_boxes: [J, 4] regions in which nothing counts, neither as object nor as background.
        ignored_image_ids: [J] int64.
    """

    boxes: Tensor
    labels: Tensor
    image_ids: Tensor
    ignored_boxes: Tensor
    ignored_image_ids: Tensor


def collate_images(
    images: Sequence[Tensor],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    divisor: int = 32,
    scale: float = 1.0,
) -> ImageBatch:
    """Normalise images, resize them by `scale` (bilinear) and pad them to one size.

    Args:
        images: [3, h, w] floats in 0..1 each, on one device.
        mean: of the three channels; see `std`.
        std: (image - mean) / std is what the network sees.
        divisor: height and width of the batch become multiples of it.
        scale: above 1 images are enlarged; boxes have to be, too.
    """
    first = images[0]
    offset = first.new_tensor(mean).view(3, 1, 1)
    factor = 1 / first.new_tensor(std).view(3, 1, 1)
    resized = []
    for image in images:
        if scale != 1:
            size = [max(1, round(side * scale)) for side in image.shape[-2:]]
            image = F.interpolate(image[None], size, mode="bilinear", antialias=scale < 1)[0]
        resized.append(image)
    height, width = (-(-max(x.shape[d] for x in resized) // divisor) * divisor for d in (-2, -1))
    pixels = first.new_zeros(len(images), 3, height, width)
    for k, image in enumerate(resized):
        pixels[k, :, : image.shape[-2], : image.shape[-1]] = (image - offset) * factor
    sizes = tuple((x.shape[-2], x.shape[-1]) for x in resized)
    return ImageBatch(pixels, sizes, tuple(mean), tuple(std))


def collate_targets(
    targets: Sequence[Target],
    *,
    factors: Sequence[tuple[float, float]] | None = None,
    dtype: torch.dtype = torch.float32,
) -> GroundTruth:
    """Join the targets of a batch; a bool entry "ignore" [K] marks the regions to be ignored.

    Args:
        targets: boxes [K, 4] and labels [K] of every image.
        factors: width and height of every image in the batch / those that its boxes are for.
        dtype: of the boxes.
    """
    boxes, labels, ignored = [], [], []
    for k, target in enumerate(targets):
        skip = target.get("ignore")
        skip = torch.zeros_like(target["labels"], dtype=torch.bool) if skip is None else skip
        all_boxes = target["boxes"].to(dtype)
        if factors is not None and factors[k] != (1, 1):
            all_boxes = all_boxes * all_boxes.new_tensor(factors[k] * 2)
        boxes.append(all_boxes[~skip])
        labels.append(target["labels"][~skip])
        ignored.append(all_boxes[skip])
    return GroundTruth(
        torch.cat(boxes), torch.cat(labels), _ids(boxes), torch.cat(ignored), _ids(ignored)
    )


def _ids(parts: Sequence[Tensor]) -> Tensor:
    """The index of the part that every row of their concatenation comes from."""
    counts = torch.tensor([len(part) for part in parts], device=parts[0].device)
    return torch.arange(len(parts), device=parts[0].device).repeat_interleave(counts)


def check_images(images: Sequence[Tensor]) -> None:
    """Refuse what is no batch of images.

    Raises:
        ValueError: naming the first bad image, what was expected and what came.
    """
    if len(images) == 0:
        raise ValueError("images must hold at least one image, got none")
    for k, image in enumerate(images):
        if not isinstance(image, Tensor):
            raise ValueError(f"images[{k}] must be a tensor, got {type(image).__name__}")
        if image.dim() != 3 or image.shape[0] != 3 or 0 in image.shape:
            raise ValueError(f"images[{k}] must be [3, H, W], got {list(image.shape)}")
        if not image.is_floating_point():
            raise ValueError(f"images[{k}] must be float in 0..1, got {image.dtype}")
        if image.device != images[0].device:
            raise ValueError(
                f"images[{k}] must be on {images[0].device} like images[0], got {image.device}"
            )


def check_targets(targets: Sequence[Target], images: Sequence[Tensor], num_classes: int) -> None:
    """Refuse targets that do not fit the images or the classes.

    Raises:
        ValueError: naming the first bad entry, what was expected and what came.
    """
    if len(targets) != len(images):
        raise ValueError(f"targets must be one per image ({len(images)}), got {len(targets)}")
    for k, (target, image) in enumerate(zip(targets, images, strict=True)):
        missing = {"boxes", "labels"} - set(target)
        if missing:
            raise ValueError(f"targets[{k}] must have boxes and labels, got {sorted(target)}")
        boxes, labels, ignore = target["boxes"], target["labels"], target.get("ignore")
        name = f"targets[{k}]"
        for key in ("boxes", "labels", "ignore"):
            value = target.get(key)
            if value is not None and not isinstance(value, Tensor):
                raise ValueError(f"{name}['{key}'] must be a tensor, got {type(value).__name__}")
            if value is not None and value.device != image.device:
                raise ValueError(
                    f"{name}['{key}'] must be on {image.device} like its image, got {value.device}"
                )
        if boxes.dim() != 2 or boxes.shape[1] != 4 or not boxes.is_floating_point():
            raise ValueError(
                f"{name}['boxes'] must be float [K, 4], got {boxes.dtype} {list(boxes.shape)}"
            )
        if labels.shape != boxes.shape[:1] or labels.dtype != torch.int64:
            raise ValueError(
                f"{name}['labels'] must be int64 [{len(boxes)}], "
                f"got {labels.dtype} {list(labels.shape)}"
            )
        if ignore is not None and (ignore.shape != labels.shape or ignore.dtype != torch.bool):
            raise ValueError(
                f"{name}['ignore'] must be bool [{len(boxes)}], "
                f"got {ignore.dtype} {list(ignore.shape)}"
            )
        _check_values(name, boxes, labels, ignore, num_classes)


def _check_values(
    name: str, boxes: Tensor, labels: Tensor, ignore: Tensor | None, num_classes: int
) -> None:
    sane = torch.isfinite(boxes).all(1) & (boxes[:, 2:] >= boxes[:, :2]).all(1)
    known = (labels >= 1) & (labels <= num_classes)
    if ignore is not None:
        known |= ignore
    if not bool((sane & known).all()):  # the one synchronisation of a target
        for what, good, values, wanted in (
            ("boxes", sane, boxes, "finite with x2 >= x1 and y2 >= y1"),
            ("labels", known, labels, f"in 1..{num_classes}"),
        ):
            if not bool(good.all()):
                row = int((~good).nonzero()[0])
                got = values[row].tolist()
                raise ValueError(f"{name}['{what}'][{row}] must be {wanted}, got {got}")
