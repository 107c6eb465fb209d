"""Sprites of TinySea: people, drones and what may be taken for them.

A sprite is a list of ellipses and rectangles in pixels, relative to its centre. It is painted at
6x6 samples per pixel and averaged, so an object of 3 px has true sub-pixel edges, and its box is
the exact extent of its solid shapes (shadows, foam and spinning rotors are painted, not boxed).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SAMPLES = 6  # per pixel and axis
Colour = NDArray[np.float32]


@dataclass(frozen=True)
class Shape:
    """One ellipse or rectangle: centre, half axes, angle (radians), colour, opacity."""

    x: float
    y: float
    rx: float
    ry: float
    colour: Colour
    angle: float = 0.0
    opacity: float = 1.0
    solid: bool = True
    square: bool = False

    def extent(self) -> tuple[float, float]:
        """Half width and half height of the shape's box."""
        c, s = abs(np.cos(self.angle)), abs(np.sin(self.angle))
        if self.square:
            return self.rx * c + self.ry * s, self.rx * s + self.ry * c
        return float(np.hypot(self.rx * c, self.ry * s)), float(np.hypot(self.rx * s, self.ry * c))

    def covers(self, x: NDArray, y: NDArray) -> NDArray[np.bool_]:
        """[len(y), len(x)] whether points lie inside."""
        dx, dy = x[None] - self.x, y[:, None] - self.y
        c, s = np.cos(self.angle), np.sin(self.angle)
        u, v = (dx * c + dy * s) / self.rx, (dy * c - dx * s) / self.ry
        return (np.maximum(abs(u), abs(v)) if self.square else u * u + v * v) <= 1


Sprite = list[Shape]


def bounds(sprite: Sprite, solid: bool) -> tuple[float, float, float, float]:
    """(x1, y1, x2, y2) of all shapes, or of the solid ones."""
    shapes = [shape for shape in sprite if shape.solid or not solid]
    extents = [shape.extent() for shape in shapes]
    return (
        min(s.x - w for s, (w, _) in zip(shapes, extents, strict=True)),
        min(s.y - h for s, (_, h) in zip(shapes, extents, strict=True)),
        max(s.x + w for s, (w, _) in zip(shapes, extents, strict=True)),
        max(s.y + h for s, (_, h) in zip(shapes, extents, strict=True)),
    )


def fit(sprite: Sprite, size: float) -> Sprite:
    """The sprite scaled and centred so that its solid box has sqrt(area) = `size`."""
    x1, y1, x2, y2 = bounds(sprite, solid=True)
    k = size / np.sqrt((x2 - x1) * (y2 - y1))
    cx, cy = (x1 + x2) / 2, (y1 + y2) / 2
    return [
        Shape(
            (s.x - cx) * k, (s.y - cy) * k, s.rx * k, s.ry * k,
            s.colour, s.angle, s.opacity, s.solid, s.square,
        )
        for s in sprite
    ]  # fmt: skip


def paint(
    sprite: Sprite, x: float, y: float
) -> tuple[int, int, NDArray[np.float32], NDArray[np.float32]]:
    """Render a sprite whose centre lies at (x, y).

    Returns:
        left, top: integer corner of the patch in the image.
        colour: [h, w, 3] premultiplied by opacity.
        opacity: [h, w, 1].
    """
    x1, y1, x2, y2 = bounds(sprite, solid=False)
    left, top = int(np.floor(x + x1)), int(np.floor(y + y1))
    width, height = int(np.ceil(x + x2)) - left, int(np.ceil(y + y2)) - top
    canvas = np.zeros((height * SAMPLES, width * SAMPLES, 4), np.float32)
    xs = (np.arange(width * SAMPLES, dtype=np.float32) + 0.5) / SAMPLES + (left - x)
    ys = (np.arange(height * SAMPLES, dtype=np.float32) + 0.5) / SAMPLES + (top - y)
    for shape in sprite:
        w, h = shape.extent()
        columns = slice(*np.searchsorted(xs, (shape.x - w, shape.x + w)))
        rows = slice(*np.searchsorted(ys, (shape.y - h, shape.y + h)))
        opacity = shape.covers(xs[columns], ys[rows])[..., None] * np.float32(shape.opacity)
        part = canvas[rows, columns]
        part *= 1 - opacity
        part += opacity * np.append(shape.colour, np.float32(1))
    patch = canvas.reshape(height, SAMPLES, width, SAMPLES, 4).mean((1, 3))
    return left, top, patch[..., :3], patch[..., 3:]


