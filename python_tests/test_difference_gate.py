import itertools

import helpers
import pytest
import torch
import torch.nn.functional as F

from tinyops.ops import difference_gate, difference_gate_reference
from tinyops.ops.difference_gate import ESTIMATORS, RESIZES

SIZES = {  # cells (height, width), pixels of the map per cell (rows, columns)
    "ratio-4": ((4, 16), (4, 4)),
    "ratio-4-odd": ((3, 5), (4, 4)),
    "ratio-1": ((5, 8), (1, 1)),
    "ratio-2x3": ((3, 7), (2, 3)),
    "ratio-1x8": ((2, 9), (1, 8)),
    "rows-only": ((1, 37), (5, 1)),
    "one-cell": ((1, 1), (6, 5)),
    "one-pixel": ((1, 1), (1, 1)),
}
CODES = [{"resize": r, "ste": 0} for r in range(3)]


def make(n=2, c=3, size="ratio-4", dtype=torch.float64, device="cpu", map_dtype=None):
    """features, channel_weight, difference, threshold. Some pixels are ties, some are far away."""
    (h, w), (rows, columns) = SIZES[size]
    features = torch.randn(n, c, h, w, dtype=torch.float64)
    weight = torch.rand(n, c, 1, 1, dtype=torch.float64)
    steps = torch.randint(0, 9, (n, 1, h * rows, w * columns))
    difference = steps.double() / 8
    difference[torch.rand(difference.shape) < 0.1] = 2.5  # farther than gradients pass through
    threshold = torch.tensor(0.375, dtype=torch.float64)
    maps = [x.to(device, map_dtype or dtype) for x in (difference, threshold)]
    return [features.to(device, dtype), weight.to(device, dtype), *maps]


def words(options):
    return {"resize": RESIZES[options["resize"]], "ste": ESTIMATORS[options["ste"]]}


def check(backend, tensors, options):
    """Output and gradients are those of the reference."""
    helpers.assert_matches_reference(
        lambda *x: backend.ops.difference_gate(*x, **options),
        lambda *x: difference_gate_reference(*x, **words(options)),
        tensors,
    )


# ---- values --------------------------------------------------------------------------------------


def hand_made(device):
    features = torch.tensor([[[[1.0, 2.0]], [[3.0, -4.0]]]])
    weight = torch.tensor([0.5, 2.0]).view(1, 2, 1, 1)
    difference = torch.tensor([[[[0.5, 0.25, 0.0, 1.0], [1.0, 0.75, 0.25, 3.0]]]])
    return [x.to(device) for x in (features, weight, difference, torch.tensor(0.25))]


def test_numbers_worked_out_by_hand(backend):
    # Masks of the left block: 1, 1/2, 1, 1; of the right one: 0, 1, 1/2, 1.
    masks = {"nearest": (1, 0), "area": (0.875, 0.625), "max": (1, 1)}
    for code, resize in enumerate(RESIZES):
        out = backend.ops.difference_gate(*hand_made(backend.device), resize=code)
        left, right = masks[resize]
        expected = [0.5 * (1 + left), 1 + right, 6 * (1 + left), -8 * (1 + right)]
        assert out.flatten().tolist() == expected


