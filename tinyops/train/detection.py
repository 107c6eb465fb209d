"""Objects of large images, found tile by tile, and how well they were found."""

from collections.abc import Mapping, Sequence
from itertools import chain, groupby
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tinyops.data.dataset import CocoTiles
from tinyops.data.formats.coco import to_coco
from tinyops.evaluation.tinyperson import BANDS, THRESHOLDS, sized_ap
from tinyops.inference.engine import check, look, stitch
from tinyops.inference.types import Detection
from tinyops.inference.views import Tile
from tinyops.nn.distributed import world_size
from tinyops.train.processes import gather, rank


def detect_tiles(
    model: nn.Module,
    tiles: CocoTiles,
    *,
    batch: int = 8,
    workers: int = 0,
    device: torch.device | str | None = None,
    amp: Literal["none", "bf16", "fp16"] = "none",
    iou_threshold: float = 0.5,
    ios_threshold: float = 0.5,
) -> list[dict[str, Any]]:
    """Detect in all images of a data set; several processes share the images.

    Args:
        model: `model(images)` gives boxes, scores and labels in eval mode; its mode stays as it is.
        tiles: all tiles of each image (`keep_empty`), without a transform.
        batch: tiles, of one size.
        workers: processes that load.
        device: of the model; None: that of its first parameter.
        amp: "none", "bf16" or "fp16".
        iou_threshold: of `tinyops.ops.stitch_tiles`, as is `ios_threshold`.
        ios_threshold: likewise.

    Returns:
        COCO results in every process, those of the images in their order and best first: image_id,
        category_id, bbox x y w h in pixels of the image, and score.
    """
    how = Detection(batch=batch, amp=amp, iou_threshold=iou_threshold, ios_threshold=ios_threshold)
    check(how)
    data = tiles.data
    own = [n for n, (k, _) in enumerate(tiles.tiles) if k % world_size() == rank()]
    shown = {n: Tile(w, (w[2] - w[0], w[3] - w[1])) for n in own for w in [tiles.tiles[n][1]]}
    batches = _batches(shown, batch)
    loader = DataLoader(tiles, batch_sampler=batches, num_workers=workers, collate_fn=_images)
    seen = (x for images in loader for x in look(model, images, device=device, amp=how.amp))
    found = dict(zip(chain(*batches), seen, strict=True))
    results = []
    for k, group in groupby(own, lambda n: tiles.tiles[n][0]):
        image, numbers = data.images[k], list(group)
        detections, _ = stitch(
            [found[n] for n in numbers],
            [shown[n] for n in numbers],
            (image.width, image.height),
            how,
        )
        corners, labels = detections["boxes"].double(), detections["labels"].tolist()
        boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1).tolist()
        for box, score, label in zip(boxes, detections["scores"].tolist(), labels, strict=True):
            entry = {"image_id": image.id, "category_id": data.category_ids[label - 1]}
            results.append((k, {**entry, "bbox": box, "score": score}))
    return [entry for _, entry in sorted(gather(results), key=lambda pair: pair[0])]


def evaluate(
    model: nn.Module,
    tiles: CocoTiles,
    *,
    bands: Mapping[str, tuple[float, float]] = BANDS,
    iou_thresholds: Sequence[float] = THRESHOLDS,
    max_detections: int = 200,
    **options: Any,
) -> dict[str, float]:
    """Average precision on whole images, by size of the objects.

    Args:
        model: see `detect_tiles`, which finds the objects.
        tiles: likewise.
        bands: see `tinyops.evaluation.tinyperson.sized_ap`, as for the next two.
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
            to_coco(tiles.data),
            results,
            bands=bands,
            thresholds=iou_thresholds,
            max_detections=max_detections,
        )
        table = [{f"ap{round(100 * t)}_{band}": value for (band, t), value in values.items()}]
    return gather(table)[0]


def _batches(shown: Mapping[int, Tile], most: int) -> list[list[int]]:
    """Numbers of tiles, in batches of one size: detectors pad the smaller images of a batch."""
    sizes: dict[tuple[int, int], list[int]] = {}
    for n, tile in shown.items():
        sizes.setdefault(tile.size, []).append(n)
    return [row[k : k + most] for row in sizes.values() for k in range(0, len(row), most)]


def _images(samples: Sequence[tuple[Tensor, Any]]) -> list[Tensor]:
    return [image for image, _ in samples]
