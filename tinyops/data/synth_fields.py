"""Random fields of TinySea: textures of any extent in bounded memory.

A `Texture` is noise with power spectrum 1 / f^(2 beta), made by FFT once and repeated. Large
extents add a second one of another period, so that the sum repeats only after the product of both.
A `Relief` is smooth noise over the whole scene, held on a coarse grid and interpolated.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

_PERIODS = (512, 675)  # 2^9 and 5^2 3^3: coprime, and quick to transform
_GRID = 128  # longest side of a relief's grid, in cells; a cell has 2 pixels at least


def spectral_noise(
    rng: np.random.Generator,
    height: int,
    width: int,
    beta: float,
    stretch: float = 1.0,
    angle: float = 0.0,
) -> Floats:
    """[height, width] periodic Gaussian noise of mean 0 and deviation 1, amplitude 1 / f^beta.

    Args:
        rng: source of the phases.
        height: rows in pixels.
        width: columns in pixels.
        beta: 0 is white noise, 2 is smooth.
        stretch: above 1, crests get this much longer along `angle` (radians).
        angle: direction of the crests.
    """
    fy = np.fft.fftfreq(height).astype(np.float32)[:, None]
    fx = np.fft.rfftfreq(width).astype(np.float32)[None]
    along = (fx * np.cos(angle) + fy * np.sin(angle)) * np.float32(stretch)
    across = fy * np.cos(angle) - fx * np.sin(angle)
    squared = along**2 + across**2
    squared[0, 0] = 1
    amplitude = squared ** np.float32(-beta / 2)
    amplitude[0, 0] = 0
    white = rng.standard_normal((2, *amplitude.shape), dtype=np.float32)
    noise = np.fft.irfft2((white[0] + 1j * white[1]) * amplitude, s=(height, width))
    return np.asarray(noise / max(float(noise.std()), 1e-6), np.float32)


class Texture:
    """Repeated noise: `at(y, x)` gives it at rows y and columns x."""

    def __init__(
        self,
        rng: np.random.Generator,
        height: int,
        width: int,
        beta: float,
        stretch: float = 1.0,
        angle: float = 0.0,
    ) -> None:
        # An extent that one tile covers gets one tile of just its size.
        if height <= _PERIODS[1] and width <= _PERIODS[1]:
            tiles = [spectral_noise(rng, height, width, beta, stretch, angle)]
        else:
            tiles = [spectral_noise(rng, p, p, beta, stretch, angle) for p in _PERIODS]
        # The eye finds the repetition of coarse patterns: a relief over all breaks it.
        coarse = beta >= 1 and len(tiles) > 1
        self._relief = Relief(rng, height, width, beta) if coarse else None
        self._tiles = [tile / np.float32(np.sqrt(len(tiles) + coarse)) for tile in tiles]

    def at(self, y: NDArray[np.int64], x: NDArray[np.int64]) -> Floats:
        """[len(y), len(x)] values at integer rows and columns, negative ones included."""
        total = np.zeros((len(y), len(x)), np.float32)
        for tile in self._tiles:
            total += tile[np.ix_(y % tile.shape[0], x % tile.shape[1])]
        if self._relief is not None:
            total += self._relief.at(y, x) * np.float32(3**-0.5)
        return total


class Relief:
    """Smooth noise of deviation 1 over [0, height) x [0, width), interpolated in a coarse grid."""

    def __init__(self, rng: np.random.Generator, height: int, width: int, beta: float) -> None:
        self.step = max(2.0, max(height, width) / _GRID)
        rows, columns = (int(np.ceil(n / self.step)) + 2 for n in (height, width))
        # Twice the extent is made and half is kept: else opposite borders would be equal.
        noise = spectral_noise(rng, 2 * rows, 2 * columns, beta)[:rows, :columns]
        noise = noise - noise.mean()
        self._grid = noise / max(float(noise.std()), 1e-6)

    def at(self, y: NDArray, x: NDArray) -> Floats:
        """[len(y), len(x)] values at rows and columns, held constant beyond the borders."""
        grid = self._grid
        y0, fy = self._cell(y, grid.shape[0])
        x0, fx = self._cell(x, grid.shape[1])
        lines = grid[y0] * (1 - fy)[:, None] + grid[y0 + 1] * fy[:, None]
        return lines[:, x0] * (1 - fx) + lines[:, x0 + 1] * fx

    def at_points(self, y: NDArray, x: NDArray) -> Floats:
        """[K] values at K points."""
        y0, fy = self._cell(y, self._grid.shape[0])
        x0, fx = self._cell(x, self._grid.shape[1])
        upper = self._grid[y0, x0] * (1 - fx) + self._grid[y0, x0 + 1] * fx
        lower = self._grid[y0 + 1, x0] * (1 - fx) + self._grid[y0 + 1, x0 + 1] * fx
        return upper * (1 - fy) + lower * fy

    def _cell(self, position: NDArray, nodes: int) -> tuple[NDArray[np.int64], Floats]:
        scaled = np.clip(np.asarray(position, np.float64) / self.step, 0, nodes - 1.001)
        cell = np.floor(scaled).astype(np.int64)
        return cell, (scaled - cell).astype(np.float32)


def blur(image: Floats, sigma: float) -> Floats:
    """[H, W, C] Gaussian blur with 4 pixels of reach; borders repeat their last pixel."""
    reach = 4
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2).astype(np.float32)
    weights /= weights.sum()
    for axis in (0, 1):
        pad = [(reach, reach) if k == axis else (0, 0) for k in range(image.ndim)]
        padded = np.pad(image, pad, mode="edge")
        size = image.shape[axis]
        image = sum(
            weight * np.take(padded, range(k, k + size), axis) for k, weight in enumerate(weights)
        )
    return image
