import helpers
import pytest
import torch

from tinyops.ops import balanced_l1, balanced_l1_sums, balanced_l1_sums_reference

NAN, INF = float("nan"), float("inf")


def make(n=2, c=3, size=(6, 8), dtype=torch.float64, device="cpu", layout="contiguous"):
    """prediction and target; a few elements are equal."""
    prediction, target = (torch.randn(n, c, *size, dtype=torch.float64) for _ in range(2))
    target.flatten()[::7] = prediction.flatten()[::7]
    pair = (x.to(device, dtype) for x in (prediction, target))
    return [helpers.as_layout(x, layout) for x in pair]


def some_boxes(n=2, size=(6, 8), stride=4, count=5, dtype=torch.float32, device="cpu"):
    """Boxes of every kind: inside, across the border, outside, of images that do not exist."""
    height, width = size[0] * stride, size[1] * stride
    corner = torch.rand(count, 2) * torch.tensor([width, height]) * 1.2 - 0.1 * stride
    boxes = torch.cat([corner, corner + torch.rand(count, 2) * 2.5 * stride], 1)
    return boxes.to(device, dtype), torch.randint(-1, n + 1, (count,)).to(device)


def numbers(*rows, dtype=torch.float32, device="cpu"):
    return torch.tensor(rows, dtype=dtype, device=device).reshape(len(rows), -1)


def run(backend, prediction, target, boxes, image_ids, valid=None, scale=0.25):
    return backend.ops.balanced_l1_sums(prediction, target, boxes, image_ids, valid, scale=scale)


def check(backend, pair, boxes, image_ids, valid=None, scale=0.25):
    """Sums, count and gradients are those of the reference in float64."""
    ours, theirs = helpers.leaves(pair), helpers.leaves((x.cpu() for x in pair), torch.float64)
    marks = [x if x is None else x.cpu() for x in (boxes, image_ids, valid)]
    *sums, cells = run(backend, *ours, boxes, image_ids, valid, scale)
    *expected, count = balanced_l1_sums_reference(*theirs, *marks, scale=scale)
    assert cells.dtype == torch.int64
    assert cells.item() == count.item()
    for x, right in zip(sums, expected, strict=True):
        assert x.shape == ()
        assert x.dtype == (torch.float64 if pair[0].dtype == torch.float64 else torch.float32)
        x, right = x.detach().double().cpu(), right.detach()
        torch.testing.assert_close(x, right, rtol=3e-7, atol=1e-6, equal_nan=True)
    grads = [torch.tensor(g, dtype=torch.float64) for g in (0.75, -1.5)]  # exact in every dtype
    actual = torch.autograd.grad(sums, ours, [g.to(sums[0]) for g in grads])
    wanted = torch.autograd.grad(expected, theirs, grads)
    for x, d, right in zip(ours, actual, wanted, strict=True):
        assert d.dtype == x.dtype
        assert torch.equal(d.double().cpu(), right)
    return actual


# ---- values --------------------------------------------------------------------------------------


def test_numbers_worked_out_by_hand(backend):
    # One image of two channels, 2 x 3 cells of 4 pixels; |d| is 1 .. 6 in both channels.
    d = torch.tensor([[1.0, -2.0, 3.0], [-4.0, 5.0, -6.0]]).repeat(1, 2, 1, 1)
    target = torch.full_like(d, 10.0)
    leaves = helpers.leaves([(target + d).to(backend.device), target.to(backend.device)])
    # From pixel 3.9 on: cell 0. Up to pixel 4.1: cell 1. So the upper left two cells.
    boxes = numbers([3.9, 0, 4.1, 4], device=backend.device)
    ids = torch.zeros(1, dtype=torch.int64, device=backend.device)
    total, positive, cells = run(backend, *leaves, boxes, ids)
    assert (total.item(), positive.item(), cells.item()) == (42.0, 6.0, 2)
    d_prediction, d_target = torch.autograd.grad(total + 10 * positive, leaves)
    assert d_prediction[0, 1].flatten().tolist() == [11.0, -11.0, 1.0, -1.0, 1.0, -1.0]
    assert torch.equal(d_target, -d_prediction)


