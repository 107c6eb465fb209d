"""Streaming detection: tiles of many images, views of them, errors, and what is held meanwhile."""

import itertools
import threading
import time
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from squares import Seer, draw, rows, scatter, truth
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tinyops.inference import engine
from tinyops.inference.engine import detect_sources
from tinyops.inference.types import FLIPS, Detection, View
from tinyops.inference.views import Tile, plan_tiles

SMALL = Detection(tile=(64, 48), overlap=16, batch=4)


class Drawn:
    """A source in memory; the read of number `breaks` fails."""

    georeference = None

    def __init__(self, image, name="drawn", breaks=None, error=OSError):
        self.name, self.image, self.breaks, self.error = name, image, breaks, error
        self.height, self.width = image.shape[:2]
        self.reads, self.closed = 0, 0

    def read(self, window):
        assert not self.closed
        if self.reads == self.breaks:
            raise self.error(f"{self.name} is broken")
        self.reads += 1
        x1, y1, x2, y2 = window
        return self.image[y1:y2, x1:x2]

    def close(self):
        self.closed += 1


def scene(k, width=150, height=100, count=20):
    squares = scatter(width, height, count, seed=k)
    return Drawn(draw(width, height, squares), name=f"scene {k}"), squares


def run(sources, how=SMALL, model=None, **options):
    return list(detect_sources(model or Seer(), sources, how, **options))


# ---- what is found -------------------------------------------------------------------------------


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


