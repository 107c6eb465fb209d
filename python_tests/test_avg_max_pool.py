import helpers
import pytest
import torch

from tinyops.ops import avg_max_pool, avg_max_pool_reference

NAN, INF = float("nan"), float("inf")


def make(n=2, c=3, size=(5, 7), dtype=torch.float64, device="cpu", layout="contiguous"):
    x = torch.randn(n, c, *size, dtype=torch.float64).to(device, dtype)
    return helpers.as_layout(x, layout)


def extents(*rows, device="cpu"):
    return torch.tensor(rows, dtype=torch.int64, device=device)


def check(backend, features, valid=None):
    """Results and gradients are those of the reference in float64, and the maximum is exact."""
    ours, theirs = helpers.leaves([features])[0], helpers.leaves([features.cpu()], torch.float64)[0]
    *results, index = backend.ops.avg_max_pool(ours, valid)
    expected = avg_max_pool_reference(theirs, None if valid is None else valid.cpu())
    for result, right in zip(results, expected, strict=True):
        assert result.shape == (*features.shape[:2], 1, 1)
        assert result.dtype == features.dtype
        helpers.assert_close(result.detach(), right.detach())
    torch.testing.assert_close(
        results[1].detach().double().cpu(), expected[1].detach(), rtol=0, atol=0, equal_nan=True
    )
    assert not index.requires_grad
    grads = [torch.randn(x.shape, dtype=torch.float64) for x in expected]
    given = [g.to(features.device, features.dtype) for g in grads]
    (actual,) = torch.autograd.grad(results, ours, given)
    (wanted,) = torch.autograd.grad(expected, theirs, [g.double().cpu() for g in given])
    assert actual.dtype == features.dtype
    helpers.assert_close(actual, wanted)
    return actual


# ---- values --------------------------------------------------------------------------------------


def test_numbers_worked_out_by_hand(backend):
    features = torch.tensor([[[[1.0, 4.0], [3.0, 4.0]], [[-5.0, -2.0], [-3.0, -2.0]]]])
    leaf = features.to(backend.device).requires_grad_()
    mean, maximum, index = backend.ops.avg_max_pool(leaf)
    assert mean.flatten().tolist() == [3.0, -3.0]
    assert maximum.flatten().tolist() == [4.0, -2.0]
    assert index.flatten().tolist() == [1, 1]  # the first of two
    grads = [
        torch.tensor(g, device=backend.device).view(1, 2, 1, 1) for g in ([4.0, 8], [10.0, 20])
    ]
    (d,) = torch.autograd.grad((mean, maximum), leaf, grads)
    assert d.flatten().tolist() == [1.0, 11.0, 1.0, 1.0, 2.0, 22.0, 2.0, 2.0]


def test_padding_does_not_count(backend):
    features = torch.arange(24.0).view(2, 1, 3, 4).to(backend.device).requires_grad_()
    valid = extents([2, 3], [3, 1], device=backend.device)
    mean, maximum, index = backend.ops.avg_max_pool(features, valid)
    assert mean.flatten().tolist() == [(0 + 1 + 2 + 4 + 5 + 6) / 6, (12 + 16 + 20) / 3]
    assert maximum.flatten().tolist() == [6.0, 20.0]
    assert index.flatten().tolist() == [6, 8]
    (d,) = torch.autograd.grad((mean.sum() * 6, maximum.sum()), features)
    assert d[0].flatten().tolist() == [1, 1, 1, 0, 1, 1, 2, 0, 0, 0, 0, 0]
    assert d[1].flatten().tolist() == [2, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0]


