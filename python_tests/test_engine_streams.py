"""Streaming detection: batches, errors, reading ahead, and what is held meanwhile."""

import itertools
import threading
import time
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from squares import SMALL, Drawn, Seer, draw, rows, run, scene, truth
from torch.utils._python_dispatch import TorchDispatchMode

from tinyops.inference import engine
from tinyops.inference.engine import detect_sources
from tinyops.inference.types import Detection
from tinyops.inference.views import plan_tiles


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


@pytest.mark.parametrize("batch", [1, 4, 100])
@pytest.mark.parametrize(
    ("broken", "breaks", "error"), [(0, 0, OSError), (2, 5, ValueError), (3, 2, OSError)]
)
def test_a_broken_image_is_reported_and_the_others_go_on(broken, breaks, batch, error):
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


class Synthetic:
    """20,000 x 4,000 pixels that exist only in the windows that are read: a square every 500."""

    name, width, height, georeference = "huge", 20_000, 4_000, None

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
    assert rows(result) == [(x, y, x + 8, y + 8, 1) for x in starts for y in starts[:8]]
    assert len(result.tiles) == 37 * 10
    batch_bytes = 4 * 3 * 640 * 512 * 4
    assert batch_bytes <= live.most < 1.5 * batch_bytes  # the whole image would have 0.96 GB
