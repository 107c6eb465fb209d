import itertools

import helpers
import numpy as np
import pytest
import torch

from tinyops.ops import (
    pixel_shuffle_add,
    pixel_shuffle_add_reference,
    pixel_shuffle_concat,
    pixel_shuffle_concat_reference,
)

FORMS = {
    "concat": (pixel_shuffle_concat, pixel_shuffle_concat_reference),
    "add": (pixel_shuffle_add, pixel_shuffle_add_reference),
}
ORDERS = ("crd", "dcr")
SIZES = ((2, 8), (3, 5), (1, 37))  # of content


def make(form="concat", *, r=2, n=2, c=3, size=(2, 8), other=5, dtype=torch.float64, device="cpu"):
    """content, and the reference with `other` channels or the residual."""
    h, w = size
    shapes = (n, c * r * r, h, w), (n, other if form == "concat" else c, r * h, r * w)
    return [torch.randn(s, dtype=torch.float64).to(device, dtype) for s in shapes]


def operator_of(backend, form):
    """The operator of a backend, which takes the order as a word."""
    packet = getattr(backend.ops, f"pixel_shuffle_{form}")

    def run(content, other, *, order="crd", **options):
        return packet(content, other, order=ORDERS.index(order), **options)

    return run


def check(backend, form, tensors, **options):
    helpers.assert_matches_reference(
        operator_of(backend, form), FORMS[form][1], tensors, upscale=options.pop("r", 2), **options
    )


