"""What topk_per_target promises besides its values: errors, and the rest of torch."""

import helpers
import pytest
import torch
from overlap_oracle import random_boxes, random_options, to_device

from tinyops.ops import topk_per_target
from tinyops.ops.max_overlap import MODES

NAMES = ("topk_per_target", "topk_per_target_ties")
IDS = torch.zeros(3, dtype=torch.int64)


def bad_arguments():
    boxes, targets = random_boxes(3), random_boxes(2)
    good = {"boxes": boxes, "targets": targets, "k": 2}

    def case(message, **changes):
        return pytest.param({**good, **changes}, message, id=message)

    yield case("boxes must be [K, 4], got [4]", boxes=boxes[0])
    yield case("targets must be [K, 4], got [2, 2]", targets=targets[:, :2])
    yield case("targets must be float32 like boxes, got float16", targets=targets.half())
    yield case("mode must be in [0, 8), got 8", mode=8)
    yield case("k must be in [1, 2^31), got 0", k=0)
    yield case("k must be in [1, 2^31), got -3", k=-3)
    yield case("k must be in [1, 2^31), got 2147483648", k=2**31)
    yield case("target_mask must be bool, got int64", target_mask=IDS[:2])
    yield case(
        "image_ids and target_image_ids must come together, got image_ids alone", image_ids=IDS
    )
    yield case(
        "target_image_ids must be [2] like targets, got [3]", image_ids=IDS, target_image_ids=IDS
    )


@pytest.mark.parametrize(("arguments", "message"), list(bad_arguments()))
@pytest.mark.parametrize("form", ["real", "fake"])
@pytest.mark.parametrize("name", NAMES)
def test_bad_argument_is_named_with_expectation_and_value(backend, name, form, arguments, message):
    device = "meta" if form == "fake" else backend.device
    with pytest.raises(RuntimeError) as error:
        getattr(backend.ops, name)(**to_device(arguments, device))
    assert str(error.value).splitlines()[0] == f"tinyops: {name}: {message}"


@pytest.mark.parametrize("form", ["real", "fake"])
def test_nan_as_least_value_is_refused(backend, form):
    boxes = random_boxes(3).to("meta" if form == "fake" else backend.device)
    with pytest.raises(RuntimeError) as error:
        backend.ops.topk_per_target_ties(boxes, boxes, 1, min_value=float("nan"))
    expected = "tinyops: topk_per_target_ties: min_value must not be NaN, got nan"
    assert str(error.value).splitlines()[0] == expected


def test_unknown_mode_is_answered_with_the_known_ones():
    with pytest.raises(RuntimeError, match=r"mode must be one of 'iou', .*, got 'IoU'"):
        topk_per_target(random_boxes(3), random_boxes(2), 1, mode="IoU")


@pytest.mark.parametrize("which", ["boxes", "targets"])
@pytest.mark.parametrize("name", NAMES)
def test_first_bad_box_is_named(backend, name, which):
    arguments = {"boxes": random_boxes(300), "targets": random_boxes(300)}
    arguments[which][[170, 210]] = torch.tensor([2.0, 0, 1, 1])
    with pytest.raises(RuntimeError) as error:
        getattr(backend.ops, name)(**to_device(arguments, backend.device), k=1)
    assert str(error.value).splitlines()[0] == (
        f"tinyops: {name}: {which} must be finite with x1 <= x2 and y1 <= y2, "
        "got [2, 0, 1, 1] at index 170"
    )


def test_unchecked_bad_boxes_give_results_in_range(backend):
    inf, nan = float("inf"), float("nan")
    bad = torch.tensor([[nan] * 4, [-inf, -inf, inf, inf], [5, 5, 1, 1], [0, nan, inf, 3]])
    boxes = torch.cat([random_boxes(400), bad]).to(backend.device)
    targets = torch.cat([random_boxes(100), bad]).to(backend.device)
    for mode in range(len(MODES)):
        _, index, assigned = backend.ops.topk_per_target_ties(
            boxes, targets, 3, mode=mode, check=False
        )
        assert index.min() >= 0
        assert index.max() < 404
        assert (index[:, 1:] != index[:, :-1]).all()
        assert assigned.min() >= -1
        assert assigned.max() < 104


# ---- the rest of torch ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0, 4, 5])
@pytest.mark.parametrize("name", NAMES)
def test_opcheck(backend, name, mode):
    boxes, targets = random_boxes(30).to(backend.device), random_boxes(20).to(backend.device)
    op = getattr(backend.ops, name).default
    helpers.opcheck(op, (boxes, targets, 3), {"mode": mode})
    options = to_device(random_options(30, 20), backend.device)
    helpers.opcheck(op, (boxes, targets, 40), {"mode": mode, **options})


@pytest.mark.parametrize("dtype", helpers.FLOAT_DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_fake_has_the_strides_and_dtypes_of_the_real_one(backend, name, dtype):
    boxes, targets = (random_boxes(n).to(backend.device, dtype) for n in (9, 4))
    for x in (boxes, boxes[:0], boxes.t().contiguous().t()):
        helpers.assert_fake_has_real_strides(getattr(backend.ops, name), x, targets, 5, mode=4)


def test_compile_and_export_with_any_number_of_boxes(backend):
    op = backend.ops.topk_per_target_ties

    class Module(torch.nn.Module):
        def forward(self, boxes, targets):
            value, index, assigned = op(boxes * 2, targets * 2, 3, mode=1)
            return value + 1, index, assigned

    boxes, targets = random_boxes(30).to(backend.device), random_boxes(20).to(backend.device)
    expected = Module()(boxes, targets)
    compiled = torch.compile(Module(), fullgraph=True, backend="aot_eager", dynamic=True)
    assert all(map(torch.equal, compiled(boxes, targets), expected))
    sizes = {0: torch.export.Dim("k", min=2)}, {0: torch.export.Dim("m", min=2)}
    exported = torch.export.export(Module(), (boxes, targets), dynamic_shapes=sizes).module()
    assert all(map(torch.equal, exported(boxes[:7], targets[:3]), Module()(boxes[:7], targets[:3])))


def test_results_have_no_gradient(backend):
    boxes = random_boxes(4).to(backend.device).requires_grad_()
    for name in NAMES:
        assert not any(x.requires_grad for x in getattr(backend.ops, name)(boxes, boxes, 1))


def test_public_function_passes_everything_on():
    boxes, targets = random_boxes(30), random_boxes(20)
    options = random_options(30, 20)
    for code, mode in enumerate(MODES):
        expected = torch.ops.tinyops.topk_per_target_ties(
            boxes, targets, 2, mode=code, min_value=0.4, **options
        )
        actual = topk_per_target(
            boxes, targets, 2, mode=mode, all_ties=True, min_value=0.4, **options
        )
        assert len(actual) == 3
        assert all(map(torch.equal, actual, expected))
        plain = topk_per_target(boxes, targets, 2, mode=mode, **options)
        assert len(plain) == 2
        assert all(map(torch.equal, plain, expected[:2]))
    boxes[3, 0] = float("nan")
    with pytest.raises(RuntimeError, match="at index 3"):
        topk_per_target(boxes, targets, 1)
    topk_per_target(boxes, targets, 1, check=False)
