"""SR-TOD: features are enhanced where an image rebuilt from them differs from the image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from tinyops.nn.batch import GroundTruth, ImageBatch
from tinyops.nn.distributed import count_over_processes, mean_over_processes
from tinyops.nn.losses import at_least_float32
from tinyops.ops import avg_max_pool, difference_gate, difference_map

_FOLLOWED = 20  # batches that the threshold remembers while it is calibrated


def _up(channels: int) -> nn.Sequential:
    """Twice the size, half the channels."""
    half = channels // 2
    return nn.Sequential(
        nn.ConvTranspose2d(channels, half, 4, stride=2, padding=1),
        nn.Conv2d(half, half, 3, padding=1, bias=False),
        nn.ReLU(inplace=True),
        nn.Conv2d(half, half, 3, padding=1, bias=False),
        nn.ReLU(inplace=True),
    )


class ReconstructionHead(nn.Module):
    """The image from features: `ups` times larger by 2, then three colours (SR-TOD, eq. 1 and 2).

    Args:
        channels: of the features, a multiple of 2^ups.
        ups: log2 of the stride of the features.

    Raises:
        ValueError: for fewer than 1 `ups`, or channels that cannot be halved so often.
    """

    def __init__(self, channels: int = 256, ups: int = 2) -> None:
        super().__init__()
        if ups < 1:
            raise ValueError(f"ups must be at least 1, got {ups}")
        if channels < 1 or channels % 2**ups:
            raise ValueError(f"channels must be a positive multiple of {2**ups}, got {channels}")
        self.ups = nn.Sequential(*[_up(channels >> k) for k in range(ups)])
        self.colours = nn.Conv2d(channels >> ups, 3, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """[N, channels, h, w] to [N, 3, h 2^ups, w 2^ups] in 0..1, float32 at least."""
        # Not in bfloat16, whose steps near 1 are as large as the threshold of the differences.
        return at_least_float32(self.colours(self.ups(features))).sigmoid()


class ChannelGate(nn.Module):
    """A weight per channel: sigmoid(MLP(mean) + MLP(maximum)), one MLP for both (eq. 5).

    Args:
        channels: of the features.
        reduction: channels per cell of the hidden layer, of which there is one at least.
    """

    def __init__(self, channels: int = 256, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        last = nn.Linear(hidden, channels)
        # All weights are 1/2 at first. Random ones of the maxima of features that nothing has
        # normalised would close a part of the channels for good, where the sigmoid is flat.
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(inplace=True), last)

    def forward(self, features: Tensor, valid: Tensor | None = None) -> Tensor:
        """Weights [N, channels, 1, 1] in 0..1.

        Args:
            features: [N, channels, h, w].
            valid: [N, 2] int64, rows and columns of every image that count; None: all.
        """
        pooled = torch.stack([x.flatten(1) for x in avg_max_pool(features, valid)])
        return self.mlp(pooled).sum(0).sigmoid()[..., None, None]


@dataclass(frozen=True)
class Reconstruction:
    """What `SelfReconstruction` saw.

    Attributes:
        image: [N, 3, H, W] in 0..1.
        reconstruction: [N, 3, H, W] in 0..1, made of the features.
        difference: [N, 1, H, W] the map of their differences; 0 in padding that does not count.
        threshold: 0-dim; differences above it are enhanced.
        valid: [N, 2] int64, height and width of what counts of every image; None: all.
    """

    image: Tensor
    reconstruction: Tensor
    difference: Tensor
    threshold: Tensor
    valid: Tensor | None

    @property
    def mask(self) -> Tensor:
        """[N, 1, H, W] 1 where the difference is above the threshold, 1/2 at it, 0 below."""
        return 0.5 * (torch.sign(self.difference - self.threshold) + 1)


class SelfReconstruction(nn.Module):
    """Enhances one level of a pyramid where the image cannot be rebuilt from it (SR-TOD).

    Backbones lose tiny objects first, and so they are what a reconstruction lacks. With features P
    of the level and the image I in 0..1,

        I_r = ReconstructionHead(P)                             (eq. 1 and 2)
        D = mean over the colours of |I_r - I|                  (eq. 3)
        M = resize((sign(D - t) + 1) / 2)                       (eq. 4)
        P' = P * ChannelGate(P) * (1 + M)                       (eq. 5 and 6)

    and the loss of the reconstruction is the mean of (I_r - I)^2. The other levels stay.

    As a refiner of `tinyops.models.detectors.Detector` it takes (levels, batch). In any other
    detector, call `enhance` on one map of features, and add `loss` to the losses.

    The threshold t is learned. It has no weight decay and 1/100 of the learning rate (`no_decay`
    and `rate_factors`, see `tinyops.train.optim.make_optimizer`): its values are some 1/255, and
    its gradient is a sum over all cells. The released code decays it, and nothing else moves it
    there, as its sign has no gradient. The paper's start values are for a data set each (4/255
    VisDrone, 3/255 AI-TOD, 40/255 DroneSwarms). By default the data give it: in the first
    `calibration` training batches, it is a mean of the last batches' `quantile` of D, and its
    gradient is not used. D shrinks while the reconstruction is learned: the mean is one of the last
    20 batches or so, not of all.

    Args:
        channels: of the level.
        strides: pixels of the image per cell of every level.
        level: which one. Its stride is a power of 2 from 2 on: a step of the head for each 2.
        threshold: what t is at first; None: it is calibrated.
        quantile: of the pixels of an image are below t, when calibrated.
        calibration: batches.
        resize: how M sees its cells' pixels. "area", their mean, in which padding is 0; "max",
            any; "nearest", as released, the upper left one, that is 1 of 16 at stride 4, which may
            miss an object.
        ste: the gradient of sign. "identity": 1, straight through; "none": 0, as released, and
            t has none.
        high_frequency: None, or cycles per pixel from which on frequencies count in D: those of
            I_r - I below are taken away first (the paper's HFD; it does not print its radius).
        mask_padding: padding counts neither in D nor in the loss nor in the channel gate. False, as
            released: it counts, and the image is black there.
        reduction: see `ChannelGate`.

    Attributes:
        threshold: t, a parameter without dimensions.

    Raises:
        ValueError: for a level that does not exist, a stride that is no power of 2, and settings
            out of range.
    """

    no_decay = ("threshold",)
    rate_factors: ClassVar = {"threshold": 0.01}
    seen: Tensor

    def __init__(
        self,
        channels: int,
        strides: Sequence[int],
        *,
        level: int = 0,
        threshold: float | None = None,
        quantile: float = 0.9,
        calibration: int = 500,
        resize: str = "area",
        ste: str = "identity",
        high_frequency: float | None = None,
        mask_padding: bool = True,
        reduction: int = 16,
    ) -> None:
        super().__init__()
        if not 0 <= level < len(strides):
            raise ValueError(f"level must be from 0 to {len(strides) - 1}, got {level}")
        stride = strides[level]
        if stride < 2 or stride & (stride - 1):
            raise ValueError(f"strides must be a power of 2 from 2 on at {level}, got {stride}")
        if not 0 < quantile <= 1:
            raise ValueError(f"quantile must be in (0, 1], got {quantile}")
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f"threshold must be None or in [0, 1], got {threshold}")
        if calibration < 1:
            raise ValueError(f"calibration must be at least 1, got {calibration}")
        if resize not in ("nearest", "area", "max"):
            raise ValueError(f"resize must be 'nearest', 'area' or 'max', got {resize!r}")
        if ste not in ("identity", "none"):
            raise ValueError(f"ste must be 'identity' or 'none', got {ste!r}")
        if high_frequency is not None and not 0 < high_frequency <= 0.5:
            raise ValueError(f"high_frequency must be None or in (0, 0.5], got {high_frequency}")
        self.level, self.stride = level, stride
        self.quantile, self.resize, self.ste = quantile, resize, ste
        self.high_frequency, self.mask_padding = high_frequency, mask_padding
        self.head = ReconstructionHead(channels, stride.bit_length() - 1)
        self.channel_gate = ChannelGate(channels, reduction)
        self.threshold = nn.Parameter(
            torch.tensor(4 / 255 if threshold is None else threshold),
            requires_grad=ste != "none",
        )
        self.calibration = calibration if threshold is None else 0
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))  # batches
        self._calibrated = False  # False: look at `seen`

    def forward(
        self, levels: Sequence[Tensor], batch: ImageBatch
    ) -> tuple[list[Tensor], Reconstruction]:
        """All levels, of which one is enhanced, and what was seen.

        Args:
            levels: [N, channels, H / stride, W / stride] each.
            batch: of images; its pixels are [N, 3, H, W].
        """
        x, shown = self.enhance(levels[self.level], batch.colours(), batch.size_table())
        return [*levels[: self.level], x, *levels[self.level + 1 :]], shown

    def losses(
        self, shown: Reconstruction, batch: ImageBatch, truth: GroundTruth
    ) -> dict[str, Tensor]:
        """The loss of what `forward` returned."""
        return {"reconstruction": self.loss(shown)}

    def enhance(
        self, features: Tensor, image: Tensor, sizes: Tensor | None = None
    ) -> tuple[Tensor, Reconstruction]:
        """Enhanced features of the same size, and what was seen.

        Args:
            features: [N, channels, h, w].
            image: [N, 3, h stride, w stride] in 0..1, not normalised.
            sizes: [N, 2] int64, height and width of every image without padding; None: there is no
                padding.

        Raises:
            ValueError: for an image that is not `stride` times as large as the features.
        """
        reconstruction = self.head(features)
        if reconstruction.shape != image.shape:
            raise ValueError(
                f"image must be {list(reconstruction.shape)} for features "
                f"{list(features.shape)} of stride {self.stride}, got {list(image.shape)}"
            )
        image = image.to(reconstruction.dtype)
        valid = cells = None
        if sizes is not None:
            image = image * _inside(sizes, image)
            if self.mask_padding:
                valid, cells = sizes, -(-sizes // self.stride)
        difference = self._difference(reconstruction, image, valid)
        threshold = self.threshold.to(difference.dtype)
        if self.training and not self._is_calibrated():
            self._calibrate(difference.detach(), valid)
            # No gradient, but one of 0: DistributedDataParallel waits for that of every parameter.
            threshold = self.threshold.detach().to(difference.dtype) + 0 * threshold
        enhanced = difference_gate(
            features,
            self.channel_gate(features, cells).to(features.dtype),
            difference if self.ste == "identity" else difference.detach(),
            threshold,
            resize=self.resize,
            ste=self.ste,
        )
        return enhanced, Reconstruction(image, reconstruction, difference, threshold, valid)

    def loss(self, shown: Reconstruction) -> Tensor:
        """The mean of (reconstruction - image)^2 over what counts of all processes' images."""
        errors = (shown.reconstruction - shown.image).square()
        if shown.valid is None:
            count: int | Tensor = errors.numel()
        else:
            errors = errors * _inside(shown.valid, errors)
            count = 3 * shown.valid.prod(1).sum()
        return errors.sum() / count_over_processes(count, errors)

    def _difference(self, reconstruction: Tensor, image: Tensor, valid: Tensor | None) -> Tensor:
        """D, [N, 1, H, W]."""
        if self.high_frequency is None:
            return difference_map(reconstruction, image, valid)
        # The difference of two high passes is the high pass of the difference.
        lacking = reconstruction - image
        if valid is not None:
            lacking = lacking * _inside(valid, lacking)
        lacking = high_pass(lacking, self.high_frequency)
        return difference_map(lacking, torch.zeros_like(lacking), valid)

    def _is_calibrated(self) -> bool:
        if not self._calibrated:  # until then, a GPU is waited for
            self._calibrated = int(self.seen) >= self.calibration
        return self._calibrated

    @torch.no_grad()
    def _calibrate(self, difference: Tensor, valid: Tensor | None) -> None:
        """Follow the mean over the images of the quantile of their differences."""
        values = difference.flatten(1).sort(1).values
        size = values.shape[1]
        count = values.new_full((len(values),), size, dtype=torch.int64)
        if valid is not None:
            count = valid.prod(1)
        # What does not count is 0 and comes first.
        rank = size - count + (self.quantile * count).ceil().long() - 1
        now = mean_over_processes(values.gather(1, rank[:, None]).mean())
        self.seen += 1
        share = 1 / self.seen.clamp(max=_FOLLOWED)
        self.threshold.lerp_(now.to(self.threshold.dtype), share.to(self.threshold.dtype))

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._calibrated = False


def high_pass(x: Tensor, radius: float) -> Tensor:
    """Planes without their frequencies below a radius, as if they went on periodically.

    Args:
        x: [N, C, H, W].
        radius: in cycles per pixel; 0.5 is the greatest frequency of a row or column.
    """
    height, width = x.shape[-2:]
    rows = torch.fft.fftfreq(height, device=x.device)
    columns = torch.fft.rfftfreq(width, device=x.device)
    kept = torch.hypot(rows[:, None], columns) >= radius
    return torch.fft.irfft2(torch.fft.rfft2(x) * kept, s=(height, width))


def _inside(sizes: Tensor, x: Tensor) -> Tensor:
    """[N, 1, H, W] bool: which pixels of x [N, C, H, W] are those of the images, not padding."""
    height, width = sizes[:, 0].view(-1, 1, 1, 1), sizes[:, 1].view(-1, 1, 1, 1)
    rows = torch.arange(x.shape[-2], device=x.device).view(-1, 1)
    return (rows < height) & (torch.arange(x.shape[-1], device=x.device) < width)
