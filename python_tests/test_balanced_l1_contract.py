"""What balanced_l1 promises besides its values: errors, and the rest of torch."""

import helpers
import pytest
import torch
from test_balanced_l1 import make, run, some_boxes

from tinyops.ops import balanced_l1, balanced_l1_sums

STEM = "tinyops: balanced_l1_sums: "
MAPS = torch.zeros(2, 3, 4, 5)
BOXES, IDS = torch.zeros(6, 4), torch.zeros(6, dtype=torch.int64)
GOOD = {"prediction": MAPS, "target": MAPS, "boxes": BOXES, "image_ids": IDS, "scale": 0.25}
BAD = {
    "prediction must have 4 dimensions [N, C, H, W], got [3, 4, 5]": {"prediction": MAPS[0]},
    "prediction must be float32, float64, float16 or bfloat16, got int32": {
        "prediction": MAPS.int()
    },
    "target must be float32 like prediction, got float16": {"target": MAPS.half()},
    "target must be [2, 3, 4, 5], got [2, 3, 4, 4]": {"target": MAPS[..., :4]},
    "boxes must be [K, 4], got [6, 5]": {"boxes": torch.zeros(6, 5)},
    "boxes must be float32, float64, float16 or bfloat16, got int64": {"boxes": BOXES.long()},
    "image_ids must be [6] like boxes, got [5]": {"image_ids": IDS[:5]},
    "image_ids must be int64, got int32": {"image_ids": IDS.int()},
    "valid must be [2, 2], height and width of every image, got [2, 4]": {"valid": BOXES[:2]},
    "valid must be int64, got float32": {"valid": BOXES[:2, :2]},
    "scale must be finite and above 0, got 0": {"scale": 0.0},
    "scale must be finite and above 0, got -0.5": {"scale": -0.5},
    "scale must be finite and above 0, got nan": {"scale": float("nan")},
    "scale must be finite and above 0, got inf": {"scale": float("inf")},
}


def on(device, arguments):
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}


@pytest.mark.parametrize("message", BAD)
@pytest.mark.parametrize("form", ["real", "fake"])
def test_bad_argument_is_named_with_expectation_and_value(backend, form, message):
    device = "meta" if form == "fake" else backend.device
    with pytest.raises(RuntimeError) as error:
        backend.ops.balanced_l1_sums(**on(device, GOOD | BAD[message]))
    assert str(error.value).splitlines()[0] == STEM + message


ONE = torch.ones(())
BAD_BACKWARD = {
    "d_total must have no dimensions, got [1]": {"d_total": ONE[None]},
    "d_positive must be float32, got float64": {"d_positive": ONE.double()},
    "target must be [2, 3, 4, 5], got [2, 3, 4, 4]": {"target": MAPS[..., :4]},
    "image_ids must be int64, got int32": {"image_ids": IDS.int()},
}


@pytest.mark.parametrize("message", BAD_BACKWARD)
@pytest.mark.parametrize("form", ["real", "fake"])
def test_bad_argument_of_the_backward_is_named(backend, form, message):
    needs = {"need_prediction": True, "need_target": True}
    good = GOOD | {"d_total": ONE, "d_positive": ONE, "valid": None} | needs
    device = "meta" if form == "fake" else backend.device
    with pytest.raises(RuntimeError) as error:
        backend.ops._balanced_l1_sums_backward(**on(device, good | BAD_BACKWARD[message]))
    assert str(error.value).splitlines()[0] == STEM + message


def test_device_mix_is_an_error():
    for name, message in (
        ("target", "target must be on cpu like prediction, got meta"),
        ("boxes", "boxes must be on cpu like prediction, got meta"),
        ("image_ids", "image_ids must be on cpu like boxes, got meta"),
    ):
        with pytest.raises(RuntimeError, match=message):
            balanced_l1_sums(**GOOD | {name: GOOD[name].to("meta")})


@pytest.mark.parametrize("backend", ["sim", "triton", "cuda"], indirect=True)
def test_planes_beyond_32_bits_are_refused_on_a_gpu(backend):
    maps = torch.zeros(1, 0, 1 << 16, 1 << 16, device=backend.device)  # has no elements
    boxes, ids = BOXES.to(backend.device), IDS.to(backend.device)
    with pytest.raises(RuntimeError, match=r"on a GPU a plane must have fewer than 2\^31 cells"):
        run(backend, maps, maps, boxes, ids)


# ---- with the rest of torch ----------------------------------------------------------------------


def test_opcheck(backend):
    slow = backend.name == "triton" and backend.device == "cpu"
    for layout in ("channels_last",) if slow else ("contiguous", "channels_last"):
        pair = helpers.leaves(make(2, 4, (3, 5), torch.float32, backend.device, layout))
        boxes = some_boxes(2, (3, 5), device=backend.device)
        valid = torch.tensor([[3, 4], [2, 5]], device=backend.device)
        op = backend.ops.balanced_l1_sums.default
        for extents in (None, valid):
            helpers.opcheck(op, (*pair, *boxes, extents), {"scale": 0.25})


