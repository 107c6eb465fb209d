"""soft_nms against a plain Python oracle, and the sizes and types that it takes."""

import math

import backends
import helpers
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinyops.ops import soft_nms

METHODS = ("linear", "gaussian")


def run(backend, boxes, scores, method="linear", **options):
    """The operator itself, on the device of the backend; results on the CPU."""
    move = {k: v.to(backend.device) if torch.is_tensor(v) else v for k, v in options.items()}
    keep, final = backend.ops.soft_nms(
        boxes.to(backend.device), scores.to(backend.device), method=METHODS.index(method), **move
    )
    return keep.cpu(), final.cpu()


def oracle(
    boxes, scores, method="linear", iou_threshold=0.3, sigma=0.5, min_score=0.05, groups=None
):
    """The definition, step by step, in the arithmetic of the inputs."""
    boxes, scores = boxes.numpy(), scores.numpy().copy()
    number = scores.dtype.type
    groups = [0] * len(scores) if groups is None else groups
    left = {k for k in range(len(scores)) if scores[k] >= number(min_score)}
    keep, final = [], []
    while left:
        best = min(left, key=lambda k: (-scores[k], k))
        left.remove(best)
        keep.append(best)
        final.append(scores[best])
        for k in sorted(left):
            if groups[k] != groups[best]:
                continue
            overlap = iou(boxes[best], boxes[k])
            if method == "linear" and overlap > iou_threshold:
                scores[k] *= number(1.0 - overlap)
            elif method == "gaussian" and overlap > 0:
                scores[k] *= number(math.exp(-(overlap**2) / sigma))
            if not scores[k] >= number(min_score):
                left.remove(k)
    return torch.tensor(keep, dtype=torch.int64), torch.from_numpy(np.array(final, scores.dtype))


def iou(a, b):
    width = max(min(a[2], b[2]) - max(a[0], b[0]), a[0] - a[0])
    height = max(min(a[3], b[3]) - max(a[1], b[1]), a[0] - a[0])
    both = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return float(both / union) if union > 0 else 0.0  # NumPy would round what it is compared with


def assert_is_oracle(backend, boxes, scores, method, labels=None, image_ids=None, **options):
    columns = [x.tolist() for x in (labels, image_ids) if x is not None]
    groups = list(zip(*columns, strict=True)) if columns else None
    ids = {"labels": labels, "image_ids": image_ids}
    keep, final = run(backend, boxes, scores, method, **ids, **options)
    expected_keep, expected = oracle(boxes, scores, method, groups=groups, **options)
    assert torch.equal(keep, expected_keep)
    if method == "linear":
        assert torch.equal(final, expected)
    else:  # the factor is rounded once, from an exponential that may differ in its last bit
        torch.testing.assert_close(
            final, expected, rtol=4e-15 if final.dtype == torch.float64 else 1e-6, atol=0
        )


def crowd(n, seed=0, dtype=torch.float32, spread=60.0):
    """Boxes of 2 to 20 pixels that overlap a lot, with distinct scores."""
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=g, dtype=dtype) * spread
    size = 2 + torch.rand(n, 2, generator=g, dtype=dtype) ** 3 * 18
    scores = (torch.randperm(n, generator=g) + 1).to(dtype) / n
    return torch.cat([corner, corner + size], 1), scores


# ---- values --------------------------------------------------------------------------------------

PAIR = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.0], [50.0, 50.0, 60.0, 60.0]])


def test_by_hand(backend):  # the IoU of the first two is exactly 1/2
    scores = torch.tensor([0.75, 0.5, 0.375])
    keep, final = run(backend, PAIR, scores, "linear")
    assert keep.tolist() == [0, 2, 1]
    assert final.tolist() == [0.75, 0.375, 0.25]
    keep, final = run(backend, PAIR, scores, "gaussian", sigma=0.5)
    assert keep.tolist() == [0, 2, 1]
    torch.testing.assert_close(final, torch.tensor([0.75, 0.375, 0.5 * math.exp(-0.5)]))


def test_public_function_takes_words():
    scores = torch.tensor([0.75, 0.5, 0.375])
    for method in METHODS:
        expected = run(backends.get("cpu"), PAIR, scores, method, sigma=0.25)
        actual = soft_nms(PAIR, scores, method=method, sigma=0.25)
        assert all(map(torch.equal, actual, expected))
    assert soft_nms(PAIR, scores)[1].tolist() == [0.75, 0.375, 0.25]
    with pytest.raises(RuntimeError, match="soft_nms: method must be one of 'linear', 'gaussian'"):
        soft_nms(PAIR, scores, method="hard")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_crowds_are_those_of_the_oracle(backend, method, dtype):
    for seed, options in enumerate(
        ({}, {"iou_threshold": 0.0, "sigma": 0.1}, {"iou_threshold": 0.7, "sigma": 5.0},
         {"min_score": 0.0}, {"min_score": 0.4}, {"iou_threshold": 1.0, "min_score": 0.9})
    ):  # fmt: skip
        boxes, scores = crowd(150, seed, dtype)
        assert_is_oracle(backend, boxes, scores, method, **options)