def test_tiles_of_several_images_fill_batches():
    model = Seer()
    counted = []
    run([scene(k)[0] for k in range(3)], model=model, progress=counted.append)
    tiles = len(plan_tiles(150, 100, SMALL))
    assert [len(batch) for batch in model.batches] == counted
    assert counted == [4] * (3 * tiles // 4) + [3 * tiles % 4] * (3 * tiles % 4 > 0)
    assert tiles % 4  # some batch has tiles of two images


def test_batches_hold_tiles_of_one_size_and_wait_for_no_more_than_two_batches():
    sizes = [(40, 40), (30, 40), (40, 40), (20, 40), (40, 40), (10, 40), (40, 40), (50, 40)]
    model, pulled = Seer(), []

    def sources():
        for k, size in enumerate([*sizes, (60, 40), (30, 40)]):
            pulled.append(k)
            yield scene(k, *size, 1)[0]

    stream = detect_sources(model, sources(), replace(SMALL, batch=3))
    assert next(stream).name == "scene 0"
    assert pulled == [0, 1, 2, 3, 4]
    assert model.batches == [[(40, 40)] * 3]
    assert next(stream).name == "scene 1"
    assert pulled == list(range(9))  # six wait
    assert model.batches[1:] == [[(40, 30)]]
    assert [result.name for result in stream] == [f"scene {k}" for k in range(2, 10)]
    assert model.batches[2:] == [[(40, w)] for w in (20, 10, 40, 50, 60, 30)]


def test_sources_are_pulled_when_their_tiles_are_needed():
    pulled = []

    def sources():
        for k in range(5):
            pulled.append(k)
            yield scene(k, 60, 40, 3)[0]  # one tile each

    stream = detect_sources(Seer(), sources(), replace(SMALL, batch=2))
    assert pulled == []
    assert next(stream).name == "scene 0"
    assert pulled == [0, 1]
    assert [result.name for result in stream] == ["scene 1", "scene 2", "scene 3", "scene 4"]


def test_views_that_show_the_same_are_all_seen():
    model, how = Seer(), Detection(tile=None, views=(View(1.0), View(0.75)))
    (result,) = run([Drawn(np.full((1, 1, 3), (255, 0, 0), np.uint8))], how, model)
    assert (len(result.tiles), len(result["boxes"]), len(result.removed)) == (2, 1, 1)


@pytest.mark.parametrize("flip", FLIPS)
@pytest.mark.parametrize("scale", [0.5, 1, 2, 3])
def test_boxes_of_views_are_mapped_back_exactly(scale, flip):
    squares = scatter(150, 100, 15, sides=(4, 8))
    source = Drawn(draw(150, 100, squares))
    model = Seer()
    how = Detection(tile=(60, 48), overlap=27, batch=8, views=(View(scale, flip),))
    (result,) = run([source], how, model)
    assert rows(result) == truth(squares)
    sizes = set(itertools.chain(*model.batches))
    assert sizes == {(48, 60)} if scale != 0.5 else {(48, 60)}


def test_views_are_merged_without_duplicates():
    source, squares = scene(5)
    views = tuple(View(s, f) for s in (1.0, 2.0) for f in FLIPS)
    how = Detection(tile=(60, 48), overlap=20, views=views)
    (result,) = run([source], how)
    assert rows(result) == truth(squares)
    assert len(result.removed) >= 7 * len(squares)
    assert len(result.tiles) == len(plan_tiles(150, 100, how))
    windows = {tuple(window) for window in result.tiles.tolist()}
    assert {(0, 0, 60, 48), (0, 0, 30, 24)} <= windows


def test_views_find_what_one_scale_misses():
    class Shortsighted(Seer):
        def find(self, image):
            found = super().find(image)
            wide = found["boxes"][:, 2] - found["boxes"][:, 0] >= 8
            return {name: x[wide] for name, x in found.items()}

    source, squares = scene(6)
    large = [square for square in squares if square[2] >= 8]
    (once,) = run([source], replace(SMALL, tile=None), Shortsighted())
    assert rows(once) == truth(large)
    assert len(large) < len(squares)
    how = Detection(tile=None, views=(View(), View(2.0)))
    assert rows(run([scene(6)[0]], how, Shortsighted())[0]) == truth(squares)


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


# ---- tiles ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.3, 0.5, 0.7, 1, 1.5, 3])
@pytest.mark.parametrize("size", [(1000, 777), (40, 900), (1, 1), (213, 171)])
def test_tiles_cover_the_image_and_have_the_size_that_was_asked_for(scale, size):
    tiles = plan_tiles(*size, Detection(tile=(64, 48), overlap=(8, 20), views=(View(scale),)))
    seen = np.zeros(size[::-1], bool)
    for tile in tiles:
        x1, y1, x2, y2 = tile.window
        seen[y1:y2, x1:x2] = True
        for side, shown, most, length in zip(tile.sides, tile.size, (64, 48), size, strict=True):
            assert shown == most or (side == length and shown == max(1, round(length * scale)))
    assert seen.all()


def test_neighbours_share_pixels_of_what_the_model_sees():
    tiles = plan_tiles(100, 16, Detection(tile=(60, 48), overlap=(20, 0), views=(View(3.0),)))
    assert [tile.window[0] for tile in tiles][:3] == [0, 13, 26]  # 7 of 20 pixels, 6.7 rounded up


@pytest.mark.parametrize("flip", FLIPS)
def test_a_tile_maps_what_the_model_sees_back_to_its_window(flip):
    tile = Tile((10, 20, 23, 29), (7, 20), flip)  # 13 x 9 pixels are seen as 7 x 20
    boxes = torch.tensor([[0.0, 0, 7, 20], [0, 0, 3.5, 5]])
    x = (6.5, 13) if flip in ("horizontal", "both") else (0, 6.5)
    y = (6.75, 9) if flip in ("vertical", "both") else (0, 2.25)
    expected = torch.tensor([[0, 0, 13, 9], [x[0], y[0], x[1], y[1]]])
    torch.testing.assert_close(tile.place(boxes), expected)
    assert tile.show(torch.zeros(9, 13, 3, dtype=torch.uint8)).shape == (3, 20, 7)
    assert tile.place(boxes[:0]).shape == (0, 4)


def test_bytes_become_the_floats_that_training_sees():
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3).view(3, 16, 16).permute(1, 2, 0)
    shown = Tile((0, 0, 16, 16), (16, 16)).show(pixels.contiguous())
    assert torch.equal(shown, pixels.permute(2, 0, 1).float() / 255)
    assert torch.equal(Tile((0, 0, 16, 16), (16, 16), "both").show(pixels), shown.flip(1, 2))
    floats = torch.rand(16, 16, 3)
    assert torch.equal(Tile((0, 0, 16, 16), (16, 16)).show(floats), floats.permute(2, 0, 1))


