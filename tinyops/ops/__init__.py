"""The public operators. Each is one call of `torch.ops.tinyops.<same name>`."""

from importlib import import_module
from types import ModuleType

from tinyops.ops.attention_targets import attention_targets, attention_targets_reference
from tinyops.ops.avg_max_pool import avg_max_pool, avg_max_pool_reference
from tinyops.ops.balanced_l1 import (
    balanced_l1,
    balanced_l1_sums,
    balanced_l1_sums_reference,
)
from tinyops.ops.difference_gate import difference_gate, difference_gate_reference
from tinyops.ops.difference_map import difference_map, difference_map_reference
from tinyops.ops.gated_upsample_add import (
    gated_upsample_add,
    gated_upsample_add_,
    gated_upsample_add_reference,
)
from tinyops.ops.max_overlap import max_overlap
from tinyops.ops.nms import nms, nms_reference
from tinyops.ops.pixel_shuffle import (
    pixel_shuffle_add,
    pixel_shuffle_add_reference,
    pixel_shuffle_concat,
    pixel_shuffle_concat_reference,
)
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
    "avg_max_pool",
    "avg_max_pool_reference",
    "balanced_l1",
    "balanced_l1_sums",
    "balanced_l1_sums_reference",
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
    "pixel_shuffle_add",
    "pixel_shuffle_add_reference",
    "pixel_shuffle_concat",
    "pixel_shuffle_concat_reference",
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
    "pixel_shuffle",
    "difference_map",
    "difference_gate",
    "avg_max_pool",
    "balanced_l1",
    "nms",
    "soft_nms",
    "stitch_tiles",
    "max_overlap",
    "topk_per_target",
    "sample_negatives",
    "attention_targets",
)


def modules() -> list[ModuleType]:
    """The module of every operator. A function of the same name hides it as an attribute."""
    return [import_module(f"tinyops.ops.{name}") for name in OPERATORS]
