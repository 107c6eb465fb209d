"""Detection on tiles and its evaluation on whole images."""

import json

import pytest
from PIL import Image
from squares import Seer, draw

from tinyops.data import read
from tinyops.data.dataset import CocoTiles
from tinyops.train import detect_tiles, evaluate

SQUARES = {  # image -> x y width height channel
    0: [(5, 5, 6, 6, 0), (58, 20, 9, 9, 0), (90, 60, 5, 5, 1)],
    1: [],
    2: [(30, 30, 4, 4, 1)],
}
SIZES = {0: (100, 70), 1: (64, 64), 2: (40, 50)}  # width, height


@pytest.fixture
def data(tmp_path):
    images, annotations = [], []
    for k, (width, height) in SIZES.items():
        Image.fromarray(draw(width, height, SQUARES[k])).save(tmp_path / f"{k}.png")
        images.append({"id": 10 - k, "file_name": f"{k}.png", "width": width, "height": height})
        for x, y, w, h, channel in SQUARES[k]:
            annotations.append(
                {"id": len(annotations), "image_id": 10 - k, "category_id": (7, 3)[1 - channel]
                 if channel else 3, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
            )  # fmt: skip
    categories = [{"id": 7, "name": "green"}, {"id": 3, "name": "red"}]
    table = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "table.json").write_text(json.dumps(table))
    return read(tmp_path / "table.json", images=tmp_path)


def test_results_are_those_of_coco(data):
    results = detect_tiles(Seer(), CocoTiles(data, tile=(64, 48), overlap=16), batch=3, workers=1)
    assert [(r["image_id"], r["category_id"], r["bbox"]) for r in results] == [
        (10, 3, [58.0, 20.0, 9.0, 9.0]),
        (10, 3, [5.0, 5.0, 6.0, 6.0]),
        (10, 7, [90.0, 60.0, 5.0, 5.0]),
        (8, 7, [30.0, 30.0, 4.0, 4.0]),
    ]
    assert results[0]["score"] == pytest.approx(0.081)


def test_batches_hold_tiles_of_one_size(data):
    model = Seer()
    detect_tiles(model, CocoTiles(data, tile=(64, 48), overlap=16), batch=4)
    # 100x70 has 2 x 2 tiles, 64x64 has 2, and 40x50 has 2, as wide as it is.
    assert model.batches == [[(48, 64)] * 4, [(48, 64)] * 2, [(48, 40)] * 2]


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
