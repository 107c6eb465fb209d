"""Grounds of TinySea: water, shores, fields and skies, painted block by block.

A ground holds a few random fields and colours; `paint` gives any rectangle of it, and neighbouring
rectangles fit together. Colours of a ground vary in brightness and along one line between two
colours, never per channel: that would make pink sand and orange grass.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tinyops.data.synth_fields import Floats, Relief, Texture

Integers = NDArray[np.int64]

_WATERS = np.array(  # deep and shallow
    [
        [[28, 68, 92], [60, 118, 128]],
        [[38, 84, 104], [92, 150, 150]],
        [[52, 86, 88], [104, 128, 116]],
        [[70, 92, 98], [128, 140, 132]],
        [[20, 52, 80], [44, 100, 124]],
        [[66, 82, 70], [120, 122, 96]],
    ],
    np.float32,
)
_SANDS = np.array(
    [[214, 196, 160], [196, 174, 138], [178, 160, 134], [224, 212, 186], [160, 138, 112]],
    np.float32,
)
_CROPS = np.array(
    [
        [88, 108, 58], [112, 126, 66], [72, 94, 52], [150, 140, 88], [176, 158, 104],
        [126, 104, 76], [98, 82, 62], [134, 142, 84],
    ],
    np.float32,
)  # fmt: skip
_SKIES = np.array(  # zenith and horizon
    [
        [[92, 138, 190], [190, 210, 225]],
        [[120, 158, 196], [214, 222, 228]],
        [[150, 158, 168], [200, 203, 206]],
        [[176, 184, 192], [222, 222, 220]],
        [[96, 112, 148], [226, 186, 150]],
    ],
    np.float32,
)


class Ground(Protocol):
    """What a scene is painted on."""

    def paint(self, y: Integers, x: Integers) -> Floats:
        """[len(y), len(x), 3] colours in 0..255 at consecutive rows y and columns x."""

    def is_water(self, y: NDArray, x: NDArray) -> NDArray[np.bool_]:
        """[K] whether points (x, y) lie in water."""


def _pick(rng: np.random.Generator, palette: Floats) -> Floats:
    brightness = rng.uniform(0.85, 1.12)
    return np.asarray(palette[rng.integers(len(palette))] * brightness, np.float32)


def _mix(a: Floats, b: Floats, share: Floats) -> Floats:
    """a where share is 0, b where it is 1; share is [h, w], a and b broadcast to [h, w, 3]."""
    share = share[..., None]
    return a * (1 - share) + b * share


def _step(values: Floats, width: float) -> Floats:
    """0 below 0, 1 above `width`, smooth between."""
    t = np.clip(values / np.float32(width), 0, 1)
    return t * t * (3 - 2 * t)


class Water:
    """Open water: long swell, short crested waves, glints and foam."""

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        self.deep, self.shallow = _pick(rng, _WATERS)
        angle, stretch = rng.normal(0, 0.25), rng.uniform(1.8, 4.5)
        self._depth = Relief(rng, height, width, 2.2)
        self._waves = Texture(rng, height, width, rng.uniform(0.95, 1.25), stretch, angle)
        self._ripples = Texture(rng, height, width, rng.uniform(0.4, 0.7), stretch * 0.7, angle)
        self._rough = rng.uniform(0.4, 1.3)
        self._foam = rng.uniform(2.1, 3.2)
        self._sky = np.array([205, 215, 222], np.float32) * np.float32(rng.uniform(0.85, 1.05))

    def paint(self, y: Integers, x: Integers, shoal: Floats | None = None) -> Floats:
        """Colours; `shoal` in 0..1 makes the water shallow."""
        depth = np.clip(0.35 + 0.22 * self._depth.at(y, x), 0, 1)
        if shoal is not None:
            depth = depth + (1 - depth) * shoal
        colour = _mix(self.deep, self.shallow, depth)
        waves, ripples = self._waves.at(y, x), self._ripples.at(y, x)
        slope = 0.75 * waves + 0.45 * ripples
        colour = colour * (1 + np.float32(0.11 * self._rough) * slope)[..., None]
        glint = np.float32(0.22 * self._rough) * _step(slope - np.float32(1.2), 2.0)
        colour = _mix(colour, self._sky, glint)
        foam = _step(waves + 0.5 * ripples - np.float32(self._foam), 1.1) * np.float32(0.75)
        return _mix(colour, np.full(3, 232, np.float32), foam)

    def is_water(self, y: NDArray, x: NDArray) -> NDArray[np.bool_]:
        return np.ones(len(y), bool)


class Sand:
    """Sand with hollows, footprints and grain, and patches of plants."""

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        self._colour = _pick(rng, _SANDS)
        self._hollows = Texture(rng, height, width, rng.uniform(1.2, 1.6))
        self._grain = Texture(rng, height, width, 0.4)
        self._plants = Texture(rng, height, width, 1.6)
        self._bare = rng.uniform(0.9, 2.6)
        self._green = _pick(rng, np.array([[84, 98, 56], [104, 108, 66], [68, 84, 50]], np.float32))

    def paint(self, y: Integers, x: Integers) -> Floats:
        """Colours."""
        grain = self._grain.at(y, x)
        light = 1 + np.float32(0.045) * self._hollows.at(y, x) + np.float32(0.028) * grain
        plants = self._plants.at(y, x) + np.float32(0.25) * grain
        leaves = self._green * (1 + np.float32(0.16) * grain)[..., None]
        cover = _step(plants - np.float32(self._bare), 0.8) * np.float32(0.9)
        return _mix(self._colour * light[..., None], leaves, cover)

    def is_water(self, y: NDArray, x: NDArray) -> NDArray[np.bool_]:
        return np.zeros(len(y), bool)


class Fields:
    """A patchwork of crops with rows and hedges, and trees here and there."""

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        self._angle = rng.uniform(0, np.pi)
        self._cell = rng.uniform(70, 240, 2)
        self._origin = rng.uniform(0, 1000, 2)
        self._palette = np.stack([_pick(rng, _CROPS) for _ in range(64)])
        self._row = rng.uniform(2.5, 8)  # pixels between furrows
        self._soil = Texture(rng, height, width, 1.1)
        self._grain = Texture(rng, height, width, 0.4)
        self._trees = Texture(rng, height, width, 1.5)
        self._open = rng.uniform(1.2, 2.6)
        self._leaves = _pick(rng, np.array([[52, 72, 40], [64, 80, 46]], np.float32))

    def paint(self, y: Integers, x: Integers) -> Floats:
        """Colours."""
        soil, grain = self._soil.at(y, x), self._grain.at(y, x)
        c, s = np.cos(self._angle), np.sin(self._angle)
        u = (x * c)[None] + (y * s)[:, None] + self._origin[0] + 2.5 * soil
        v = (y * c)[:, None] - (x * s)[None] + self._origin[1] + 2.5 * soil
        column = np.floor(v / self._cell[1])
        u = u + 0.37 * self._cell[0] * column  # fields are staggered, not a chessboard
        row = np.floor(u / self._cell[0])
        key = (row.astype(np.int64) * 7919 + column.astype(np.int64) * 104729) % 64
        furrows = np.sin(2 * np.pi * np.where(key % 2, u, v) / self._row).astype(np.float32)
        furrows *= ((key % 3) / 2).astype(np.float32)
        light = 1 + np.float32(0.05) * soil + np.float32(0.05) * grain + np.float32(0.05) * furrows
        colour = self._palette[key] * light[..., None]
        edge_u = np.abs(u / self._cell[0] - row - 0.5) * self._cell[0]
        edge_v = np.abs(v / self._cell[1] - column - 0.5) * self._cell[1]
        distance = np.minimum(self._cell[0] / 2 - edge_u, self._cell[1] / 2 - edge_v)
        hedge = 1 - _step((distance - 1).astype(np.float32), 2.0)
        trees = _step(self._trees.at(y, x) + 0.35 * grain - np.float32(self._open), 0.6)
        leaves = self._leaves * (1 + np.float32(0.22) * grain)[..., None]
        return _mix(colour, leaves, np.maximum(trees, np.float32(0.75) * hedge))

    def is_water(self, y: NDArray, x: NDArray) -> NDArray[np.bool_]:
        return np.zeros(len(y), bool)


class Shore:
    """Water on one side of a noisy line, land on the other; surf and wet sand between."""

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        side = max(height, width)
        self._water, self._land = Water(rng, height, width), Sand(rng, height, width)
        self._angle = rng.uniform(0, 2 * np.pi)
        self._middle = np.array([height, width]) * rng.uniform(0.25, 0.75, 2)
        self._bays, self._bend = Relief(rng, height, width, 2.0), rng.uniform(0.02, 0.12) * side
        self._edge, self._jag = Texture(rng, height, width, 1.4), rng.uniform(1, 5)
        self._shoal, self._wet = rng.uniform(40, 160), rng.uniform(8, 40)
        self._surf = rng.uniform(0.3, 1.0)
        self._wash = rng.uniform(4, 14)

    def _line(self, y: NDArray, x: NDArray) -> Floats:
        distance = (y - self._middle[0]) * np.sin(self._angle) + (x - self._middle[1]) * np.cos(
            self._angle
        )
        return distance.astype(np.float32)

    def paint(self, y: Integers, x: Integers) -> Floats:
        """Colours."""
        sea = self._line(y[:, None], x[None]) + np.float32(self._bend) * self._bays.at(y, x)
        edge = self._edge.at(y, x)
        sea = sea + np.float32(self._jag) * edge  # pixels off the shore; above 0 is water
        water = self._water.paint(y, x, shoal=1 - _step(sea, self._shoal))
        crest = np.exp(-(((sea - 6) / np.float32(self._wash)) ** 2)) * (0.75 + 0.35 * edge)
        water = _mix(water, np.full(3, 236, np.float32), np.clip(crest * self._surf, 0, 0.9))
        dry = _step(-sea, self._wet)
        land = self._land.paint(y, x) * (0.72 + 0.28 * dry)[..., None]
        return _mix(land, water, _step(sea + 1.5, 3.0))

    def is_water(self, y: NDArray, x: NDArray) -> NDArray[np.bool_]:
        return self._line(y, x) + self._bend * self._bays.at_points(y, x) > 4


class Sky:
    """Sky with clouds; half of the skies have a strip of land below."""

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        self._zenith, self._low = _pick(rng, _SKIES)
        self._clouds = Texture(rng, height, width, rng.uniform(1.5, 2.0), 1.6)
        self._haze = Relief(rng, height, width, 2.2)
        self._clear = rng.uniform(-0.5, 1.5)
        self._height = height
        self._horizon = height * (rng.uniform(0.7, 0.95) if rng.random() < 0.5 else 2.0)
        self._trees = Texture(rng, height, width, 1.3)
        self._land = _pick(rng, np.array([[66, 78, 58], [92, 96, 76], [84, 84, 84]], np.float32))

    def paint(self, y: Integers, x: Integers) -> Floats:
        """Colours."""
        share = (y / self._height).astype(np.float32)[:, None] + np.float32(0.06) * self._haze.at(
            y, x
        )
        sky = _mix(self._zenith, self._low, np.clip(share, 0, 1))
        clouds = self._clouds.at(y, x)
        white = np.array([236, 238, 240], np.float32) * (1 - 0.04 * clouds)[..., None]
        sky = _mix(sky, white, _step(clouds - np.float32(self._clear), 1.8) * np.float32(0.7))
        trees = self._trees.at(y, x)
        below = y[:, None] - np.float32(self._horizon) + 3 * trees
        land = self._land * (1 + 0.18 * trees)[..., None]
        return _mix(sky, land, _step(below, 2.5))

    def is_water(self, y: NDArray, x: NDArray) -> NDArray[np.bool_]:
        return np.zeros(len(y), bool)
