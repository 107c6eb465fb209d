"""`tinyops.detect`: images of every kind, any detector."""

from dataclasses import fields
from inspect import signature

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from squares import Seer, draw, rows, scatter, truth

import tinyops
from tinyops import detect
from tinyops.data.tiles import tile_windows
from tinyops.inference.result import Result
from tinyops.inference.types import Detection
from tinyops.ops import stitch_tiles

SQUARES = [(5, 5, 6, 6, 0), (58, 20, 9, 9, 0), (90, 60, 5, 5, 1)]  # x y width height channel
IMAGE = draw(100, 70, SQUARES)


def floats(image):
    return torch.from_numpy(image).permute(2, 0, 1).float() / 255


def test_images_come_from_files_and_from_memory(tmp_path):
    assert detect(Seer(), []) == []
    image, path = IMAGE, tmp_path / "image.png"
    Image.fromarray(image).save(path)
    images = {
        "path": path,
        "text": str(path),
        "PIL": Image.fromarray(image),
        "array": image,
        "bytes": torch.from_numpy(image).permute(2, 0, 1),
        "floats": floats(image),
        "doubles": floats(image).double(),
    }
    for name, value in images.items():
        result = detect(Seer(), value)
        assert isinstance(result, Result), name
        assert rows(result) == truth(SQUARES), name
        assert (result.width, result.height) == (100, 70), name
    results = detect(Seer(), tuple(images.values()), tile=(64, 48), overlap=16)
    assert [result.name for result in results[:4]] == [str(path), str(path), "image 2", "image 3"]
    assert all(rows(result) == truth(SQUARES) for result in results)


def recorder(seen):
    """A model that keeps what it is shown and finds nothing."""

    def model(images):
        seen.extend(images)
        empty = torch.zeros(0)
        return [{"boxes": empty.view(0, 4), "scores": empty, "labels": empty}] * len(images)

    return model


def test_grey_arrays_are_grey_pictures():
    seen = []
    detect(recorder(seen), np.full((4, 6), 51, np.uint8))
    assert torch.equal(seen[0], torch.full((3, 4, 6), 0.2))


def test_floats_reach_the_model_as_they_are():
    image, seen = torch.rand(3, 20, 30), []
    detect(recorder(seen), image, tile=(20, 20), overlap=10)
    assert len(seen) == 2
    assert torch.equal(seen[0], image[:, :, :20])
    assert torch.equal(seen[1], image[:, :, 10:])


def test_scales_and_flips_are_merged():
    squares = scatter(100, 70, 12, sides=(4, 8))
    options = {"tile": (60, 48), "overlap": 20, "batch": 100}
    image, model = draw(100, 70, squares), Seer()
    result = detect(model, image, scales=(1, 2), flips=("none", "vertical"), **options)
    assert rows(result) == truth(squares)
    assert set(model.batches[0]) == {(48, 60)}
    single = [detect(Seer(), image, scales=(scale,), **options) for scale in (1, 2)]
    assert len(result.tiles) == 2 * sum(len(one.tiles) for one in single)


def test_options_are_the_settings_of_detection():
    defaults = signature(detect).parameters
    for setting in fields(Detection):
        if setting.name != "views":
            assert defaults[setting.name].default == setting.default, setting.name
    bar = draw(200, 40, [(5, 10, 180, 8, 0)])
    joined = detect(Seer(), bar, tile=(64, 48), overlap=16, merge="union", categories=["bar"])
    assert rows(joined) == [(5, 10, 185, 18, 1)]
    assert joined.categories == ("bar",)
    assert len(detect(Seer(), bar, min_score=1.0)["boxes"]) == 1
    assert len(detect(Seer(), IMAGE, min_score=0.05)["boxes"]) == 1


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (IMAGE, {"scales": ()}, "scales and flips"),
        (IMAGE, {"scales": (1, 1)}, "scales and flips"),
        (IMAGE, {"scales": (0,)}, "scales"),
        (IMAGE, {"flips": ("up",)}, "flips"),
        (IMAGE, {"overlap": 512}, "overlap"),
        (None, {}, "images"),
        (torch.zeros(1, 3, 8, 8), {}, "image 0"),
        (torch.zeros(1, 8, 8), {}, "image 0"),
        (torch.zeros(3, 0, 8), {}, "image 0"),
        ([IMAGE, torch.zeros(3, 8)], {}, "image 1"),
    ],
)
def test_wrong_arguments_are_named(images, options, message):
    with pytest.raises(ValueError, match=f"^{message} must be"):
        detect(Seer(), images, **options)


