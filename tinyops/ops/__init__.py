"""The public operators. Each is one call of `torch.ops.tinyops.<same name>`."""

from importlib import import_module
from types import ModuleType

from tinyops.ops.attention_targets import attention_targets, attention_targets_reference
from tinyops.ops.difference_gate import difference_gate, difference_gate_reference
from tinyops.ops.difference_map import difference_map, difference_map_reference
from tinyops.ops.gated_upsample_add import (
    gated_upsample_add,
    gated_upsample_add_,
    gated_upsample_add_reference,
)
from tinyops.ops.max_overlap import max_overlap
from tinyops.ops.nms import nms, nms_reference
from tinyops.ops.sample_negatives import (
    sample_negatives,
    sample_negatives_from_boxes,
    sample_negatives_padded,
    sample_negatives_reference,
)
from tinyops.ops.soft_nms import soft_nms
from tinyops.ops.stitch_tiles import stitch_tiles
from tinyops.ops.topk_per_target import topk_per_target

__all__ = [
    "attention_targets",
    "attention_targets_reference",
    "difference_gate",
    "difference_gate_reference",
    "difference_map",
    "difference_map_reference",
    "gated_upsample_add",
    "gated_upsample_add_",
    "gated_upsample_add_reference",
    "max_overlap",
    "nms",
    "nms_reference",
    "sample_negatives",
    "sample_negatives_from_boxes",
    "sample_negatives_padded",
    "sample_negatives_reference",
    "soft_nms",
    "stitch_tiles",
    "topk_per_target",
]

OPERATORS = (  # a file of this name each
    "gated_upsample_add",
    "difference_map",
    "difference_gate",
    "nms",
    "soft_nms",
    "stitch_tiles",
    "max_overlap",
    "topk_per_target",
    "sample_negatives",
    "attention_targets",
)


def modules() -> list[ModuleType]:
    """The module of every operator. Its function has the same name and hides it as an attribute."""
    return [import_module(f"tinyops.ops.{name}") for name in OPERATORS]
