"""Detection in images of any size: what is found, and by which models."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from squares import SMALL, Drawn, Seer, draw, rows, run, scene, truth
from torch import nn

from tinyops.inference import engine
from tinyops.inference.engine import detect_sources
from tinyops.inference.types import Detection, View
from tinyops.inference.views import Tile


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_tiles_find_exactly_what_whole_images_show(batch):
    scenes = [scene(0), scene(1, 30, 200), scene(2, 63, 47, 3), scene(3, 64, 48, 0)]
    results = run((source for source, _ in scenes), replace(SMALL, batch=batch))
    whole = run((scene(0)[0],), Detection(tile=None))
    assert rows(results[0]) == rows(whole[0])
    assert whole[0].tiles.tolist() == [[0, 0, 150, 100]]
    for result, (source, squares) in zip(results, scenes, strict=True):
        assert (result.name, result.width, result.height) == (
            source.name,
            source.width,
            source.height,
        )
        assert rows(result) == truth(squares)
        assert result["scores"].diff().le(0).all()
        assert set(result) == {"boxes", "scores", "labels"}
        assert source.closed == 1


def test_removed_boxes_are_the_copies_in_overlaps():
    squares = [(52, 10, 6, 6, 0), (10, 10, 4, 4, 0)]  # tiles are x 0..64 and 48..112
    (result,) = run([Drawn(draw(112, 48, squares))])
    assert result.tiles.tolist() == [[0, 0, 64, 48], [48, 0, 112, 48]]
    assert result["boxes"].tolist() == [[52, 10, 58, 16], [10, 10, 14, 14]]
    assert result.removed.tolist() == [[52, 10, 58, 16]]


def test_objects_larger_than_tiles_are_joined_by_union():
    image = draw(200, 40, [(5, 10, 180, 8, 0), (20, 30, 4, 4, 0)])
    (pieces,) = run([Drawn(image)])
    assert len(pieces["boxes"]) > 2
    (result,) = run([Drawn(image)], replace(SMALL, merge="union"))
    assert result["boxes"].tolist() == [[5, 10, 185, 18], [20, 30, 24, 34]]
    assert len(result.removed) == len(result.tiles) - 1
    for one in (pieces, result):  # whole or cut, the best is first
        assert one["scores"].diff().le(0).all()


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, 1),  # the IoU is 0.8
        ({"iou_threshold": 0.9}, 2),
        ({"iou_threshold": 0.9, "edge": 6.0}, 1),  # now the second box counts as cut
        ({"iou_threshold": 0.9, "edge": 6.0, "ios_threshold": 1.0}, 2),
    ],
)
def test_settings_reach_the_operator(settings, kept):
    tiles = [Tile((40, 0, 104, 48), (64, 48)), Tile((0, 0, 64, 48), (64, 48))]
    one = {"scores": torch.ones(1), "labels": torch.ones(1).long()}
    found = [
        {"boxes": torch.tensor([[10.0, 10, 20, 20]]), **one},
        {"boxes": torch.tensor([[50.0, 10, 58, 20]]), **one},  # ends 6 pixels before the tile does
    ]
    detections, removed = engine.stitch(found, tiles, (104, 48), replace(SMALL, **settings))
    expected = [[50, 10, 60, 20], [50, 10, 58, 20]]
    assert detections["boxes"].tolist() == expected[:kept]
    assert removed.tolist() == expected[kept:]


def test_labels_can_be_told_apart_or_not():
    class Undecided(Seer):
        def find(self, image):
            found = super().find(image)
            found["labels"] = torch.full_like(found["labels"], len(self.batches))
            return found

    image = draw(112, 48, [(52, 10, 6, 6, 0)])
    how = replace(SMALL, batch=1)
    assert len(run([Drawn(image)], how, Undecided())[0]["boxes"]) == 2
    how = replace(how, class_agnostic=True)
    assert len(run([Drawn(image)], how, Undecided())[0]["boxes"]) == 1


def test_low_scores_are_left_out():
    source, squares = scene(0)
    (result,) = run([source], replace(SMALL, min_score=0.036))
    assert rows(result) == truth([s for s in squares if s[2] >= 6])
    assert (result.removed[:, 2] - result.removed[:, 0] >= 6).all()


@pytest.mark.parametrize(("key", "value"), [("scores", float("nan")), ("boxes", float("inf"))])
def test_an_image_in_which_the_model_finds_no_numbers_is_reported(key, value):
    class Broken(Seer):
        def find(self, image):
            found = super().find(image)
            if len(self.batches) == 1:  # that of the first image
                found[key] = found[key] * value
            return found

    message = f"scene 0: model must give finite {key}, got NaN or infinity"
    sources, how = [scene(0)[0], scene(1)[0]], replace(SMALL, batch=9)
    with pytest.raises(ValueError, match=f"^{message}$"):
        run(sources, how, Broken())
    reported = []
    (result,) = run(
        [scene(0)[0], scene(1)[0]],
        how,
        Broken(),
        on_error=lambda source, error: reported.append((source.name, str(error))),
    )
    assert reported == [("scene 0", message)]
    assert rows(result) == truth(scene(1)[1])


def test_every_part_of_the_model_has_its_own_mode_again():
    class Frozen(Seer):
        def __init__(self):
            super().__init__()
            self.norm, self.head = nn.BatchNorm2d(3), nn.Dropout()
            self.train()
            self.norm.eval()

        def forward(self, images):
            assert not self.head.training
            return super().forward(images)

    model = Frozen()
    stream = detect_sources(model, [scene(k)[0] for k in range(2)], SMALL)
    next(stream)
    assert (model.training, model.norm.training, model.head.training) == (True, False, True)
    list(stream)
    assert (model.training, model.norm.training, model.head.training) == (True, False, True)


def test_the_mode_outlives_an_error_of_the_model():
    class Broken(Seer):
        def find(self, image):
            raise KeyError("broken")

    model, source = Broken().train(), scene(0)[0]
    with pytest.raises(KeyError, match="broken"):
        run([source], model=model)
    assert model.training
    assert source.closed == 1


def test_any_callable_is_a_model():
    model = Seer().eval()
    source, squares = scene(0)
    with torch.no_grad():
        (result,) = run([source], model=lambda images: tuple(model(images)))
    assert rows(result) == truth(squares)
    assert result.categories is None


def test_categories_are_those_of_the_model():
    model = Seer()
    model.categories = ["red", "green"]
    assert run([scene(0)[0]], model=model)[0].categories == ("red", "green")
    assert run([scene(0)[0]], model=model, categories=["a", "b"])[0].categories == ("a", "b")


def test_a_model_may_give_half_precision_and_int32():
    class Half(Seer):
        def find(self, image):
            found = super().find(image)
            boxes, scores = found["boxes"].half(), found["scores"].bfloat16()
            return {"boxes": boxes, "scores": scores, "labels": found["labels"].int()}

    source, squares = scene(0)
    (result,) = run([source], model=Half())
    assert rows(result) == truth(squares)
    assert [result[key].dtype for key in ("boxes", "scores", "labels")] == [
        torch.float32,
        torch.float32,
        torch.int64,
    ]


@pytest.mark.parametrize(
    "answer",
    [
        lambda images: None,
        lambda images: [],
        lambda images: [{}] * len(images),
        lambda images: {"loss": torch.zeros(())},
        lambda images: [{"boxes": [], "scores": [], "labels": []}] * len(images),
    ],
)
def test_a_callable_that_is_no_detector_is_refused(answer):
    with pytest.raises(ValueError, match="model must give"):
        run([scene(0)[0]], model=answer)


@pytest.mark.parametrize(("amp", "dtype"), [("none", torch.float32), ("bf16", torch.bfloat16)])
def test_mixed_precision_is_that_of_the_model(amp, dtype):
    class Product(Seer):
        def find(self, image):
            assert (image[0] @ image[0].T).dtype == dtype
            return super().find(image)

    source, squares = scene(0)
    assert rows(run([source], replace(SMALL, amp=amp), Product())[0]) == truth(squares)
    assert not torch.is_autocast_enabled("cpu")


def test_results_are_ordinary_tensors_on_the_cpu():
    (result,) = run([scene(0)[0]])
    for tensor in (*result.values(), result.tiles, result.removed):
        assert not tensor.is_inference()
        assert tensor.device.type == "cpu"
    assert result["boxes"].dtype == result.tiles.dtype == result.removed.dtype == torch.float32


@pytest.mark.parametrize("how", [SMALL, Detection(), Detection(tile=None, views=(View(0.1),))])
def test_an_image_of_one_pixel_is_an_image(how):
    model = Seer()
    (result,) = run([Drawn(np.full((1, 1, 3), (255, 0, 0), np.uint8))], how, model)
    assert result["boxes"].tolist() == [[0, 0, 1, 1]]
    assert model.batches == [[(1, 1)]]


def test_time_in_the_network_is_shared_by_tiles():
    def slow(images):
        time.sleep(0.02 * len(images))
        return [nothing()] * len(images)

    start = time.perf_counter()
    first, second = run(
        [scene(0, 150, 40)[0], scene(1, 64, 40, 2)[0]], replace(SMALL, batch=9), slow
    )
    assert (len(first.tiles), len(second.tiles)) == (3, 1)
    assert first.seconds["network"] == pytest.approx(3 * second.seconds["network"])
    total = sum(first.seconds.values()) + sum(second.seconds.values())
    assert 0.08 <= first.seconds["network"] + second.seconds["network"] < total
    assert total <= time.perf_counter() - start
    assert list(first.seconds) == ["read", "network", "stitch"]


def nothing():
    return {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0).long()}


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("tile", (0, 48), "tile"),
        ("tile", (64,), "tile"),
        ("overlap", 48, "overlap"),
        ("overlap", (63, 48), "overlap"),
        ("overlap", -1, "overlap"),
        ("overlap", (1, 2, 3), "overlap"),
        ("batch", 0, "batch"),
        ("views", (), "scales and flips"),
        ("views", (View(), View(1.0, "none")), "scales and flips"),
        ("views", (View(0.0),), "scales"),
        ("views", (View(float("nan")),), "scales"),
        ("views", (View(float("inf")),), "scales"),
        ("views", (View(1.0, "diagonal"),), "flips"),
        ("min_score", float("nan"), "min_score"),
        ("iou_threshold", 1.5, "iou_threshold"),
        ("ios_threshold", -0.5, "ios_threshold"),
        ("edge", float("inf"), "edge"),
        ("merge", "intersection", "merge"),
        ("amp", "fp8", "amp"),
    ],
)
def test_settings_out_of_range_are_refused_before_a_source_is_pulled(setting, value, message):
    def sources():
        raise AssertionError("pulled")
        yield

    with pytest.raises(ValueError, match=f"^{message} must be"):
        detect_sources(Seer(), sources(), replace(SMALL, **{setting: value}))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("view", [View(), View(2.0, "both")])
def test_cuda_finds_the_same(view):
    pairs = [scene(k) for k in range(4)]
    pairs[1][0].breaks = 2
    how = Detection(tile=(60, 48), overlap=20, batch=4, views=(view,))
    failed = []
    results = run(
        [source for source, _ in pairs],
        how,
        Seer().cuda(),
        on_error=lambda source, error: failed.append(source.name),
    )
    assert failed == ["scene 1"]
    assert [rows(result) for result in results] == [truth(pairs[k][1]) for k in (0, 2, 3)]
    assert all(tensor.device.type == "cpu" for tensor in results[0].values())
