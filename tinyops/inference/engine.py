"""Detection in images of any size: tiles of all of them share batches, stitching merges."""

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from tinyops.inference.result import Result
from tinyops.inference.types import FLIPS, Detection, Source
from tinyops.inference.views import Tile, plan_tiles
from tinyops.ops import stitch_tiles

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

Detections = dict[str, Tensor]
Model = Callable[[list[Tensor]], Sequence[Any]]
_T = TypeVar("_T")


def detect_sources(
    model: Model,
    sources: Iterable[Source],
    how: Detection,
    *,
    device: torch.device | str | None = None,
    categories: Sequence[str] | None = None,
    on_error: Callable[[Source, Exception], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Result]:
    """Detect in images of any size, which are read by windows: no image is ever whole in float.

    A batch holds tiles that the model sees in one size, of any images: detectors pad the smaller
    ones of a batch, and what is found would depend on that. Tiles wait until there is a batch of
    their size, or there are two batches of all sizes. What is held are the bytes of these, the
    floats of one batch, and detections; on CUDA a thread reads ahead by the bytes of two more. A
    tile of a view that shrinks is float for a moment before it is shrunk.

    Args:
        model: torchvision's contract: `model(images)` with a list of [3, h, w] floats in 0..1 gives
            for each a dict of boxes [K, 4] x1 y1 x2 y2 in its pixels, scores [K] and labels [K];
            other entries are left out. An `nn.Module` works in eval mode and has its own again
            after each batch; any other callable must be ready.
        sources: pulled one by one and closed when they have been read. Pixels that `Source.read`
            gives as floats are taken to be in 0..1. Errors in opening one are the iterator's own.
        how: the settings.
        device: where the model is; None: that of its first parameter, and the CPU if it has none.
        categories: names of the labels 1, 2, ...; None: `model.categories`, if there are any.
        on_error: called with a source whose reading raises OSError or ValueError, or in which the
            model finds what is not finite, and the error. The source has no result, and the others
            go on. None: the error is raised.
        progress: called with the number of tiles of each batch that the model has seen;
            `len(plan_tiles(...))` is how many an image has.

    Returns:
        Results in the order of the sources, each as soon as all tiles of it have been seen. Its
        `seconds` are those of reading and preparing its tiles, its share by number of tiles of the
        batches in the network, and stitching. On CUDA, reading runs beside the network.

    Raises:
        ValueError: a setting is out of range, or the model gives something else, or, naming the
            source, boxes or scores that are not finite; then as `read`.
        OSError: as `Source.read` does.
    """
    check(how)
    if categories is None:
        categories = getattr(model, "categories", None)
    names = None if categories is None else tuple(categories)
    place = _device_of(model, device)
    return _results(model, sources, how, place, names, on_error, progress)


def check(how: Detection) -> None:
    """Raise a ValueError that names the setting which is out of range."""
    overlaps = (how.overlap, how.overlap) if isinstance(how.overlap, int) else how.overlap
    if how.tile is not None:
        if len(how.tile) != 2 or min(how.tile) < 1:
            raise ValueError(f"tile must be a positive width and height, got {how.tile}")
        fits = [0 <= o < side for o, side in zip(overlaps, how.tile, strict=False)]
        if len(overlaps) != 2 or not all(fits):
            raise ValueError(
                f"overlap must be one or two numbers from 0 to less than tile, {how.tile}, "
                f"got {how.overlap}"
            )
    if how.batch is not None and how.batch < 1:
        raise ValueError(f"batch must be at least 1, got {how.batch}")
    if any(not 0 < view.scale < math.inf for view in how.views):
        raise ValueError(f"scales must be positive, got {[view.scale for view in how.views]}")
    if any(view.flip not in FLIPS for view in how.views):
        raise ValueError(f"flips must be of {FLIPS}, got {[view.flip for view in how.views]}")
    if not how.views or len(set(how.views)) < len(how.views):
        pairs = [(view.scale, view.flip) for view in how.views]
        raise ValueError(f"scales and flips must be given, each of them once, got {pairs}")
    for name in ("min_score", "iou_threshold", "ios_threshold"):
        if not 0 <= getattr(how, name) <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {getattr(how, name)}")
    if not 0 <= how.edge < math.inf:
        raise ValueError(f"edge must be finite and at least 0, got {how.edge}")
    for name, known in (("merge", ("none", "union")), ("amp", ("none", *DTYPES))):
        if getattr(how, name) not in known:
            raise ValueError(f"{name} must be one of {known}, got {getattr(how, name)!r}")


def look(
    model: Model, images: Sequence[Tensor], *, device: torch.device | str | None = None, amp: str
) -> list[Detections]:
    """What the model finds in each image of a batch: boxes, scores and labels on the CPU.

    Args:
        model: see `detect_sources`, as for `device`.
        images: [3, h, w] floats each.
        device: they are moved to it.
        amp: "none", "bf16" or "fp16".

    Raises:
        ValueError: if the model does not give boxes, scores and labels for each image.
    """
    place = _device_of(model, device)
    autocast = torch.autocast(place.type, DTYPES.get(amp), enabled=amp != "none")
    with torch.inference_mode(), _eval_mode(model), autocast:
        found = model([image.to(place, non_blocking=True) for image in images])
    try:
        kept = [
            {
                "boxes": x["boxes"].float().cpu(),
                "scores": x["scores"].float().cpu(),
                "labels": x["labels"].long().cpu(),
            }
            for x in found
        ]
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError("model must give dicts of boxes, scores and labels") from error
    if len(kept) != len(images):
        raise ValueError(f"model must give a dict per image, got {len(kept)} of {len(images)}")
    return kept


def stitch(
    found: Sequence[Detections], tiles: Sequence[Tile], size: tuple[int, int], how: Detection
) -> tuple[Detections, Tensor]:
    """The detections of an image from those of its tiles.

    Args:
        found: boxes [K, 4] in pixels that the model saw, scores [K] and labels [K] of each tile.
        tiles: the tiles.
        size: width and height of the image.
        how: the settings.

    Returns:
        Detections in pixels of the image, best first, and the boxes [R, 4] that went: those that
        others suppressed and, with merge="union", pieces that were joined to a better one.
    """
    width, height = size
    boxes = torch.cat([tile.place(x["boxes"]) for x, tile in zip(found, tiles, strict=True)])
    scores, labels = (torch.cat([x[key] for x in found]) for key in ("scores", "labels"))
    counts = torch.tensor([len(x["boxes"]) for x in found])
    tile_ids = torch.arange(len(found)).repeat_interleave(counts)
    windows = torch.tensor([tile.window for tile in tiles])
    stitched = stitch_tiles(
        boxes,
        scores,
        labels,
        tile_ids,
        windows,
        torch.tensor([[height, width]]),
        iou_threshold=how.iou_threshold,
        ios_threshold=how.ios_threshold,
        edge=how.edge,
        merge=how.merge,
        class_agnostic=how.class_agnostic,
    )
    boxes += windows[tile_ids][:, [0, 1, 0, 1]]
    keep = stitched if isinstance(stitched, Tensor) else stitched[3]
    removed = torch.ones(len(boxes), dtype=torch.bool)
    removed[keep] = False
    if isinstance(stitched, Tensor):
        merged, scores, labels = boxes[keep], scores[keep], labels[keep]
    else:
        merged, scores, labels, _ = stitched
    order = torch.sort(scores, descending=True, stable=True).indices
    detections = {"boxes": merged[order], "scores": scores[order], "labels": labels[order]}
    return detections, boxes[removed]


@dataclass(eq=False)
class _Image:
    """An image of which not all tiles have been seen."""

    source: Source
    tiles: list[Tile] = field(default_factory=list)
    found: dict[int, Detections] = field(default_factory=dict)  # by number of the tile
    seconds: dict[str, float] = field(
        default_factory=lambda: {"read": 0.0, "network": 0.0, "stitch": 0.0}
    )


@dataclass(eq=False)
class _Piece:
    """The pixels of a tile, or the error in reading the image."""

    image: _Image
    number: int = 0  # of the tile
    tile: Tile | None = None
    pixels: Tensor | None = None  # [h, w, 3]
    seconds: float = 0.0
    error: Exception | None = None


def _results(
    model: Model,
    sources: Iterable[Source],
    how: Detection,
    device: torch.device,
    categories: tuple[str, ...] | None,
    on_error: Callable[[Source, Exception], None] | None,
    progress: Callable[[int], None] | None,
) -> Iterator[Result]:
    cuda = device.type == "cuda"
    count = how.batch or (1 if device.type == "cpu" else 8)  # a CPU keeps one tile in its caches
    pieces = _pieces(sources, how, pin=cuda)
    if cuda:
        pieces = _ahead(pieces, 2 * count)
    images: deque[_Image] = deque()
    waiting: dict[tuple[int, int], list[_Piece]] = {}  # by size; the oldest piece is of the first

    def seen(size: tuple[int, int]) -> Iterator[Result]:
        batch = waiting.pop(size)
        _see(model, batch, how, device)
        if progress is not None:
            progress(len(batch))
        while images and len(images[0].found) == len(images[0].tiles):
            image = images.popleft()
            try:
                result = _finish(image, how, categories)
            except ValueError as error:
                if on_error is None:
                    raise
                on_error(image.source, error)
            else:
                yield result

    with closing(pieces):
        for piece in pieces:
            if not images or images[-1] is not piece.image:
                images.append(piece.image)
            if piece.error is None:
                assert piece.tile is not None
                size = piece.tile.size
                waiting.setdefault(size, []).append(piece)
                if len(waiting[size]) == count:
                    yield from seen(size)
                elif sum(map(len, waiting.values())) == 2 * count:
                    yield from seen(next(iter(waiting)))
            elif on_error is None:
                raise piece.error
            else:
                on_error(images.pop().source, piece.error)
                for size, batch in list(waiting.items()):
                    batch[:] = [other for other in batch if other.image is not piece.image]
                    if not batch:
                        del waiting[size]
    for size in list(waiting):
        yield from seen(size)


def _pieces(
    sources: Iterable[Source], how: Detection, *, pin: bool
) -> Generator[_Piece, None, None]:
    for source in sources:
        image = _Image(source)
        try:
            image.tiles = plan_tiles(source.width, source.height, how)
            for number, tile in enumerate(image.tiles):
                start = time.perf_counter()
                pixels = _read(source, tile)
                if pin:
                    pixels = pixels.pin_memory()
                yield _Piece(image, number, tile, pixels, time.perf_counter() - start)
        except (OSError, ValueError) as error:
            yield _Piece(image, error=error)
        finally:
            source.close()


def _read(source: Source, tile: Tile) -> Tensor:
    pixels = source.read(tile.window)
    if pixels.shape != (*tile.sides[::-1], 3):
        raise ValueError(f"{source.name}: window {tile.window} has pixels {pixels.shape}")
    return torch.from_numpy(np.require(pixels, requirements=["C", "W"]))


def _ahead(items: Generator[_T, None, None], count: int) -> Generator[_T, None, None]:
    """The same items, of which a thread makes up to `count` before they are asked for."""
    end: Any = object()
    pool = ThreadPoolExecutor(1)
    try:
        waiting = deque(pool.submit(next, items, end) for _ in range(count))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, items, end))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)  # waits for the one that is being made
        items.close()


