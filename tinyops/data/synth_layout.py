"""Where the objects of a TinySea scene lie, and how large they are."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tinyops.data import synth_sprites as sprites

Box = tuple[float, float, float, float]
IsWater = Callable[[NDArray, NDArray], NDArray[np.bool_]]

SMALLEST, LARGEST = 2.0, 32.0  # sqrt(w h) of an object's box, in pixels
_UNIT = 256 * 256  # pixels to which densities refer
_DISTRACTORS = 0.5  # per object
_CROWDS = 0.08  # per unit
_HIDDEN = 0.35  # share of an object that another one may cover
_MARGIN = 10  # pixels beyond the picture in which objects may have their centre
_CELL = 64  # of the grid in which neighbours are looked up, in pixels


@dataclass(frozen=True)
class Placed:
    """A sprite in the picture."""

    sprite: sprites.Sprite
    x: float
    y: float
    kind: str
    strength: float  # opacity of the whole, in 0..1

    @property
    def box(self) -> Box:
        """The solid part, x1 y1 x2 y2."""
        return self._moved(sprites.bounds(self.sprite, solid=True))

    @property
    def reach(self) -> Box:
        """All that is painted."""
        return self._moved(sprites.bounds(self.sprite, solid=False))

    def _moved(self, box: Box) -> Box:
        return box[0] + self.x, box[1] + self.y, box[2] + self.x, box[3] + self.y


@dataclass
class Layout:
    """A scene's content: all sprites in order of painting, those with a box, regions of crowds."""

    placed: list[Placed] = field(default_factory=list)
    objects: list[Placed] = field(default_factory=list)
    regions: list[tuple[str, Box, bool]] = field(default_factory=list)  # kind, box, uncertain


