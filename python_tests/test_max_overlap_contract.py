"""What max_overlap promises besides its values: errors, and the rest of torch."""

import helpers
import pytest
import torch
from overlap_oracle import random_boxes, random_options, to_device

from tinyops.ops import max_overlap
from tinyops.ops.max_overlap import MODES

STEM = "tinyops: max_overlap: "
IDS = torch.zeros(3, dtype=torch.int64)


def bad_arguments():
    boxes, targets = random_boxes(3), random_boxes(2)
    good = {"boxes": boxes, "targets": targets}

    def case(message, **changes):
        return pytest.param({**good, **changes}, message, id=message)

    yield case("boxes must be [K, 4], got [4]", boxes=boxes[0])
    yield case("boxes must be [K, 4], got [3, 5]", boxes=torch.zeros(3, 5))
    yield case("targets must be [K, 4], got [2, 2]", targets=targets[:, :2])
    yield case("boxes must be float32, float64, float16 or bfloat16, got int64", boxes=boxes.long())
    yield case(
        "targets must be float32, float64, float16 or bfloat16, got int32", targets=targets.int()
    )
    yield case("targets must be float32 like boxes, got float64", targets=targets.double())
    yield case("mode must be in [0, 8), got 8", mode=8)
    yield case("mode must be in [0, 8), got -1", mode=-1)
    yield case(
        "target_mask must be [2] like targets, got [3]",
        target_mask=torch.ones(3, dtype=torch.bool),
    )
    yield case("target_mask must be bool, got uint8", target_mask=torch.ones(2, dtype=torch.uint8))
    yield case(
        "image_ids and target_image_ids must come together, got image_ids alone", image_ids=IDS
    )
    yield case(
        "image_ids and target_image_ids must come together, got target_image_ids alone",
        target_image_ids=IDS[:2],
    )
    yield case(
        "image_ids must be [3] like boxes, got [2]", image_ids=IDS[:2], target_image_ids=IDS[:2]
    )
    yield case(
        "target_image_ids must be [2] like targets, got [2, 1]",
        image_ids=IDS,
        target_image_ids=IDS[:2, None],
    )
    yield case("image_ids must be int64, got int32", image_ids=IDS.int(), target_image_ids=IDS[:2])
    yield case(
        "target_image_ids must be int64, got float32",
        image_ids=IDS,
        target_image_ids=IDS[:2].float(),
    )


@pytest.mark.parametrize(("arguments", "message"), list(bad_arguments()))
@pytest.mark.parametrize("form", ["real", "fake"])
def test_bad_argument_is_named_with_expectation_and_value(backend, form, arguments, message):
    device = "meta" if form == "fake" else backend.device
    with pytest.raises(RuntimeError) as error:
        backend.ops.max_overlap(**to_device(arguments, device))
    assert str(error.value).splitlines()[0] == STEM + message


def test_fake_of_another_device_is_refused():
    boxes, targets = torch.empty(3, 4, device="meta"), random_boxes(2)
    with pytest.raises(RuntimeError, match="targets must be on meta like boxes, got cpu"):
        torch.ops.tinyops.max_overlap(boxes, targets)


def test_unknown_mode_is_answered_with_the_known_ones():
    with pytest.raises(RuntimeError) as error:
        max_overlap(random_boxes(3), random_boxes(2), mode="diou")
    words = ", ".join(map(repr, MODES))
    assert str(error.value) == f"{STEM}mode must be one of {words}, got 'diou'"


BAD_BOXES = {
    "nan": ([float("nan"), 0.0, 1.0, 1.0], "[nan, 0, 1, 1]"),
    "infinite": ([0.0, 0.0, float("inf"), 1.0], "[0, 0, inf, 1]"),
    "minus infinite": ([0.0, float("-inf"), 1.0, 1.0], "[0, -inf, 1, 1]"),
    "x2 < x1": ([2.0, 0.0, 1.0, 1.0], "[2, 0, 1, 1]"),
    "y2 < y1": ([0.0, 2.0, 1.0, 1.0], "[0, 2, 1, 1]"),
}


