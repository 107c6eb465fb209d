"""Any backbone of timm that gives feature maps; needs the package timm."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tinyops.nn.weights import load_weights, read_weights

_OF_FEATURES = ("out_indices", "feature_location")  # options that a classifier does not know
_COMPUTED = ("relative_position_index", "attn_mask")  # which older files hold


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


def read_timm_weights(name: str, path: str | Path, **options: Any) -> dict[str, Tensor]:
    """The tensors of a file that is, tensor by tensor, of a model of timm, whatever its classes.

    timm itself takes from a file what fits and leaves the rest random.

    Args:
        name: of a model of timm.
        path: of a file that `tinyops.nn.weights.read_weights` reads.
        options: of timm.create_model.

    Raises:
        ValueError: naming the file and the first tensor that is missing, unknown, or does not fit.
    """
    import timm

    options = {key: value for key, value in options.items() if key not in _OF_FEATURES}
    model: Any = timm.create_model(name, **{**options, "num_classes": 0})
    heads = model.pretrained_cfg.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else heads
    heads = tuple(f"{head}." for head in heads)
    state = {
        key: value
        for key, value in read_weights(path).items()
        if not key.startswith(heads) and not key.endswith(_COMPUTED)
    }
    load_weights(model, state, str(path))
    return state
