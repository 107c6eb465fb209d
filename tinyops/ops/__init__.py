"""The public operators. Each is one call of `torch.ops.tinyops.<same name>`."""

from tinyops.ops.gated_upsample_add import (
    gated_upsample_add,
    gated_upsample_add_,
    gated_upsample_add_reference,
)

__all__ = ["gated_upsample_add", "gated_upsample_add_", "gated_upsample_add_reference"]
