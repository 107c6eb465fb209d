import itertools

import helpers
import pytest
import torch
import torch.nn.functional as F

from tinyops.ops import gated_upsample_add, gated_upsample_add_, gated_upsample_add_reference

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


# ---- in place ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("mode", MODES)
def test_in_place_gives_the_same_bits(backend, mode, layout):
    for size in ("double", "odd"):
        tensors = make(mode, c=8, sizes=SIZES[size], dtype=torch.float32, device=backend.device)
        tensors[0] = helpers.as_layout(tensors[0], layout)
        options = {"self_gate": MODES[mode][1]}
        expected = backend.ops.gated_upsample_add(*tensors, **options)
        low, memory = tensors[0], tensors[0].data_ptr()
        assert backend.ops.gated_upsample_add_(*tensors, **options) is None
        assert low.data_ptr() == memory
        assert torch.equal(low, expected)


def test_in_place_returns_low():
    low, high, *gates = make()
    assert gated_upsample_add_(low, high, *gates) is low


def test_in_place_refuses_gradients(backend):
    low, high, *gates = make(device=backend.device)
    high.requires_grad_()
    before = low.clone()
    op = backend.ops.gated_upsample_add_
    with pytest.raises(RuntimeError, match="works in place and has no gradient"):
        op(low, high, *gates)
    assert torch.equal(low, before)
    with torch.no_grad():
        op(low, high, *gates)
    assert not torch.equal(low, before)


def test_in_place_change_is_noticed_by_a_backward_that_saved_the_tensor(backend):
    low, high, *gates = make("self", device=backend.device)
    saved = low.requires_grad_().sigmoid()
    with torch.no_grad():
        backend.ops.gated_upsample_add_(saved, high, *gates)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.sum().backward()


def test_in_place_refuses_inference_tensors_outside_inference_mode(backend):
    low, high, *gates = make(device=backend.device)
    with torch.inference_mode():
        inside = low.clone()
        backend.ops.gated_upsample_add_(inside, high, *gates)
    with pytest.raises(RuntimeError, match="inference tensor"), torch.no_grad():
        backend.ops.gated_upsample_add_(inside, high, *gates)


def test_in_place_refuses_forward_mode_derivatives(backend):
    low, high, *_ = make("plain", device=backend.device)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(low, torch.ones_like(low))
        with pytest.raises(RuntimeError, match="works in place and has no gradient"):
            backend.ops.gated_upsample_add_(dual, high)


def test_in_place_refuses_views_and_shared_memory(backend):
    low, high, *gates = make(sizes=((4, 8), (4, 8)), device=backend.device)
    op = backend.ops.gated_upsample_add_
    with pytest.raises(RuntimeError, match="low must be contiguous or channels_last"):
        op(helpers.as_layout(low, "sliced"), high, *gates)
    with pytest.raises(RuntimeError, match="low must be contiguous or channels_last"):
        op(low[:, :1].expand(low.shape), high, *gates)
    with pytest.raises(RuntimeError, match="high must not share memory with low"):
        op(low, low, *gates)
    with pytest.raises(RuntimeError, match="gate_low must not share memory with low"):
        op(gates[0], high[:, :1], gates[0], gates[1])


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


# ---- errors --------------------------------------------------------------------------------------


def bad_arguments():
    low, high = torch.zeros(2, 3, 8, 6), torch.zeros(2, 3, 4, 3)
    gate_low, gate_high = torch.zeros(2, 1, 8, 6), torch.zeros(2, 1, 4, 3)
    good = {"low": low, "high": high, "gate_low": gate_low, "gate_high": gate_high}
    stem = "tinyops: gated_upsample_add: "

    def case(message, **changes):
        return pytest.param({**good, **changes}, stem + message, id=message)

    yield case("low must have 4 dimensions [N, C, H, W], got [3, 8, 6]", low=low[0])
    yield case("high must have 4 dimensions [N, C, H, W], got [3, 4, 3]", high=high[0])
    yield case("gate_low must have 4 dimensions [N, C, H, W], got [1, 8, 6]", gate_low=gate_low[0])
    yield case("high must be [2, 3, h, w], got [2, 4, 4, 3]", high=torch.zeros(2, 4, 4, 3))
    yield case("high must be [2, 3, h, w], got [1, 3, 4, 3]", high=torch.zeros(1, 3, 4, 3))
    yield case("gate_low must be [2, 1, 8, 6], got [2, 3, 8, 6]", gate_low=torch.zeros(2, 3, 8, 6))
    yield case("gate_low must be [2, 1, 8, 6], got [2, 1, 8, 5]", gate_low=torch.zeros(2, 1, 8, 5))
    yield case("gate_high must be [2, 1, 4, 3], got [2, 1, 8, 6]", gate_high=gate_low)
    yield case("expected both gates or none, got gate_low alone", gate_high=None)
    yield case("expected both gates or none, got gate_high alone", gate_low=None)
    yield case(
        "self_gate=True needs gate_low and gate_high, got None",
        gate_low=None,
        gate_high=None,
        self_gate=True,
    )
    yield case("high must be float32 like low, got float64", high=high.double())
    yield case("gate_low must be float32 like low, got float16", gate_low=gate_low.half())
    yield case("high must be float32 like low, got int64", high=high.long())
    yield case(
        "high must have pixels to give to low of 8x6, got 0x3",
        high=torch.zeros(2, 3, 0, 3),
        gate_high=torch.zeros(2, 1, 0, 3),
    )