# ---- the model -----------------------------------------------------------------------------------


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


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError, ValueError])
@pytest.mark.parametrize("batch", [1, 4, 100])
@pytest.mark.parametrize("broken", [0, 2, 3])
@pytest.mark.parametrize("breaks", [0, 2, 5])
def test_a_broken_image_is_reported_and_the_others_go_on(breaks, broken, batch, error):
    sources = [scene(k) for k in range(4)]
    sources[broken][0].breaks, sources[broken][0].error = breaks, error
    reported, model = [], Seer()
    results = run(
        [source for source, _ in sources],
        replace(SMALL, batch=batch),
        model,
        on_error=lambda source, error: reported.append((source.name, type(error), str(error))),
    )
    name = f"scene {broken}"
    assert reported == [(name, error, f"{name} is broken")]
    good = [pair for k, pair in enumerate(sources) if k != broken]
    assert [result.name for result in results] == [source.name for source, _ in good]
    assert [rows(result) for result in results] == [truth(squares) for _, squares in good]
    assert all(source.closed == 1 for source, _ in sources)
    if batch == 100:  # nothing had been seen when the image broke
        assert len(*model.batches) == sum(len(result.tiles) for result in results)


def test_without_a_report_the_error_is_raised():
    sources = [scene(k)[0] for k in range(3)]
    sources[1].breaks = 2
    stream = detect_sources(Seer(), sources, replace(SMALL, batch=3))  # of nine tiles
    assert next(stream).name == "scene 0"
    with pytest.raises(OSError, match="scene 1 is broken"):
        next(stream)
    assert [source.closed for source in sources] == [1, 1, 0]  # the last one was not pulled


def test_pixels_of_another_size_are_an_error_of_the_source():
    class Short(Drawn):
        def read(self, window):
            return super().read(window)[:-1]

    with pytest.raises(ValueError, match=r"drawn: window .* has pixels \(47, 64, 3\)"):
        run([Short(draw(100, 100, []))])


def test_a_stream_that_is_left_closes_its_source():
    sources = [scene(k)[0] for k in range(3)]
    stream = detect_sources(Seer(), sources, replace(SMALL, batch=1))
    next(stream)
    stream.close()
    assert [source.closed for source in sources] == [1, 0, 0]
    stream = detect_sources(Seer(), [scene(0, 60, 40, 2)[0], sources[2]], replace(SMALL, batch=2))
    next(stream)  # the second source has been begun
    stream.close()
    assert sources[2].closed == 1


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
        ("views", (), "views"),
        ("views", (View(), View(1.0, "none")), "views"),
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


# ---- reading ahead -------------------------------------------------------------------------------


@pytest.fixture
def threaded(monkeypatch):
    """Read ahead in a thread, as is done for a GPU."""
    made = engine._pieces
    monkeypatch.setattr(
        engine, "_pieces", lambda *args, pin: engine._ahead(made(*args, pin=pin), 5)
    )


def test_reading_ahead_changes_nothing(threaded):
    threads = set()

    class Watched(Drawn):
        def read(self, window):
            threads.add(threading.current_thread())
            return super().read(window)

    pairs = [scene(k) for k in range(5)]
    pairs[3][0].breaks = 3
    reported = []
    results = run(
        [Watched(source.image, source.name, source.breaks) for source, _ in pairs],
        on_error=lambda source, error: reported.append((source.name, threading.current_thread())),
    )
    assert [rows(result) for result in results] == [truth(pairs[k][1]) for k in (0, 1, 2, 4)]
    assert reported == [("scene 3", threading.main_thread())]
    assert len(threads) == 1
    assert threading.main_thread() not in threads
    assert not threads & set(threading.enumerate())