# --- people ---------------------------------------------------------------------------------------

_SKIN = np.array([[236, 195, 165], [205, 155, 120], [165, 112, 80], [105, 68, 50]], np.float32)
_HAIR = np.array([[35, 28, 25], [70, 48, 34], [120, 92, 60], [60, 60, 62]], np.float32)
_CLOTHES = np.array(
    [
        [30, 32, 40], [45, 60, 100], [190, 40, 40], [225, 225, 225], [235, 130, 40], [60, 110, 70],
        [120, 120, 125], [240, 205, 60], [40, 120, 170], [200, 100, 140], [85, 60, 50],
    ],
    np.float32,
)  # fmt: skip


def _pick(rng: np.random.Generator, palette: NDArray[np.float32], spread: float = 14) -> Colour:
    colour = palette[rng.integers(len(palette))] * rng.uniform(0.85, 1.1)
    return np.clip(colour + rng.normal(0, spread, 3), 5, 250).astype(np.float32)


def _foam(rng: np.random.Generator, x: float, y: float, rx: float, ry: float) -> Sprite:
    white = np.full(3, rng.uniform(200, 240), np.float32)
    return [
        Shape(
            x + rng.normal(0, rx * 0.5),
            y + rng.normal(0, ry * 0.4),
            rx * rng.uniform(0.15, 0.5),
            ry * rng.uniform(0.12, 0.4),
            white,
            opacity=rng.uniform(0.2, 0.6),
            solid=False,
        )
        for _ in range(rng.integers(1, 6))
    ]


def swimmer(rng: np.random.Generator, sun: tuple[float, float]) -> Sprite:
    """Head and shoulders, or a body stretched out at the surface."""
    skin, hair, cloth = _pick(rng, _SKIN), _pick(rng, _HAIR), _pick(rng, _CLOTHES)
    head = hair if rng.random() < 0.6 else skin
    dark = np.array([20, 45, 60], np.float32)
    if rng.random() < 0.6:  # upright
        body = skin if rng.random() < 0.6 else cloth
        wide, low = rng.uniform(0.36, 0.6), rng.uniform(0.16, 0.36)
        return [
            Shape(0, 0.5, wide * 1.3, 0.2, dark, opacity=0.35, solid=False),  # its reflection
            *_foam(rng, 0, 0.42, wide * 1.5, 0.3),
            Shape(0, 0.22, wide, low, body),
            Shape(0, -0.18, 0.19, 0.24, head),
            Shape(0.02, -0.12, 0.13, 0.15, skin),
        ]
    tilt = rng.uniform(-0.4, 0.4)
    flip = 1 if rng.random() < 0.5 else -1
    shapes = [
        Shape(0, 0.1, 0.95, 0.3, dark, tilt, 0.3, solid=False),
        Shape(-0.1 * flip, 0, 0.7, 0.2, skin if rng.random() < 0.5 else cloth, tilt),
        Shape(0.6 * flip * np.cos(tilt), 0.6 * flip * np.sin(tilt) - 0.08, 0.21, 0.21, head),
    ]
    if rng.random() < 0.6:  # an arm out of the water
        shapes.append(Shape(0.35 * flip, -0.2, 0.3, 0.07, skin, -0.7 * flip))
    return shapes + _foam(rng, -0.5 * flip, 0.15, 0.7, 0.25)


