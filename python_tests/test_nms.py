"""What nms keeps: numbers by hand, a plain double loop, and laws that any correct nms obeys."""

import functools
import itertools

import box_layouts
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from box_layouts import LAYOUTS, SCORES, SETTINGS
from hypothesis import given

from tinyops.ops import nms_reference

METRICS = {"iou": 0, "ios": 1}
SIZES = (0, 1, 2, 31, 32, 33, 63, 64, 65, 200)
THRESHOLDS = (0.5, 0.0, 0.3, 1.0, 0.7)
DTYPES = (torch.float32, torch.float64)


def run(backend, boxes, scores, threshold, *, metric="iou", **options):
    """The kept indices on the CPU, from the operator of `backend`."""
    boxes, scores = boxes.to(backend.device), scores.to(backend.device)
    for name in ("labels", "image_ids"):
        if options.get(name) is not None:
            options[name] = options[name].to(backend.device)
    keep = backend.ops.nms(boxes, scores, threshold, metric=METRICS[metric], **options)
    assert keep.dtype == torch.int64
    assert keep.device == boxes.device
    return keep.cpu()


@np.errstate(all="ignore")  # areas may overflow, and 0/0 is an overlap of nothing
def oracle(boxes, scores, threshold, *, labels=None, image_ids=None, metric="iou", offset=0):
    """The definition as two loops over numpy scalars, which round after every step."""
    rows = boxes.numpy() if boxes.dtype == torch.float64 else boxes.float().numpy()
    offset, zero = rows.dtype.type(offset), rows.dtype.type(0)
    extents = [((x2 - x1) + offset, (y2 - y1) + offset) for x1, y1, x2, y2 in rows]
    areas = [width * height for width, height in extents]
    values, n = scores.double().tolist(), len(rows)
    labels = [0] * n if labels is None else labels.tolist()
    image_ids = [0] * n if image_ids is None else image_ids.tolist()

    def overlap(i, j):
        a, b = rows[i], rows[j]
        width = (min(a[2], b[2]) - max(a[0], b[0])) + offset
        height = (min(a[3], b[3]) - max(a[1], b[1])) + offset
        inter = max(width, zero) * max(height, zero)
        whole = (areas[i] + areas[j]) - inter if metric == "iou" else min(areas[i], areas[j])
        return float(inter / whole)

    keep: list[int] = []
    for j in sorted(range(n), key=lambda k: (-values[k], k)):
        rivals = (i for i in keep if labels[i] == labels[j] and image_ids[i] == image_ids[j])
        if not any(overlap(i, j) > threshold for i in rivals):
            keep.append(j)
    return torch.tensor(keep, dtype=torch.int64)


@functools.cache
def case(layout, n, kind, threshold, dtype, metric="iou", offset=0, grouped=False):
    """Arguments, options and the oracle's answer, worked out once for all backends."""
    arguments = (
        box_layouts.boxes(layout, n, dtype),
        box_layouts.scores(kind, n, dtype),
        threshold,
    )
    options = {"metric": metric, "offset": offset}
    if grouped:
        options |= {"labels": box_layouts.ids(n, 3), "image_ids": box_layouts.ids(n, 2, seed=1)}
    return arguments, options, oracle(*arguments, **options)


# ---- by hand -------------------------------------------------------------------------------------


def test_boxes_by_hand(backend):
    boxes = torch.tensor(
        [
            [0.0, 0.0, 10.0, 10.0],
            [1.0, 0.0, 11.0, 10.0],  # IoU 90/110 with the first
            [5.0, 0.0, 15.0, 10.0],  # 50/150 with the first, 60/140 with the second
            [100.0, 100.0, 110.0, 110.0],  # alone
            [100.0, 100.0, 105.0, 110.0],  # half of that one
        ]
    )
    scores = torch.tensor([0.8, 0.9, 0.7, 0.1, 0.2])
    for threshold, kept in (
        (0.5, [1, 2, 4, 3]),
        (0.4999, [1, 2, 4]),
        (0.4, [1, 4]),
        (0.9, [1, 0, 2, 4, 3]),
        (0.0, [1, 4]),
    ):
        assert run(backend, boxes, scores, threshold).tolist() == kept
    labels = torch.tensor([1, 2, 1, 1, 2])
    assert run(backend, boxes, scores, 0.4, labels=labels).tolist() == [1, 0, 2, 4, 3]
    assert run(backend, boxes, scores, 0.3, labels=labels).tolist() == [1, 0, 4, 3]