def test_gradients_worked_out_by_hand(backend):
    grad = torch.tensor([[[[2.0, 1.0]], [[1.0, 3.0]]]], device=backend.device)
    # g_m = sum_c grad * features * weight of the two cells
    left, right = 2 * 1 * 0.5 + 1 * 3 * 2, 1 * 2 * 0.5 + 3 * -4 * 2
    a, b = 0.5 * left, 0.5 * right
    # Nearest reads the upper left pixels, area all of them but 3.0, which is farther than 1 from
    # the threshold, max the first that is above the threshold.
    wanted = {
        "nearest": (1, 0, [a, 0, b, 0, 0, 0, 0, 0]),
        "area": (0.875, 0.625, [a / 4, a / 4, b / 4, b / 4, a / 4, a / 4, b / 4, 0]),
        "max": (1, 1, [a, 0, 0, b, 0, 0, 0, 0]),
    }
    for code, resize in enumerate(RESIZES):
        tensors = helpers.leaves(hand_made(backend.device))
        out = backend.ops.difference_gate(*tensors, resize=code)
        d_features, d_weight, d_difference, d_threshold = helpers.gradients(out, grad, tensors)
        l_mask, r_mask, pixels = wanted[resize]
        a, b = 1 + l_mask, 1 + r_mask
        scaled = [2 * 0.5 * a, 1 * 0.5 * b, 1 * 2 * a, 3 * 2 * b]
        assert d_features.flatten().tolist() == scaled
        sums = [2 * 1 * a + 1 * 2 * b, 1 * 3 * a + 3 * -4 * b]
        assert d_weight.flatten().tolist() == sums
        assert d_difference.flatten().tolist() == pixels
        assert d_threshold.item() == -sum(pixels)


def test_nearest_is_that_of_interpolate(backend):
    features, weight, difference, threshold = make(dtype=torch.float32, device=backend.device)
    mask = F.interpolate(0.5 * ((difference - threshold).sign() + 1), features.shape[-2:])
    out = backend.ops.difference_gate(features, weight, difference, threshold)
    assert torch.equal(out, features * weight * (1 + mask))