@pytest.mark.parametrize(("arguments", "message"), list(bad_arguments()))
@pytest.mark.parametrize("form", ["real", "fake", "in-place"])
def test_bad_argument_is_named_with_expectation_and_value(backend, form, arguments, message):
    device = "meta" if form == "fake" else backend.device
    arguments = {
        k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()
    }
    name = "gated_upsample_add_" if form == "in-place" else "gated_upsample_add"
    with pytest.raises(RuntimeError) as error, torch.no_grad():
        getattr(backend.ops, name)(**arguments)
    assert str(error.value).splitlines()[0] == message


BAD_BACKWARD = {
    "grad must have 4 dimensions [N, C, H, W], got [3, 8, 6]": {"grad": torch.zeros(3, 8, 6)},
    "low must be float32 like grad, got float64": {"low": torch.zeros(2, 3, 8, 6).double()},
    "high must be [2, 3, 4, 3], got [2, 3, 4, 4]": {"high": torch.zeros(2, 3, 4, 4)},
    "gate_low must be [2, 1, 8, 6], got [2, 1, 4, 3]": {"gate_low": torch.zeros(2, 1, 4, 3)},
    "height and width must be at least 0 and below 2^31, got -1": {"high_height": -1},
    "high must have pixels to give to low of 8x6, got 0x3": {"high_height": 0},
    "the backward needs high with gates and only then": {"high": None},
    "the backward needs low with self_gate=True and only then": {"low": None},
}


@pytest.mark.parametrize("message", BAD_BACKWARD)
@pytest.mark.parametrize("form", ["real", "fake"])
def test_bad_argument_of_the_backward_is_named(backend, form, message):
    low, high, gate_low, gate_high = make("self", sizes=((4, 3), (8, 6)), dtype=torch.float32)
    good = {"grad": low, "low": low, "high": high, "gate_low": gate_low, "gate_high": gate_high}
    arguments = {**good, "high_height": 4, "high_width": 3, "self_gate": True}
    arguments |= BAD_BACKWARD[message]
    device = "meta" if form == "fake" else backend.device
    arguments = {
        k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()
    }
    with pytest.raises(RuntimeError) as error:
        backend.ops._gated_upsample_add_backward(**arguments)
    assert str(error.value).splitlines()[0] == f"tinyops: gated_upsample_add: {message}"


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.uint8])
def test_features_must_be_floating_point(backend, dtype):
    low, high = torch.zeros(1, 1, 2, 2, dtype=dtype), torch.zeros(1, 1, 1, 1, dtype=dtype)
    with pytest.raises(RuntimeError, match="low must be float32, float64, float16 or bfloat16"):
        backend.ops.gated_upsample_add(low.to(backend.device), high.to(backend.device))


def test_device_mix_is_an_error():
    low, high, *gates = make()
    with pytest.raises(RuntimeError, match=r"high must be on .* like low, got"):
        gated_upsample_add(low.to("meta"), high, *gates)
    with pytest.raises(RuntimeError, match="gate_high must be on cpu like low, got meta"):
        gated_upsample_add(low, high, gates[0], gates[1].to("meta"))


# ---- with the rest of torch ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_the_dtype_of_autocast(backend, dtype):
    tensors = helpers.leaves(make("self", dtype=torch.float32, device=backend.device))
    with torch.autocast(backend.device, dtype=dtype):
        output = backend.ops.gated_upsample_add(*tensors, self_gate=True)
    assert output.dtype == dtype
    output.float().sum().backward()
    assert all(x.grad.dtype == torch.float32 for x in tensors)
    rounded = [x.detach().to(dtype) for x in tensors]
    expected = backend.ops.gated_upsample_add(*rounded, self_gate=True)
    assert torch.equal(output, expected)


