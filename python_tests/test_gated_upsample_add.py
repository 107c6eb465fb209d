import itertools

import helpers
import pytest
import torch
import torch.nn.functional as F

from tinyops.ops import gated_upsample_add, gated_upsample_add_reference

MODES = {"plain": (False, False), "gated": (True, False), "self": (True, True)}
SIZES = {  # (height, width) of high and of low
    "double": ((4, 8), (8, 16)),
    "double-wide": ((3, 40), (6, 80)),
    "double-odd": ((3, 5), (6, 10)),
    "double-rows-only": ((4, 6), (8, 6)),
    "double-columns-only": ((3, 20), (7, 40)),
    "ratio-3": ((3, 8), (9, 24)),
    "odd": ((7, 13), (13, 25)),
    "same": ((5, 8), (5, 8)),
    "down": ((9, 16), (4, 8)),
    "down-odd": ((9, 7), (4, 3)),
    "one-pixel": ((1, 1), (7, 5)),
    "to-one-pixel": ((5, 3), (1, 1)),
}


def make(mode="gated", n=2, c=3, sizes=((4, 8), (8, 16)), dtype=torch.float64, device="cpu"):
    """low, high, gate_low, gate_high."""
    (h, w), (height, width) = sizes
    shapes = [(n, c, height, width), (n, c, h, w)]
    tensors = [torch.randn(s, dtype=torch.float64) for s in shapes]
    if MODES[mode][0]:
        tensors += [torch.rand((n, 1, *s[2:]), dtype=torch.float64) for s in shapes]
    else:
        tensors += [None, None]
    return [None if x is None else x.to(device, dtype) for x in tensors]


def check(backend, tensors, mode):
    helpers.assert_matches_reference(
        backend.ops.gated_upsample_add,
        gated_upsample_add_reference,
        tensors,
        self_gate=MODES[mode][1],
    )


# ---- values --------------------------------------------------------------------------------------


def test_numbers_worked_out_by_hand(backend):
    low = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]], device=backend.device)
    high = torch.tensor([[[[10.0]]]], device=backend.device)
    gate_low = torch.tensor([[[[0.0, 0.5], [1.0, 0.25]]]], device=backend.device)
    gate_high = torch.tensor([[[[0.5]]]], device=backend.device)
    op = backend.ops.gated_upsample_add
    assert op(low, high).flatten().tolist() == [11.0, 12.0, 13.0, 14.0]
    assert op(low, high, gate_low, gate_high).flatten().tolist() == [1.0, 4.5, 8.0, 5.25]
    enhanced = op(low, high, gate_low, gate_high, self_gate=True)
    assert enhanced.flatten().tolist() == [1.0, 5.5, 11.0, 6.25]


def test_gradients_worked_out_by_hand(backend):
    low = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])
    high = torch.tensor([[[[10.0]], [[20.0]]]])
    gate_low, gate_high = torch.tensor([[[[0.5, 1.0]]]]), torch.tensor([[[[0.25]]]])
    leaves = helpers.leaves([x.to(backend.device) for x in (low, high, gate_low, gate_high)])
    grad = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]], device=backend.device)
    output = backend.ops.gated_upsample_add(*leaves, self_gate=True)
    d_low, d_high, d_gate_low, d_gate_high = helpers.gradients(output, grad, leaves)
    assert d_low.flatten().tolist() == [1.5, 4.0, 4.5, 8.0]
    assert d_high.flatten().tolist() == [0.25 * (0.5 + 2.0), 0.25 * (1.5 + 4.0)]
    products = [1 * 10 + 3 * 20, 2 * 10 + 4 * 20]
    assert d_gate_low.flatten().tolist() == [10 + 0.25 * products[0], 20 + 0.25 * products[1]]
    assert d_gate_high.flatten().tolist() == [0.5 * products[0] + products[1]]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", SIZES)