def earth_person(rng: np.random.Generator, sun: tuple[float, float]) -> Sprite:
    """Somebody standing or walking, sitting, or lying, with a shadow cast along `sun`."""
    pose = rng.choice(3, p=(0.72, 0.16, 0.12))
    return (_standing, _sitting, _lying)[pose](rng, sun)


def _standing(rng: np.random.Generator, sun: tuple[float, float]) -> Sprite:
    skin, hair, top, trousers = (_pick(rng, p) for p in (_SKIN, _HAIR, _CLOTHES, _CLOTHES))
    if rng.random() < 0.35:
        top = skin
    if rng.random() < 0.4:
        trousers = skin
    broad, step = rng.uniform(0.12, 0.18), rng.uniform(0.0, 0.11)
    arm = rng.uniform(0.02, 0.12)
    lean = step * 0.9
    return [
        *_shadow(sun, 0, 0.5, 0.9, 0.11),
        Shape(-step / 2 - 0.035, 0.27, 0.05, 0.23, trousers, lean),
        Shape(step / 2 + 0.035, 0.27, 0.05, 0.23, trousers * 0.9, -lean),
        Shape(-broad - arm * 0.4, -0.12, 0.035, 0.19, skin, arm * 2),
        Shape(broad + arm * 0.4, -0.12, 0.035, 0.19, skin * 0.9, -arm * 2),
        Shape(0, 0.06, broad * 0.85, 0.09, trousers),
        Shape(0, -0.13, broad, 0.2, top),
        Shape(0, -0.4, 0.072, 0.1, skin),
        Shape(0, -0.43, 0.075, 0.07, hair),
    ]


def _sitting(rng: np.random.Generator, sun: tuple[float, float]) -> Sprite:
    skin, hair, top = _pick(rng, _SKIN), _pick(rng, _HAIR), _pick(rng, _CLOTHES)
    flip = 1 if rng.random() < 0.5 else -1
    return [
        *_shadow(sun, 0, 0.35, 0.6, 0.2),
        Shape(0.22 * flip, 0.27, 0.3, 0.09, skin),
        Shape(0.3 * flip, 0.16, 0.07, 0.16, skin * 0.95, 0.5 * flip),
        Shape(-0.05 * flip, 0.08, 0.17, 0.27, top, 0.15 * flip),
        Shape(0, -0.28, 0.11, 0.13, skin),
        Shape(0, -0.32, 0.115, 0.1, hair),
    ]


def _lying(rng: np.random.Generator, sun: tuple[float, float]) -> Sprite:
    skin, hair, cloth = _pick(rng, _SKIN), _pick(rng, _HAIR), _pick(rng, _CLOTHES)
    angle = rng.uniform(0, 2 * np.pi)
    c, s = np.cos(angle), np.sin(angle)
    squash = 0.7  # seen at a slant

    def at(u: float) -> tuple[float, float]:
        return u * c, u * s * squash

    angle = float(np.arctan2(s * squash, c))
    shapes = [Shape(*at(-0.3), 0.32, 0.08, skin, angle), Shape(*at(0.12), 0.25, 0.13, skin, angle)]
    shapes += [Shape(*at(-0.06), 0.12, 0.12, cloth, angle), Shape(*at(0.45), 0.1, 0.09, hair)]
    if rng.random() < 0.6:  # on a towel
        towel = Shape(*at(0.02), 0.68, 0.24, _pick(rng, _CLOTHES, 25), angle, 0.95, False, True)
        shapes.insert(0, towel)
    return shapes


def _shadow(sun: tuple[float, float], x: float, y: float, length: float, width: float) -> Sprite:
    """A shadow from the feet (x, y) along the direction `sun`; (0, 0) means an overcast sky."""
    reach = float(np.hypot(*sun))
    if reach < 0.1:
        return []
    dark = np.array([25, 25, 35], np.float32)
    middle = length * reach / 2
    dx, dy = sun[0] / reach * middle, sun[1] / reach * middle
    angle = float(np.arctan2(sun[1], sun[0]))
    return [Shape(x + dx, y + dy, middle, width, dark, angle, 0.4, solid=False)]