def test_loss_worked_out_by_hand():
    d = torch.tensor([[1.0, -2.0, 3.0], [-4.0, 5.0, -6.0]]).repeat(2, 2, 1, 1)
    boxes, ids = numbers([3.9, 0, 4.1, 4]), torch.tensor([1])
    args = d, torch.zeros_like(d), boxes, ids
    assert balanced_l1(*args, scale=0.25).item() == 84 / 24 + 6 / 4
    assert balanced_l1(*args, scale=0.25, weight=0.5).item() == 84 / 24 + 0.5 * 6 / 4
    valid = torch.tensor([[1, 3], [1, 1]])
    assert balanced_l1(*args, valid, scale=0.25).item() == (12 + 2) / (2 * 4) + 2 / 2
    none = numbers([3.9, 0, 4.1, 4]), torch.tensor([-1])
    assert balanced_l1(*args[:2], *none, scale=0.25).item() == 84 / 24  # not NaN
    assert balanced_l1(*(x[:0] for x in args[:2]), *none, scale=0.25).item() == 0
    assert balanced_l1(*args, valid * 0, scale=0.25).item() == 0


BOXES = {  # in pixels of a map of 4 x 6 cells of 4 pixels, and the cells left, top, right, bottom
    "on the grid": ((4, 4, 12, 8), (1, 1, 3, 2)),
    "snapped outwards": ((4.5, 3.5, 8.5, 8.5), (1, 0, 3, 3)),
    "inside a cell": ((5, 5, 6, 6), (1, 1, 2, 2)),
    "a point inside a cell": ((5, 5, 5, 5), (1, 1, 2, 2)),
    "a point on the grid": ((4, 4, 4, 4), (0, 0, 0, 0)),
    "a line on the grid": ((4, 4, 4, 8), (0, 0, 0, 0)),
    "cut at the border": ((-9, -1, 5, 99), (0, 0, 2, 4)),
    "infinite": ((-INF, 4, INF, INF), (0, 1, 6, 4)),
    "outside": ((24, 0, 30, 9), (0, 0, 0, 0)),
    "left of the map": ((-9, 0, -1, 9), (0, 0, 0, 0)),
    "upside down": ((9, 0, 4, 9), (0, 0, 0, 0)),
    "hardly upside down": ((5.2, 4, 5.1, 5), (0, 0, 0, 0)),
    "not a number": ((4, NAN, 9, 9), (0, 0, 0, 0)),
    "huge": ((-1e30, 0, 1e30, 4), (0, 0, 6, 1)),
}


@pytest.mark.parametrize("kind", BOXES)
def test_cells_of_a_box(backend, kind):
    box, (left, top, right, bottom) = BOXES[kind]
    expected = torch.zeros(4, 6)
    expected[top:bottom, left:right] = 1
    prediction = torch.full((1, 1, 4, 6), 2.0, device=backend.device).requires_grad_()
    boxes = numbers(box, device=backend.device)
    ids = torch.zeros(1, dtype=torch.int64, device=backend.device)
    _, positive, cells = run(backend, prediction, torch.zeros_like(prediction), boxes, ids)
    (d,) = torch.autograd.grad(positive, prediction)
    assert torch.equal(d[0, 0].cpu(), expected)
    assert cells.item() == expected.sum().item()


def test_the_union_of_boxes_counts_once(backend):
    pair = make(2, 3, device=backend.device)
    boxes = numbers([0, 0, 9, 9], [4, 4, 12, 12], [0, 0, 9, 9], device=backend.device)
    ids = torch.tensor([0, 0, 1], device=backend.device)
    check(backend, pair, boxes, ids)
    assert run(backend, *pair, boxes, ids)[2].item() == 9 + 9


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 13), (8, 16), (3, 70), (40, 64)], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_matches_reference_at_every_size(backend, layout, size):
    pair = make(2, 5, size, torch.float32, backend.device, layout)
    check(backend, pair, *some_boxes(2, size, device=backend.device))


