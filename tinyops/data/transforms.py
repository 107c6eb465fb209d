"""Augmentation: torchvision's transforms v2, and what they lack.

All draw from torch's generator. Images are uint8 [3, H, W]; boxes are `tv_tensors.BoundingBoxes`,
and labels and `ignore` flags go with their boxes. A rotated box becomes the tight box around it,
as in albumentations.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

_MEAN_COLOUR = (124, 116, 104)  # ImageNet's, 0 after normalisation


def _uniform(low: float, high: float, count: int = 1) -> Tensor:
    return torch.empty(count).uniform_(low, high)


def _as_image(values: Tensor, like: Tensor) -> Tensor:
    """Float values in 0..255 as a uint8 image."""
    return tv_tensors.wrap(values.round().clamp(0, 255).to(torch.uint8), like=like)


class _ImageTransform(v2.Transform):
    """A transform of images alone; boxes stay."""

    _transformed_types = (tv_tensors.Image,)


class BrightnessContrast(_ImageTransform):
    """x -> (1 + contrast) x + 255 brightness, both uniform (albumentations' formula)."""

    def __init__(
        self,
        brightness: tuple[float, float] = (-0.1, 0.3),
        contrast: tuple[float, float] = (0.1, 0.3),
    ) -> None:
        super().__init__()
        self.brightness, self.contrast = brightness, contrast

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {"gain": 1 + _uniform(*self.contrast), "offset": 255 * _uniform(*self.brightness)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return _as_image(inpt.as_subclass(Tensor) * params["gain"] + params["offset"], inpt)


class RGBShift(_ImageTransform):
    """Add a number in [-limit, limit], of 255, to each channel."""

    def __init__(self, limit: float = 10.0) -> None:
        super().__init__()
        self.limit = limit

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {"shift": _uniform(-self.limit, self.limit, 3)[:, None, None]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return _as_image(inpt.as_subclass(Tensor) + params["shift"], inpt)


class BoxBlur(_ImageTransform):
    """Mean over `size` x `size` pixels; `size` is odd."""

    def __init__(self, size: int = 3) -> None:
        super().__init__()
        self.size = _odd(size)

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return _filter(inpt, torch.full((self.size, self.size), 1 / self.size**2))


class MotionBlur(_ImageTransform):
    """Mean along a straight line of `size` pixels through the centre, in a random direction."""

    def __init__(self, size: int = 3) -> None:
        super().__init__()
        self.size = _odd(size)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        angle = _uniform(0, torch.pi)
        reach = self.size // 2
        along = torch.arange(-reach, reach + 1)
        # The line meets every column, or every row where it is steep, once.
        scale = torch.maximum(angle.cos().abs(), angle.sin().abs())
        x = (along * angle.cos() / scale).round().long() + reach
        y = (along * angle.sin() / scale).round().long() + reach
        kernel = torch.zeros(self.size, self.size)
        kernel[y, x] = 1 / self.size
        return {"kernel": kernel}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return _filter(inpt, params["kernel"])


class MedianBlur(_ImageTransform):
    """Median of `size` x `size` pixels of each channel; `size` is odd."""

    def __init__(self, size: int = 3) -> None:
        super().__init__()
        self.size = _odd(size)

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        channels, height, width = inpt.shape
        padded = _padded(inpt, self.size // 2)  # [1, 3, H, W]
        windows = F.unfold(padded.transpose(0, 1), self.size)  # [3, size^2, H W]
        return _as_image(windows.median(1).values.view(channels, height, width), inpt)


class RandomResize(v2.Transform):
    """Resize to fit a random frame, keeping the ratio of the sides (mmdetection's `range` mode).

    The frame's long side is an integer in `long` and its short side one in `short`; the image is
    resized as far as its long side and its short side fit in. Bilinear, with antialiasing.
    """

    def __init__(
        self, long: tuple[int, int] = (640, 960), short: tuple[int, int] = (512, 768)
    ) -> None:
        super().__init__()
        self.long, self.short = long, short

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = v2.query_size(flat_inputs)
        long = int(torch.randint(self.long[0], self.long[1] + 1, ()))
        short = int(torch.randint(self.short[0], self.short[1] + 1, ()))
        scale = min(long / max(height, width), short / min(height, width))
        return {"size": [max(1, round(height * scale)), max(1, round(width * scale))]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self._call_kernel(v2.functional.resize, inpt, params["size"], antialias=True)


def in_turn(steps: Sequence[Any]) -> v2.Transform:
    """Transforms of an image and a target, one after the other."""
    return v2.Compose(list(steps))


def simple_augmentation() -> v2.Transform:
    """Horizontal flip and a mild jitter of the colours."""
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(0.5),
            v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.03),
            _sanitize(),
        ]
    )


def sspnet_augmentation(
    long: tuple[int, int] = (640, 960), short: tuple[int, int] = (512, 768)
) -> v2.Transform:
    """SSPNet's training pipeline (released configuration), for tiles of 640x512.

    Resize to (640, 512)..(960, 768), flip, shift by 1/16 and rotate by 45 degrees, brightness and
    contrast, RGB shift or hue/saturation/value, JPEG, channel shuffle, box, median or motion blur.

    Two things differ from the albumentations it names: what a rotation uncovers gets the mean
    colour and not a mirror image (in which objects would have no boxes), and hue/saturation/value
    are torchvision's factors of the same reach instead of sums. Objects shifted out are dropped
    when less than a pixel is left.

    Args:
        long: least and largest long side of the resized tile, in pixels.
        short: least and largest short side.
    """
    turn = v2.RandomAffine(
        45,
        translate=(0.0625, 0.0625),
        interpolation=InterpolationMode.BILINEAR,
        fill=list(_MEAN_COLOUR),
    )
    # Of 180 hues, 255 saturations and 255 values, albumentations moves 20, 30 and 20.
    hsv = v2.ColorJitter(hue=20 / 180, saturation=30 / 255, brightness=20 / 255)
    return v2.Compose(
        [
            RandomResize(long, short),
            v2.RandomHorizontalFlip(0.5),
            v2.RandomApply([turn], 0.5),
            v2.RandomApply([BrightnessContrast()], 0.4),
            v2.RandomApply([v2.RandomChoice([RGBShift(10), hsv])], 0.1),
            v2.RandomApply([v2.JPEG((85, 95))], 0.2),
            v2.RandomApply([v2.RandomChannelPermutation()], 0.1),
            v2.RandomApply([v2.RandomChoice([BoxBlur(3), MedianBlur(3), MotionBlur(3)])], 0.1),
            _sanitize(),
        ]
    )


def _sanitize() -> v2.SanitizeBoundingBoxes:
    """Drops boxes below a pixel, and their labels and flags with them."""
    return v2.SanitizeBoundingBoxes(min_size=1, labels_getter=_rows)


def _rows(inputs: tuple[Any, dict[str, Any]]) -> tuple[Tensor, Tensor]:
    target = inputs[1]
    return target["labels"], target["ignore"]


def _odd(size: int) -> int:
    if size < 1 or size % 2 == 0:
        raise ValueError(f"size must be odd and positive, got {size}")
    return size


def _padded(image: Tensor, reach: int) -> Tensor:
    """[1, C, H + 2 reach, W + 2 reach] floats, borders repeated."""
    return F.pad(image.as_subclass(Tensor).float()[None], [reach] * 4, mode="replicate")


def _filter(image: Tensor, kernel: Tensor) -> Tensor:
    """Correlate every channel with one kernel."""
    padded = _padded(image, kernel.shape[0] // 2).transpose(0, 1)  # [C, 1, H, W]
    return _as_image(F.conv2d(padded, kernel[None, None])[:, 0], image)
