"""What gated_upsample_add promises besides its values: in place, errors, the rest of torch."""

import helpers
import pytest
import torch
from test_gated_upsample_add import MODES, SIZES, make

from tinyops.ops import gated_upsample_add, gated_upsample_add_, gated_upsample_add_reference

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

    helpers.assert_compiles(step, tensors, backend="aot_eager")


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


@pytest.mark.parametrize("backend", ["triton", "cuda"], indirect=True)
def test_cuda_graph_replays(backend):
    if backend.device != "cuda":
        pytest.skip("needs a GPU")
    tensors = make("self", c=8, dtype=torch.float32, device="cuda")
    grad = torch.randn_like(tensors[0])
    forward, backward = backend.ops.gated_upsample_add, backend.ops._gated_upsample_add_backward

    def step():
        d = backward(grad, *tensors, *tensors[1].shape[2:], True)
        return forward(*tensors, self_gate=True), *d

    helpers.assert_replays(step, tensors[0])


# 10 GB of GPU memory; index arithmetic on the CPU is 64-bit throughout.
@pytest.mark.parametrize("backend", ["triton", "cuda"], indirect=True)
def test_more_than_two_to_the_31_elements(backend):
    if backend.device != "cuda":
        pytest.skip("needs a GPU")
    low = torch.randn(1, 33000, 256, 256, dtype=torch.float16, device="cuda")
    high = torch.randn(1, 33000, 128, 128, dtype=torch.float16, device="cuda")
    out = backend.ops.gated_upsample_add(low, high)
    expected = gated_upsample_add_reference(low[:, -1:].float(), high[:, -1:].float())
    helpers.assert_close(out[:, -1:], expected)