def drone(rng: np.random.Generator, sun: tuple[float, float]) -> Sprite:
    """A quadrotor: body, four arms and blurred rotors, seen at a slant."""
    grey = rng.uniform(15, 90) if rng.random() < 0.7 else rng.uniform(170, 235)
    body = np.clip(np.full(3, grey) + rng.normal(0, 6, 3), 0, 255).astype(np.float32)
    flat, turn = rng.uniform(0.25, 0.9), rng.uniform(0, np.pi / 2)
    shapes: Sprite = []
    for k in range(4):
        a = turn + k * np.pi / 2
        x, y = 0.6 * np.cos(a), 0.6 * np.sin(a) * flat
        reach, angle = float(np.hypot(x, y)), float(np.arctan2(y, x))
        shapes.append(Shape(x / 2, y / 2, reach / 2, 0.055, body * 0.9, angle))
        shapes.append(Shape(x, y - 0.07, 0.09, 0.09, body))
        shapes.append(Shape(x, y - 0.13, 0.33, 0.33 * flat * 0.5, body, 0, 0.3, solid=False))
    shapes.append(Shape(0, 0, 0.24, 0.24 * max(flat, 0.55), body))
    shapes.append(Shape(0, 0.16, 0.1, 0.09, body * 0.6))  # camera
    return shapes


# --- distractors ----------------------------------------------------------------------------------


def buoy(rng: np.random.Generator, sun: tuple[float, float]) -> Sprite:
    """A ball or a cone in a signal colour, with its reflection."""
    palette = np.array([[225, 70, 40], [240, 140, 30], [235, 215, 60], [235, 235, 235]], np.float32)
    colour, tall = _pick(rng, palette), rng.uniform(0.8, 1.6)
    return [
        Shape(0, 0.5 * tall, 0.45, 0.25, np.array([20, 45, 60], np.float32), 0, 0.4, solid=False),
        Shape(0, 0, 0.5, 0.5 * tall, colour),
        Shape(0, 0.3 * tall, 0.48, 0.22 * tall, colour * 0.55),
        Shape(-0.15, -0.2 * tall, 0.15, 0.15, np.minimum(colour * 1.3, 255)),
    ]


def rock(rng: np.random.Generator, sun: tuple[float, float]) -> Sprite:
    """A few overlapping grey-brown lumps."""
    grey = np.full(3, rng.uniform(45, 130)) * np.array([1.05, 1.0, 0.92])
    shapes = _shadow(sun, 0, 0.25, 0.8, 0.35)
    for _ in range(rng.integers(2, 5)):
        x, y = rng.normal(0, 0.3), rng.normal(0, 0.15)
        rx, ry, angle = rng.uniform(0.25, 0.6), rng.uniform(0.15, 0.4), rng.normal(0, 0.4)
        shade = (grey * rng.uniform(0.7, 1.2)).astype(np.float32)
        shapes.append(Shape(x, y, rx, ry, shade * 0.65, angle))
        shapes.append(Shape(x - 0.04, y - 0.08, rx * 0.8, ry * 0.7, shade, angle))
    return shapes


def bird(rng: np.random.Generator, sun: tuple[float, float]) -> Sprite:
    """Two wings and a body, pale or dark."""
    grey = rng.uniform(200, 245) if rng.random() < 0.6 else rng.uniform(30, 80)
    colour = np.full(3, grey, np.float32)
    lift, turn = rng.uniform(-0.6, 0.6), rng.uniform(-0.5, 0.5)
    c, s = np.cos(lift) * 0.45, np.sin(lift) * 0.45
    return [
        Shape(-c, s * 0.8, 0.5, 0.1, colour, turn - lift),
        Shape(c, s * 0.8, 0.5, 0.1, colour * 0.92, turn + lift),
        Shape(0, 0, 0.24, 0.12, colour * 0.85, turn),
    ]


