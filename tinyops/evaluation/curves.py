"""Curves of precision over recall."""

import numpy as np
from numpy.typing import NDArray

from tinyops.evaluation.matcher import RECALL


def area(recall: NDArray[np.float64], precision: NDArray[np.float64]) -> float:
    """Under the precision that no higher recall exceeds; arguments as of `interpolate`."""
    return float((np.diff(recall, prepend=0) * _best(precision)).sum())


def interpolate(recall: NDArray[np.float64], precision: NDArray[np.float64]) -> NDArray[np.float64]:
    """[101] the greatest precision at each recall of `RECALL` or a higher one, or 0.

    Args:
        recall: [P] rising.
        precision: [P]; NaN: there is none.
    """
    reached: NDArray[np.float64] = np.append(_best(precision), 0)[np.searchsorted(recall, RECALL)]
    return reached


def _best(precision: NDArray[np.float64]) -> NDArray[np.float64]:
    best: NDArray[np.float64] = np.maximum.accumulate(np.nan_to_num(precision)[::-1])[::-1]
    return best
