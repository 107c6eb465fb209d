"""attention_targets against painting whole images and resizing them in numpy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyops.ops import attention_targets, attention_targets_reference

STRIDES = (4, 8, 16, 32)
BANDS = ((4, 32), (8, 64), (16, 128), (32, 256))


def paint(boxes, image_ids, sizes, strides, bands, strict):
    """The canvas of every level, at full resolution: SSPNet's loop over boxes."""
    images, height, width = sizes
    canvases = [np.zeros((images, height, width)) for _ in strides]
    for (x1, y1, x2, y2), image in zip(boxes, image_ids, strict=True):
        left, top = max(int(x1), 0), max(int(y1), 0)
        right = min(max(math.ceil(x2), 0), width - 1)
        bottom = min(max(math.ceil(y2), 0), height - 1)
        if right <= left or bottom <= top:
            continue
        size = math.sqrt((right - left) * (bottom - top))
        for level, (low, high) in enumerate(bands):
            first, last = level == 0, level == len(bands) - 1
            if strict:
                positive = low < size < high or (first and size < low) or (last and size > low)
            else:
                positive = (low <= size or first) and (size < high or last)
            canvases[level][image, top:bottom, left:right] = 1 if positive else -1
    return canvases


def resize(canvas, axis, out):
    """Bilinear along one axis, half-pixel centres, two taps, no antialiasing."""
    size = canvas.shape[axis]
    place = (np.arange(out) + 0.5) * (size / out) - 0.5
    first = np.floor(place).astype(int)
    weight = place - first
    second = np.minimum(first + 1, size - 1)
    shape = [-1 if d == axis else 1 for d in range(canvas.ndim)]
    weight = weight.reshape(shape)
    return canvas.take(first, axis) * (1 - weight) + canvas.take(second, axis) * weight