def test_a_stream_that_is_left_stops_reading_ahead(threaded):
    class Slow(Drawn):
        def read(self, window):
            time.sleep(0.02)
            return super().read(window)

    before = set(threading.enumerate())
    sources = [Slow(scene(k)[0].image) for k in range(3)]
    stream = detect_sources(Seer(), sources, replace(SMALL, batch=1))
    next(stream)
    assert set(threading.enumerate()) > before
    stream.close()
    assert set(threading.enumerate()) == before
    assert [source.closed for source in sources] == [1, 1, 0]  # the second had been begun


def test_errors_cross_the_thread(threaded):
    def sources():
        yield scene(0)[0]
        raise RuntimeError("no more")

    stream = detect_sources(Seer(), sources(), replace(SMALL, batch=3))
    assert len(next(stream)["boxes"]) == 20
    with pytest.raises(RuntimeError, match="no more"):
        next(stream)


def test_reading_stays_as_far_ahead_as_it_may():
    made = []

    def items():
        for k in range(20):
            made.append(k)
            yield k

    ahead = engine._ahead(items(), 3)
    for k in range(20):
        assert next(ahead) == k
        assert len(made) <= k + 1 + 3
    assert list(ahead) == []


# ---- memory --------------------------------------------------------------------------------------


class Synthetic:
    """20,000 x 20,000 pixels that exist only in the windows that are read: a square every 500."""

    name, width, height, georeference = "huge", 20_000, 20_000, None

    def read(self, window):
        x1, y1, x2, y2 = window
        across, down = ((np.arange(a, b) % 500) // 8 == 30 for a, b in ((x1, x2), (y1, y2)))
        image = np.zeros((y2 - y1, x2 - x1, 3), np.uint8)
        image[np.ix_(down, across, [0])] = 255
        return image

    def close(self):
        pass


class LiveFloats(TorchDispatchMode):
    """Counts the bytes of all float tensors that are alive, and the most at any time."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self._known = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                storage = tensor.untyped_storage()
                if storage._cdata not in self._known:
                    self._known.add(storage._cdata)
                    self.now += storage.nbytes()
                    self.most = max(self.most, self.now)
                    weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return out

    def _gone(self, key, size):
        self._known.discard(key)
        self.now -= size


def test_the_count_of_live_floats_is_right():
    with LiveFloats() as live:
        kept = [torch.zeros(1000)[k:] for k in range(3)]
        torch.ones(2000) + 1
        torch.zeros(10**6, dtype=torch.uint8)
        assert (live.now, live.most) == (12_000, 28_000)
        del kept
        assert live.now == 0


def test_a_huge_image_is_never_whole_in_float():
    how = Detection(batch=4)

    def find(image):
        lit = np.pad(image[0].numpy() > 0.5, 1)  # NumPy's own memory is not counted
        x, y = (
            [np.flatnonzero(np.diff(lit.any(axis).astype(int)) == step) for step in (1, -1)]
            for axis in (0, 1)
        )
        pairs = itertools.product(zip(*y, strict=True), zip(*x, strict=True))
        boxes = [[x1, y1, x2, y2] for (y1, y2), (x1, x2) in pairs]
        sides = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        return {"boxes": sides, "scores": torch.ones(len(boxes)), "labels": torch.ones(len(boxes))}

    with LiveFloats() as live:
        (result,) = detect_sources(
            lambda images: [find(image) for image in images], [Synthetic()], how
        )
    starts = [500 * k + 240 for k in range(40)]
    assert rows(result) == [(x, y, x + 8, y + 8, 1) for x in starts for y in starts]
    assert len(result.tiles) == 37 * 49
    batch_bytes = 4 * 3 * 640 * 512 * 4
    assert batch_bytes <= live.most < 1.5 * batch_bytes  # the whole image would have 4.8 GB


# ---- on a GPU ------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("view", [View(), View(2.0, "both")])
def test_a_gpu_finds_the_same(view):
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