@pytest.mark.parametrize("options", CODES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_matches_reference_at_every_ratio(backend, size, options):
    check(backend, make(size=size, dtype=torch.float32, device=backend.device), options)


@pytest.mark.parametrize("dtype", helpers.FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_matches_reference_in_every_dtype(backend, layout, dtype):
    cases = itertools.product(((8, "ratio-4"), (5, "ratio-2x3")), CODES)
    for (c, size), options in cases:
        tensors = make(c=c, size=size, dtype=dtype, device=backend.device)
        tensors[0] = helpers.as_layout(tensors[0], layout)
        check(backend, tensors, options)


@pytest.mark.parametrize("map_dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dtype", helpers.FLOAT_DTYPES, ids=str)
def test_mask_is_decided_in_the_dtype_of_the_map(backend, dtype, map_dtype):
    for options in CODES:
        tensors = make(c=8, dtype=dtype, map_dtype=map_dtype, device=backend.device)
        tensors[2] += 1e-4  # half formats would round this to the threshold
        leaves, wanted = (
            helpers.leaves(tensors),
            helpers.leaves((x.cpu() for x in tensors), torch.float64),
        )
        out = backend.ops.difference_gate(*leaves, **options)
        expected = difference_gate_reference(*wanted, **words(options))
        helpers.assert_close(out.detach(), expected.detach())
        grad = torch.randn(out.shape).to(dtype)
        actual = helpers.gradients(out, grad.to(out.device), leaves)
        assert [x.dtype for x in actual] == [dtype, dtype, map_dtype, map_dtype]
        for a, b in zip(actual, helpers.gradients(expected, grad.double(), wanted), strict=True):
            # Sums over channels of narrow features are float32, whatever they are stored in.
            narrow = a.dtype == torch.float64 and dtype != torch.float64
            helpers.assert_close(a.float() if narrow else a, b)


@pytest.mark.parametrize("layout", helpers.LAYOUTS)
def test_matches_reference_in_every_layout(backend, layout):
    for position in range(3):
        tensors = make(c=4, dtype=torch.float32, device=backend.device)
        tensors[position] = helpers.as_layout(tensors[position], layout)
        check(backend, tensors, {"resize": 1, "ste": 0})


@pytest.mark.parametrize("layout", helpers.LAYOUTS)
def test_gradient_that_arrives_in_any_layout(backend, layout):
    for own in ("contiguous", "channels_last"):
        tensors = make(c=4, dtype=torch.float32, device=backend.device)
        tensors[0] = helpers.as_layout(tensors[0], own)
        leaves, wanted = helpers.leaves(tensors), helpers.leaves(tensors)
        out = backend.ops.difference_gate(*leaves)
        grad = torch.randn_like(out)
        actual = helpers.gradients(out, helpers.as_layout(grad, layout), leaves)
        expected = helpers.gradients(difference_gate_reference(*wanted), grad, wanted)
        for a, b in zip(actual, expected, strict=True):
            helpers.assert_close(a, b)


def test_expanded_gradient_of_a_sum(backend):
    tensors = helpers.leaves(make(c=4, dtype=torch.float32, device=backend.device))
    wanted = helpers.leaves(tensors)
    backend.ops.difference_gate(*tensors).sum().backward()
    difference_gate_reference(*wanted).sum().backward()
    for a, b in zip(tensors, wanted, strict=True):
        helpers.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("channels", [1, 2, 31, 33, 64, 70])
def test_channel_counts_around_vectors_and_groups(backend, channels):
    for layout in ("contiguous", "channels_last"):
        tensors = make(1, channels, "ratio-2x3", torch.float32, backend.device)
        tensors[0] = helpers.as_layout(tensors[0], layout)
        check(backend, tensors, CODES[0])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_more_channels_and_cells_than_a_block_takes(backend, layout):
    SIZES["large"] = (11, 33), (2, 1)
    tensors = make(2, 300 if layout == "channels_last" else 20, "large", torch.float32)
    tensors = [x.to(backend.device) for x in tensors]
    tensors[0] = helpers.as_layout(tensors[0], layout) / 16  # sums of many stay of order 1
    check(backend, tensors, CODES[2])


@pytest.mark.parametrize("options", CODES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_nan_and_infinity(backend, layout, options):
    nan, inf = float("nan"), float("inf")
    tensors = make(c=4, dtype=torch.float32, device=backend.device)
    tensors[0][0, 1, 2, 1], tensors[0][1, 2, 0, 3] = nan, inf
    tensors[0] = helpers.as_layout(tensors[0], layout)
    tensors[1][1, 3] = inf
    tensors[2][0, 0, 4, 8], tensors[2][1, 0, 0, 0], tensors[2][1, 0, 1, 5] = nan, inf, -inf
    with torch.no_grad():
        out = backend.ops.difference_gate(*tensors, **options)
    exact = [x.cpu().double() for x in tensors]
    helpers.assert_close(out, difference_gate_reference(*exact, **words(options)))
    tensors[0].nan_to_num_(posinf=1.0)
    tensors[1].nan_to_num_(posinf=1.0)
    check(backend, tensors, options)  # NaN and infinity in the map alone have gradients
    tensors[3] = tensors[3] * nan
    check(backend, tensors, options)


# ---- layouts of the output -----------------------------------------------------------------------


def test_fake_kernels_have_the_strides_of_the_real_ones(backend):
    for layout in helpers.LAYOUTS:
        tensors = make(c=4, size="ratio-2x3", dtype=torch.float32, device=backend.device)
        tensors[0] = helpers.as_layout(tensors[0], layout)
        helpers.assert_fake_has_real_strides(backend.ops.difference_gate.default, *tensors)
        for grad, *needs in (
            (tensors[0], True, True, True, True),
            (torch.ones_like(tensors[0]), True, False, True, False),
            (tensors[0].new_ones(()).expand(tensors[0].shape), False, True, False, True),
        ):
            backward = backend.ops._difference_gate_backward.default
            helpers.assert_fake_has_real_strides(backward, grad, *tensors, 0, *needs)


def test_channels_last_stays_channels_last(backend):
    features, *others = make(c=4, dtype=torch.float32, device=backend.device)
    features = helpers.as_layout(features, "channels_last")
    out = backend.ops.difference_gate(features, *others)
    assert out.stride() == features.stride()
    assert backend.ops.difference_gate(features.contiguous(), *others).is_contiguous()


# ---- derivatives ---------------------------------------------------------------------------------


@pytest.mark.parametrize("options", CODES, ids=str)
def test_gradcheck_of_features_and_weights(backend, options):
    tensors = make(1, 2, "ratio-2x3", device=backend.device)
    leaves = helpers.leaves(tensors[:2])

    def run(features, weight):
        return backend.ops.difference_gate(features, weight, *tensors[2:], **options)

    assert torch.autograd.gradcheck(run, leaves, nondet_tol=0.0, fast_mode=True)


def test_second_derivative_is_an_error(backend):
    tensors = helpers.leaves(make(size="ratio-2x3", device=backend.device))
    out = backend.ops.difference_gate(*tensors)
    (d,) = torch.autograd.grad(out.sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once only"):
        (d.sum() + out.sum()).backward()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("ste", [0, 1])
def test_gradient_of_some_inputs_only(backend, ste, layout):
    options = {"resize": 1, "ste": ste}
    for wanted in itertools.product((False, True), repeat=4):
        if not any(wanted):
            continue
        tensors = make(c=5, size="ratio-2x3", dtype=torch.float32, device=backend.device)
        tensors[0] = helpers.as_layout(tensors[0], layout)
        for x, is_wanted in zip(tensors, wanted, strict=True):
            x.requires_grad_(is_wanted)
        expected = [x.detach().clone().requires_grad_(x.requires_grad) for x in tensors]
        grad = torch.randn(tensors[0].shape, device=backend.device)
        backend.ops.difference_gate(*tensors, **options).backward(grad)
        difference_gate_reference(*expected, **words(options)).backward(grad)
        for actual, x, is_wanted in zip(tensors, expected, wanted, strict=True):
            assert (actual.grad is not None) == is_wanted
            if is_wanted:
                helpers.assert_close(actual.grad, x.grad)


@pytest.mark.parametrize("options", CODES, ids=str)
def test_opcheck(backend, options):
    for layout in ("contiguous", "channels_last"):
        tensors = make(c=4, size="ratio-2x3", dtype=torch.float32, device=backend.device)
        tensors[0] = helpers.as_layout(tensors[0], layout)
        helpers.opcheck(backend.ops.difference_gate.default, helpers.leaves(tensors), options)


# ---- empty ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "c", "cells", "blocks"),
    [
        (0, 3, (2, 3), (2, 2)),
        (2, 0, (2, 3), (2, 2)),
        (2, 3, (0, 3), (1, 2)),
        (2, 3, (2, 0), (2, 1)),
    ],
)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_empty_input_gives_empty_output_and_zero_gradients(backend, layout, n, c, cells, blocks):
    SIZES["empty"] = cells, blocks
    tensors = make(n, c, "empty", torch.float32, backend.device)
    tensors[0] = helpers.as_layout(tensors[0], layout)
    leaves = helpers.leaves(tensors)
    out = backend.ops.difference_gate(*leaves)
    assert out.shape == tensors[0].shape
    for x, d in zip(leaves, helpers.gradients(out, torch.ones_like(out), leaves), strict=True):
        assert torch.equal(d, torch.zeros_like(x))


# ---- the CPU kernels -----------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("width", "dtype"), [(256, torch.float32), (250, torch.float32), (512, torch.bfloat16)]
)
def test_threads_and_streaming_change_nothing(width, dtype, layout):
    SIZES["streamed"] = (256, width), (1, 2)
    tensors = make(1, 73, "streamed", dtype, map_dtype=torch.float32)
    tensors[0] = helpers.as_layout(tensors[0], layout)
    assert tensors[0].nbytes > 16 << 20
    grad = (torch.randn(tensors[0].shape) / 256).to(dtype)

    def run():
        leaves = helpers.leaves(tensors)
        out = difference_gate(*leaves)
        return [out.detach(), *helpers.gradients(out, grad, leaves)]

    one = helpers.same_for_any_threads(run)
    exact = helpers.leaves(tensors, torch.float64)
    expected = difference_gate_reference(*exact)
    wanted = [expected.detach(), *helpers.gradients(expected, grad.double(), exact)]
    for a, b in zip(one, wanted, strict=True):
        helpers.assert_close(a, b)
