"""What avg_max_pool promises besides its values: errors, and the rest of torch."""

import helpers
import pytest
import torch
from test_avg_max_pool import extents, make

from tinyops.ops import avg_max_pool

STEM = "tinyops: avg_max_pool: "
FEATURES = torch.zeros(2, 3, 4, 5)
BAD = {
    "features must have 4 dimensions [N, C, H, W], got [3, 4, 5]": {"features": FEATURES[0]},
    "features must be float32, float64, float16 or bfloat16, got int64": {
        "features": FEATURES.long()
    },
    "height and width must be at least 1 and below 2^31, got 0x5": {
        "features": torch.zeros(2, 3, 0, 5)
    },
    "height and width must be at least 1 and below 2^31, got 4x0": {
        "features": torch.zeros(0, 3, 4, 0)
    },
    "valid must be [2, 2], height and width of every image, got [1, 2]": {"valid": extents([1, 2])},
    "valid must be [2, 2], height and width of every image, got [2]": {"valid": torch.zeros(2)},
    "valid must be int64, got int32": {"valid": torch.zeros(2, 2, dtype=torch.int32)},
}


def on(device, arguments):
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}


@pytest.mark.parametrize("message", BAD)
@pytest.mark.parametrize("form", ["real", "fake"])
def test_bad_argument_is_named_with_expectation_and_value(backend, form, message):
    device = "meta" if form == "fake" else backend.device
    with pytest.raises(RuntimeError) as error:
        backend.ops.avg_max_pool(**on(device, {"features": FEATURES, **BAD[message]}))
    assert str(error.value).splitlines()[0] == STEM + message


SMALL = torch.zeros(2, 3, 1, 1)
BAD_BACKWARD = {
    "d_mean must have 4 dimensions [N, C, H, W], got [3, 1, 1]": {"d_mean": SMALL[0]},
    "d_mean must be [2, 3, 1, 1], got [2, 3, 1, 2]": {"d_mean": torch.zeros(2, 3, 1, 2)},
    "d_max must be float32 like d_mean, got float64": {"d_max": SMALL.double()},
    "d_max must be [2, 3, 1, 1], got [2, 4, 1, 1]": {"d_max": torch.zeros(2, 4, 1, 1)},
    "index must be int64, got float32": {"index": SMALL},
    "index must be [2, 3, 1, 1], got [1, 3, 1, 1]": {"index": SMALL[:1].long()},
    "height and width must be at least 1 and below 2^31, got 4x-1": {"width": -1},
    "valid must be [2, 2], height and width of every image, got [1, 2]": {"valid": extents([1, 2])},
}


@pytest.mark.parametrize("message", BAD_BACKWARD)
@pytest.mark.parametrize("form", ["real", "fake"])
def test_bad_argument_of_the_backward_is_named(backend, form, message):
    good = {"d_mean": SMALL, "d_max": SMALL, "index": SMALL.long(), "valid": None}
    arguments = {**good, "height": 4, "width": 5, "channels_last": False, **BAD_BACKWARD[message]}
    device = "meta" if form == "fake" else backend.device
    with pytest.raises(RuntimeError) as error:
        backend.ops._avg_max_pool_backward(**on(device, arguments))
    assert str(error.value).splitlines()[0] == STEM + message


def test_device_mix_is_an_error():
    with pytest.raises(RuntimeError, match="valid must be on cpu like features, got meta"):
        avg_max_pool(FEATURES, extents([1, 1], [1, 1]).to("meta"))


@pytest.mark.parametrize("backend", ["sim", "triton", "cuda"], indirect=True)
def test_planes_beyond_32_bits_are_refused_on_a_gpu(backend):
    features = torch.zeros(1, 0, 1 << 16, 1 << 16, device=backend.device)  # has no elements
    with pytest.raises(RuntimeError, match=r"on a GPU a plane must have fewer than 2\^31 cells"):
        backend.ops.avg_max_pool(features)