def test_a_file_that_is_no_image_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    for name in ("notes.txt", "missing.png"):
        with pytest.raises(OSError, match=name):
            detect(Seer(), tmp_path / name)


# ---- real detectors ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def foreign():
    torch.manual_seed(0)
    return torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=3,
        min_size=64,
        max_size=128,
        box_detections_per_img=30,
    )


def test_torchvisions_detector_gets_tiles_and_stitching(foreign):
    image = np.random.default_rng(0).integers(0, 256, (90, 150, 3), dtype=np.uint8)
    result = detect(foreign, image, tile=(64, 64), overlap=16, batch=1)
    assert foreign.training

    boxes, scores, labels, ids = [], [], [], []
    foreign.eval()
    windows = tile_windows(150, 90, (64, 64), 16)
    for k, (x1, y1, x2, y2) in enumerate(windows):
        with torch.inference_mode():
            (found,) = foreign([floats(image)[:, y1:y2, x1:x2]])
        boxes.append(found["boxes"])
        scores.append(found["scores"])
        labels.append(found["labels"])
        ids += [k] * len(found["boxes"])
    foreign.train()
    boxes, scores, labels = (torch.cat(parts).clone() for parts in (boxes, scores, labels))
    ids, windows = torch.tensor(ids), torch.tensor(windows)
    keep = stitch_tiles(boxes, scores, labels, ids, windows, torch.tensor([[90, 150]]))
    keep = keep[scores[keep].argsort(descending=True, stable=True)]
    assert 0 < len(keep) < len(boxes)
    placed = boxes + windows[ids][:, [0, 1, 0, 1]]
    assert torch.equal(result["boxes"], placed[keep])
    assert torch.equal(result["scores"], scores[keep])
    assert torch.equal(result["labels"], labels[keep])
    assert len(result.removed) == len(boxes) - len(keep)


@pytest.mark.parametrize("name", ["faster_rcnn_fpn_resnet_nano", "retinanet_fpn_resnet_nano"])
def test_what_is_found_in_an_image_does_not_depend_on_the_others(name):
    torch.manual_seed(0)
    few = {"score_threshold": 0.0, "max_per_image": 10}
    model = tinyops.models.create(name, num_classes=1, neck_channels=16, **few)
    image = np.random.default_rng(0).integers(0, 256, (70, 100, 3), dtype=np.uint8)
    images = [image[:40, :40], image, image[:50, :25], image[:40, 60:]]
    options = {"tile": (64, 64), "overlap": 16, "batch": 3}
    for k, result in enumerate(detect(model, images, **options)):
        alone = detect(model, images[k], **options)
        assert len(alone["boxes"]) > 5
        for key, values in alone.items():
            torch.testing.assert_close(result[key], values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["faster_rcnn_fpn_resnet_nano", "retinanet_fpn_resnet_nano"])
def test_models_of_the_zoo_look_at_images_of_any_size(name):
    model = tinyops.models.create(name, num_classes=1, neck_channels=16)
    image = np.random.default_rng(0).integers(0, 256, (70, 100, 3), dtype=np.uint8)
    images = [image, image[:1, :1], image[:1, :50], image[:50, :3]]
    results = detect(model, images, tile=(64, 64), overlap=16, scales=(1, 0.5), batch=3)
    assert [(result.width, result.height) for result in results] == [
        (100, 70),
        (1, 1),
        (50, 1),
        (3, 50),
    ]
    for result in results:
        x1, y1, x2, y2 = result["boxes"].unbind(1)
        assert (x1 >= 0).all()
        assert (y1 >= 0).all()
        assert (x2 <= result.width).all()
        assert (y2 <= result.height).all()
