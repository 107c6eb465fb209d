"""Objects of large images, found tile by tile, and how well they were found."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from tinyops.data.dataset import CocoTiles
from tinyops.data.tiles import Window, tile_windows
from tinyops.evaluation.sized_ap import TINYPERSON_BANDS, sized_ap
from tinyops.nn.distributed import world_size
from tinyops.ops import stitch_tiles
from tinyops.train.processes import gather, rank
from tinyops.train.training import DTYPES

Detections = dict[str, Tensor]


def detect(
    model: nn.Module,
    images: Sequence[Tensor],
    *,
    tile: tuple[int, int] | None = (640, 512),
    overlap: int | tuple[int, int] = 30,
    batch: int = 8,
    device: torch.device | str | None = None,
    amp: str = "none",
    iou_threshold: float = 0.5,
    ios_threshold: float = 0.5,
) -> list[Detections]:
    """Detect in images of any size: cut tiles, run the model on batches of them, stitch.

    Args:
        model: `model(images)` gives boxes, scores and labels in eval mode; its mode stays as it is.
        images: [3, H, W] floats in 0..1.
        tile: width and height in pixels; None: whole images.
        overlap: pixels that neighbouring tiles share; more than the largest object.
        batch: tiles that the model sees at once, of several images if need be.
        device: of the model; None: that of its first parameter.
        amp: "none", "bf16" or "fp16".
        iou_threshold: of `tinyops.ops.stitch_tiles`, as is `ios_threshold`.
        ios_threshold: likewise.

    Returns:
        For every image boxes [K, 4] x1 y1 x2 y2 in its pixels, scores [K] and labels [K], best
        first, on the CPU.
    """
    windows: list[Window] = []
    owners: list[int] = []
    for k, image in enumerate(images):
        height, width = image.shape[-2:]
        here = tile_windows(width, height, tile or (width, height), overlap if tile else 0)
        windows += here
        owners += [k] * len(here)
    tiles = (
        images[k][:, y1:y2, x1:x2] for k, (x1, y1, x2, y2) in zip(owners, windows, strict=True)
    )
    sizes = [(image.shape[-2], image.shape[-1]) for image in images]
    found = _run(model, _batches(tiles, batch), device, amp)
    return _stitch(found, windows, owners, sizes, iou_threshold, ios_threshold)


def detect_tiles(
    model: nn.Module,
    tiles: CocoTiles,
    *,
    batch: int = 8,
    workers: int = 0,
    device: torch.device | str | None = None,
    amp: str = "none",
    iou_threshold: float = 0.5,
    ios_threshold: float = 0.5,
) -> list[dict[str, Any]]:
    """Detect in all images of a data set; several processes share the images.

    Args:
        model: see `detect`, as for the arguments that are not here.
        tiles: all tiles of each image (`keep_empty`), without a transform.
        batch: tiles.
        workers: processes that load.
        device: see `detect`.
        amp: likewise.
        iou_threshold: likewise.
        ios_threshold: likewise.

    Returns:
        COCO results in every process, those of the images in their order and best first: image_id,
        category_id, bbox x y w h in pixels of the image, and score.
    """
    data = tiles.data
    own = [n for n, (k, _) in enumerate(tiles.tiles) if k % world_size() == rank()]
    loader = DataLoader(
        Subset(tiles, own), batch_size=batch, num_workers=workers, collate_fn=_images
    )
    found = _run(model, loader, device, amp)
    owners = [tiles.tiles[n][0] for n in own]
    windows = [tiles.tiles[n][1] for n in own]
    sizes = [(image.height, image.width) for image in data.images]
    stitched = _stitch(found, windows, owners, sizes, iou_threshold, ios_threshold)
    results = []
    for k, detections in enumerate(stitched):
        corners, labels = detections["boxes"].double(), detections["labels"].tolist()
        boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1).tolist()
        for box, score, label in zip(boxes, detections["scores"].tolist(), labels, strict=True):
            entry = {"image_id": data.images[k].id, "category_id": data.category_ids[label - 1]}
            results.append((k, {**entry, "bbox": box, "score": score}))
    return [entry for _, entry in sorted(gather(results), key=lambda pair: pair[0])]


def evaluate(
    model: nn.Module,
    tiles: CocoTiles,
    *,
    bands: Mapping[str, tuple[float, float]] = TINYPERSON_BANDS,
    iou_thresholds: Sequence[float] = (0.25, 0.5, 0.75),
    max_detections: int = 200,
    **options: Any,
) -> dict[str, float]:
    """Average precision on whole images, by size of the objects.

    Args:
        model: see `detect_tiles`, which finds the objects.
        tiles: likewise.
        bands: see `tinyops.evaluation.sized_ap`, as for the next two.
        iou_thresholds: in hundredths.
        max_detections: per image and class.
        options: of `detect_tiles`.

    Returns:
        "ap50_tiny" is the AP in 0..1 at IoU 0.50 in the band "tiny", and so on; in every process.
    """
    results = detect_tiles(model, tiles, **options)
    table: list[dict[str, float]] = []
    if rank() == 0:
        values = sized_ap(
            tiles.data.ground_truth,
            results,
            bands=bands,
            iou_thresholds=iou_thresholds,
            max_detections=max_detections,
        )
        table = [{f"ap{round(100 * t)}_{band}": value for (band, t), value in values.items()}]
    return gather(table)[0]


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _run(
    model: nn.Module, batches: Iterable[list[Tensor]], device: torch.device | str | None, amp: str
) -> list[Detections]:
    """What the model finds in each image of the batches, in pixels of it."""
    place = torch.device(next(model.parameters()).device if device is None else device)
    if amp != "none" and amp not in DTYPES:
        raise ValueError(f"amp must be 'none', 'bf16' or 'fp16', got {amp!r}")
    found: list[Detections] = []
    autocast = torch.autocast(place.type, DTYPES.get(amp), enabled=amp != "none")
    with torch.inference_mode(), _eval_mode(model), autocast:
        for images in batches:
            for detections in model([image.to(place, non_blocking=True) for image in images]):
                found.append({name: x.cpu() for name, x in detections.items()})
    return found


def _batches(images: Iterable[Tensor], size: int) -> Iterator[list[Tensor]]:
    batch: list[Tensor] = []
    for image in images:
        batch.append(image)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _images(samples: Sequence[tuple[Tensor, Any]]) -> list[Tensor]:
    return [image for image, _ in samples]


def _stitch(
    found: Sequence[Detections],
    windows: Sequence[Window],
    owners: Sequence[int],
    sizes: Sequence[tuple[int, int]],
    iou_threshold: float,
    ios_threshold: float,
) -> list[Detections]:
    """Detections of the images from those of their tiles; tile k is of image `owners[k]`."""
    none = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0).long()}
    parts = [*found, none]
    boxes, scores = (torch.cat([x[key].float() for x in parts]) for key in ("boxes", "scores"))
    labels = torch.cat([x["labels"] for x in parts])
    counts = torch.tensor([len(x["boxes"]) for x in found], dtype=torch.int64)
    tile_ids = torch.arange(len(found)).repeat_interleave(counts)
    frames = torch.tensor(windows, dtype=torch.int64).reshape(-1, 4)
    tile_images = torch.tensor(owners, dtype=torch.int64)
    keep = stitch_tiles(
        boxes,
        scores,
        labels,
        tile_ids,
        frames,
        torch.tensor(sizes, dtype=torch.int64).reshape(-1, 2),
        tile_images=tile_images,
        iou_threshold=iou_threshold,
        ios_threshold=ios_threshold,
    )
    assert isinstance(keep, Tensor)
    boxes += frames[tile_ids][:, [0, 1, 0, 1]]
    keep = keep[torch.sort(scores[keep], descending=True, stable=True).indices]
    images = tile_images[tile_ids[keep]]
    result = []
    for k in range(len(sizes)):
        here = keep[images == k]
        result.append({"boxes": boxes[here], "scores": scores[here], "labels": labels[here]})
    return result
