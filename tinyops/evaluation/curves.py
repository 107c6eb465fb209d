"""Curves of precision over recall."""

import numpy as np
from numpy.typing import NDArray

from tinyops.evaluation.matcher import RECALL


def interpolate(recall: NDArray[np.float64], precision: NDArray[np.float64]) -> NDArray[np.float64]:
    """[101] the greatest precision at each recall of `RECALL` or a higher one, or 0.

    Args:
        recall: [P] rising.
        precision: [P]; NaN: there is none.
    """
    best = np.maximum.accumulate(np.nan_to_num(precision)[::-1])[::-1]
    reached: NDArray[np.float64] = np.append(best, 0.0)[np.searchsorted(recall, RECALL)]
    return reached
