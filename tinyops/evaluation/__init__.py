"""Metrics: every benchmark by its own rules, one file per protocol."""

try:
    import msgspec  # noqa: F401
    import numpy  # noqa: F401
except ImportError as error:
    raise ImportError(
        f'tinyops.evaluation needs the package {error.name}: pip install "tinyops[cli]"'
    ) from error

from tinyops.evaluation.matcher import match_image
from tinyops.evaluation.protocols import PROTOCOLS, evaluate, table
from tinyops.evaluation.tinyperson import sized_ap

__all__ = ["PROTOCOLS", "evaluate", "match_image", "sized_ap", "table"]
