"""Detection on tiles and its evaluation on whole images."""

import json

import pytest
import torch
from PIL import Image
from torch import nn

from tinyops.data.coco import read_coco
from tinyops.data.dataset import CocoTiles
from tinyops.inference.detect import detect
from tinyops.train import detect_tiles, evaluate


class Seer(nn.Module):
    """Finds squares of pure colours: red is label 1, green label 2; a score grows with the size."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.batches = []

    def forward(self, images, targets=None):
        assert not self.training
        assert not torch.is_grad_enabled()
        self.batches.append([tuple(image.shape[1:]) for image in images])
        return [self.find(image) for image in images]

    def find(self, image):
        boxes, labels = [], []
        for channel in (0, 1):
            rest = image[channel] > 0.5
            while rest.any():
                y, x = rest.nonzero()[0].tolist()
                width = (
                    int((~rest[y, x:]).nonzero()[0]) if (~rest[y, x:]).any() else len(rest[y, x:])
                )
                column = rest[y:, x]
                height = int((~column).nonzero()[0]) if (~column).any() else len(column)
                rest[y : y + height, x : x + width] = False
                boxes.append([x, y, x + width, y + height])
                labels.append(channel + 1)
        found = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        sides = found[:, 2:] - found[:, :2]
        scores = (sides.prod(1) / 1000).clamp(max=1)
        return {"boxes": found, "scores": scores, "labels": torch.tensor(labels, dtype=torch.int64)}


SQUARES = {  # image -> x y width height channel
    0: [(5, 5, 6, 6, 0), (58, 20, 9, 9, 0), (90, 60, 5, 5, 1)],
    1: [],
    2: [(30, 30, 4, 4, 1)],
}
SIZES = {0: (100, 70), 1: (64, 64), 2: (40, 50)}  # width, height


def picture(k):
    width, height = SIZES[k]
    image = torch.zeros(3, height, width)
    for x, y, w, h, channel in SQUARES[k]:
        image[channel, y : y + h, x : x + w] = 1
    return image


@pytest.fixture
def data(tmp_path):
    images, annotations = [], []
    for k, (width, height) in SIZES.items():
        pixels = (picture(k) * 255).byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(tmp_path / f"{k}.png")
        images.append({"id": 10 - k, "file_name": f"{k}.png", "width": width, "height": height})
        for x, y, w, h, channel in SQUARES[k]:
            annotations.append(
                {"id": len(annotations), "image_id": 10 - k, "category_id": (7, 3)[1 - channel]
                 if channel else 3, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
            )  # fmt: skip
    categories = [{"id": 7, "name": "green"}, {"id": 3, "name": "red"}]
    table = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "table.json").write_text(json.dumps(table))
    return read_coco(tmp_path / "table.json", tmp_path)


@pytest.mark.parametrize("tile", [(64, 48), None])
def test_tiles_find_what_whole_images_show(tile):
    model = Seer().train()
    found = detect(model, [picture(k) for k in SIZES], tile=tile, overlap=16, batch=3)
    assert model.training
    for k, detections in enumerate(found):
        squares = sorted(SQUARES[k], key=lambda s: -s[2] * s[3])
        assert detections["boxes"].tolist() == [[x, y, x + w, y + h] for x, y, w, h, _ in squares]
        assert detections["labels"].tolist() == [s[4] + 1 for s in squares]
        assert detections["scores"].diff().le(0).all()


def test_batches_hold_tiles_of_several_images():
    model = Seer()
    detect(model, [picture(k) for k in SIZES], tile=(64, 48), overlap=16, batch=3)
    # 100x70 has 2 x 2 tiles, 64x64 has 2, and 40x50 has 2, as wide as it is.
    assert [len(batch) for batch in model.batches] == [3, 3, 2]
    assert model.batches[2] == [(48, 40), (48, 40)]
    assert detect(model, []) == []


def test_results_are_those_of_coco(data):
    results = detect_tiles(Seer(), CocoTiles(data, tile=(64, 48), overlap=16), batch=3, workers=1)
    assert [(r["image_id"], r["category_id"], r["bbox"]) for r in results] == [
        (10, 3, [58.0, 20.0, 9.0, 9.0]),
        (10, 3, [5.0, 5.0, 6.0, 6.0]),
        (10, 7, [90.0, 60.0, 5.0, 5.0]),
        (8, 7, [30.0, 30.0, 4.0, 4.0]),
    ]
    assert results[0]["score"] == pytest.approx(0.081)


def test_perfect_detections_have_perfect_precision(data):
    metrics = evaluate(Seer(), CocoTiles(data, tile=(64, 48), overlap=16))
    assert list(metrics)[:3] == ["ap25_all", "ap50_all", "ap75_all"]
    for name in ("ap50_tiny", "ap75_tiny1", "ap25_tiny2"):
        assert metrics[name] == pytest.approx(1)
    assert metrics["ap50_small"] == -1.0


def test_a_blind_model_has_no_precision(data):
    class Blind(Seer):
        def find(self, image):
            return {key: value[:0] for key, value in super().find(image).items()}

    assert evaluate(Blind(), CocoTiles(data, tile=(64, 48), overlap=16))["ap50_tiny"] == 0.0


def test_bands_and_thresholds_can_be_chosen(data):
    tiles = CocoTiles(data, tile=None)
    metrics = evaluate(Seer(), tiles, bands={"mine": (1, 7)}, iou_thresholds=(0.3,))
    assert metrics == {"ap30_mine": pytest.approx(1)}
