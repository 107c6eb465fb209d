"""Tiles, what a detector sees in them, and stitch_tiles in plain Python, step by step."""

import numpy as np
import torch

NAMES = ("boxes", "scores", "labels", "tile_ids", "tile_windows", "image_sizes")


def grid(width, height, tile_width, tile_height, overlap):
    """Windows that cover the image; the last of a row or column is moved inside."""
    xs, ys = (
        [min(x, size - tile) for x in range(0, max(1, size - overlap), tile - overlap)]
        for size, tile in ((width, tile_width), (height, tile_height))
    )
    return [[x, y, x + tile_width, y + tile_height] for y in ys for x in xs]


def make(windows, sizes, seen, tile_images=None, dtype=torch.float32):
    """Arguments of stitch_tiles; seen: (tile, box in the image, score, label) each."""
    rows = [
        [b - o for b, o in zip(box, windows[tile][:2] * 2, strict=True)] for tile, box, *_ in seen
    ]
    arguments = {
        "boxes": torch.tensor(rows, dtype=dtype).reshape(-1, 4),
        "scores": torch.tensor([x[2] for x in seen], dtype=dtype),
        "labels": torch.tensor([x[3] if len(x) > 3 else 0 for x in seen], dtype=torch.int64),
        "tile_ids": torch.tensor([x[0] for x in seen], dtype=torch.int64),
        "tile_windows": torch.tensor(windows).reshape(-1, 4),
        "image_sizes": torch.tensor(sizes).reshape(-1, 2),
    }
    if tile_images is not None:
        arguments["tile_images"] = torch.tensor(tile_images, dtype=torch.int64)
    return arguments


def scene(seed, objects=50, classes=2, images=2, dtype=torch.float32, ties=False):
    """Objects of 4 to 120 pixels in images of several tiles, each seen by most tiles it is in.

    Coordinates are multiples of 1/4, so that distances to a tile's side are often `edge` exactly.
    """
    rng = np.random.default_rng(seed)
    windows, sizes, tile_images, seen = [], [], [], []
    for image in range(images):
        width, height = rng.integers(180, 300, 2)
        sizes.append([int(height), int(width)])
        own = grid(int(width), int(height), 100, 80, 16)
        first = len(windows)
        windows += own
        tile_images += [image] * len(own)
        for _ in range(objects):
            size = 4 * 30 ** (rng.random(2) ** 2)
            corner = rng.random(2) * (np.array([width, height]) - 4)
            box = [*corner, *np.minimum(corner + size, [width, height])]
            label = int(rng.integers(classes))
            for t, (x1, y1, x2, y2) in enumerate(own):
                low, high = np.maximum(box[:2], [x1, y1]), np.minimum(box[2:], [x2, y2])
                if (high - low).min() < 2 or rng.random() < 0.1:
                    continue
                part = np.concatenate([low, high]) + rng.choice([0, 0, 0.25, -0.5, 1], 4)
                part = np.round(part * 4) / 4
                part = [*np.minimum(part[:2], part[2:]), *part[2:]]
                score = int(rng.integers(1, 6)) / 8 if ties else float(rng.random())
                seen.append((first + t, part, score, label))
    rng.shuffle(seen)
    return make(windows, sizes, seen, tile_images, dtype)


# ---- the definition ------------------------------------------------------------------------------


def overlap(a, b):
    """Intersection over union, over the smaller area and over that of b; 0 if there is no area."""
    zero = a[0] - a[0]
    width = max(min(a[2], b[2]) - max(a[0], b[0]), zero)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), zero)
    first, second = ((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b))
    both = width * height
    if min(first, second) <= 0:
        return 0.0, 0.0, 0.0
    # Python's floats: NumPy would round a threshold that it compares with float32.
    return tuple(float(both / x) for x in (first + second - both, min(first, second), second))


class Placed:
    """Boxes in image coordinates, their cut sides, and which of them may meet."""

    def __init__(self, boxes, scores, labels, tile_ids, tile_windows, image_sizes,
                 tile_images=None, edge=2.0, class_agnostic=False):  # fmt: skip
        compute = torch.float64 if boxes.dtype == torch.float64 else torch.float32
        own, windows = boxes.to(compute).numpy(), tile_windows.to(compute).numpy()
        self.tiles, sizes = tile_ids.tolist(), image_sizes.to(compute).numpy()
        images = [0] * len(windows) if tile_images is None else tile_images.tolist()
        self.boxes, self.cut, self.groups = [], [], []
        for k, t in enumerate(self.tiles):
            (x1, y1, x2, y2), (wx1, wy1, wx2, wy2) = own[k], windows[t]
            height, width = sizes[images[t]]
            self.boxes.append([x1 + wx1, y1 + wy1, x2 + wx1, y2 + wy1])
            sides = {
                "left": wx1 > 0 and x1 <= edge,
                "top": wy1 > 0 and y1 <= edge,
                "right": wx2 < width and (wx2 - wx1) - x2 <= edge,
                "bottom": wy2 < height and (wy2 - wy1) - y2 <= edge,
            }
            self.cut.append({name for name, cut in sides.items() if cut})
            self.groups.append((images[t], None if class_agnostic else int(labels[k])))
        self.scores = scores.tolist()
        n = len(self.tiles)
        self.order = sorted(range(n), key=lambda k: (bool(self.cut[k]), -self.scores[k], k))