def _see(model: Model, batch: Sequence[_Piece], how: Detection, device: torch.device) -> None:
    """Add what the model finds in the tiles of a batch to their images."""
    shown = []
    for piece in batch:
        assert piece.tile is not None
        assert piece.pixels is not None
        start = time.perf_counter()
        shown.append(piece.tile.show(piece.pixels.to(device, non_blocking=True)))
        piece.image.seconds["read"] += piece.seconds + time.perf_counter() - start
    start = time.perf_counter()
    found = look(model, shown, device=device, amp=how.amp)
    share = (time.perf_counter() - start) / len(batch)
    for piece, detections in zip(batch, found, strict=True):
        good = ~(detections["scores"] < how.min_score)  # NaN stays, to be refused
        piece.image.found[piece.number] = {name: x[good] for name, x in detections.items()}
        piece.image.seconds["network"] += share


def _finish(image: _Image, how: Detection, categories: tuple[str, ...] | None) -> Result:
    start = time.perf_counter()
    source = image.source
    found = [image.found[number] for number in range(len(image.tiles))]
    for name in ("boxes", "scores"):
        if not all(x[name].isfinite().all() for x in found):
            raise ValueError(f"{source.name}: model must give finite {name}, got NaN or infinity")
    detections, removed = stitch(found, image.tiles, (source.width, source.height), how)
    image.seconds["stitch"] = time.perf_counter() - start
    return Result(
        detections,
        name=source.name,
        width=source.width,
        height=source.height,
        categories=categories,
        tiles=torch.tensor([tile.window for tile in image.tiles], dtype=torch.float32),
        removed=removed,
        seconds=image.seconds,
        georeference=source.georeference,
    )


def _device_of(model: Model, device: torch.device | str | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    parameters = model.parameters() if isinstance(model, nn.Module) else iter(())
    return next((parameter.device for parameter in parameters), torch.device("cpu"))


@contextmanager
def _eval_mode(model: Model) -> Iterator[None]:
    """Every module in eval mode, and then in its own: parts of a model may differ."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [module.training for module in modules]
    if any(modes):
        modules[0].eval()
    try:
        yield
    finally:
        for module, training in zip(modules, modes, strict=True):
            module.training = training
