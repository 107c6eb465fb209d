"""A network that looks at images of one size (the discriminator of GDL)."""

import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.2  # of the leaky ReLUs


class Discriminator(nn.Module):
    """Real or generated, which class, and which box: three heads on one trunk.

    The heads are GDL's (Gu et al., 2020). The slides show no layers; our reading of the trunk is
    convolutions of stride 2 until the side is at most 4, of `width`, 2 * `width` ... and at most
    8 * `width` channels, with leaky ReLUs of slope 0.2, then a linear layer. Norms are group norms,
    which do not depend on what else is in the batch.

    Args:
        channels: of the images.
        size: their height and width.
        num_classes: of objects.
        width: channels after the first convolution, a multiple of 8.
        hidden: width of the linear layer.
        class_agnostic: one box for all classes, else one for each.
        realness: with the head that tells real images from generated ones.

    Raises:
        ValueError: for numbers out of range.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        num_classes: int,
        *,
        width: int = 64,
        hidden: int = 1024,
        class_agnostic: bool = False,
        realness: bool = True,
    ) -> None:
        super().__init__()
        if width < 8 or width % 8:
            raise ValueError(f"width must be a multiple of 8, got {width}")
        for name, value in (("size", size), ("num_classes", num_classes), ("hidden", hidden)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.trunk = nn.Sequential()
        wide = width
        while size > 4:
            conv = nn.Conv2d(channels, wide, 4, stride=2, padding=1, bias=False)
            self.trunk.extend([conv, nn.GroupNorm(8, wide), nn.LeakyReLU(SLOPE)])
            channels, wide, size = wide, min(2 * wide, 8 * width), size // 2
        self.shared_fc = nn.Linear(channels * size * size, hidden)
        self.fc_real = nn.Linear(hidden, 1) if realness else None
        self.fc_cls = nn.Linear(hidden, num_classes + 1)
        self.fc_reg = nn.Linear(hidden, 4 if class_agnostic else 4 * num_classes)
        for layer, std in ((self.fc_cls, 0.01), (self.fc_reg, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Look.

        Args:
            images: [S, channels, size, size].

        Returns:
            Logits [S, 1 + num_classes], background first; offsets [S, num_classes or 1, 4]; and
            logits [S] of being real, or None without that head.
        """
        x = F.leaky_relu(self.shared_fc(self.trunk(images).flatten(1)), SLOPE)
        real = None if self.fc_real is None else self.fc_real(x)[:, 0]
        return self.fc_cls(x), self.fc_reg(x).unflatten(1, (-1, 4)), real
