"""What nms promises besides which boxes it keeps: sizes, errors, strides, the rest of torch."""

from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import backends
import box_layouts
import helpers
import pytest
import torch

from tinyops.ops import nms


def make(n=100, *, dtype=torch.float32, device="cpu"):
    """Boxes, scores, labels and image ids; about a fifth of the boxes is kept."""
    return (
        box_layouts.boxes("dup", n, dtype).to(device),
        box_layouts.scores("distinct", n, dtype).to(device),
        box_layouts.ids(n, 2).to(device),
        box_layouts.ids(n, 2, seed=1).to(device),
    )


# ---- results of a fixed size ---------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 100])
def test_max_outputs_is_the_size_of_the_result(backend, n):
    boxes, scores, labels, image_ids = make(n, device=backend.device)
    options = {"labels": labels, "image_ids": image_ids, "metric": 1, "offset": 1}
    kept = backend.ops.nms(boxes, scores, 0.5, **options)
    assert n < 100 or 10 < len(kept) < 90
    for size in (0, 1, len(kept) - 1, len(kept), len(kept) + 1, n, n + 1, 500):
        if size < 0:
            continue
        padded, count = backend.ops.nms_padded(boxes, scores, 0.5, size, **options)
        assert padded.shape == (size,)
        assert count.shape == ()
        assert padded.dtype == count.dtype == torch.int64
        assert padded.device == count.device == boxes.device
        assert count == min(size, len(kept))
        assert torch.equal(padded[:count], kept[:size])
        assert (padded[count:] == -1).all()


def test_function_passes_every_option_on():
    boxes, scores, labels, image_ids = make()
    for options in (
        {},
        {"labels": labels},
        {"image_ids": image_ids},
        {"metric": 1},
        {"offset": 1},
        {"check": False},
        {"labels": labels, "image_ids": image_ids, "metric": 1, "offset": 1},
    ):
        words = {**options, "metric": ("iou", "ios")[options.get("metric", 0)]}
        kept = torch.ops.tinyops.nms(boxes, scores, 0.4, **options)
        assert torch.equal(nms(boxes, scores, 0.4, **words), kept)
        padded, count = nms(boxes, scores, 0.4, **words, max_outputs=70)
        assert count == len(kept)
        assert torch.equal(padded[:count], kept)
    with pytest.raises(RuntimeError, match="at index 0"):
        nms(-boxes, scores, 0.4)
    nms(-boxes, scores, 0.4, check=False)
    nms(-boxes, scores, 0.4, check=False, max_outputs=3)


# ---- errors --------------------------------------------------------------------------------------

BAD = {
    "boxes must be [K, 4], got [6, 5]": {"boxes": torch.zeros(6, 5)},
    "boxes must be [K, 4], got [1, 6, 4]": {"boxes": torch.zeros(1, 6, 4)},
    "boxes must be [K, 4], got [4]": {"boxes": torch.zeros(4)},
    "boxes must be float32, float64, float16 or bfloat16, got int64": {
        "boxes": torch.zeros(6, 4, dtype=torch.int64)
    },
    "scores must be [6] like boxes, got [7]": {"scores": torch.zeros(7)},
    "scores must be [6] like boxes, got [6, 1]": {"scores": torch.zeros(6, 1)},
    "scores must be float32, float64, float16 or bfloat16, got int32": {
        "scores": torch.zeros(6, dtype=torch.int32)
    },
    "labels must be [6] like boxes, got [1]": {"labels": torch.zeros(1, dtype=torch.int64)},
    "labels must be int64, got float32": {"labels": torch.zeros(6)},
    "image_ids must be [6] like boxes, got []": {"image_ids": torch.tensor(3)},
    "image_ids must be int64, got int32": {"image_ids": torch.zeros(6, dtype=torch.int32)},
    "iou_threshold must be in [0, 1], got 1.5": {"iou_threshold": 1.5},
    "iou_threshold must be in [0, 1], got -0.25": {"iou_threshold": -0.25},
    "iou_threshold must be in [0, 1], got nan": {"iou_threshold": float("nan")},
    "metric must be 0 (iou) or 1 (ios), got 2": {"metric": 2},
    "offset must be 0 or 1, got -1": {"offset": -1},
    "max_outputs must be at least 0, got -1": {"max_outputs": -1},
}