def test_matches_reference_at_every_ratio(backend, size, mode):
    check(backend, make(mode, sizes=SIZES[size], dtype=torch.float32, device=backend.device), mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", helpers.FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_matches_reference_in_every_dtype(backend, layout, dtype, mode):
    for c, size in ((8, "double"), (5, "double-odd"), (16, "odd")):
        tensors = make(mode, c=c, sizes=SIZES[size], dtype=dtype, device=backend.device)
        check(backend, [x if x is None else helpers.as_layout(x, layout) for x in tensors], mode)


@pytest.mark.parametrize("layout", helpers.LAYOUTS)
def test_matches_reference_in_every_layout(backend, layout):
    for position in range(4):
        tensors = make("self", c=4, dtype=torch.float32, device=backend.device)
        tensors[position] = helpers.as_layout(tensors[position], layout)
        check(backend, tensors, "self")


@pytest.mark.parametrize("layout", helpers.LAYOUTS)
def test_gradient_that_arrives_in_any_layout(backend, layout):
    tensors = make("self", c=4, dtype=torch.float32, device=backend.device)
    leaves, wanted = helpers.leaves(tensors), helpers.leaves(tensors)
    grad = torch.randn_like(tensors[0])
    output = backend.ops.gated_upsample_add(*leaves, self_gate=True)
    expected = gated_upsample_add_reference(*wanted, self_gate=True)
    actual = helpers.gradients(output, helpers.as_layout(grad, layout), leaves)
    for a, b in zip(actual, helpers.gradients(expected, grad, wanted), strict=True):
        helpers.assert_close(a, b)


def test_expanded_gradient_of_a_sum(backend):
    for layout in ("contiguous", "channels_last"):
        tensors = make("gated", c=4, dtype=torch.float32, device=backend.device)
        tensors[1] = helpers.as_layout(tensors[1], layout)
        leaves, wanted = helpers.leaves(tensors), helpers.leaves(tensors)
        backend.ops.gated_upsample_add(*leaves).sum().backward()
        gated_upsample_add_reference(*wanted).sum().backward()
        assert leaves[1].grad.stride() == tensors[1].stride()
        for a, b in zip(leaves, wanted, strict=True):
            helpers.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("channels", [1, 2, 31, 33, 64, 70])
def test_channel_counts_around_vectors_and_groups(backend, channels):
    for layout in ("contiguous", "channels_last"):
        tensors = make("self", n=1, c=channels, sizes=((2, 3), (4, 6)), dtype=torch.float32)
        tensors = [helpers.as_layout(x, layout).to(backend.device) for x in tensors]
        check(backend, tensors, "self")


def test_more_channels_than_a_warp_keeps(backend):
    tensors = make("self", n=1, c=300, sizes=((1, 2), (2, 4)), dtype=torch.float32)
    tensors = [helpers.as_layout(x, "channels_last").to(backend.device) for x in tensors]
    leaves, wanted = helpers.leaves(tensors), helpers.leaves(tensors, torch.float64)
    grad = torch.randn_like(tensors[0])
    actual = helpers.gradients(
        backend.ops.gated_upsample_add(*leaves, self_gate=True), grad, leaves
    )
    expected = helpers.gradients(
        gated_upsample_add_reference(*wanted, self_gate=True), grad.double(), wanted
    )
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2e-6, atol=1e-4)  # sums of 300 products


@pytest.mark.parametrize("size", ["double", "odd", "down"])
def test_not_finite_values_stay_where_they_are(backend, size):
    tensors = make("self", c=4, sizes=SIZES[size], dtype=torch.float32, device=backend.device)
    tensors[0][0, 1, 2, 1] = float("nan")
    tensors[1][0, 2, 0, 0] = float("inf")
    tensors[2][1, 0, 1, 1] = float("inf")
    check(backend, tensors, "self")


# ---- nearest -------------------------------------------------------------------------------------


def test_plain_form_is_the_step_of_a_feature_pyramid(backend):
    low, high, *_ = make("plain", dtype=torch.float32, device=backend.device)
    expected = low + F.interpolate(high, size=low.shape[-2:], mode="nearest")
    assert torch.equal(backend.ops.gated_upsample_add(low, high), expected)