SIZES = [(1, 1), (1, 9), (9, 1), (2, 2), (7, 13), (8, 16), (3, 64), (50, 70)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_matches_reference_at_every_size(backend, layout, size):
    check(backend, make(1, 5, size, torch.float32, backend.device, layout))


@pytest.mark.parametrize("dtype", helpers.FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_matches_reference_in_every_dtype(backend, layout, dtype):
    for c, size in ((8, (8, 16)), (5, (5, 3)), (16, (13, 25))):
        features = make(2, c, size, dtype, backend.device, layout)
        check(backend, features)
        valid = extents([size[0] - 2, size[1]], [size[0], size[1] - 1], device=backend.device)
        check(backend, features, valid)


@pytest.mark.parametrize("layout", helpers.LAYOUTS)
def test_matches_reference_in_every_layout(backend, layout):
    features = make(2, 4, (6, 8), torch.float32, backend.device, layout)
    gradient = check(backend, features)
    last = layout == "channels_last"
    assert gradient.is_contiguous(memory_format=torch.channels_last) == last
    valid = extents([5, 6], [7, 8], device=backend.device).t().contiguous().t()
    check(backend, features, valid)


@pytest.mark.parametrize("channels", [1, 31, 33, 70])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_channel_counts_around_vectors_and_groups(backend, channels, layout):
    features = make(1, channels, (6, 7), torch.float32, backend.device, layout)
    check(backend, features)
    check(backend, features, extents([6, 5], device=backend.device))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_more_cells_than_one_part_has(backend, layout):
    slow = backend.device == "cpu" and backend.name != "cpu"
    height, width = (40, 30) if slow and layout == "channels_last" else (97, 111)
    c = 2 if slow else 70
    features = make(1, c, (height, width), torch.float32, backend.device, layout)
    check(backend, features)
    check(backend, features, extents([height - 3, width], device=backend.device))
    check(backend, features, extents([height, width - 3], device=backend.device))
    cells = height * width
    for place in (0, cells // 2, cells - 1):  # the first of many maxima, in every part
        flat = torch.zeros(1, c, cells)
        flat[..., place:] = 1
        flat = helpers.as_layout(flat.view(1, c, height, width), layout).to(backend.device)
        assert (backend.ops.avg_max_pool(flat)[2] == place).all()
        spoilt = features.clone()
        for cell in {place, cells - 1}:  # the first NaN is the maximum
            spoilt[:, 0, cell // width, cell % width] = NAN
        mean, maximum, index = backend.ops.avg_max_pool(spoilt)
        assert mean[:, 0].isnan().all()
        assert maximum[:, 0].isnan().all()
        assert (index[:, 0] == place).all()
        assert not mean[:, 1:].isnan().any()
        spoilt[:, 0, 0, 0], spoilt[:, 0, -1, -1] = -INF, -INF
        spoilt[:, 0, place // width, place % width] = INF  # no NaN left, but inf - inf in the mean
        mean, maximum, index = backend.ops.avg_max_pool(spoilt)
        assert mean[:, 0].isnan().all()
        assert (maximum[:, 0] == INF).all()
        assert (index[:, 0] == place).all()


@pytest.mark.parametrize(
    "valid",
    [
        ([5, 7], [5, 7]),  # everything
        ([9, 100], [5, 2**40]),  # cut to the map
        ([1, 1], [4, 6]),
        ([0, 3], [5, 7]),  # nothing
        ([3, 0], [-1, -1]),
    ],
    ids=str,
)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_extents_are_cut_to_the_map_and_may_be_empty(backend, layout, valid):
    features = make(2, 4, (5, 7), torch.float32, backend.device, layout)
    valid = extents(*valid, device=backend.device)
    check(backend, features, valid)
    mean, maximum, index = backend.ops.avg_max_pool(features, valid)
    nothing = (valid <= 0).any(1)
    assert (index[nothing] == -1).all()
    assert (mean[nothing] == 0).all()
    assert (maximum[nothing] == 0).all()


# ---- NaN, infinity, ties -------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_not_finite_values(backend, dtype, layout):
    planes = [
        [1.0, NAN, 2.0, NAN],  # the first NaN is the maximum
        [NAN, 1.0, 1.0, 1.0],
        [1.0, INF, -INF, 2.0],  # the mean is NaN, the maximum is not
        [-INF, -INF, -INF, -INF],
        [INF, INF, 0.0, NAN],
        [0.0, 1.0, 2.0, INF],
    ]
    features = torch.tensor(planes, dtype=dtype).repeat(1, 8).view(1, 6, 4, 8)
    features = helpers.as_layout(features, layout).to(backend.device)
    mean, maximum, index = backend.ops.avg_max_pool(features)
    assert str(mean.flatten().tolist()) == "[nan, nan, nan, -inf, nan, inf]"
    assert str(maximum.flatten().tolist()) == "[nan, nan, inf, -inf, nan, inf]"
    assert index.flatten().tolist() == [1, 0, 1, 0, 3, 3]
    check(backend, features)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_not_finite_values_in_the_padding_do_not_count(backend, layout):
    features = make(2, 4, (5, 7), torch.float32, backend.device, layout)
    clean = check(backend, features, extents([3, 7], [5, 4], device=backend.device))
    features[0, :, 3:] = NAN
    features[1, :, :, 4:] = INF
    dirty = check(backend, features, extents([3, 7], [5, 4], device=backend.device))
    assert dirty.isfinite().all()
    assert clean.shape == dirty.shape


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_first_of_equal_maxima_wherever_it_is(backend, layout):
    for place in (0, 1, 15, 16, 17, 31, 40, 76):
        features = torch.full((1, 3, 7, 11), -1.0)
        features.flatten(2)[..., place:] = 2.0
        features = helpers.as_layout(features, layout).to(backend.device)
        assert (backend.ops.avg_max_pool(features)[2] == place).all()
    zeros = torch.tensor([[[[-0.0, 0.0]]]], device=backend.device)
    assert backend.ops.avg_max_pool(zeros)[2].item() == 0


def test_a_long_sum_is_accurate():
    features = torch.full((1, 2, 1000, 1000), 0.1)
    for layout in ("contiguous", "channels_last"):
        mean, _ = avg_max_pool(helpers.as_layout(features, layout))
        torch.testing.assert_close(mean.flatten(), torch.full((2,), 0.1), rtol=1e-6, atol=0)


# ---- derivatives ---------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradcheck(backend, layout):
    features = make(2, 2, (3, 4), device=backend.device, layout=layout).requires_grad_()
    for valid in (None, extents([3, 3], [2, 4], device=backend.device)):

        def run(x, valid=valid):
            return backend.ops.avg_max_pool(x, valid)[:2]

        fast = backend.name == "triton"
        assert torch.autograd.gradcheck(run, [features], nondet_tol=0.0, fast_mode=fast)


def test_gradient_of_one_output_only(backend):
    for k in range(2):
        features = make(2, 3, (4, 5), torch.float32, backend.device).requires_grad_()
        expected = features.detach().double().cpu().requires_grad_()
        backend.ops.avg_max_pool(features)[k].square().sum().backward()
        avg_max_pool_reference(expected)[k].square().sum().backward()
        helpers.assert_close(features.grad, expected.grad)


def test_second_derivative_is_an_error(backend):
    features = make(device=backend.device).requires_grad_()
    mean, maximum, _ = backend.ops.avg_max_pool(features)
    (d,) = torch.autograd.grad(mean.square().sum() + maximum.sum(), features, create_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once only"):
        d.sum().backward()


def test_opcheck(backend):
    slow = backend.name == "triton" and backend.device == "cpu"
    for layout in ("channels_last",) if slow else ("contiguous", "channels_last"):
        features = make(2, 4, (3, 5), torch.float32, backend.device, layout).requires_grad_()
        op = backend.ops.avg_max_pool.default
        helpers.opcheck(op, (features,))
        helpers.opcheck(op, (features, extents([3, 3], [2, 5], device=backend.device)))


@pytest.mark.parametrize("layout", helpers.LAYOUTS)
def test_fake_kernels_have_the_strides_of_the_real_ones(backend, layout):
    features = make(2, 4, (3, 5), torch.bfloat16, backend.device, layout)
    forward = backend.ops.avg_max_pool.default
    helpers.assert_fake_has_real_strides(forward, features)
    mean, maximum, index = forward(features)
    for last in (False, True):
        helpers.assert_fake_has_real_strides(
            backend.ops._avg_max_pool_backward.default, mean, maximum, index, None, 3, 5, last
        )


# ---- empty, threads ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(0, 3), (2, 0), (0, 0)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_empty_batch_gives_empty_output_and_gradient(backend, layout, size):
    features = make(*size, dtype=torch.float32, device=backend.device, layout=layout)
    features.requires_grad_()
    mean, maximum, index = backend.ops.avg_max_pool(features)
    assert mean.shape == maximum.shape == index.shape == (*size, 1, 1)
    (d,) = torch.autograd.grad((mean, maximum), features, (mean, maximum))
    assert d.shape == features.shape


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_number_of_threads_does_not_change_a_bit(layout):
    features = make(2, 37, (64, 80), torch.float32, layout=layout)
    valid = extents([64, 80], [60, 70])

    def run():
        leaf = features.detach().requires_grad_()
        results = avg_max_pool(leaf, valid)
        return [*results, *torch.autograd.grad(results, leaf, results)]

    helpers.same_for_any_threads(run)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("width", "dtype"), [(256, torch.float32), (251, torch.float32), (512, torch.bfloat16)]
)
def test_gradients_that_are_streamed_past_the_cache(width, dtype, layout):
    features = make(1, 72, (256, width), dtype, layout=layout)
    assert features.nbytes > 16 << 20
    for valid in (None, extents([255, width]), extents([200, width - 3])):
        leaf, wanted = features.detach().requires_grad_(), features.double().requires_grad_()
        results, expected = avg_max_pool(leaf, valid), avg_max_pool_reference(wanted, valid)
        grads = [torch.randn(1, 72, 1, 1).to(dtype) for _ in range(2)]
        (d,) = torch.autograd.grad(results, leaf, grads)
        (right,) = torch.autograd.grad(expected, wanted, [g.double() for g in grads])
        helpers.assert_close(d, right)