BAD_OF_FORMS = [  # only the padded form has max_outputs
    (form, message)
    for form in ("real", "padded", "fake", "padded-fake")
    for message in BAD
    if "padded" in form or "max_outputs" not in message
]


@pytest.mark.parametrize(("form", "message"), BAD_OF_FORMS)
def test_bad_argument_is_named_with_expectation_and_value(backend, form, message):
    arguments = {"boxes": torch.zeros(6, 4), "scores": torch.zeros(6), "iou_threshold": 0.5}
    if "padded" in form:
        arguments["max_outputs"] = 10
    device = "meta" if "fake" in form else backend.device
    arguments = {
        k: v.to(device) if isinstance(v, torch.Tensor) else v
        for k, v in (arguments | BAD[message]).items()
    }
    op = backend.ops.nms_padded if "padded" in form else backend.ops.nms
    for check in (True, False):
        with pytest.raises(RuntimeError) as error:
            op(**arguments, check=check)
        assert str(error.value).splitlines()[0] == f"tinyops: nms: {message}"


def test_unknown_metric_is_named():
    boxes, scores, *_ = make(3)
    with pytest.raises(RuntimeError) as error:
        nms(boxes, scores, 0.5, metric="giou")
    assert str(error.value) == "tinyops: nms: metric must be one of 'iou', 'ios', got 'giou'"


def test_device_mix_is_an_error():
    boxes, scores, labels, image_ids = make(3)
    for options in (
        {"scores": scores.to("meta")},
        {"scores": scores, "labels": labels.to("meta")},
        {"scores": scores, "image_ids": image_ids.to("meta")},
    ):
        name = list(options)[-1]
        message = f"nms: {name} must be on cpu like boxes, got meta"
        with pytest.raises(RuntimeError, match=message):
            nms(boxes, iou_threshold=0.5, **options)
    with pytest.raises(RuntimeError, match="nms: scores must be on meta like boxes, got cpu"):
        nms(boxes.to("meta"), scores, 0.5)


NAN, INF = float("nan"), float("inf")
BAD_BOXES = {
    "nan": ([0.0, NAN, 2.0, 3.0], "[0, nan, 2, 3]"),
    "last-nan": ([0.0, 1.0, 2.0, NAN], "[0, 1, 2, nan]"),
    "inf": ([0.0, 1.0, INF, 3.0], "[0, 1, inf, 3]"),
    "minus-inf": ([-INF, 1.0, 2.0, 3.0], "[-inf, 1, 2, 3]"),
    "all-inf": ([INF, INF, INF, INF], "[inf, inf, inf, inf]"),
    "x": ([2.5, 1.0, 2.0, 3.0], "[2.5, 1, 2, 3]"),
    "y": ([0.0, 3.5, 2.0, 3.0], "[0, 3.5, 2, 3]"),
}


@pytest.mark.parametrize("kind", BAD_BOXES)
def test_first_bad_box_is_named(backend, kind):
    row, text = BAD_BOXES[kind]
    for n, index, dtype in (
        (1, 0, torch.float32),
        (300, 0, torch.float64),
        (300, 63, torch.float16),
        (300, 64, torch.float32),
        (300, 299, torch.bfloat16),
        (1000, 511, torch.float64),
    ):
        boxes, scores = box_layouts.boxes("grid_aligned", n), box_layouts.scores("tied", n)
        boxes[index] = boxes[n - 1] = torch.tensor(row)
        boxes, scores = boxes.to(backend.device, dtype), scores.to(backend.device, dtype)
        # A conversion of the type may turn the sign of a NaN, so that is not compared.
        expected = (
            "tinyops: nms: boxes must be finite with x1 <= x2 and y1 <= y2, "
            f"got {text} at index {index}"
        )
        for op, size in ((backend.ops.nms, ()), (backend.ops.nms_padded, (10,))):
            with pytest.raises(RuntimeError) as error:
                op(boxes, scores, 0.5, *size)
            assert str(error.value).splitlines()[0].replace("-nan", "nan") == expected