def test_index_is_exact_where_interpolate_rounds(backend):
    high = torch.arange(26.0, device=backend.device).view(1, 1, 1, 26)
    low = torch.zeros(1, 1, 1, 44, device=backend.device)
    exact = [d * 26 // 44 for d in range(44)]
    assert backend.ops.gated_upsample_add(low, high).flatten().tolist() == exact
    assert F.interpolate(high, size=(1, 44), mode="nearest").flatten().tolist() != exact


# ---- layouts of the output -----------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_fake_kernels_have_the_strides_of_the_real_ones(backend, mode):
    gated, self_gate = MODES[mode]
    layouts = (
        helpers.LAYOUTS[:3] if backend.name == "triton" else helpers.LAYOUTS
    )  # slow: interpreted
    for low_layout, high_layout in itertools.product(layouts, repeat=2):
        low, high, *gates = make(mode, c=4, dtype=torch.float32, device=backend.device)
        low, high = helpers.as_layout(low, low_layout), helpers.as_layout(high, high_layout)
        op = backend.ops.gated_upsample_add.default
        helpers.assert_fake_has_real_strides(op, low, high, *gates, self_gate=self_gate)
        backward = backend.ops._gated_upsample_add_backward.default
        own, features = (low if self_gate else None), (high if gated else None)
        for grad in (low, low.new_ones(()).expand(low.shape)):
            helpers.assert_fake_has_real_strides(
                backward, grad, own, features, *gates, *high.shape[2:], self_gate
            )


def test_channels_last_stays_channels_last(backend):
    low, high, *gates = make("gated", c=4, dtype=torch.float32, device=backend.device)
    low = helpers.as_layout(low, "channels_last")
    out = backend.ops.gated_upsample_add(low, high, *gates)
    assert out.stride() == low.stride()
    assert backend.ops.gated_upsample_add(low.contiguous(), high, *gates).is_contiguous()


# ---- derivatives ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", ["double", "odd", "down"])
def test_gradcheck(backend, size, mode):
    small = {"double": ((2, 3), (4, 6)), "odd": ((2, 3), (3, 5)), "down": ((3, 4), (2, 2))}[size]
    tensors = helpers.leaves(make(mode, n=1, c=2, sizes=small, device=backend.device))

    def run(*tensors):
        return backend.ops.gated_upsample_add(*tensors, self_gate=MODES[mode][1])

    inputs = [x for x in tensors if x is not None]
    assert torch.autograd.gradcheck(run, inputs, nondet_tol=0.0, fast_mode=backend.name == "triton")


def test_second_derivative_is_an_error(backend):
    tensors = helpers.leaves(make(device=backend.device))
    output = backend.ops.gated_upsample_add(*tensors)
    (d_high,) = torch.autograd.grad(output.sum(), tensors[1], create_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once only"):
        (d_high.sum() + output.sum()).backward()


def test_gradient_of_some_inputs_only(backend):
    for wanted in range(4):
        tensors = make("self", c=4, dtype=torch.float32, device=backend.device)
        tensors[wanted].requires_grad_()
        expected = [x.detach().clone() for x in tensors]
        expected[wanted].requires_grad_()
        backend.ops.gated_upsample_add(*tensors, self_gate=True).square().sum().backward()
        gated_upsample_add_reference(*expected, self_gate=True).square().sum().backward()
        torch.testing.assert_close(
            tensors[wanted].grad, expected[wanted].grad, rtol=1e-5, atol=1e-4
        )


def test_plain_form_keeps_no_features_for_the_backward():
    low, high, *_ = helpers.leaves(make("plain"))
    output = gated_upsample_add(low, high)
    assert all(x is None for x in output.grad_fn.saved_tensors)


@pytest.mark.parametrize("mode", MODES)
def test_opcheck(backend, mode):
    for layout in ("contiguous", "channels_last"):
        tensors = make(mode, c=4, sizes=((2, 3), (4, 6)), dtype=torch.float32)
        tensors = [
            x if x is None else helpers.as_layout(x, layout).to(backend.device) for x in tensors
        ]
        options = {"self_gate": MODES[mode][1]}
        leaves = helpers.leaves(tensors)
        helpers.opcheck(backend.ops.gated_upsample_add.default, leaves, options)
        helpers.opcheck(backend.ops.gated_upsample_add_.default, tensors, options)


# ---- empty ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "empty",
    [
        {"n": 0},
        {"c": 0},
        {"sizes": ((0, 3), (0, 6))},
        {"sizes": ((3, 0), (6, 0))},
        {"sizes": ((3, 2), (0, 4))},
        {"sizes": ((3, 2), (6, 0))},
    ],
    ids=str,
)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_empty_input_gives_empty_output_and_gradients(backend, layout, empty, mode):
    tensors = make(mode, dtype=torch.float32, device=backend.device, **empty)
    tensors[:2] = [helpers.as_layout(x, layout) for x in tensors[:2]]
    leaves = helpers.leaves(tensors)
    output = backend.ops.gated_upsample_add(*leaves, self_gate=MODES[mode][1])
    assert output.shape == tensors[0].shape
    for x, d in zip(
        [x for x in leaves if x is not None],
        helpers.gradients(output, torch.ones_like(output), leaves),
        strict=True,
    ):
        assert torch.equal(d, torch.zeros_like(x))
    with torch.no_grad():
        backend.ops.gated_upsample_add_(*tensors, self_gate=MODES[mode][1])


# ---- the CPU kernels -----------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("mode", MODES)
def test_number_of_threads_does_not_change_a_bit(mode, layout):
    tensors = make(mode, n=1, c=37, sizes=((32, 40), (64, 80)), dtype=torch.float32)
    tensors[:2] = [helpers.as_layout(x, layout) for x in tensors[:2]]
    grad = torch.randn_like(tensors[0])

    def run():
        leaves = helpers.leaves(tensors)
        output = gated_upsample_add(*leaves, self_gate=MODES[mode][1])
        return [output, *helpers.gradients(output, grad, leaves)]

    helpers.same_for_any_threads(run)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("width", "dtype"), [(256, torch.float32), (250, torch.float32), (512, torch.bfloat16)]
)
def test_outputs_that_are_streamed_past_the_cache(width, dtype, layout):
    tensors = make("self", n=1, c=72, sizes=((128, width // 2), (256, width)), dtype=dtype)
    tensors[:2] = [helpers.as_layout(x, layout) for x in tensors[:2]]
    assert tensors[0].nbytes > 16 << 20
    output = gated_upsample_add(*tensors, self_gate=True)
    wide = [x.double() for x in tensors]
    helpers.assert_close(output, gated_upsample_add_reference(*wide, self_gate=True))
    leaves, grad = helpers.leaves(tensors), torch.randn_like(output)
    d_low = helpers.gradients(gated_upsample_add(*leaves, self_gate=True), grad, leaves)[0]
    helpers.assert_close(d_low, (1 + wide[2]) * grad.double())


def test_uninitialised_memory_is_poisoned():
    assert torch.empty(1000).isnan().all()
