"""Pictures of maps of an image, each with a legend."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tinyops.plot import panels
from tinyops.plot.ink import heat_colors
from tinyops.plot.scene import WHITE

_LETTERS = 13.0  # pixels


def draw_heat(values: NDArray[np.floating], name: str, *, most: float | None = None) -> Image.Image:
    """A map [h, w] of values from 0 to `most`, or to the greatest, from dark to bright."""
    most = float(values.max()) if most is None else most
    scaled = np.clip(values / most, 0, 1) if most > 0 else np.zeros_like(values)
    legend = panels.heat_bar(f"{name} 0 to {most:.3g}", _LETTERS)
    return panels.captioned(Image.fromarray(heat_colors(scaled)), [legend])


def draw_mask(difference: NDArray[np.floating], threshold: float) -> Image.Image:
    """White where a difference [h, w] is above a threshold, else black."""
    above = difference > threshold
    text = (
        f"difference above {threshold:.4f} ({255 * threshold:.1f} of 255): {above.mean():.1%} "
        "of the image"
    )
    picture = Image.fromarray(np.where(above, 255, 0).astype(np.uint8)).convert("RGB")
    return panels.captioned(picture, [panels.swatch(text, WHITE, _LETTERS)])


def draw_colors(pixels: NDArray[np.floating], name: str) -> Image.Image:
    """RGB [h, w, 3] in 0..1."""
    picture = Image.fromarray(np.round(255 * pixels).astype(np.uint8))
    return panels.captioned(picture, [panels.entry(name, _LETTERS)])
