"""A network that enlarges images or features (the generator of GDL)."""

import torch.nn.functional as F
from torch import Tensor, nn

from tinyops.nn.dense import init_normal
from tinyops.ops import pixel_shuffle_add

SLOPE = 0.25  # of the leaky ReLUs, where PReLUs begin


class Generator(nn.Module):
    """G(z) = up(z) + net(z), of `upscale` times the height and width of z.

    The slides of GDL show no layers. Our reading is SRResNet (Ledig et al., 2017): a convolution;
    residual blocks conv - PReLU - conv; another convolution, to which the first one's output is
    added; for every factor of 2 a convolution and a pixel shuffle. Different from it, the last
    shuffle gives the result itself, as in ESPCN (Shi et al., 2016), so that nothing wide has its
    size; every shuffle adds to what it enlarges, and the last one to z, bilinear, so that an
    untrained generator is nearly that resizing. There are no batch norms unless `norms` asks for
    them: super-resolution does as well without (EDSR; Lim et al., 2017), and an image is then
    enlarged in the same way whatever is beside it.

    Args:
        channels: of z and of the result.
        width: channels within.
        blocks: residual blocks.
        upscale: a power of 2, at least 2.
        kernel: of the first and the last convolution; odd.
        norms: batch norms as in SRResNet, two in each block and one after them.

    Raises:
        ValueError: for another upscale, an even kernel, or numbers below 1.
    """

    def __init__(
        self,
        channels: int = 3,
        *,
        width: int = 64,
        blocks: int = 8,
        upscale: int = 4,
        kernel: int = 9,
        norms: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("width", width), ("blocks", blocks)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if upscale < 2 or upscale & (upscale - 1):
            raise ValueError(f"upscale must be a power of 2, at least 2, got {upscale}")
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, got {kernel}")
        self.upscale = upscale
        self.first = nn.Sequential(
            nn.Conv2d(channels, width, kernel, padding=kernel // 2), nn.PReLU()
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(*_conv(width, norms), nn.PReLU(), *_conv(width, norms))
            for _ in range(blocks)
        )
        self.middle = nn.Sequential(*_conv(width, norms))
        self.enlarge = nn.ModuleList(
            nn.Conv2d(width, 4 * width, 3, padding=1) for _ in range(upscale.bit_length() - 2)
        )
        self.last = nn.Conv2d(width, 4 * channels, kernel, padding=kernel // 2)
        init_normal(self.last, std=0.001)

    def forward(self, z: Tensor) -> Tensor:
        """[N, channels, h, w] to [N, channels, upscale * h, upscale * w]."""
        start = self.first(z)
        x = start
        for block in self.blocks:
            x = x + block(x)
        x = start + self.middle(x)
        for conv in self.enlarge:
            up = F.interpolate(x, scale_factor=2, mode="nearest")
            x = pixel_shuffle_add(conv(x), up, negative_slope=SLOPE)
        up = F.interpolate(z, scale_factor=self.upscale, mode="bilinear", align_corners=False)
        return pixel_shuffle_add(self.last(x), up)


def _conv(width: int, norm: bool) -> list[nn.Module]:
    conv = nn.Conv2d(width, width, 3, padding=1, bias=not norm)
    return [conv, nn.BatchNorm2d(width)] if norm else [conv]