def keep_oracle(*tensors, iou_threshold=0.5, ios_threshold=0.5, **options):
    p, kept = Placed(*tensors, **options), []
    for k in p.order:
        for j in kept:
            if p.groups[j] != p.groups[k] or p.tiles[j] == p.tiles[k]:
                continue
            iou, ios, _ = overlap(p.boxes[j], p.boxes[k])
            if iou > iou_threshold or (p.cut[k] and ios > ios_threshold):
                break
        else:
            kept.append(k)
    return kept


def continuation(a, b, axis, edge, ios_threshold):
    """How well box b continues box a to the right (axis 0) or downwards (axis 1); 0: not at all."""
    along = 1 - axis
    gap = b[axis] - a[axis + 2]
    reaches = b[axis + 2] >= a[axis + 2] - edge and a[axis] <= b[axis] + edge
    both = min(a[along + 2], b[along + 2]) - max(a[along], b[along])
    first, second = a[along + 2] - a[along], b[along + 2] - b[along]
    if gap > edge or not reaches or both <= 0 or float(both / min(first, second)) <= ios_threshold:
        return 0
    return float(both / (first + second - both))


def union_oracle(*tensors, iou_threshold=0.5, ios_threshold=0.5, edge=2.0, **options):
    """Boxes and indices of merge="union"."""
    p = Placed(*tensors, edge=edge, **options)

    def suppressed(box, tiles, group, piece, kept):
        for other, other_tiles, index in kept:
            if p.groups[index] != group or set(tiles) & set(other_tiles):
                continue
            iou, ios, _ = overlap(other, box)
            if iou > iou_threshold or (piece and ios > ios_threshold):
                return True
        return False

    def covered(k, kept):
        for whole, tiles, index in kept:
            if p.groups[index] == p.groups[k] and tiles != [p.tiles[k]]:
                iou, _, share = overlap(whole, p.boxes[k])
                if iou > iou_threshold or share > ios_threshold:
                    return True
        return False

    kept, pieces = [], []
    for k in p.order:  # whole boxes come first
        if p.cut[k]:
            if not covered(k, kept):
                pieces.append(k)
        elif not suppressed(p.boxes[k], [p.tiles[k]], p.groups[k], False, kept):
            kept.append((p.boxes[k], [p.tiles[k]], k))

    links = set()
    for i, k in enumerate(pieces):
        for side, facing in (("left", "right"), ("top", "bottom"), ("right", "left"),
                             ("bottom", "top")):  # fmt: skip
            if side not in p.cut[k]:
                continue
            found = []
            for j, other in enumerate(pieces):
                if p.tiles[other] == p.tiles[k] or p.groups[other] != p.groups[k]:
                    continue
                if facing not in p.cut[other]:
                    continue
                pair = (other, k) if side in ("left", "top") else (k, other)
                axis = 0 if side in ("left", "right") else 1
                quality = continuation(*(p.boxes[x] for x in pair), axis, edge, ios_threshold)
                if quality > 0:
                    found.append((-quality, j))
            if found:
                quality, j = min(found)
                links.add((quality, min(i, j), max(i, j)))

    component = {i: [i] for i in range(len(pieces))}
    for _, i, j in sorted(links):
        a, b = component[i], component[j]
        if not {p.tiles[pieces[x]] for x in a} & {p.tiles[pieces[x]] for x in b}:
            for x in a + b:
                component[x] = a + b
    hulls, singles = [], []
    for i in range(len(pieces)):
        members = [pieces[x] for x in component[i]]
        if i != min(component[i]):
            continue
        boxes = [p.boxes[m] for m in members]
        hull = [f(b[c] for b in boxes) for c, f in enumerate((min, min, max, max))]
        entry = (hull, [p.tiles[m] for m in members], pieces[i])
        (hulls if len(members) > 1 else singles).append(entry)
    for entries, piece in ((hulls, False), (singles, True)):
        for box, tiles, k in entries:
            if not suppressed(box, tiles, p.groups[k], piece, kept):
                kept.append((box, tiles, k))
    return [box for box, *_ in kept], [k for *_, k in kept]