@pytest.mark.parametrize("dtype", helpers.FLOAT_DTYPES)
def test_first_nan_score_is_named(backend, dtype):
    for n, index in ((1, 0), (300, 255), (300, 256), (300, 299)):
        boxes, scores = box_layouts.boxes("line", n), box_layouts.scores("infinite", n, dtype)
        scores[index] = scores[n - 1] = NAN
        for op, size in ((backend.ops.nms, ()), (backend.ops.nms_padded, (10,))):
            with pytest.raises(RuntimeError) as error:
                op(boxes.to(backend.device), scores.to(backend.device), 0.5, *size)
            expected = f"tinyops: nms: scores must not be NaN, got nan at index {index}"
            assert str(error.value).splitlines()[0].replace("-nan", "nan") == expected


def test_unchecked_values_do_no_harm(backend):
    """The selection is undefined then, but it is one: no crash, no index twice or out of range."""
    n = 200
    for metric in (0, 1):
        for row in (NAN, INF, -INF, 3e38):
            boxes, scores = box_layouts.boxes("dup", n), box_layouts.scores("distinct", n)
            boxes[::3, 2:] = row
            boxes[1::3, 0] = -row
            boxes[2::3] = boxes[2::3].flip(1)
            scores[::5] = NAN
            boxes, scores = boxes.to(backend.device), scores.to(backend.device)
            keep = backend.ops.nms(boxes, scores, 0.5, metric=metric, check=False)
            assert len(keep.unique()) == len(keep) <= n
            assert ((keep >= 0) & (keep < n)).all()


# ---- strides -------------------------------------------------------------------------------------


def strided(x, layout):
    """`x` [n, ...] with the same values in other memory."""
    if layout == "transposed":
        return x.mT.contiguous().mT if x.dim() == 2 else x
    if layout == "shifted":
        return x.new_full((x.numel() + 1,), -7)[1:].view(x.shape).copy_(x)
    wide = x.new_full((2 * len(x) + 3, *x.shape[1:]), -7)
    if layout == "sliced":
        return wide[2 : 2 + 2 * len(x) : 2].copy_(x)
    rows = torch.cat([x[:, None]] * 3, 1)  # "column": one of three interleaved
    return rows[:, 1]


@pytest.mark.parametrize("layout", ["transposed", "shifted", "sliced", "column"])
@pytest.mark.parametrize("dtype", helpers.FLOAT_DTYPES)
def test_strides_do_not_matter(backend, dtype, layout):
    dense = make(90, dtype=dtype, device=backend.device)
    boxes, scores, labels, image_ids = (strided(x, layout) for x in dense)
    assert torch.equal(boxes, dense[0])
    expected = backend.ops.nms(*dense[:2], 0.5, labels=dense[2], image_ids=dense[3])
    actual = backend.ops.nms(boxes, scores, 0.5, labels=labels, image_ids=image_ids)
    assert torch.equal(actual, expected)


def test_expanded_boxes_are_one_box_many_times(backend):
    box = torch.tensor([[1.0, 2, 3, 4]], device=backend.device)
    scores = torch.tensor([0.5], device=backend.device)
    keep = backend.ops.nms(box.expand(70, 4), scores.expand(70), 0.5)
    assert keep.tolist() == [0]


# ---- with the rest of torch ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", helpers.FLOAT_DTYPES)
def test_opcheck(backend, dtype):
    boxes, scores, labels, image_ids = make(40, dtype=dtype, device=backend.device)
    options = {"labels": labels, "image_ids": image_ids}
    for arguments, keywords in (
        ((boxes, scores, 0.5), {}),
        ((boxes.requires_grad_(), scores.requires_grad_(), 0.5), options),
        ((boxes[:0], scores[:0], 0.5), {}),
    ):
        helpers.opcheck(backend.ops.nms.default, arguments, keywords)
        helpers.opcheck(backend.ops.nms_padded.default, (*arguments, 20), keywords)


