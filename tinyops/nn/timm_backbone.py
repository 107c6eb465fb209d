"""Any backbone of timm that gives feature maps; needs the package timm."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


class TimmBackbone(nn.Module):
    """The maps of strides 4 to 32 of `timm.create_model(name, features_only=True)`.

    Args:
        name: of a model of timm.
        pretrained: load timm's weights, by a download.
        out_indices: which of the model's maps, in timm's counting; None: those of stride 4 to 32.
        options: of timm.create_model.

    Raises:
        ImportError: without timm.
        ValueError: where no map has a stride of 4 to 32.
    """

    def __init__(
        self,
        name: str,
        pretrained: bool = False,
        out_indices: Sequence[int] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        try:
            import timm
        except ImportError as error:
            raise ImportError(
                "TimmBackbone needs the package timm: pip install tinyops[timm]"
            ) from error
        if out_indices is not None:
            options["out_indices"] = tuple(out_indices)
        self.body = timm.create_model(name, pretrained=pretrained, features_only=True, **options)
        info: Any = self.body.feature_info
        strides, channels = info.reduction(), info.channels()
        keep = [k for k, s in enumerate(strides) if out_indices is not None or 4 <= s <= 32]
        if not keep:
            raise ValueError(
                f"name must be a model with maps of stride 4 to 32, got {name} with {strides}"
            )
        self.keep = tuple(keep)
        self.strides = tuple(strides[k] for k in keep)
        self.channels = tuple(channels[k] for k in keep)
        self.channels_last = getattr(self.body, "output_fmt", None) == "NHWC"

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """[N, 3, H, W] normalised pixels to [N, channels[k], H / strides[k], W / strides[k]]."""
        levels = self.body(pixels)
        levels = [levels[k] for k in self.keep]
        return [x.permute(0, 3, 1, 2) for x in levels] if self.channels_last else levels
