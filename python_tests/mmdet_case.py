"""What mmdet and tinyops are both given: weights, images, levels and objects made from names alone.

Needs numpy only, so that the environment of mmdet can import it. Numbers come from
`numpy.random.RandomState`, whose stream is frozen: nothing of this has to be stored.
"""

import zlib

import numpy as np

SIZES = ((90, 120), (64, 64), (96, 100))  # height and width; the second image shows nothing
PADDED = (96, 128)
STRIDES = (4, 8, 16, 32, 64)
CHANNELS = 16  # of every level
HIDDEN = 32  # of the heads' linear layers
NUM_CLASSES = 2
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

BOXES = (
    (
        (10.3, 12.1, 17.9, 26.4),
        (40.0, 30.5, 52.2, 41.0),
        (60.7, 61.2, 64.9, 66.0),
        (98.2, 5.4, 117.6, 25.1),
        (24.0, 70.0, 33.5, 77.2),
        (34.6, 51.3, 45.6, 60.4),  # almost an anchor of SSPNet's, and the next
        (9.9, 47.4, 22.1, 64.9),
    ),
    (),
    ((5.5, 50.2, 25.9, 71.3), (70.1, 20.0, 79.4, 35.8), (50.0, 80.0, 57.1, 88.8)),
)
LABELS = ((1, 2, 1, 2, 1, 2, 1), (), (2, 1, 2))  # 0 is the background
IGNORED = (((65.7, 19.3, 112.4, 84.6),), (), ())  # far from the objects


def numbers(name: str, *shape: int) -> np.ndarray:
    """Normal float32 numbers that are a function of the name."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    return random.standard_normal(shape).astype(np.float32)


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The parameter or running statistic that mmdet calls `name`.

    Matrices and filters keep the variance of their input; residual branches, laterals and layers
    that predict offsets are weaker, and RetinaNet's scores start low.
    """
    x = numbers(name, *shape)
    if name.endswith("running_var"):
        return np.abs(1 + 0.1 * x)
    if len(shape) > 1:
        x *= (2 / np.prod(shape[1:])) ** 0.5
        return x * np.float32(0.2) if "_reg." in name or "lateral" in name else x
    if name.endswith("bn2.weight"):
        return 0.3 + 0.1 * x
    if name.endswith("retina_cls.bias"):
        return 0.1 * x - 2
    return 1 + 0.1 * x if name.endswith("weight") else 0.1 * x


def images() -> list[np.ndarray]:
    """[3, h, w] in 0..1, smooth enough to be pictures."""
    pictures = []
    for k, (height, width) in enumerate(SIZES):
        coarse = numbers(f"image{k}", 3, -(-height // 8), -(-width // 8))
        fine = coarse.repeat(8, 1).repeat(8, 2)[:, :height, :width]
        fine = fine + 0.3 * numbers(f"noise{k}", 3, height, width)
        pictures.append((1 / (1 + np.exp(-fine))).astype(np.float32))
    return pictures


def backbone_levels() -> list[np.ndarray]:
    """[2, 8 + 4 k, h, w] of C2 to C5, with sides that are not halves of each other."""
    sizes = ((23, 31), (12, 16), (6, 8), (3, 4))
    return [numbers(f"C{k + 2}", 2, 8 + 4 * k, *size) for k, size in enumerate(sizes)]


def levels() -> list[np.ndarray]:
    """[N, CHANNELS, h, w] of P2 to P6."""
    sizes = [tuple(-(-side // stride) for side in PADDED) for stride in STRIDES]
    return [numbers(f"P{k + 2}", len(SIZES), CHANNELS, *size) for k, size in enumerate(sizes)]


def proposals() -> list[tuple[np.ndarray, np.ndarray]]:
    """Boxes [R, 4] and scores [R] of every image, best first.

    Some boxes are near the objects; some, for the higher levels, are larger than the image.
    """
    result = []
    for k, ((height, width), objects) in enumerate(zip(SIZES, BOXES, strict=True)):
        random = np.random.RandomState(k)
        centres = random.uniform(0, 1, (40, 2)) * (width, height)
        sides = np.exp(random.uniform(np.log(3), np.log(60), (40, 2)))
        sides[:4] = (90, 95), (190, 210), (330, 310), (700, 600)
        boxes = [np.concatenate([centres - sides / 2, centres + sides / 2], 1)]
        for box in objects:
            shaken = np.array(box) + random.uniform(-0.12, 0.12, (8, 4)) * (box[2] - box[0])
            boxes.append(shaken)
        found = np.concatenate(boxes).astype(np.float32)
        scores = np.sort(random.uniform(0, 1, len(found)))[::-1].astype(np.float32)
        result.append((found[random.permutation(len(found))], scores))
    return result


def gradient_summary(name: str, gradient: np.ndarray) -> np.ndarray:
    """The length of a gradient and its part along a direction made from the parameter's name."""
    direction = numbers(f"direction {name}", *gradient.shape)
    gradient = gradient.astype(np.float64)
    return np.array([np.sqrt((gradient**2).sum()), (gradient * direction).sum()])