def test_autocast_leaves_double_alone_and_follows_low_in_place(backend):
    low, high, *gates = make(device=backend.device)
    with torch.autocast(backend.device, dtype=torch.bfloat16), torch.no_grad():
        assert backend.ops.gated_upsample_add(low, high, *gates).dtype == torch.float64
        low = low.bfloat16()
        backend.ops.gated_upsample_add_(low, *[x.float() for x in (high, *gates)])
    assert low.dtype == torch.bfloat16


def test_compile_without_graph_break(backend):
    tensors = helpers.leaves(make("self", c=4, dtype=torch.float32, device=backend.device))

    def step(low, high, gate_low, gate_high):
        op = backend.ops.gated_upsample_add
        return op(low * 2, high, gate_low.sigmoid(), gate_high, self_gate=True) + 1

    eager = step(*tensors)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(*tensors)
    assert torch.equal(eager, compiled)
    grad = torch.randn_like(eager)
    for a, b in zip(
        helpers.gradients(eager, grad, tensors),
        helpers.gradients(compiled, grad, tensors),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_inductor_and_the_in_place_form():
    def step(low, high, gate_low, gate_high):
        return gated_upsample_add_(low * 2, high, gate_low, gate_high, self_gate=True) + 1

    tensors = make("self", c=4, dtype=torch.float32)
    with torch.no_grad():
        expected = step(*tensors)
        actual = torch.compile(step, fullgraph=True)(*tensors)
    assert torch.allclose(actual, expected)


def test_export_with_dynamic_sizes():
    class Step(torch.nn.Module):
        def forward(self, low, high, gate_low, gate_high):
            return gated_upsample_add(low, high, gate_low, gate_high)

    n, h, w = (torch.export.Dim(name, min=1, max=512) for name in ("n", "h", "w"))
    fine, coarse = {0: n, 2: 2 * h, 3: 2 * w}, {0: n, 2: h, 3: w}
    shapes = {"low": fine, "high": coarse, "gate_low": fine, "gate_high": coarse}
    tensors = make(c=4, dtype=torch.float32)
    program = torch.export.export(Step(), tuple(tensors), dynamic_shapes=shapes)
    other = make(n=3, c=4, sizes=((5, 7), (10, 14)), dtype=torch.float32)
    assert torch.equal(program.module()(*other), gated_upsample_add(*other))


def test_vmap_over_a_batch_of_batches(backend):
    tensors = [
        torch.stack(pair)
        for pair in zip(*(make(c=2, device=backend.device) for _ in range(3)), strict=True)
    ]
    batched = torch.vmap(backend.ops.gated_upsample_add)(*tensors)
    for k in range(3):
        assert torch.equal(batched[k], backend.ops.gated_upsample_add(*[x[k] for x in tensors]))


def test_cuda_graph_replays(backend):
    if backend.device != "cuda":
        pytest.skip("CUDA graphs need a GPU")
    tensors = make("self", c=8, dtype=torch.float32, device="cuda")
    grad = torch.randn_like(tensors[0])
    forward, backward = backend.ops.gated_upsample_add, backend.ops._gated_upsample_add_backward

    def step():
        d = backward(grad, *tensors, *tensors[1].shape[2:], True)
        return forward(*tensors, self_gate=True), *d

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    tensors[0].normal_()
    graph.replay()
    for a, b in zip(captured, step(), strict=True):
        assert torch.equal(a, b)


def test_more_than_two_to_the_31_elements(backend):
    if backend.device != "cuda":
        pytest.skip("takes 10 GB of GPU memory; index arithmetic on the CPU is 64-bit throughout")
    low = torch.randn(1, 33000, 256, 256, dtype=torch.float16, device="cuda")
    high = torch.randn(1, 33000, 128, 128, dtype=torch.float16, device="cuda")
    out = backend.ops.gated_upsample_add(low, high)
    expected = gated_upsample_add_reference(low[:, -1:].float(), high[:, -1:].float())
    helpers.assert_close(out[:, -1:], expected)


# ---- the CPU kernels -----------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("mode", MODES)
def test_number_of_threads_does_not_change_a_bit(mode, layout):
    tensors = make(mode, n=1, c=37, sizes=((32, 40), (64, 80)), dtype=torch.float32)
    tensors[:2] = [helpers.as_layout(x, layout) for x in tensors[:2]]
    grad = torch.randn_like(tensors[0])

    def run(threads):
        torch.set_num_threads(threads)
        leaves = helpers.leaves(tensors)
        output = gated_upsample_add(*leaves, self_gate=MODES[mode][1])
        return [output, *helpers.gradients(output, grad, leaves)]

    before = torch.get_num_threads()
    try:
        one = run(1)
        for threads in (2, 3, 8):
            for a, b in zip(one, run(threads), strict=True):
                assert torch.equal(a, b)
    finally:
        torch.set_num_threads(before)


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