# ---- with the rest of torch ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_the_dtype_of_autocast(backend, dtype):
    features = make(dtype=torch.float32, device=backend.device).requires_grad_()
    with torch.autocast(backend.device, dtype=dtype):
        mean, maximum, _ = backend.ops.avg_max_pool(features)
        double = backend.ops.avg_max_pool(features.double())[0]
    assert mean.dtype == maximum.dtype == dtype
    assert double.dtype == torch.float64
    (mean + maximum).float().sum().backward()
    assert features.grad.dtype == torch.float32
    assert torch.equal(maximum, backend.ops.avg_max_pool(features.detach().to(dtype))[1])


def test_compile_without_graph_break(backend):
    features = make(2, 4, (3, 5), torch.float32, backend.device).requires_grad_()
    valid = extents([3, 4], [2, 5], device=backend.device)

    def step(features, valid):
        mean, maximum, _ = backend.ops.avg_max_pool(features * 2, valid)
        return mean + maximum.sigmoid()

    eager = step(features, valid)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(features, valid)
    assert torch.equal(eager, compiled)
    grad = torch.randn_like(eager)
    for a, b in zip(
        torch.autograd.grad(eager, features, grad),
        torch.autograd.grad(compiled, features, grad),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_inductor():
    def step(features):
        mean, maximum = avg_max_pool(features * 2)
        return features * (mean + maximum).sigmoid()

    features = make(1, 4, (6, 8), torch.float32).requires_grad_()
    expected, actual = step(features), torch.compile(step, fullgraph=True)(features)
    torch.testing.assert_close(actual, expected)
    (a,), (b,) = (torch.autograd.grad(x.sum(), features) for x in (actual, expected))
    torch.testing.assert_close(a, b)


def test_export_with_dynamic_sizes():
    class Step(torch.nn.Module):
        def forward(self, features, valid):
            return avg_max_pool(features, valid)

    n, h, w = (torch.export.Dim(name, min=1, max=512) for name in ("n", "h", "w"))
    shapes = {"features": {0: n, 2: h, 3: w}, "valid": {0: n}}
    example = make(2, 4, (8, 6), torch.float32), extents([8, 5], [7, 6])
    program = torch.export.export(Step(), example, dynamic_shapes=shapes)
    other = make(3, 4, (5, 9), torch.float32), extents([5, 9], [1, 1], [4, 7])
    for a, b in zip(program.module()(*other), avg_max_pool(*other), strict=True):
        assert torch.equal(a, b)


def test_vmap_over_a_batch_of_batches(backend):
    features = torch.stack([make(device=backend.device) for _ in range(3)])
    batched = torch.vmap(backend.ops.avg_max_pool)(features)
    for k in range(3):
        for a, b in zip(batched, backend.ops.avg_max_pool(features[k]), strict=True):
            assert torch.equal(a[k], b)


@pytest.mark.parametrize("backend", ["triton", "cuda"], indirect=True)
def test_cuda_graph_replays(backend):
    if backend.device != "cuda":
        pytest.skip("needs a GPU")
    features = make(2, 8, (9, 16), torch.float32, "cuda")
    valid = extents([9, 15], [8, 16], device="cuda")

    def step():
        mean, maximum, index = backend.ops.avg_max_pool(features, valid)
        d = backend.ops._avg_max_pool_backward(mean, maximum, index, valid, 9, 16, False)
        return mean, maximum, index, d

    helpers.assert_replays(step, features)


# 4.4 GB of GPU memory; index arithmetic on the CPU is 64-bit throughout.
@pytest.mark.parametrize("backend", ["triton", "cuda"], indirect=True)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_more_than_two_to_the_31_elements(backend, layout):
    if backend.device != "cuda":
        pytest.skip("needs a GPU")
    features = torch.zeros(2, 264, 2048, 2048, dtype=torch.float16, device="cuda").contiguous(
        memory_format=layout
    )
    features[1, 263, 2047, 2047] = 1
    mean, maximum, index = backend.ops.avg_max_pool(features)
    assert maximum.sum().item() == 1
    assert index[1, 263].item() == 2048 * 2048 - 1
    del features
    d = backend.ops._avg_max_pool_backward(mean * 0, maximum, index, None, 2048, 2048, False)
    assert d[1, 263, 2047, 2047].item() == 1