def oracle(boxes, image_ids, sizes, strides=STRIDES, bands=BANDS, strict=False):
    maps = []
    canvases = paint(boxes.tolist(), image_ids.tolist(), sizes, strides, bands, strict)
    for canvas, stride in zip(canvases, strides, strict=True):
        if canvas.size:
            for axis in (1, 2):
                canvas = resize(canvas, axis, -(-canvas.shape[axis] // stride))
        else:
            canvas = canvas[:, : -(-canvas.shape[1] // stride), : -(-canvas.shape[2] // stride)]
        maps.append(torch.from_numpy(canvas[:, None].copy()))
    return maps


def run(backend, boxes, image_ids, sizes, strides=STRIDES, bands=BANDS, strict=False, check=True):
    flat = [float(x) for band in bands for x in band]
    return backend.ops.attention_targets(
        boxes.to(backend.device), image_ids.to(backend.device), *sizes, strides, flat, strict, check
    )


def expect(backend, boxes, image_ids, sizes, **options):
    actual = run(backend, boxes, image_ids, sizes, **options)
    expected = oracle(boxes, image_ids, sizes, **options)
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == torch.float32
        assert a.is_contiguous()
        assert a.device.type == backend.device
        torch.testing.assert_close(a.cpu().double(), b, rtol=0, atol=1e-6)
    return actual


def random_boxes(count, sizes, spread=60.0):
    images, height, width = sizes
    centres = torch.rand(count, 2) * torch.tensor([width + 30.0, height + 30.0]) - 15
    halves = (torch.rand(count, 2) ** 2) * spread / 2
    boxes = torch.cat([centres - halves, centres + halves], 1)
    return boxes, torch.randint(max(images, 1), (count,))


def test_by_hand(backend):
    # Cells are interpolated from the pixels 1, 2 (both weights 1/2), 5, 6, and so on.
    boxes = torch.tensor([[2.0, 1.0, 6.0, 9.0]])  # rows 1..8, columns 2..5, size sqrt(32)
    (out,) = run(backend, boxes, torch.tensor([0]), (1, 16, 12), (4,), ((4, 32),))
    expected = [[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 0], [0, 0, 0]]
    assert out.tolist() == [[expected]]
    fine, coarse = run(backend, boxes, torch.tensor([0]), (1, 16, 12), (4, 8), ((1, 5), (7, 9)))
    assert fine.tolist() == [[(-torch.tensor(expected)).tolist()]]
    # 16 -> 2 rows and 12 -> 2 columns: rows 3, 4 and columns 2, 3 (weights 1/2), then 11, 12; 8, 9
    assert coarse.tolist() == [[[[-1, 0], [0, 0]]]]


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("sizes", [(1, 96, 128), (3, 61, 97), (2, 33, 30), (1, 8, 200), (2, 3, 2)])
def test_random_boxes(backend, sizes, strict):
    maps = expect(backend, *random_boxes(60, sizes), sizes, strict=strict)
    painted = torch.cat([x.flatten() for x in maps])
    assert sizes[1] == 3 or ((painted > 0).any() and (painted < 0).any())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    sizes=st.tuples(st.integers(0, 3), st.integers(0, 40), st.integers(0, 40)),
    strides=st.lists(st.integers(1, 50), min_size=1, max_size=5),
    corners=st.lists(
        st.tuples(
            *[st.sampled_from([-9.5, -1, 0, 0.5, 1, 3, 4, 7.25, 8, 15.9, 16, 32, 39, 90])] * 4
        ),
        max_size=8,
    ),
    strict=st.booleans(),
    data=st.data(),
)
@pytest.mark.parametrize("name", ["cpu", "sim"])
def test_any_layout(name, sizes, strides, corners, strict, data):
    import backends

    boxes = torch.tensor(
        [[min(a, c), min(b, d), max(a, c), max(b, d)] for a, b, c, d in corners],
        dtype=torch.float32,
    ).view(-1, 4)
    boxes = boxes if sizes[0] else boxes[:0]
    ids = data.draw(st.lists(st.integers(0, max(sizes[0] - 1, 0)), min_size=8, max_size=8))
    numbers = st.sampled_from([0.0, 1, 4, 8, math.sqrt(8), 16, 100, math.inf])
    bands = [sorted((data.draw(numbers), data.draw(numbers))) for _ in strides]
    expect(
        backends.get(name),
        boxes,
        torch.tensor(ids)[: len(boxes)],
        sizes,
        strides=strides,
        bands=bands,
        strict=strict,
    )


# size: signs on the four levels, half-open and as released
BOUNDARIES = {
    3: ("+---", "+---"),
    4: ("+---", "----"),
    8: ("++--", "+---"),
    16: ("+++-", "++--"),
    32: ("-+++", "-++-"),
    64: ("--++", "--++"),
    128: ("---+", "---+"),
    256: ("---+", "---+"),
    300: ("---+", "---+"),
}


@pytest.mark.parametrize("size", BOUNDARIES)
def test_sizes_at_the_limits_of_the_bands(backend, size):
    boxes = torch.tensor([[0.0, 0, size, size]])
    for strict in (False, True):
        maps = run(backend, boxes, torch.tensor([0]), (1, 320, 320), strict=strict)
        # Of every level the sign of what is painted; coarse cells may miss a small box.
        signs = ["+" if x.sum() > 0 else "-" if x.sum() < 0 else None for x in maps]
        for sign, expected in zip(signs, BOUNDARIES[size][strict], strict=True):
            assert sign in (expected, None)
        assert signs[0] is not None
        assert size < 16 or None not in signs[:3]


def test_later_boxes_paint_over_earlier_ones(backend):
    small, large = [8.0, 8, 16, 16], [0.0, 0, 60, 60]  # positive and negative on the first level
    for boxes in ([small, large], [large, small], [large, small, large]):
        boxes = torch.tensor(boxes)
        maps = expect(backend, boxes, torch.zeros(len(boxes), dtype=torch.int64), (1, 64, 64))
        assert maps[0][0, 0, 2, 2] == (1 if boxes[-1].tolist() == small else -1)


def test_images_do_not_meet(backend):
    sizes = (5, 50, 70)
    boxes, ids = random_boxes(80, sizes)
    ids[ids == 3] = 2  # an image without boxes
    maps = run(backend, boxes, ids, sizes)
    for image in range(5):
        own = ids == image
        alone = run(backend, boxes[own], torch.zeros_like(ids[own]), (1, 50, 70))
        for a, b in zip(maps, alone, strict=True):
            assert torch.equal(a[image : image + 1], b)
    assert maps[0][3].count_nonzero() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_dtypes_and_strides(backend, dtype):
    sizes = (2, 64, 80)
    boxes, ids = random_boxes(40, sizes)
    boxes = boxes.to(dtype)
    expected = expect(backend, boxes, ids, sizes)
    columns = boxes.t().contiguous().t().to(backend.device)
    shifted = torch.cat([boxes.flatten()[:1], boxes.flatten()])[1:].view(-1, 4)
    spaced = torch.stack([ids, -ids], 1)[:, 0]
    for own_boxes, own_ids in ((columns, spaced), (shifted, ids)):
        actual = run(backend, own_boxes, own_ids, sizes)
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_every_backend_gives_the_bits_of_the_cpu(backend):
    for sizes in ((2, 101, 67), (1, 64, 64)):
        boxes, ids = random_boxes(50, sizes)
        flat = [float(x) for band in BANDS for x in band]
        expected = torch.ops.tinyops.attention_targets(boxes, ids, *sizes, STRIDES, flat, False)
        actual = run(backend, boxes, ids, sizes)
        for a, b in zip(actual, expected, strict=True):
            assert torch.equal(a.cpu().view(torch.int32), b.view(torch.int32))  # -0.0, too


def test_threads_do_not_change_the_maps():
    sizes = (9, 400, 300)
    boxes, ids = random_boxes(200, sizes)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = attention_targets(boxes, ids, sizes)
        torch.set_num_threads(4)
        actual = attention_targets(boxes, ids, sizes)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_reference_is_the_oracle_too():
    sizes = (2, 61, 90)
    boxes, ids = random_boxes(40, sizes)
    for strict in (False, True):
        actual = attention_targets_reference(boxes, ids, sizes, strict=strict)
        expected = oracle(boxes, ids, sizes, strict=strict)
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=0, atol=1e-6)


def test_empty_batches_and_images(backend):
    none, no_ids = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    for sizes in ((0, 64, 64), (2, 0, 64), (2, 64, 0), (0, 0, 0), (2, 64, 64)):
        maps = run(backend, none, no_ids, sizes)
        n, h, w = sizes
        assert [tuple(x.shape) for x in maps] == [(n, 1, -(-h // s), -(-w // s)) for s in STRIDES]
        assert all(x.count_nonzero() == 0 for x in maps)
    boxes = torch.tensor([[0.0, 0, 9, 9]])
    for sizes in ((1, 0, 64), (1, 64, 0), (1, 1, 64)):
        maps = run(backend, boxes, torch.tensor([0]), sizes)
        assert all(x.count_nonzero() == 0 for x in maps)


def test_boxes_outside_thin_and_huge(backend):
    boxes = torch.tensor(
        [
            [-50.0, -50, -10, -10],
            [200.0, 200, 300, 300],
            [10.0, 10, 10, 20],
            [-1e30, -1e30, 1e30, 5],
            [3e9, 0, 4e9, 9],
            [-5.5, 20.5, 7.5, 3e38],
        ]
    )
    expect(backend, boxes, torch.zeros(6, dtype=torch.int64), (1, 64, 96))
