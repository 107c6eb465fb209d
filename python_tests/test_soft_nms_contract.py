"""What soft_nms promises besides its values: errors, and the rest of torch."""

import math

import backends
import helpers
import pytest
import torch
from test_soft_nms import PAIR, crowd, run

from tinyops.ops import soft_nms

# ---- errors --------------------------------------------------------------------------------------


def bad_arguments():
    boxes, scores, ids = torch.zeros(3, 4), torch.zeros(3), torch.zeros(3, dtype=torch.int64)
    good = {"boxes": boxes, "scores": scores}

    def case(message, **changes):
        return pytest.param({**good, **changes}, f"tinyops: soft_nms: {message}", id=message)

    floats = "must be float32, float64, float16 or bfloat16, got"
    yield case("boxes must be [K, 4], got [3, 5]", boxes=torch.zeros(3, 5))
    yield case("boxes must be [K, 4], got [12]", boxes=torch.zeros(12))
    yield case(f"boxes {floats} int64", boxes=boxes.long())
    yield case("scores must be [3] like boxes, got [4]", scores=torch.zeros(4))
    yield case("scores must be [3] like boxes, got [3, 1]", scores=scores[:, None])
    yield case(f"scores {floats} int32", scores=scores.int())
    yield case("labels must be [3] like boxes, got [2]", labels=ids[:2])
    yield case("labels must be int64, got int32", labels=ids.int())
    yield case("image_ids must be [3] like boxes, got []", image_ids=ids[0])
    yield case("image_ids must be int64, got float32", image_ids=scores)
    for value, text in ((-0.5, "-0.5"), (1.5, "1.5"), (float("nan"), "nan")):
        yield case(f"iou_threshold must be in [0, 1], got {text}", iou_threshold=value)
    for value, text in ((0.0, "0"), (-1.0, "-1"), (float("inf"), "inf"), (float("nan"), "nan")):
        yield case(f"sigma must be finite and above 0, got {text}", sigma=value)
    for value, text in ((-0.1, "-0.1"), (float("inf"), "inf"), (float("nan"), "nan")):
        yield case(f"min_score must be finite and at least 0, got {text}", min_score=value)
    yield case("method must be 0 (linear) or 1 (gaussian), got 2", method=2)


@pytest.mark.parametrize(("arguments", "message"), list(bad_arguments()))
@pytest.mark.parametrize("form", ["real", "fake"])
def test_bad_argument_is_named_with_expectation_and_value(backend, form, arguments, message):
    device = "meta" if form == "fake" else backend.device
    moved = {k: v.to(device) if torch.is_tensor(v) else v for k, v in arguments.items()}
    with pytest.raises(RuntimeError) as error:
        backend.ops.soft_nms(**moved)
    assert str(error.value).splitlines()[0] == message


@pytest.mark.parametrize("name", ["scores", "labels", "image_ids"])
def test_device_mix_is_an_error(name):
    arguments = {"boxes": PAIR, "scores": torch.zeros(3), "labels": torch.zeros(3).long()}
    arguments |= {"image_ids": torch.zeros(3).long()}
    arguments[name] = arguments[name].to("meta")
    with pytest.raises(RuntimeError, match=f"soft_nms: {name} must be on cpu like boxes, got meta"):
        backends.get("cpu").ops.soft_nms(**arguments)


BAD_BOXES = {
    "[nan, 0, 1, 1]": [math.nan, 0, 1, 1],
    "[0, 0, inf, 1]": [0, 0, math.inf, 1],
    "[2, 0, 1, 1]": [2, 0, 1, 1],
    "[0, 1, 1, 0.5]": [0, 1, 1, 0.5],
}


@pytest.mark.parametrize("text", BAD_BOXES)
def test_bad_boxes_are_named(backend, text):
    boxes = PAIR.repeat(40, 1)
    boxes[[70, 90]] = torch.tensor(BAD_BOXES[text], dtype=boxes.dtype)
    with pytest.raises(RuntimeError) as error:
        run(backend, boxes, torch.ones(120))
    expected = f"boxes must be finite with x1 <= x2 and y1 <= y2, got {text} at index 70"
    assert str(error.value).splitlines()[0] == f"tinyops: soft_nms: {expected}"
    run(backend, boxes, torch.ones(120), check=False)  # whatever comes out, it ends


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nan_scores_are_named(backend, dtype):
    scores = torch.tensor([0.75, math.nan, math.nan], dtype=dtype)
    with pytest.raises(RuntimeError, match="soft_nms: scores must not be NaN, got nan at index 1"):
        run(backend, PAIR, scores)
    keep, _ = run(backend, PAIR, scores, check=False)
    assert keep.tolist() == [0]  # NaN is not at least min_score


# ---- with the rest of torch ----------------------------------------------------------------------


@pytest.mark.parametrize("method", [0, 1])
def test_opcheck(backend, method):
    boxes, scores = (x.to(backend.device) for x in crowd(30))
    options = {"method": method, "labels": torch.arange(30, device=backend.device) % 2}
    helpers.opcheck(backend.ops.soft_nms.default, (boxes, scores), options)
    helpers.opcheck(backend.ops.soft_nms.default, (boxes.half(), scores.double().requires_grad_()))


def test_results_have_no_gradient(backend):
    boxes, scores = (x.to(backend.device).requires_grad_() for x in crowd(30))
    keep, final = backend.ops.soft_nms(boxes, scores)
    assert not keep.requires_grad
    assert not final.requires_grad


def test_compile_without_graph_break(backend):
    boxes, scores = (x.to(backend.device) for x in crowd(60))

    def step(boxes, scores):
        keep, final = backend.ops.soft_nms(boxes * 2, scores, method=1)
        return boxes[keep] * final[:, None]

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(boxes, scores), step(boxes, scores))


def test_export_with_dynamic_sizes():
    class Step(torch.nn.Module):
        def forward(self, boxes, scores):
            keep, final = soft_nms(boxes, scores, method="gaussian")
            return boxes[keep], final

    k = torch.export.Dim("k", min=2, max=100000)
    shapes = {"boxes": {0: k}, "scores": {0: k}}
    program = torch.export.export(Step(), crowd(40), dynamic_shapes=shapes)
    other = crowd(75, 3)
    assert all(map(torch.equal, program.module()(*other), Step()(*other)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_fake_result_has_the_types_of_the_real_one(backend, dtype):
    boxes, scores = (x.to(backend.device, dtype) for x in crowd(30))
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    real = backend.ops.soft_nms(boxes, scores)
    with FakeTensorMode(shape_env=ShapeEnv()) as mode:
        fake = backend.ops.soft_nms(mode.from_tensor(boxes), mode.from_tensor(scores))
    for a, b in zip(real, fake, strict=True):
        assert (a.dtype, a.device, a.dim()) == (b.dtype, b.device, b.dim())