def test_fake_result_is_like_the_real_one(backend):
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    boxes, scores, *_ = make(40, dtype=torch.float16, device=backend.device)
    helpers.assert_fake_has_real_strides(backend.ops.nms_padded, boxes, scores, 0.5, 20)
    with FakeTensorMode(shape_env=ShapeEnv(allow_dynamic_output_shape_ops=True)) as mode:
        keep = backend.ops.nms(mode.from_tensor(boxes), mode.from_tensor(scores), 0.5)
    assert (keep.dtype, keep.device, keep.dim()) == (torch.int64, boxes.device, 1)
    assert isinstance(keep.shape[0], torch.SymInt)


def test_no_gradient(backend):
    boxes, scores, *_ = make(40, device=backend.device)
    keep = backend.ops.nms(boxes.requires_grad_(), scores.requires_grad_(), 0.5)
    assert not keep.requires_grad
    padded, count = backend.ops.nms_padded(boxes, scores, 0.5, 20)
    assert not padded.requires_grad
    assert not count.requires_grad
    boxes[keep].sum().backward()  # which flows through the indexing
    assert boxes.grad.sum() == 4 * len(keep)


def test_autocast_changes_nothing(backend):
    boxes, scores, *_ = make(device=backend.device)
    with torch.autocast(backend.device, dtype=torch.bfloat16):
        inside = backend.ops.nms(boxes, scores, 0.5)
    assert torch.equal(inside, backend.ops.nms(boxes, scores, 0.5))


def best(boxes, scores, labels, operator):
    keep = operator(boxes * 2, scores, 0.5, labels=labels)
    return boxes[keep], scores[keep].cumsum(0)


def best_padded(boxes, scores, labels, operator):
    keep, count = operator(boxes * 2, scores, 0.5, 60, labels=labels)
    there = torch.arange(60, device=boxes.device) < count
    return boxes[keep] * there[:, None], count


def test_compile_without_graph_break(backend):
    step = torch.compile(best_padded, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (100, 64):
        arguments = (*make(n, device=backend.device)[:3], backend.ops.nms_padded)
        assert all(map(torch.equal, step(*arguments), best_padded(*arguments)))
    with mock.patch.object(torch._dynamo.config, "capture_dynamic_output_shape_ops", True):
        step = torch.compile(best, fullgraph=True, backend="aot_eager", dynamic=True)
        for n in (100, 64):
            arguments = (*make(n, device=backend.device)[:3], backend.ops.nms)
            assert all(map(torch.equal, step(*arguments), best(*arguments)))


class Select(torch.nn.Module):
    def forward(self, boxes, scores, labels):
        return boxes[nms(boxes, scores, 0.5, labels=labels)]


class SelectPadded(torch.nn.Module):
    def forward(self, boxes, scores, labels):
        return nms(boxes, scores, 0.5, labels=labels, metric="ios", max_outputs=50)


@pytest.mark.parametrize("module", [Select, SelectPadded])
def test_export_with_dynamic_sizes(module):
    k = torch.export.Dim("k", min=0, max=100_000)
    shapes = {"boxes": {0: k}, "scores": {0: k}, "labels": {0: k}}
    program = torch.export.export(module(), make()[:3], dynamic_shapes=shapes).module()
    for n in (100, 33, 1, 0):
        arguments = make(n)[:3]
        actual, expected = program(*arguments), module()(*arguments)
        if module is Select:
            actual, expected = (actual,), (expected,)
        assert all(map(torch.equal, actual, expected))


def test_concurrent_calls_do_not_disturb_each_other(backend):
    cases = [make(n, device=backend.device) for n in (100, 1000, 33, 5000)]
    expected = [backend.ops.nms(*case[:2], 0.5, labels=case[2]) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        results = pool.map(
            lambda k: backend.ops.nms(*cases[k % 4][:2], 0.5, labels=cases[k % 4][2]), range(64)
        )
        assert all(torch.equal(keep, expected[k % 4]) for k, keep in enumerate(results))


def test_cuda_graph_replays():
    ops = backends.get("cuda").ops
    boxes, scores, labels, _ = make(1000, device="cuda")
    step = lambda: ops.nms_padded(boxes, scores, 0.5, 800, labels=labels, check=False)  # noqa: E731
    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for seed in (1, 2):
        boxes.copy_(box_layouts.boxes("crowd", 1000, seed=seed))
        graph.replay()
        assert all(map(torch.equal, captured, step()))