@pytest.mark.parametrize("method", METHODS)
def test_labels_and_images_keep_boxes_apart(backend, method):
    boxes, scores = crowd(200, 5)
    labels = torch.randint(-2, 3, (200,)) * (1 << 40)  # more than 32 bits
    image_ids = torch.randint(0, 3, (200,))
    for ids in ((labels, None), (None, image_ids), (labels, image_ids)):
        assert_is_oracle(backend, boxes, scores, method, *ids)


@pytest.mark.parametrize("method", METHODS)
def test_sizes_of_all_magnitudes(backend, method):
    g = torch.Generator().manual_seed(3)
    size = 10 ** (torch.rand(150, 2, generator=g, dtype=torch.float64) * 6 - 3)
    corner = (torch.rand(150, 2, generator=g, dtype=torch.float64) - 0.5) * size.max(1, True)[0] * 3
    boxes = torch.cat([corner, corner + size], 1)
    scores = torch.rand(150, generator=g, dtype=torch.float64)
    for dtype in (torch.float32, torch.float64):
        options = {"iou_threshold": 0.01, "min_score": 0.01, "sigma": 0.01}
        assert_is_oracle(backend, boxes.to(dtype), scores.to(dtype), method, **options)
        scaled = (boxes * 1e-30).to(dtype)
        assert_is_oracle(backend, scaled, scores.to(dtype), method, **options)


coordinate = st.integers(0, 6)
rows = st.tuples(coordinate, coordinate, coordinate, coordinate, st.integers(0, 4))


@pytest.mark.parametrize("method", METHODS)
@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # a backend has no state
)
@given(data=st.lists(rows, max_size=12), threshold=st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_small_layouts_with_ties(backend, method, data, threshold):
    boxes = torch.tensor([[min(a, c), min(b, d), max(a, c), max(b, d)] for a, b, c, d, _ in data])
    scores = torch.tensor([s / 4 for *_, s in data])
    boxes, scores = boxes.reshape(-1, 4).double(), scores.double()
    options = {"iou_threshold": threshold, "min_score": 0.0}
    assert_is_oracle(backend, boxes, scores, method, **options)


def test_equal_scores_go_by_index(backend):
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0]]).repeat(5, 1)
    keep, final = run(backend, boxes, torch.full((5,), 0.5), "gaussian", min_score=0.0)
    assert keep.tolist() == [0, 1, 2, 3, 4]
    keep, final = run(backend, boxes, torch.full((5,), 0.5), "linear", min_score=0.0)
    assert keep.tolist() == [0, 1, 2, 3, 4]
    assert final.tolist() == [0.5, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("method", METHODS)
def test_order_of_the_input_does_not_matter(backend, method):
    boxes, scores = crowd(200, 8)
    keep, final = run(backend, boxes, scores, method)
    order = torch.randperm(200)
    keep_of_shuffled, final_of_shuffled = run(backend, boxes[order], scores[order], method)
    assert torch.equal(order[keep_of_shuffled], keep)
    assert torch.equal(final_of_shuffled, final)
    assert (final.diff() <= 0).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bits_are_those_of_the_cpu(backend, method, dtype):
    boxes, scores = crowd(250, 9, dtype)
    for options in ({}, {"iou_threshold": 0.0, "sigma": 0.01, "min_score": 0.0}):
        expected = run(backends.get("cpu"), boxes, scores, method, **options)
        assert all(map(torch.equal, run(backend, boxes, scores, method, **options), expected))


def test_iou_at_the_threshold_takes_nothing(backend):
    scores = torch.tensor([0.75, 0.5, 0.375])
    _, final = run(backend, PAIR, scores, "linear", iou_threshold=0.5)
    assert final.tolist() == [0.75, 0.5, 0.375]


def test_scores_at_the_minimum_stay(backend):
    scores = torch.tensor([0.75, 0.5, 0.375])
    keep, _ = run(backend, PAIR, scores, "linear", min_score=0.25)
    assert keep.tolist() == [0, 2, 1]
    keep, _ = run(backend, PAIR, scores, "linear", min_score=0.2500001)
    assert keep.tolist() == [0, 2]
    keep, _ = run(backend, PAIR, scores, "linear", min_score=0.4)
    assert keep.tolist() == [0]
    # 0.7 is compared as float32, which is less than 0.7
    keep, _ = run(backend, PAIR[:1], torch.tensor([0.7]), "linear", min_score=0.7)
    assert keep.tolist() == [0]


def test_negative_scores_go_and_infinite_ones_stay(backend):
    inf = float("inf")
    boxes = PAIR[:1].repeat(4, 1)
    keep, final = run(backend, boxes, torch.tensor([-1.0, inf, -inf, inf]), min_score=0.0)
    assert keep.tolist() == [1, 3]
    assert final.tolist() == [inf, 0.0]


@pytest.mark.parametrize("method", METHODS)
def test_boxes_without_area_overlap_nothing(backend, method):
    boxes = torch.tensor(
        [[0.0, 0, 10, 10], [5, 5, 5, 8], [5, 5, 5, 5], [0, 0, 10, 0], [5, 5, 5, 8]]
    )
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5])
    keep, final = run(backend, boxes, scores, method, iou_threshold=0.0)
    assert keep.tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(final, scores)