def test_suppressed_boxes_suppress_nobody(backend):
    boxes = box_layouts.boxes("line", 5) + torch.tensor([0.0, 0, 8, 0])  # each covers half the next
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5])
    assert run(backend, boxes, scores, 0.3).tolist() == [0, 2, 4]


def test_intersection_over_smaller_by_hand(backend):
    boxes = torch.tensor([[0.0, 0, 10, 10], [2.0, 2, 4, 4], [9.0, 0, 11, 10], [0.0, 0, 10, 10]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    assert run(backend, boxes, scores, 0.5, metric="iou").tolist() == [0, 1, 2]
    assert run(backend, boxes, scores, 0.5, metric="ios").tolist() == [0, 2]  # the third: 10/20
    assert run(backend, boxes, scores, 0.4999, metric="ios").tolist() == [0]
    assert run(backend, boxes, scores, 1.0, metric="ios").tolist() == [0, 1, 2, 3]
    order = torch.tensor([1, 2, 3, 0])  # the small one first: the metric is symmetric
    kept = run(backend, boxes[order], torch.tensor([0.9, 0.8, 0.7, 0.6]), 0.5, metric="ios")
    assert kept.tolist() == [0, 1]


def test_offset_by_hand(backend):
    boxes = torch.tensor([[0.0, 0, 4, 4], [2.0, 0, 6, 4]])  # IoU 8/24; in pixels 15/35
    scores = torch.tensor([0.9, 0.8])
    assert run(backend, boxes, scores, 0.4).tolist() == [0, 1]
    assert run(backend, boxes, scores, 0.4, offset=1).tolist() == [0]
    points = torch.tensor([[3.0, 3, 3, 3], [3.0, 3, 3, 3], [4.0, 3, 4, 3]])  # one pixel each
    scores = torch.tensor([0.9, 0.8, 0.7])
    assert run(backend, points, scores, 0.5, offset=1).tolist() == [0, 2]
    assert run(backend, points, scores, 0.5).tolist() == [0, 1, 2]
    touching = torch.tensor([[0.0, 0, 3, 3], [3.5, 0, 6.5, 3]])  # half a pixel apart, yet 2/30
    assert run(backend, touching, scores[:2], 0.0, offset=1).tolist() == [0]
    assert run(backend, touching, scores[:2], 0.0).tolist() == [0, 1]


# ---- against the double loop ---------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_reference_is_the_double_loop(layout):
    for metric, offset, grouped, dtype in itertools.product(METRICS, (0, 1), (False, True), DTYPES):
        arguments, options, expected = case(
            layout, 65, "tied", 0.3, dtype, metric=metric, offset=offset, grouped=grouped
        )
        assert torch.equal(nms_reference(*arguments, **options), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_size_and_threshold(backend, layout):
    shift = LAYOUTS.index(layout)  # so that all meet, though not in every layout
    for k, n in enumerate(SIZES):
        kind, dtype = SCORES[(k + shift) % len(SCORES)], DTYPES[(k + shift // 2) % 2]
        threshold = THRESHOLDS[(k + shift // 5) % len(THRESHOLDS)]
        arguments, options, expected = case(layout, n, kind, threshold, dtype)
        assert torch.equal(run(backend, *arguments, **options), expected), (n, kind, threshold)


@pytest.mark.parametrize("grouped", [False, True], ids=["alone", "grouped"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_metrics_and_offsets(backend, layout, grouped):
    for k, (metric, offset) in enumerate(itertools.product(METRICS, (0, 1))):
        for threshold in (0.5, 0.0, 0.2):
            dtype = DTYPES[(k + LAYOUTS.index(layout)) % 2]
            arguments, options, expected = case(
                layout, 80, "distinct", threshold, dtype, metric, offset, grouped
            )
            actual = run(backend, *arguments, **options)
            assert torch.equal(actual, expected), (metric, offset, threshold)


@SETTINGS
@given(data=st.data())
def test_drawn_boxes(backend, data):
    n = data.draw(st.integers(0, 40))
    boxes, scores = data.draw(box_layouts.drawn_boxes(n)), data.draw(box_layouts.drawn_scores(n))
    ids = st.one_of(st.none(), box_layouts.drawn_ids(n))
    options = {
        "labels": data.draw(ids),
        "image_ids": data.draw(ids),
        "metric": data.draw(st.sampled_from(list(METRICS))),
        "offset": data.draw(st.sampled_from([0, 1])),
    }
    threshold = data.draw(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, 1 / 3, 0.05]))
    dtype = data.draw(st.sampled_from(DTYPES))
    arguments = (boxes.to(dtype), scores.to(dtype), threshold)
    assert torch.equal(run(backend, *arguments, **options), oracle(*arguments, **options))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_types_are_computed_in_float32(backend, dtype):
    for layout in ("dup", "mixed", "grid_aligned"):
        boxes = box_layouts.boxes(layout, 150, dtype)
        scores = box_layouts.scores("distinct", 150, dtype)  # many tie in bfloat16
        expected = oracle(boxes, scores, 0.4)
        assert torch.equal(run(backend, boxes, scores, 0.4), expected)
        assert torch.equal(run(backend, boxes.float(), scores.float(), 0.4), expected)
    boxes = torch.tensor([[0, 0, 60000, 60000], [0, 0, 60000, 50000.0]]).to(dtype)  # area > 65504
    assert run(backend, boxes, torch.ones(2, dtype=dtype), 0.7).tolist() == [0]


@pytest.mark.parametrize("box_dtype", [torch.float32, torch.float64, torch.float16])
def test_scores_may_be_of_another_type_than_boxes(backend, box_dtype):
    boxes = box_layouts.boxes("dup", 60, box_dtype)
    # In float32 these scores are all equal.
    scores = 1 + 2.0**-40 * box_layouts.scores("distinct", 60, torch.float64)
    assert torch.equal(run(backend, boxes, scores, 0.5), oracle(boxes, scores, 0.5))


# ---- where overlap meets threshold ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("metric", METRICS)
def test_overlap_equal_to_the_threshold_is_kept(backend, dtype, metric):
    for of, part in ((2, 1), (4, 1), (4, 3), (8, 7), (64, 1), (1024, 1023)):
        # part/of of the first box; the second has the same IoS with a third one beside it
        if metric == "iou":
            boxes = torch.tensor([[0.0, 0, of, 1], [0, 0, part, 1]], dtype=dtype)
        else:
            boxes = torch.tensor([[0.0, 0, of, 1], [of - part, 0, 2 * of - part, 1]], dtype=dtype)
        scores = torch.tensor([0.5, 0.25], dtype=dtype)
        exactly = part / of
        below = np.nextafter(exactly, 0)  # equal to it in float32, but thresholds are float64
        assert run(backend, boxes, scores, exactly, metric=metric).tolist() == [0, 1]
        assert run(backend, boxes, scores, below, metric=metric).tolist() == [0]


def test_threshold_is_not_rounded_to_float32(backend):
    boxes = torch.tensor([[0.0, 0, 3, 1], [0, 0, 1, 1]])  # float32(1/3) is above 1/3
    scores = torch.tensor([0.5, 0.25])
    third = torch.tensor(1 / 3).item()
    assert run(backend, boxes, scores, 1 / 3).tolist() == [0]
    assert run(backend, boxes, scores, third).tolist() == [0, 1]
    assert run(backend, boxes.double(), scores.double(), 1 / 3).tolist() == [0, 1]


def test_threshold_one_keeps_all_and_zero_keeps_what_is_apart(backend):
    for layout in ("identical", "dup", "nested", "chain"):
        boxes, scores = box_layouts.boxes(layout, 70), box_layouts.scores("distinct", 70)
        ranked = scores.argsort(descending=True, stable=True)
        assert torch.equal(run(backend, boxes, scores, 1.0), ranked)
    for layout, kept in (("identical", 1), ("line", 70), ("nested", 1)):
        boxes, scores = box_layouts.boxes(layout, 70), box_layouts.scores("distinct", 70)
        assert len(run(backend, boxes, scores, 0.0)) == kept


def test_boxes_without_area_are_kept_and_suppress_nobody(backend):
    boxes = torch.tensor(
        [[5.0, 5, 5, 5], [0, 0, 10, 10], [5, 5, 5, 5], [0, 5, 10, 5], [0, 5, 10, 5], [0, 0, 9, 10]]
    )
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    for metric in METRICS:
        assert run(backend, boxes, scores, 0.0, metric=metric).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_numbers(backend, dtype):
    """Extents and areas are infinite, overlaps inf/inf: not above any threshold, as written."""
    big = torch.finfo(dtype).max
    rows = [
        [-big, -big, big, big],
        [-big, -big, big, big],
        [-big, 0, big, 0],  # inf * 0
        [0, 0, big, 1],
        [0, 0, big, 1],
        [0, 0, 1e-30, 1e-30],
        [big, big, big, big],
        [-1, -1, 1, 1],
        [-1, -1, 1, 1],
        [big / 2, 0, big, 1],
    ]
    boxes, scores = torch.tensor(rows, dtype=dtype), torch.linspace(1, 0, len(rows), dtype=dtype)
    for metric, offset, threshold in itertools.product(METRICS, (0, 1), (0.0, 0.4, 1.0)):
        options = {"metric": metric, "offset": offset}
        expected = oracle(boxes, scores, threshold, **options)
        assert torch.equal(run(backend, boxes, scores, threshold, **options), expected)


# ---- order ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_equal_scores_by_index(backend, kind, dtype):
    scores = box_layouts.scores(kind, 200, dtype)
    boxes = box_layouts.boxes("line", 200)
    expected = scores.double().argsort(descending=True, stable=True)
    assert torch.equal(run(backend, boxes, scores, 0.5), expected)


# ---- labels and images ---------------------------------------------------------------------------

AWKWARD = (
    0,
    1,
    -1,
    2,
    255,
    256,
    1 << 16,
    1 << 31,
    1 << 32,
    (1 << 32) + 1,
    -(1 << 63),
    (1 << 63) - 1,
)


def test_labels_and_images_are_compared_in_full(backend):
    pairs = torch.tensor(list(itertools.product(AWKWARD, AWKWARD)))
    labels, image_ids = pairs.repeat(2, 1).T
    n = len(labels)
    boxes, scores = box_layouts.boxes("identical", n), box_layouts.scores("equal", n)
    for options in (
        {"labels": labels},
        {"image_ids": labels},
        {"labels": labels, "image_ids": image_ids},
    ):
        expected = len(AWKWARD) ** len(options)
        first = {}
        for k, key in enumerate(zip(*(x.tolist() for x in options.values()), strict=True)):
            first.setdefault(key, k)
        assert len(first) == expected
        assert run(backend, boxes, scores, 0.5, **options).tolist() == list(first.values())


def test_batch_is_its_images_one_by_one(backend):
    boxes, scores = box_layouts.boxes("crowd", 300), box_layouts.scores("tied", 300)
    labels, image_ids = box_layouts.ids(300, 4), box_layouts.ids(300, 7, seed=3)
    keep = run(backend, boxes, scores, 0.3, labels=labels, image_ids=image_ids)
    for image in image_ids.unique():
        mine = torch.where(image_ids == image)[0]
        alone = run(backend, boxes[mine], scores[mine], 0.3, labels=labels[mine])
        assert torch.equal(keep[image_ids[keep] == image], mine[alone])
    ranked = scores.argsort(descending=True, stable=True)
    assert torch.equal(keep, ranked[torch.isin(ranked, keep)])


# ---- laws ----------------------------------------------------------------------------------------


@SETTINGS
@given(data=st.data())
def test_laws(backend, data):
    n = data.draw(st.integers(1, 40))
    boxes = data.draw(box_layouts.drawn_boxes(n))
    scores = box_layouts.scores("distinct", n)
    threshold = data.draw(st.sampled_from([0.0, 0.25, 0.5, 0.75]))
    metric = data.draw(st.sampled_from(list(METRICS)))
    keep = run(backend, boxes, scores, threshold, metric=metric)

    again = run(backend, boxes[keep], scores[keep], threshold, metric=metric)
    assert again.tolist() == list(range(len(keep)))  # the kept suppress nothing

    order = torch.tensor(data.draw(st.permutations(range(n))))
    shuffled = run(backend, boxes[order], scores[order], threshold, metric=metric)
    assert torch.equal(order[shuffled], keep)

    # Exact on the grid of the drawn boxes, in float32 too.
    scale = 2.0 ** data.draw(st.integers(-20, 20))
    moved = (boxes + data.draw(st.integers(-500, 500))) * scale
    assert torch.equal(run(backend, moved.float(), scores, threshold, metric=metric), keep)
    turned = boxes[:, [1, 0, 3, 2]]
    assert torch.equal(run(backend, turned, scores, threshold, metric=metric), keep)

    gone = [k for k in range(n) if k not in keep.tolist()]
    if gone:  # a suppressed box changes nothing by being there
        without = data.draw(st.sampled_from(gone))
        rest = torch.tensor([k for k in range(n) if k != without])
        less = run(backend, boxes[rest], scores[rest], threshold, metric=metric)
        assert torch.equal(rest[less], keep)