class _Neighbours:
    """Boxes in a grid of cells: whether a new one would cover or be covered by an old one."""

    def __init__(self) -> None:
        self._cells: dict[tuple[int, int], list[Box]] = {}

    def free(self, box: Box, allowed: float) -> bool:
        x1, y1, x2, y2 = box
        area = (x2 - x1) * (y2 - y1)
        for cell in self._covered(box):
            for a1, b1, a2, b2 in self._cells.get(cell, ()):
                shared = max(min(x2, a2) - max(x1, a1), 0) * max(min(y2, b2) - max(y1, b1), 0)
                if shared > allowed * min(area, (a2 - a1) * (b2 - b1)):
                    return False
        return True

    def add(self, box: Box) -> None:
        for cell in self._covered(box):
            self._cells.setdefault(cell, []).append(box)

    @staticmethod
    def _covered(box: Box) -> list[tuple[int, int]]:
        x1, y1, x2, y2 = (int(value // _CELL) for value in box)
        return [(x, y) for x in range(x1, x2 + 1) for y in range(y1, y2 + 1)]


class _Painter:
    """Makes sprites of one scene: its sun, its scale, its haze."""

    def __init__(self, rng: np.random.Generator, height: int, is_water: IsWater, sky: bool) -> None:
        self.rng, self._height, self._is_water, self._sky = rng, height, is_water, sky
        self._base = np.exp(rng.uniform(np.log(4.0), np.log(16.0)))
        self._slant = rng.uniform(0, 0.5) if rng.random() < 0.5 else 0.0  # nearer is larger
        direction, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 1.0)
        overcast = sky or rng.random() < 0.3
        self._sun = (length * np.cos(direction), 0.5 * length * np.sin(direction))
        self._sun = (0.0, 0.0) if overcast else self._sun

    def size(self, y: float, spread: float = 0.33) -> float:
        """A size for something in row y, in pixels."""
        near = 1 + self._slant * (2 * y / self._height - 1)
        drawn = self._base * near * np.exp(self.rng.normal(0, spread))
        return float(np.clip(drawn, SMALLEST, LARGEST))

    def person(self, x: float, y: float, wet: bool) -> Placed:
        """Whoever belongs to the place: a drone in the sky, a swimmer or somebody on land."""
        kind = "drone" if self._sky else "sea_person" if wet else "earth_person"
        make = {
            "drone": sprites.drone,
            "sea_person": sprites.swimmer,
            "earth_person": sprites.earth_person,
        }[kind]
        sprite = sprites.fit(make(self.rng, self._sun), self.size(y))
        return Placed(sprite, x, y, kind, self.rng.uniform(0.7, 1.0))

    def distractor(self, x: float, y: float, wet: bool) -> Placed:
        """Something that may be taken for a person."""
        makers = sprites.IN_THE_SKY if self._sky else sprites.ON_WATER if wet else sprites.ON_LAND
        make = makers[self.rng.integers(len(makers))]
        large: dict[sprites.Maker, float] = {
            sprites.boat: 2.0,
            sprites.umbrella: 1.8,
            sprites.towel: 1.3,
        }
        sprite = sprites.fit(make(self.rng, self._sun), large.get(make, 0.9) * self.size(y, 0.45))
        return Placed(sprite, x, y, "distractor", self.rng.uniform(0.6, 1.0))

    def wet(self, x: NDArray, y: NDArray) -> NDArray[np.bool_]:
        """[K] whether points lie in water."""
        return self._is_water(y, x)


def lay_out(
    rng: np.random.Generator,
    is_water: IsWater,
    size: tuple[int, int],
    density: float,
    sky: bool,
) -> Layout:
    """Place people, distractors and crowds.

    Args:
        rng: source of all choices.
        is_water: (y [K], x [K]) -> bool [K].
        size: width and height in pixels.
        density: mean number of objects in 256x256 px.
        sky: drones instead of people.
    """
    width, height = size
    units = width * height / _UNIT
    painter, neighbours, layout = _Painter(rng, height, is_water, sky), _Neighbours(), Layout()
    for _ in range(rng.poisson(_CROWDS * units if density > 0 and not sky else 0)):
        _crowd(painter, neighbours, layout, width, height)
    # Distractors first: a person may stand before a rock, but not be hidden by it.
    for x, y, wet in _points(painter, rng.poisson(_DISTRACTORS * density * units), width, height):
        item = painter.distractor(x, y, wet)
        if neighbours.free(item.reach, 0):
            neighbours.add(item.box)
            layout.placed.append(item)
    people = []
    for x, y, wet in _points(painter, rng.poisson(density * units), width, height):
        item = painter.person(x, y, wet)
        if neighbours.free(item.box, _HIDDEN) and _visible(item.box, width, height) > 0.25:
            neighbours.add(item.box)
            people.append(item)
    people.sort(key=lambda item: item.y)  # nearer ones cover those behind
    layout.objects = people
    layout.placed += people
    return layout


def _points(
    painter: _Painter, count: int, width: int, height: int
) -> list[tuple[float, float, bool]]:
    """`count` positions, spread out or partly in groups of which each 40,000 px has about one."""
    rng = painter.rng
    low, high = -_MARGIN, np.array([width + _MARGIN, height + _MARGIN])
    points = rng.uniform(low, high, (count, 2))
    if rng.random() < 0.6 and count:
        groups = rng.uniform(0, (width, height), (max(1, rng.poisson(width * height / 40_000)), 2))
        chosen = groups[rng.integers(len(groups), size=count)] + rng.normal(0, 30, (count, 2))
        points = np.where(rng.random((count, 1)) < 0.7, chosen, points)
    inside = ((points >= low) & (points < high)).all(1)
    points = points[inside]
    wet = painter.wet(points[:, 0], points[:, 1])
    return [(float(x), float(y), bool(w)) for (x, y), w in zip(points, wet, strict=True)]


def _crowd(
    painter: _Painter, neighbours: _Neighbours, layout: Layout, width: int, height: int
) -> None:
    """A dense group without boxes of its own, under one region marked uncertain or ignore."""
    rng = painter.rng
    x, y = rng.uniform(0.1, 0.9, 2) * (width, height)
    wet = bool(painter.wet(np.array([x]), np.array([y]))[0])
    typical = painter.size(float(y), 0.1)
    spread = typical * rng.uniform(0.8, 1.6) * np.array([1.6, 1.0])
    group = []
    for dx, dy in np.clip(rng.normal(0, 1, (rng.integers(8, 26), 2)), -2, 2) * spread:
        group.append(painter.person(float(x + dx), float(y + dy), wet))
    group.sort(key=lambda item: item.y)
    boxes = np.array([item.box for item in group])
    x1, y1 = np.maximum(boxes[:, :2].min(0), 0)
    x2, y2 = np.minimum(boxes[:, 2:].max(0), (width, height))
    region = (float(x1), float(y1), float(x2), float(y2))
    if x2 - x1 < SMALLEST or y2 - y1 < SMALLEST or not neighbours.free(region, 0):
        return
    neighbours.add(region)
    layout.placed += group
    layout.regions.append((group[0].kind, region, bool(rng.random() < 0.5)))


def _visible(box: Box, width: int, height: int) -> float:
    """Share of a box inside the picture."""
    x1, y1, x2, y2 = box
    inside = max(min(x2, width) - max(x1, 0), 0) * max(min(y2, height) - max(y1, 0), 0)
    return inside / ((x2 - x1) * (y2 - y1))
