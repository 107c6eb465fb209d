"""What the pixel shuffles promise besides their values: errors, and the rest of torch."""

import math

import backends
import helpers
import pytest
import torch
from test_pixel_shuffle import FORMS, make, operator_of

from tinyops.ops import pixel_shuffle_add, pixel_shuffle_concat

# ---- errors --------------------------------------------------------------------------------------


def bad_arguments(form):
    content, other = make(form, n=2, c=3, size=(4, 6), dtype=torch.float32)  # other: [2, ., 8, 12]
    name = "reference" if form == "concat" else "residual"
    good = {"content": content, name: other}
    stem = f"tinyops: pixel_shuffle_{form}: "

    def case(message, **changes):
        changes = {name if k == "other" else k: v for k, v in changes.items()}
        return pytest.param(form, {**good, **changes}, stem + message, id=f"{form} {message}")

    wanted = "[2, R, 8, 12]" if form == "concat" else "[2, 3, 8, 12]"
    yield case("content must have 4 dimensions [N, C, H, W], got [12, 4, 6]", content=content[0])
    yield case(
        "content must be float32, float64, float16 or bfloat16, got int64", content=content.long()
    )
    yield case("upscale must be 2, 3 or 4, got 1", upscale=1)
    yield case("upscale must be 2, 3 or 4, got 5", upscale=5)
    for value, text in ((math.inf, "inf"), (math.nan, "nan"), (-1e300, "-1e+300")):
        yield case(f"negative_slope must be finite in float32, got {text}", negative_slope=value)
    yield case("order must be 0 (crd) or 1 (dcr), got 2", order=2)
    yield case("order must be 0 (crd) or 1 (dcr), got -1", order=-1)
    yield case(
        "content must have a multiple of 9 channels for upscale=3, got [2, 12, 4, 6]", upscale=3
    )
    yield case(
        f"{name} must have 4 dimensions [N, C, H, W], got {list(other.shape[1:])}", other=other[0]
    )
    yield case(f"{name} must be float32 like content, got float64", other=other.double())
    yield case(f"{name} must be {wanted}, got [2, 3, 8, 6]", other=torch.zeros(2, 3, 8, 6))
    yield case(f"{name} must be {wanted}, got [1, 3, 8, 12]", other=torch.zeros(1, 3, 8, 12))
    if form == "add":
        yield case(f"{name} must be {wanted}, got [2, 4, 8, 12]", other=torch.zeros(2, 4, 8, 12))


@pytest.mark.parametrize(
    ("form", "arguments", "message"), [case for form in FORMS for case in bad_arguments(form)]
)
@pytest.mark.parametrize("kind", ["real", "fake"])
def test_bad_argument_is_named_with_expectation_and_value(backend, kind, form, arguments, message):
    device = "meta" if kind == "fake" else backend.device
    moved = {k: v.to(device) if torch.is_tensor(v) else v for k, v in arguments.items()}
    with pytest.raises(RuntimeError) as error:
        getattr(backend.ops, f"pixel_shuffle_{form}")(**moved)
    assert str(error.value).splitlines()[0] == message


BAD_BACKWARD = {
    "grad must have 4 dimensions [N, C, H, W], got [5, 8, 6]": {"grad": torch.zeros(5, 8, 6)},
    "upscale must be 2, 3 or 4, got 0": {"upscale": 0},
    "order must be 0 (crd) or 1 (dcr), got 7": {"order": 7},
    "channels must be 0 to 5, got 6": {"channels": 6},
    "channels must be 0 to 5, got -1": {"channels": -1},
    "height and width of grad must be multiples of 2, got [2, 5, 8, 5]": {
        "grad": torch.zeros(2, 5, 8, 5)
    },
    "the backward needs content with negative_slope other than 1 and only then": {"content": None},
    "content must be float32 like grad, got float64": {
        "content": torch.zeros(2, 12, 4, 3).double()
    },
    "content must be [2, 12, 4, 3], got [2, 12, 4, 4]": {"content": torch.zeros(2, 12, 4, 4)},
    "negative_slope must be finite in float32, got inf": {"negative_slope": math.inf},
}


@pytest.mark.parametrize("message", BAD_BACKWARD)
@pytest.mark.parametrize("kind", ["real", "fake"])
def test_bad_argument_of_the_backward_is_named(backend, kind, message):
    good = {"grad": torch.zeros(2, 5, 8, 6), "content": torch.zeros(2, 12, 4, 3), "channels": 3}
    arguments = {**good, "upscale": 2, "negative_slope": 0.1, "order": 0, **BAD_BACKWARD[message]}
    device = "meta" if kind == "fake" else backend.device
    moved = {k: v.to(device) if torch.is_tensor(v) else v for k, v in arguments.items()}
    with pytest.raises(RuntimeError) as error:
        backend.ops._pixel_shuffle_backward(**moved)
    assert str(error.value).splitlines()[0] == f"tinyops: pixel_shuffle: {message}"


@pytest.mark.parametrize("form", FORMS)
def test_unknown_order_is_an_error(form):
    message = f"tinyops: pixel_shuffle_{form}: order must be one of 'crd', 'dcr', got 'cdr'"
    with pytest.raises(RuntimeError) as error:
        FORMS[form][0](*make(form), order="cdr")
    assert str(error.value) == message


@pytest.mark.parametrize("form", FORMS)
def test_device_mix_is_an_error(form):
    content, other = make(form)
    with pytest.raises(RuntimeError, match="must be on cpu like content, got meta"):
        getattr(backends.get("cpu").ops, f"pixel_shuffle_{form}")(content, other.to("meta"))