@pytest.mark.parametrize("layout", helpers.LAYOUTS)
def test_fake_kernels_have_the_strides_of_the_real_ones(backend, layout):
    prediction, target = make(2, 4, (3, 5), torch.bfloat16, backend.device, layout)
    boxes, ids = some_boxes(2, (3, 5), device=backend.device)
    forward = backend.ops.balanced_l1_sums.default
    args = prediction, target.contiguous(), boxes, ids
    helpers.assert_fake_has_real_strides(forward, *args, scale=0.25)
    ones = torch.ones((), device=backend.device), torch.ones((), device=backend.device)
    backward = backend.ops._balanced_l1_sums_backward.default
    for needs in ((True, True), (True, False), (False, True)):
        helpers.assert_fake_has_real_strides(backward, *ones, *args, None, 0.25, *needs)


def test_autocast_keeps_what_agrees_and_widens_what_does_not(backend):
    prediction, target = make(dtype=torch.float32, device=backend.device)
    boxes, ids = some_boxes(device=backend.device)
    boxes += 1 / 300  # would move cells if it were rounded to bfloat16
    narrow = prediction.bfloat16().requires_grad_()
    with torch.autocast(backend.device, dtype=torch.bfloat16):
        agreeing = run(backend, prediction, target, boxes, ids)
        mixed = run(backend, narrow, target, boxes, ids)
        halves = run(backend, narrow, target.bfloat16(), boxes, ids)
        doubles = run(backend, prediction.double(), target.double(), boxes, ids)
    outside = (
        run(backend, prediction, target, boxes, ids),
        run(backend, narrow.float(), target, boxes, ids),
        run(backend, narrow, target.bfloat16(), boxes, ids),
        run(backend, prediction.double(), target.double(), boxes, ids),
    )
    for inside, right in zip((agreeing, mixed, halves, doubles), outside, strict=True):
        for a, b in zip(inside, right, strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)
    mixed[0].backward()
    assert narrow.grad.dtype == torch.bfloat16


def test_compile_without_graph_break(backend):
    pair = helpers.leaves(make(2, 4, (3, 5), torch.float32, backend.device))
    boxes = some_boxes(2, (3, 5), device=backend.device)

    def step(prediction, target):
        total, positive, cells = run(backend, prediction * 2, target, *boxes)
        return total + positive / cells.clamp(min=1)

    eager = step(*pair)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(*pair)
    assert torch.equal(eager, compiled)
    for a, b in zip(
        torch.autograd.grad(eager, pair), torch.autograd.grad(compiled, pair), strict=True
    ):
        assert torch.equal(a, b)


def test_inductor():
    valid = torch.tensor([[6, 7], [5, 8]])

    def step(prediction, target, boxes, ids):
        return balanced_l1(prediction.sin(), target, boxes, ids, valid, scale=0.25, weight=0.5)

    pair, boxes = helpers.leaves(make(2, 4, (6, 8), torch.float32)), some_boxes(count=9)
    expected = step(*pair, *boxes)
    actual = torch.compile(step, fullgraph=True)(*pair, *boxes)
    torch.testing.assert_close(actual, expected)
    for a, b in zip(
        torch.autograd.grad(actual, pair), torch.autograd.grad(expected, pair), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_export_with_dynamic_sizes():
    class Step(torch.nn.Module):
        def forward(self, prediction, target, boxes, ids):
            return balanced_l1(prediction, target, boxes, ids, scale=0.25)

    n, h, w = (torch.export.Dim(name, min=1, max=512) for name in ("n", "h", "w"))
    m = torch.export.Dim("m", min=0, max=1024)
    maps = {0: n, 2: h, 3: w}
    shapes = {"prediction": maps, "target": maps, "boxes": {0: m}, "ids": {0: m}}
    example = *make(2, 4, (8, 6), torch.float32), *some_boxes(2, (8, 6))
    program = torch.export.export(Step(), example, dynamic_shapes=shapes)
    other = *make(3, 4, (5, 9), torch.float32), *some_boxes(3, (5, 9), count=11)
    assert torch.equal(program.module()(*other), balanced_l1(*other, scale=0.25))


@pytest.mark.parametrize("backend", ["triton", "cuda"], indirect=True)
def test_cuda_graph_replays(backend):
    if backend.device != "cuda":
        pytest.skip("needs a GPU")
    pair = make(2, 8, (9, 16), torch.float32, "cuda")
    boxes = some_boxes(2, (9, 16), device="cuda")
    one = torch.ones((), device="cuda")

    def step():
        d = backend.ops._balanced_l1_sums_backward(one, one, *pair, *boxes, None, 0.25, True, True)
        return *run(backend, *pair, *boxes), *d

    helpers.assert_replays(step, pair[0])


# 9 GB of GPU memory; index arithmetic on the CPU is 64-bit throughout.
@pytest.mark.parametrize("backend", ["triton", "cuda"], indirect=True)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_more_than_two_to_the_31_elements(backend, layout):
    if backend.device != "cuda":
        pytest.skip("needs a GPU")
    size = 2, 264, 2048, 2048
    maps = torch.zeros(size, dtype=torch.float16, device="cuda").contiguous(memory_format=layout)
    prediction = maps.clone()
    prediction[1, 263, 2047, 2047] = 3
    boxes = torch.tensor([[8190.0, 8190, 8192, 8192]], device="cuda")
    ids = torch.ones(1, dtype=torch.int64, device="cuda")
    total, positive, cells = run(backend, prediction, maps, boxes, ids)
    assert (total.item(), positive.item(), cells.item()) == (3, 3, 1)