@pytest.mark.parametrize("dtype", helpers.FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_matches_reference_in_every_dtype(backend, layout, dtype):
    for c, size in ((8, (8, 16)), (5, (5, 3)), (16, (6, 25))):
        pair = make(2, c, size, dtype, backend.device, layout)
        valid = torch.tensor([[size[0], size[1] - 1], [size[0] - 2, size[1]]]).to(backend.device)
        for boxes_dtype in (torch.float32, dtype):
            boxes = some_boxes(2, size, dtype=boxes_dtype, device=backend.device)
            check(backend, pair, *boxes)
            check(backend, pair, *boxes, valid)


@pytest.mark.parametrize("layout", helpers.LAYOUTS)
def test_matches_reference_in_every_layout(backend, layout):
    boxes, ids = some_boxes(count=8, device=backend.device)
    wide = boxes.new_full((8, 9), NAN)
    wide[:, 1:9:2] = boxes
    valid = torch.tensor([[6, 7], [5, 8]], device=backend.device).t().contiguous().t()
    for which in range(2):
        pair = make(2, 4, (6, 8), torch.float32, backend.device)
        pair[which] = helpers.as_layout(pair[which], layout)
        d_prediction, _ = check(backend, pair, boxes, ids)
        last = layout == "channels_last" and which == 0
        assert d_prediction.is_contiguous(memory_format=torch.channels_last) == last
        check(backend, pair, wide[:, 1:9:2], ids.repeat_interleave(2)[::2], valid)


@pytest.mark.parametrize("channels", [1, 31, 33, 70])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_channel_counts_around_vectors_and_groups(backend, channels, layout):
    pair = make(1, channels, (4, 5), torch.float32, backend.device, layout)
    check(backend, pair, *some_boxes(1, (4, 5), device=backend.device))


@pytest.mark.parametrize("scale", [0.25, 0.125, 1 / 3, 1.0, 2.0, 0.1])
def test_scale_is_cells_per_pixel(backend, scale):
    pair = make(2, 2, (9, 12), torch.float32, backend.device)
    boxes, ids = some_boxes(2, (9, 12), 1 / scale, 12, device=backend.device)
    boxes[::3] = (boxes[::3] * scale).round() / scale  # on the grid, up to a rounding
    check(backend, pair, boxes, ids, scale=scale)


# ---- padding, NaN, infinity ----------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_not_finite_values_in_the_padding_do_not_count(backend, layout):
    pair = make(2, 4, (6, 8), torch.float32, backend.device, layout)
    boxes, ids = some_boxes(count=12, device=backend.device)
    valid = torch.tensor([[3, 8], [6, 5]], device=backend.device)
    before = run(backend, *pair, boxes, ids, valid)
    pair[0][0, :, 3:] = NAN
    pair[1][1, :, :, 5:] = INF
    check(backend, pair, boxes, ids, valid)
    for a, b in zip(before, run(backend, *pair, boxes, ids, valid), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_not_finite_values(backend, layout):
    boxes = numbers([0, 0, 8, 8], device=backend.device)
    ids = torch.zeros(1, dtype=torch.int64, device=backend.device)
    for bad in (NAN, INF, -INF):
        for place, spoilt in (((0, 2, 1, 1), True), ((0, 2, 4, 4), False)):
            pair = make(1, 4, (6, 8), torch.float32, backend.device, layout)
            pair[0][place] = bad
            check(backend, pair, boxes, ids)
            total, positive, _ = run(backend, *pair, boxes, ids)
            assert not total.isfinite()
            assert positive.isfinite() != spoilt


# ---- derivatives ---------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradcheck(backend, layout):
    prediction, target = make(1, 2, (3, 4), device=backend.device, layout=layout)
    target = target + 3  # away from the kink
    boxes, ids = numbers([0, 3, 9, 9], device=backend.device), torch.zeros(1, dtype=torch.int64)
    leaves = helpers.leaves([prediction, target])

    def sums(*pair):
        return run(backend, *pair, boxes, ids.to(backend.device))[:2]

    fast = backend.name == "triton"
    assert torch.autograd.gradcheck(sums, leaves, nondet_tol=0.0, fast_mode=fast)


def test_gradients_that_nobody_needs_are_not_computed(backend):
    pair = make(2, 3, dtype=torch.float32, device=backend.device)
    boxes, ids = some_boxes(device=backend.device)
    one = torch.ones((), device=backend.device)
    backward = backend.ops._balanced_l1_sums_backward
    both = backward(one, one, *pair, boxes, ids, None, 0.25, True, True)
    for needs in ((True, False), (False, True), (False, False)):
        some = backward(one, one, *pair, boxes, ids, None, 0.25, *needs)
        for need, d, whole in zip(needs, some, both, strict=True):
            assert torch.equal(d, whole) if need else d.numel() == 0
    for k in range(2):
        leaves = [x.detach().requires_grad_(j == k) for j, x in enumerate(pair)]
        total, positive, _ = run(backend, *leaves, boxes, ids)
        (total + positive).backward()
        assert torch.equal(leaves[k].grad, both[k])
        assert leaves[1 - k].grad is None


def test_gradient_of_one_sum_only(backend):
    for k in range(2):
        pair = make(2, 3, dtype=torch.float32, device=backend.device)
        boxes, ids = some_boxes(device=backend.device)
        ours, theirs = helpers.leaves(pair), helpers.leaves(x.cpu() for x in pair)
        run(backend, *ours, boxes, ids)[k].backward()
        balanced_l1_sums_reference(*theirs, boxes.cpu(), ids.cpu(), scale=0.25)[k].backward()
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a.grad.cpu(), b.grad)


def test_second_derivative_is_an_error(backend):
    pair = helpers.leaves(make(device=backend.device))
    total, positive, _ = run(backend, *pair, *some_boxes(device=backend.device))
    (d,) = torch.autograd.grad(total.square() + positive, pair[0], create_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once only"):
        d.sum().backward()


def test_gradient_of_the_loss():
    pair = make(2, 3)
    boxes, ids = some_boxes(count=9)
    ours, theirs = helpers.leaves(pair), helpers.leaves(pair)
    balanced_l1(*ours, boxes, ids, scale=0.25, weight=0.5).backward()
    total, positive, cells = balanced_l1_sums_reference(*theirs, boxes, ids, scale=0.25)
    (total / pair[0].numel() + 0.5 * positive / (3 * cells)).backward()
    for a, b in zip(ours, theirs, strict=True):
        helpers.assert_close(a.grad, b.grad)


# ---- empty, threads ------------------------------------------------------------------------------


@pytest.mark.parametrize("empty", [{"n": 0}, {"c": 0}, {"size": (0, 3)}, {"size": (3, 0)}], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_empty_maps_give_sums_of_zero(backend, layout, empty):
    pair = helpers.leaves(make(dtype=torch.float32, device=backend.device, layout=layout, **empty))
    boxes, ids = numbers([0, 0, 9, 3], device=backend.device), torch.zeros(1, dtype=torch.int64)
    total, positive, cells = run(backend, *pair, boxes, ids.to(backend.device))
    assert (total.item(), positive.item()) == (0, 0)
    assert cells.item() == (3 if empty == {"c": 0} else 0)  # cells are there without channels, too
    for d, x in zip(torch.autograd.grad(total + positive, pair), pair, strict=True):
        assert d.shape == x.shape


def test_no_boxes(backend):
    pair = make(dtype=torch.float32, device=backend.device)
    none = some_boxes(count=0, device=backend.device)
    check(backend, pair, *none)
    assert run(backend, *pair, *none)[2].item() == 0


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_number_of_threads_does_not_change_a_bit(layout):
    pair = make(2, 37, (64, 80), torch.float32, layout=layout)
    boxes = some_boxes(2, (64, 80), count=40)

    def step():
        leaves = helpers.leaves(pair)
        *sums, cells = balanced_l1_sums(*leaves, *boxes, scale=0.25)
        return [*sums, cells, *torch.autograd.grad(sums, leaves, sums)]

    helpers.same_for_any_threads(step)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("width", "dtype"), [(256, torch.float32), (251, torch.float32), (512, torch.bfloat16)]
)
@pytest.mark.parametrize("backend", ["cpu", "cuda"], indirect=True)
def test_large_maps_whose_gradients_are_streamed_past_the_cache(backend, width, dtype, layout):
    pair = make(1, 72, (256, width), dtype, backend.device, layout)
    assert pair[0].nbytes > 16 << 20
    boxes = some_boxes(1, (256, width), count=100, device=backend.device)
    check(backend, pair, *boxes)