# ---- the public functions ------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_public_function_passes_its_options_on(form):
    for order in ("crd", "dcr"):
        tensors = make(form, r=3)
        options = {"upscale": 3, "negative_slope": 0.3, "order": order}
        function, reference = FORMS[form]
        helpers.assert_close(function(*tensors, **options), reference(*tensors, **options))


# ---- the rest of torch ---------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_autocast_computes_in_its_dtype(backend, form):
    tensors = make(form, c=4, dtype=torch.float32, device=backend.device)
    op = operator_of(backend, form)
    with torch.autocast(backend.device, dtype=torch.bfloat16):
        out = op(*helpers.leaves(tensors), negative_slope=0.1)
        mixed = op(tensors[0].bfloat16(), tensors[1])
        exact = op(*(x.double() for x in tensors))
    assert out.dtype == mixed.dtype == torch.bfloat16
    assert exact.dtype == torch.float64
    expected = op(*(x.bfloat16() for x in tensors), negative_slope=0.1)
    assert torch.equal(out, expected)


def test_autocast_gives_gradients_in_the_dtype_of_the_inputs(backend):
    tensors = helpers.leaves(make("add", c=4, dtype=torch.float32, device=backend.device))
    with torch.autocast(backend.device, dtype=torch.bfloat16):
        operator_of(backend, "add")(*tensors, negative_slope=0.1).float().sum().backward()
    assert all(x.grad.dtype == torch.float32 for x in tensors)


@pytest.mark.parametrize("form", FORMS)
def test_compile_without_graph_break(backend, form):
    tensors = helpers.leaves(make(form, c=4, dtype=torch.float32, device=backend.device))

    def step(content, other):
        op = getattr(backend.ops, f"pixel_shuffle_{form}")
        return op(content * 2, other + 1, negative_slope=0.1, order=1) * 3

    helpers.assert_compiles(step, tensors, backend="aot_eager")


def test_inductor_and_the_public_functions():
    def step(content, reference, residual):
        joined = pixel_shuffle_concat(content * 2, reference, negative_slope=0.1)
        return joined[:, :3] + pixel_shuffle_add(content, residual, order="dcr")

    tensors = [*make("concat", dtype=torch.float32), make("add", dtype=torch.float32)[1]]
    compiled = torch.compile(step, fullgraph=True)
    assert torch.allclose(compiled(*tensors), step(*tensors))


@pytest.mark.parametrize("form", FORMS)
def test_export_with_dynamic_sizes(form):
    class Step(torch.nn.Module):
        def forward(self, content, other):
            return FORMS[form][0](content, other, negative_slope=0.1, order="dcr")

    n, h, w = (torch.export.Dim(name, min=1, max=512) for name in ("n", "h", "w"))
    shapes = {"content": {0: n, 2: h, 3: w}, "other": {0: n, 2: 2 * h, 3: 2 * w}}
    tensors = make(form, c=4, dtype=torch.float32)
    program = torch.export.export(Step(), tuple(tensors), dynamic_shapes=shapes)
    other = make(form, n=3, c=4, size=(5, 7), dtype=torch.float32)
    assert torch.equal(program.module()(*other), Step()(*other))


@pytest.mark.parametrize("form", FORMS)
def test_vmap_over_a_batch_of_batches(backend, form):
    pairs = zip(*(make(form, c=2, device=backend.device) for _ in range(3)), strict=True)
    tensors = [torch.stack(pair) for pair in pairs]
    op = getattr(backend.ops, f"pixel_shuffle_{form}")
    batched = torch.vmap(op)(*tensors)
    for k in range(3):
        assert torch.equal(batched[k], op(*[x[k] for x in tensors]))


@pytest.mark.parametrize("backend", ["triton", "cuda"], indirect=True)
def test_cuda_graph_replays(backend):
    if backend.device != "cuda":
        pytest.skip("needs a GPU")
    content, other = make("concat", c=8, dtype=torch.float32, device="cuda")
    grad = torch.randn(2, 13, 4, 16, device="cuda")
    forward, backward = backend.ops.pixel_shuffle_concat, backend.ops._pixel_shuffle_backward

    def step():
        d_content = backward(grad, content, 8, 2, 0.1, 0)
        return forward(content, other, negative_slope=0.1), d_content

    helpers.assert_replays(step, content)


# 9 GB of GPU memory; index arithmetic on the CPU is 64-bit throughout.
@pytest.mark.parametrize("backend", ["triton", "cuda"], indirect=True)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_more_than_two_to_the_31_elements(backend, layout):
    if backend.device != "cuda":
        pytest.skip("needs a GPU")
    content = torch.empty(
        (2, 4 * 17000, 128, 128), dtype=torch.float16, device="cuda",
        memory_format=getattr(torch, f"{layout}_format", torch.channels_last),
    ).normal_()  # fmt: skip
    reference = torch.ones(2, 1, 256, 256, dtype=torch.float16, device="cuda")
    out = backend.ops.pixel_shuffle_concat(content, reference)
    shuffled = torch.nn.functional.pixel_shuffle(content[-1:, -8:].contiguous(), 2)
    assert torch.equal(out[-1:, -3:-1], shuffled)
    assert torch.equal(out[:, -1:], reference)
    del out
    d_content = backend.ops._pixel_shuffle_backward(
        torch.ones(1, device="cuda", dtype=torch.float16).expand(2, 17000, 256, 256),
        content, 17000, 2, 0.5, 0,
    )  # fmt: skip
    assert torch.equal(d_content[-1, -1], 0.5 + 0.5 * (content[-1, -1] > 0))