def foam_blob(rng: np.random.Generator, sun: tuple[float, float]) -> Sprite:
    """A ragged patch of white water, about as large as a swimmer."""
    white = np.full(3, rng.uniform(205, 245), np.float32)
    return [
        Shape(
            rng.normal(0, 0.5), rng.normal(0, 0.2), rng.uniform(0.1, 0.5), rng.uniform(0.06, 0.22),
            white, rng.normal(0, 0.3), rng.uniform(0.3, 0.85),
        )
        for _ in range(rng.integers(3, 9))
    ]  # fmt: skip


def bush(rng: np.random.Generator, sun: tuple[float, float]) -> Sprite:
    """A clump of leaves with a lit side."""
    green = np.array([55, 80, 40]) * rng.uniform(0.7, 1.25) + rng.normal(0, 6, 3)
    shapes = _shadow(sun, 0, 0.3, 0.8, 0.4)
    for _ in range(rng.integers(4, 9)):
        x, y, r = rng.normal(0, 0.3), rng.normal(0, 0.25), rng.uniform(0.15, 0.4)
        shade = np.clip(green * rng.uniform(0.6, 1.35), 0, 255).astype(np.float32)
        shapes.append(Shape(x, y, r, r * 0.9, shade))
    return shapes


def towel(rng: np.random.Generator, sun: tuple[float, float]) -> Sprite:
    """An empty towel: one or two colours, seen at a slant."""
    colour, angle = _pick(rng, _CLOTHES, 30), rng.uniform(0, np.pi)
    stripe = _pick(rng, _CLOTHES, 30)
    return [
        Shape(0, 0, 0.9, 0.4, colour, angle, square=True),
        Shape(0, 0, 0.9, rng.uniform(0.05, 0.2), stripe, angle, square=True),
    ]


def umbrella(rng: np.random.Generator, sun: tuple[float, float]) -> Sprite:
    """A parasol from above, with segments and a shadow."""
    colour, other = _pick(rng, _CLOTHES, 30), _pick(rng, _CLOTHES, 30)
    shapes = _shadow(sun, 0, 0.3, 1.2, 0.7)
    shapes.append(Shape(0, 0, 0.95, 0.85, colour))
    for k in range(3):
        shapes.append(Shape(0, 0, 0.85, 0.17, other, k * np.pi / 3 + 0.3))
    shapes.append(Shape(0, 0.02, 0.08, 0.08, colour * 0.6))
    return shapes


def boat(rng: np.random.Generator, sun: tuple[float, float]) -> Sprite:
    """A small boat with a deck, a cabin and a wake."""
    hull = _pick(rng, np.array([[235, 235, 232], [60, 80, 120], [150, 40, 35]], np.float32))
    angle = rng.uniform(0, 2 * np.pi)
    c, s = np.cos(angle), np.sin(angle)
    white = np.full(3, 225, np.float32)
    return [
        Shape(-1.4 * c, -1.4 * s, 0.8, 0.16, white, angle, 0.18, solid=False),
        Shape(0, 0.08, 1.0, 0.36, np.array([25, 45, 55], np.float32), angle, 0.5, solid=False),
        Shape(0, 0, 1.0, 0.33, hull, angle),
        Shape(0.1 * c, 0.1 * s, 0.72, 0.2, hull * 0.75, angle),
        Shape(-0.25 * c, -0.25 * s, 0.28, 0.18, np.minimum(hull * 1.1, 250), angle, square=True),
    ]


Maker = Callable[[np.random.Generator, tuple[float, float]], Sprite]
ON_WATER: tuple[Maker, ...] = (buoy, rock, foam_blob, foam_blob, bird, boat)
ON_LAND: tuple[Maker, ...] = (rock, bush, towel, umbrella, bird)
IN_THE_SKY: tuple[Maker, ...] = (bird, bird, foam_blob)