def onnx_depth_to_space(x, r, mode):
    """DepthToSpace as the ONNX specification states it: reshape, transpose, reshape."""
    b, c, h, w = x.shape
    if mode == "DCR":
        parts = np.reshape(x, (b, r, r, c // r**2, h, w))
        parts = np.transpose(parts, (0, 3, 4, 1, 5, 2))
    else:
        parts = np.reshape(x, (b, c // r**2, r, r, h, w))
        parts = np.transpose(parts, (0, 1, 4, 2, 5, 3))
    return np.reshape(parts, (b, c // r**2, h * r, w * r))


# ---- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "first", "second"),
    [("crd", [0, -1, 2, -3], [-4, 5, -6, 7]), ("dcr", [0, 2, -4, -6], [-1, -3, 5, 7])],
)
def test_numbers_worked_out_by_hand(backend, order, first, second):
    content = torch.tensor([0.0, -1, 2, -3, -4, 5, -6, 7], device=backend.device).view(1, 8, 1, 1)
    reference = torch.tensor([10.0, 11, 12, 13], device=backend.device).view(1, 1, 2, 2)
    out = operator_of(backend, "concat")(content, reference, order=order)
    assert out.shape == (1, 3, 2, 2)
    assert out.flatten().tolist() == [*first, *second, 10, 11, 12, 13]

    def leaky(values):
        return [x if x > 0 else 0.5 * x for x in values]

    residual = torch.full((1, 2, 2, 2), 100.0, device=backend.device)
    out = operator_of(backend, "add")(content, residual, negative_slope=0.5, order=order)
    assert out.flatten().tolist() == [100 + x for x in leaky(first) + leaky(second)]


def test_gradients_worked_out_by_hand(backend):
    content = torch.tensor([0.0, -1, 2, 3], device=backend.device).view(1, 4, 1, 1)
    tensors = helpers.leaves([content, torch.zeros(1, 1, 2, 2, device=backend.device)])
    out = operator_of(backend, "concat")(*tensors, negative_slope=0.25)
    grad = torch.arange(1.0, 9, device=backend.device).view(1, 2, 2, 2)
    d_content, d_reference = helpers.gradients(out, grad, tensors)
    assert d_content.flatten().tolist() == [0.25, 0.5, 3, 4]  # 0 counts as negative
    assert d_reference.flatten().tolist() == [5, 6, 7, 8]


@pytest.mark.parametrize("r", [2, 3, 4])
def test_crd_is_the_pixel_shuffle_of_torch(backend, r):
    for dtype in helpers.FLOAT_DTYPES:
        content, reference = make(r=r, dtype=dtype, device=backend.device)
        out = operator_of(backend, "concat")(content, reference, upscale=r, order="crd")
        assert torch.equal(out[:, :3], torch.nn.PixelShuffle(r)(content))
        assert torch.equal(out[:, 3:], reference)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("r", [2, 3, 4])
def test_orders_are_the_modes_of_onnx(backend, r, order):
    content, residual = make("add", r=r, size=(3, 5), device=backend.device)
    expected = onnx_depth_to_space(content.cpu().numpy(), r, order.upper())
    for layout in ("contiguous", "channels_last"):
        content = helpers.as_layout(content, layout)
        out = operator_of(backend, "add")(content, 0 * residual, upscale=r, order=order)
        assert np.array_equal(out.cpu().numpy(), expected)
        assert np.array_equal(
            FORMS["add"][1](content, 0 * residual, upscale=r, order=order).cpu().numpy(), expected
        )


@pytest.mark.parametrize("slope", [1.0, 0.1, 0.0, -0.5, 3.0])
@pytest.mark.parametrize("form", FORMS)
def test_matches_reference_with_any_slope(backend, form, slope):
    for dtype in (torch.float32, torch.float64):
        tensors = make(form, dtype=dtype, device=backend.device)
        check(backend, form, tensors, negative_slope=slope)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("r", [2, 3, 4])
@pytest.mark.parametrize("form", FORMS)
def test_matches_reference_at_every_size(backend, form, r, order):
    for size in SIZES:
        tensors = make(form, r=r, n=1, size=size, dtype=torch.float32, device=backend.device)
        check(backend, form, tensors, r=r, order=order, negative_slope=0.1)


@pytest.mark.parametrize("dtype", helpers.FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("form", FORMS)
def test_matches_reference_in_every_dtype(backend, form, layout, dtype):
    for r, order, c, size in (
        (2, "crd", 16, (2, 16)),
        (2, "dcr", 16, (1, 8)),
        (3, "crd", 8, (1, 16)),
        (4, "crd", 8, (1, 16)),
        (4, "dcr", 5, (1, 3)),
    ):
        options = {"r": r, "n": 1, "c": c, "size": size, "other": 8}
        tensors = make(form, **options, dtype=dtype, device=backend.device)
        tensors = [helpers.as_layout(x, layout) for x in tensors]
        check(backend, form, tensors, r=r, order=order, negative_slope=0.1)


@pytest.mark.parametrize("layout", helpers.LAYOUTS)
@pytest.mark.parametrize("form", FORMS)
def test_matches_reference_in_every_layout(backend, form, layout):
    for position, r in ((0, 2), (1, 2), (0, 3)):
        tensors = make(form, r=r, size=(1, 8), c=4, dtype=torch.float32, device=backend.device)
        tensors[position] = helpers.as_layout(tensors[position], layout)
        check(backend, form, tensors, r=r, negative_slope=0.1)


@pytest.mark.parametrize("layout", helpers.LAYOUTS)
@pytest.mark.parametrize("form", FORMS)
def test_gradient_that_arrives_in_any_layout(backend, form, layout):
    for slope, content_layout in itertools.product((1.0, 0.1), ("contiguous", "channels_last")):
        tensors = make(form, c=4, dtype=torch.float32, device=backend.device)
        tensors[0] = helpers.as_layout(tensors[0], content_layout)
        leaves, wanted = helpers.leaves(tensors), helpers.leaves(tensors)
        output = operator_of(backend, form)(*leaves, negative_slope=slope)
        expected = FORMS[form][1](*wanted, negative_slope=slope)
        grad = torch.randn(expected.shape, device=backend.device)
        actual = helpers.gradients(output, helpers.as_layout(grad, layout), leaves)
        for a, b in zip(actual, helpers.gradients(expected, grad, wanted), strict=True):
            helpers.assert_close(a, b)


@pytest.mark.parametrize("form", FORMS)
def test_expanded_gradient_of_a_sum(backend, form):
    for layout in ("contiguous", "channels_last"):
        tensors = make(form, c=4, dtype=torch.float32, device=backend.device)
        tensors = [helpers.as_layout(x, layout) for x in tensors]
        leaves, wanted = helpers.leaves(tensors), helpers.leaves(tensors)
        operator_of(backend, form)(*leaves, negative_slope=0.1).sum().backward()
        FORMS[form][1](*wanted, negative_slope=0.1).sum().backward()
        assert leaves[0].grad.stride() == tensors[0].stride()
        for a, b in zip(leaves, wanted, strict=True):
            helpers.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("r", [2, 3, 4])
def test_channel_counts_around_vectors(backend, r):
    for channels, order, form in itertools.product((1, 15, 16, 17, 33), ORDERS, FORMS):
        if backend.name == "triton" and channels not in (1, 17):
            continue  # slow: interpreted
        tensors = make(form, r=r, n=1, c=channels, size=(1, 2), other=9, dtype=torch.float32)
        tensors = [helpers.as_layout(x, "channels_last").to(backend.device) for x in tensors]
        check(backend, form, tensors, r=r, order=order, negative_slope=0.1)


@pytest.mark.parametrize("width", [1, 4, 7, 8, 12, 16, 17, 33])
def test_widths_around_vectors(backend, width):
    for r, form in itertools.product((2, 3, 4), FORMS):
        if backend.name == "triton" and r != 2 + width % 3:
            continue  # slow: interpreted
        tensors = make(form, r=r, n=1, c=2, size=(1, width), dtype=torch.float32)
        tensors = [x.to(backend.device) for x in tensors]
        check(backend, form, tensors, r=r, negative_slope=0.1)


@pytest.mark.parametrize("other", [0, 1, 4, 16])
def test_reference_of_few_or_no_channels(backend, other):
    for layout in ("contiguous", "channels_last"):
        tensors = make("concat", c=4, other=other, dtype=torch.float32, device=backend.device)
        tensors = [helpers.as_layout(x, layout) for x in tensors]
        check(backend, "concat", tensors, negative_slope=0.1)


@pytest.mark.parametrize("form", FORMS)
def test_one_pixel(backend, form):
    for r in (2, 3, 4):
        tensors = make(form, r=r, n=1, c=1, other=1, size=(1, 1), device=backend.device)
        check(backend, form, tensors, r=r, negative_slope=0.1)


@pytest.mark.parametrize("form", FORMS)
def test_nan_and_infinity_stay_where_they_are(backend, form):
    tensors = make(form, dtype=torch.float32, device=backend.device)
    tensors[0][0, 1, 1, 1] = float("nan")
    tensors[0][1, 2, 0, 3] = float("inf")
    tensors[0][1, 3, 0, 3] = float("-inf")
    tensors[1][0, 0, 1, 2] = float("nan")
    tensors[1][1, 0, 0, 0] = float("inf")
    for slope in (1.0, 0.1, 0.0):
        check(backend, form, tensors, negative_slope=slope)


# ---- layouts of the output -----------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_fake_kernels_have_the_strides_of_the_real_ones(backend, form):
    layouts = helpers.LAYOUTS[:2] if backend.name == "triton" else helpers.LAYOUTS
    for first, second in itertools.product(layouts, repeat=2):
        content, other = make(form, c=4, dtype=torch.float32, device=backend.device)
        content, other = helpers.as_layout(content, first), helpers.as_layout(other, second)
        op = getattr(backend.ops, f"pixel_shuffle_{form}").default
        helpers.assert_fake_has_real_strides(op, content, other, negative_slope=0.1)
        backward = backend.ops._pixel_shuffle_backward.default
        grad = other[:, :4]  # for concat, of fewer channels than memory has
        for g, slope in itertools.product((grad, other.new_ones(()).expand(other.shape)), (1, 0.1)):
            kept = None if slope == 1 else content
            helpers.assert_fake_has_real_strides(backward, g, kept, 4, 2, slope, 0)


@pytest.mark.parametrize("form", FORMS)
def test_layout_follows_content(backend, form):
    content, other = make(form, c=4, dtype=torch.float32, device=backend.device)
    nhwc = torch.channels_last
    op = operator_of(backend, form)
    out = op(content.to(memory_format=nhwc), other)
    assert out.is_contiguous(memory_format=nhwc)
    assert op(content, other.to(memory_format=nhwc)).is_contiguous()
    assert op(content.transpose(2, 3), other.transpose(2, 3)).is_contiguous()


# ---- derivatives ---------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("r", [2, 3, 4])
@pytest.mark.parametrize("form", FORMS)
def test_gradcheck(backend, form, r, order):
    for slope in (1.0, 0.1):
        tensors = make(form, r=r, n=1, c=2, other=1, size=(1, 2), device=backend.device)

        def run(*tensors, slope=slope):
            return operator_of(backend, form)(
                *tensors, upscale=r, order=order, negative_slope=slope
            )

        fast = backend.name == "triton"
        assert torch.autograd.gradcheck(
            run, helpers.leaves(tensors), nondet_tol=0.0, fast_mode=fast
        )


@pytest.mark.parametrize("form", FORMS)
def test_second_derivative_is_an_error(backend, form):
    tensors = helpers.leaves(make(form, device=backend.device))
    output = operator_of(backend, form)(*tensors, negative_slope=0.1).square()
    (d_content,) = torch.autograd.grad(output.sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once only"):
        d_content.sum().backward()


@pytest.mark.parametrize("form", FORMS)
def test_gradient_of_some_inputs_only(backend, form):
    for wanted in range(2):
        tensors = make(form, c=4, dtype=torch.float32, device=backend.device)
        tensors[wanted].requires_grad_()
        expected = [x.detach().clone() for x in tensors]
        expected[wanted].requires_grad_()
        output = operator_of(backend, form)(*tensors, negative_slope=0.1)
        assert (output.grad_fn.saved_tensors[0] is not None) == (wanted == 0)
        output.square().sum().backward()
        FORMS[form][1](*expected, negative_slope=0.1).square().sum().backward()
        helpers.assert_close(tensors[wanted].grad, expected[wanted].grad)


@pytest.mark.parametrize("form", FORMS)
def test_without_activation_content_is_not_kept(form):
    tensors = helpers.leaves(make(form))
    output = FORMS[form][0](*tensors)
    assert all(x is None for x in output.grad_fn.saved_tensors)


def test_gradients_that_are_the_incoming_one_are_not_copied(backend):
    for form in FORMS:
        tensors = helpers.leaves(make(form, c=4, device=backend.device))
        output = operator_of(backend, form)(*tensors)
        grad = torch.randn_like(output)
        (d_other,) = torch.autograd.grad(output, tensors[1], grad)
        assert d_other.untyped_storage().data_ptr() == grad.untyped_storage().data_ptr()
        assert torch.equal(d_other, grad if form == "add" else grad[:, 4:])


@pytest.mark.parametrize("form", FORMS)
def test_opcheck(backend, form):
    for layout, slope in (("contiguous", 0.1), ("channels_last", 1.0)):
        tensors = make(form, c=4, other=4, size=(2, 3), dtype=torch.float32, device=backend.device)
        leaves = helpers.leaves(helpers.as_layout(x, layout) for x in tensors)
        op = getattr(backend.ops, f"pixel_shuffle_{form}").default
        helpers.opcheck(op, leaves, {"negative_slope": slope})


# ---- empty ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("empty", [{"n": 0}, {"c": 0}, {"size": (0, 3)}, {"size": (3, 0)}], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("form", FORMS)
def test_empty_input_gives_empty_output_and_gradients(backend, form, layout, empty):
    tensors = make(form, dtype=torch.float32, device=backend.device, **empty)
    leaves = helpers.leaves(helpers.as_layout(x, layout) for x in tensors)
    output = operator_of(backend, form)(*leaves, negative_slope=0.1)
    assert torch.equal(output, FORMS[form][1](*leaves, negative_slope=0.1))
    for x, d in zip(
        leaves, helpers.gradients(output, torch.ones_like(output), leaves), strict=True
    ):
        assert torch.equal(d, torch.ones_like(x))


# ---- the CPU kernels -----------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("form", FORMS)
def test_number_of_threads_does_not_change_a_bit(form, layout):
    tensors = make(form, n=2, c=37, other=29, size=(24, 20), dtype=torch.float32)
    tensors = [helpers.as_layout(x, layout) for x in tensors]
    operator, reference = FORMS[form]
    grad = torch.randn_like(reference(*tensors))

    def run():
        leaves = helpers.leaves(tensors)
        output = operator(*leaves, negative_slope=0.1)
        return [output, *helpers.gradients(output, grad, leaves)]

    helpers.same_for_any_threads(run)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("r", "c", "other", "size", "dtype"),
    [
        (2, 32, 32, (32, 160), torch.float32),
        (2, 32, 29, (32, 150), torch.float32),  # lines that are not whole vectors
        (4, 16, 16, (32, 160), torch.bfloat16),
        (3, 32, 32, (24, 48), torch.float64),
    ],
    ids=str,
)
def test_maps_that_are_streamed_past_the_cache(r, c, other, size, dtype, layout):
    n = -(-(17 << 20) // (c * r * r * size[0] * size[1] * dtype.itemsize))
    options = {"upscale": r, "negative_slope": 0.1}
    for form in FORMS:
        tensors = make(form, r=r, n=n, c=c, other=other, size=size, dtype=dtype)
        leaves = helpers.leaves(helpers.as_layout(x, layout) for x in tensors)
        output = FORMS[form][0](*leaves, **options)
        grad = torch.randn_like(output)
        d_content, _ = helpers.gradients(output, grad, leaves)
        assert min(output.nbytes, d_content.nbytes) > 16 << 20
        for k in range(n):  # alone, an image is too small
            part = [x.detach()[k : k + 1].requires_grad_() for x in leaves]
            alone = FORMS[form][0](*part, **options)
            assert alone.nbytes < 16 << 20
            assert torch.equal(alone, output[k : k + 1])
            d_alone, _ = helpers.gradients(alone, grad[k : k + 1], part)
            assert torch.equal(d_alone, d_content[k : k + 1])