@pytest.mark.parametrize("name", ["boxes", "targets"])
@pytest.mark.parametrize("bad", BAD_BOXES)
def test_first_bad_box_is_named(backend, name, bad):
    row, text = BAD_BOXES[bad]
    arguments = {"boxes": random_boxes(300), "targets": random_boxes(300)}
    arguments[name][[170, 210]] = torch.tensor(row)
    arguments = to_device(arguments, backend.device)
    with pytest.raises(RuntimeError) as error:
        backend.ops.max_overlap(**arguments)
    expected = f"{STEM}{name} must be finite with x1 <= x2 and y1 <= y2, got {text} at index 170"
    assert str(error.value).splitlines()[0] == expected


@pytest.mark.parametrize("name", ["boxes", "targets"])
def test_unchecked_bad_boxes_harm_nobody_else(backend, name):
    arguments = {"boxes": random_boxes(400), "targets": random_boxes(150)}
    clean = to_device({k: v.clone() for k, v in arguments.items()}, backend.device)
    rows = torch.tensor([row for row, _ in BAD_BOXES.values()])
    arguments[name] = torch.cat([arguments[name], rows, rows * float("nan")])
    arguments = to_device(arguments, backend.device)
    for mode in range(len(MODES)):
        value, index = backend.ops.max_overlap(**arguments, mode=mode, check=False)
        assert len(value) == len(index) == len(arguments["boxes"])
        assert index.min() >= 0
        assert index.max() < len(arguments["targets"])
        if name == "boxes":
            expected = backend.ops.max_overlap(**clean, mode=mode)
            assert torch.equal(value[:400], expected[0])
            assert torch.equal(index[:400], expected[1])


# ---- the rest of torch ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", range(len(MODES)))
def test_opcheck(backend, mode):
    boxes, targets = random_boxes(30).to(backend.device), random_boxes(20).to(backend.device)
    op = backend.ops.max_overlap.default
    helpers.opcheck(op, (boxes, targets), {"mode": mode})
    options = to_device(random_options(30, 20), backend.device)
    helpers.opcheck(op, (boxes, targets), {"mode": mode, **options})


@pytest.mark.parametrize("dtype", helpers.FLOAT_DTYPES)
def test_fake_has_the_strides_and_dtypes_of_the_real_one(backend, dtype):
    boxes, targets = (random_boxes(n).to(backend.device, dtype) for n in (9, 4))
    for x in (boxes, boxes[:0], boxes.t().contiguous().t()):
        helpers.assert_fake_has_real_strides(backend.ops.max_overlap, x, targets, mode=4)


def test_compile_and_export_with_any_number_of_boxes(backend):
    op = backend.ops.max_overlap

    class Module(torch.nn.Module):
        def forward(self, boxes, targets):
            value, index = op(boxes * 2, targets * 2, mode=2)
            return value + 1, index

    boxes, targets = random_boxes(30).to(backend.device), random_boxes(20).to(backend.device)
    expected = Module()(boxes, targets)
    compiled = torch.compile(Module(), fullgraph=True, backend="aot_eager", dynamic=True)
    assert all(map(torch.equal, compiled(boxes, targets), expected))
    sizes = {0: torch.export.Dim("k", min=2)}, {0: torch.export.Dim("m", min=2)}
    exported = torch.export.export(Module(), (boxes, targets), dynamic_shapes=sizes).module()
    assert all(map(torch.equal, exported(boxes, targets), expected))
    assert all(map(torch.equal, exported(boxes[:7], targets[:3]), Module()(boxes[:7], targets[:3])))


def test_results_have_no_gradient(backend):
    boxes = random_boxes(4).to(backend.device).requires_grad_()
    value, index = backend.ops.max_overlap(boxes, boxes)
    assert not value.requires_grad
    assert not index.requires_grad


def test_public_function_passes_everything_on():
    boxes, targets = random_boxes(30), random_boxes(20)
    options = random_options(30, 20)
    for code, mode in enumerate(MODES):
        expected = torch.ops.tinyops.max_overlap(boxes, targets, mode=code, **options)
        assert all(map(torch.equal, max_overlap(boxes, targets, mode=mode, **options), expected))
    bad = boxes.clone()
    bad[3, 0] = float("nan")
    with pytest.raises(RuntimeError, match="at index 3"):
        max_overlap(bad, targets)
    max_overlap(bad, targets, check=False)