@pytest.mark.parametrize("method", METHODS)
def test_areas_beyond_the_type_overlap_nothing(backend, method):
    big = torch.finfo(torch.float32).max
    boxes = torch.tensor([[-big, -big, big, big], [-big, 0.0, big, 1.0], [0.0, 0.0, 1e30, 1e30]])
    scores = torch.tensor([0.9, 0.8, 0.7])
    keep, final = run(backend, boxes, scores, method, iou_threshold=0.0)
    assert keep.tolist() == [0, 1, 2]
    assert torch.equal(final, scores)


@pytest.mark.parametrize("sigma", [1e-300, 1e-3, 0.05, 0.5, 3.0, 1e300])
def test_exponential_to_the_last_bits(backend, sigma):
    widths = torch.arange(1, 65, dtype=torch.float64) / 64  # the IoU with the last, exactly
    boxes = torch.stack([0 * widths, 0 * widths, widths, 0 * widths + 1], 1)
    for k in range(0, 63, 3):
        pair = boxes[[63, k]]
        _, final = run(
            backend, pair, torch.tensor([2.0, 1.0]).double(), "gaussian", sigma=sigma, min_score=0.0
        )
        exact = math.exp(-(float(widths[k]) ** 2) / sigma)
        assert final[1] == pytest.approx(exact, rel=5e-16, abs=5e-324)  # the smallest number


# ---- dtypes and layouts --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_computed_in_float32(backend, dtype):
    boxes, scores = crowd(150, 2)
    boxes, scores = boxes.to(dtype), scores.to(dtype)
    keep, final = run(backend, boxes, scores)
    assert final.dtype == torch.float32
    expected = run(backend, boxes.float(), scores.float())
    assert torch.equal(keep, expected[0])
    assert torch.equal(final, expected[1])


@pytest.mark.parametrize("box_dtype", helpers.FLOAT_DTYPES)
@pytest.mark.parametrize("score_dtype", helpers.FLOAT_DTYPES)
def test_boxes_and_scores_have_their_own_types(backend, box_dtype, score_dtype):
    keep, final = run(backend, PAIR.to(box_dtype), torch.tensor([0.75, 0.5, 0.375]).to(score_dtype))
    assert keep.tolist() == [0, 2, 1]
    assert final.tolist() == [0.75, 0.375, 0.25]
    assert final.dtype == (torch.float64 if score_dtype == torch.float64 else torch.float32)


def test_strides_do_not_matter(backend):
    boxes, scores = crowd(100, 4)
    labels = torch.arange(100) % 2
    expected = run(backend, boxes, scores, labels=labels)
    wide = torch.full((100, 9), float("nan"))
    wide[:, 1::2] = boxes
    shifted = torch.full((401,), float("nan"))[1:].view(100, 4).copy_(boxes)
    for b in (boxes.t().contiguous().t(), wide[:, 1::2], shifted):
        s = torch.stack([scores, scores * 0], 1)[:, 0]
        ids = torch.stack([labels, labels], 1)[:, 1]
        assert not s.is_contiguous()
        assert all(map(torch.equal, run(backend, b, s, labels=ids), expected))


@pytest.mark.parametrize("dtype", helpers.FLOAT_DTYPES)
def test_empty_input_gives_empty_output(backend, dtype):
    keep, final = run(backend, torch.zeros(0, 4, dtype=dtype), torch.zeros(0, dtype=dtype))
    assert keep.shape == final.shape == (0,)
    assert keep.dtype == torch.int64
    keep, final = run(backend, PAIR, torch.zeros(3))  # all below min_score
    assert keep.shape == final.shape == (0,)
