import helpers
import pytest
import torch

from tinyops.ops import difference_map, difference_map_reference

SIZES = {  # [N, C, H, W]
    "even": (2, 3, 4, 16),
    "odd": (2, 3, 5, 7),
    "wide": (1, 3, 2, 37),
    "one-channel": (2, 1, 3, 5),
    "many-channels": (1, 70, 2, 3),
    "one-pixel": (1, 3, 1, 1),
}


def make(size=(2, 3, 4, 6), dtype=torch.float64, device="cpu"):
    """reconstruction, image."""
    tensors = [torch.rand(size, dtype=torch.float64) for _ in range(2)]
    return [x.to(device, dtype) for x in tensors]


def extents(*sizes, device="cpu"):
    return torch.tensor(sizes, device=device)


def check(backend, tensors, valid=None):
    """Output and gradients are those of the reference."""

    def operator(reconstruction, image):
        return backend.ops.difference_map(reconstruction, image, valid)

    def reference(reconstruction, image):
        return difference_map_reference(
            reconstruction, image, None if valid is None else valid.cpu()
        )

    helpers.assert_matches_reference(operator, reference, tensors)


# ---- values --------------------------------------------------------------------------------------


def test_numbers_worked_out_by_hand(backend):
    left = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.5], [1.0, -1.0]]]])
    right = torch.tensor([[[[1.5, 1.0], [3.0, 2.0]], [[1.0, 0.5], [0.0, 1.0]]]])
    tensors = helpers.leaves(x.to(backend.device) for x in (left, right))
    out = backend.ops.difference_map(*tensors)
    assert out.tolist() == [[[[0.75, 0.5], [0.5, 2.0]]]]
    grad = torch.tensor([[[[2.0, 4.0], [6.0, 8.0]]]], device=backend.device)
    d_left, d_right = helpers.gradients(out, grad, tensors)
    assert d_left.tolist() == [[[[-1.0, 2.0], [0.0, 4.0]], [[-1.0, 0.0], [3.0, -4.0]]]]
    assert torch.equal(d_right, -d_left)


def test_outside_the_valid_part_map_and_gradients_are_zero(backend):
    tensors = helpers.leaves(make((2, 3, 4, 6), torch.float32, backend.device))
    valid = extents([3, 6], [4, 2], device=backend.device)
    out = backend.ops.difference_map(*tensors, valid)
    inside = torch.zeros(2, 1, 4, 6, dtype=torch.bool, device=backend.device)
    inside[0, :, :3], inside[1, :, :, :2] = True, True
    everywhere = backend.ops.difference_map(*tensors)
    assert torch.equal(out, torch.where(inside, everywhere, 0))
    for d in helpers.gradients(out, torch.ones_like(out), tensors):
        assert torch.equal(d != 0, inside.expand(d.shape))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_matches_reference_at_every_size(backend, layout, size):
    n, _, h, w = SIZES[size]
    tensors = make(SIZES[size], torch.float32, backend.device)
    tensors = [helpers.as_layout(x, layout) for x in tensors]
    check(backend, tensors)
    check(backend, tensors, extents(*[[h, w - 1]] * n, device=backend.device))


@pytest.mark.parametrize("dtype", helpers.FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_matches_reference_in_every_dtype(backend, layout, dtype):
    for size in ((2, 3, 4, 32), (2, 5, 3, 19)):
        tensors = make(size, dtype, backend.device)
        tensors = [helpers.as_layout(x, layout) for x in tensors]
        check(backend, tensors, extents([2, 30], [4, 17], device=backend.device))


@pytest.mark.parametrize("layout", helpers.LAYOUTS)
def test_matches_reference_in_every_layout(backend, layout):
    for position in range(2):
        tensors = make((2, 3, 4, 18), torch.float32, backend.device)
        tensors[position] = helpers.as_layout(tensors[position], layout)
        check(backend, tensors, extents([4, 18], [3, 18], device=backend.device))


@pytest.mark.parametrize("layout", helpers.LAYOUTS)
def test_gradient_that_arrives_in_any_layout(backend, layout):
    tensors = make((2, 3, 4, 6), torch.float32, backend.device)
    leaves, wanted = helpers.leaves(tensors), helpers.leaves(tensors)
    out = backend.ops.difference_map(*leaves)
    grad = torch.randn_like(out)
    actual = helpers.gradients(out, helpers.as_layout(grad, layout), leaves)
    expected = helpers.gradients(difference_map_reference(*wanted), grad, wanted)
    for a, b in zip(actual, expected, strict=True):
        helpers.assert_close(a, b)


def test_expanded_gradient_of_a_sum(backend):
    tensors = helpers.leaves(make((2, 3, 4, 6), torch.float32, backend.device))
    wanted = helpers.leaves(tensors)
    backend.ops.difference_map(*tensors).sum().backward()
    difference_map_reference(*wanted).sum().backward()
    for a, b in zip(tensors, wanted, strict=True):
        helpers.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_nan_and_infinity_stay_in_their_pixel_and_count_only_where_valid(backend, layout):
    left, right = make((2, 3, 4, 18), torch.float32, backend.device)
    left[0, 1, 2, 1], right[0, 0, 3, 2] = float("nan"), float("inf")
    left[1, 0, 1, 4], right[1, 0, 1, 4] = float("inf"), float("inf")
    left[:, :, :, 17] = float("nan")
    tensors = [helpers.as_layout(x, layout) for x in (left, right)]
    check(backend, tensors)
    valid = extents([4, 17], [4, 17], device=backend.device)
    check(backend, tensors, valid)
    out = backend.ops.difference_map(*tensors, valid)
    assert out.isnan().sum() == 2
    assert out.isinf().sum() == 1
    assert torch.equal(out[..., 17], torch.zeros_like(out[..., 17]))


def test_valid_is_cut_to_the_image(backend):
    tensors = make((3, 3, 4, 6), torch.float32, backend.device)
    valid = extents([9, 2**40], [-1, 6], [4, 0], device=backend.device)
    out = backend.ops.difference_map(*tensors, valid)
    everywhere = backend.ops.difference_map(*tensors)
    assert torch.equal(out[0], everywhere[0])
    assert not out[1:].any()
    strided = torch.stack([valid, valid], 2)[..., 0]
    assert torch.equal(backend.ops.difference_map(*tensors, strided), out)


# ---- derivatives ---------------------------------------------------------------------------------


def test_gradcheck(backend):
    tensors = helpers.leaves(make((1, 2, 2, 3), device=backend.device))
    valid = extents([2, 2], device=backend.device)

    def run(*tensors):
        return backend.ops.difference_map(*tensors, valid)

    assert torch.autograd.gradcheck(run, tensors, nondet_tol=0.0, fast_mode=True)


def test_second_derivative_is_an_error(backend):
    tensors = helpers.leaves(make(device=backend.device))
    out = backend.ops.difference_map(*tensors)
    (d,) = torch.autograd.grad(out.sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once only"):
        (d.sum() + out.sum()).backward()


def test_gradient_of_one_image_only(backend):
    for wanted in range(2):
        tensors = make((2, 3, 4, 6), torch.float32, backend.device)
        tensors[wanted].requires_grad_()
        expected = [x.detach().clone() for x in tensors]
        expected[wanted].requires_grad_()
        backend.ops.difference_map(*tensors).square().sum().backward()
        difference_map_reference(*expected).square().sum().backward()
        helpers.assert_close(tensors[wanted].grad, expected[wanted].grad)
        assert tensors[1 - wanted].grad is None


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_opcheck_and_strides_of_fakes(backend, layout):
    valid = extents([2, 3], [1, 2], device=backend.device)
    tensors = make((2, 3, 2, 3), torch.float32, backend.device)
    tensors = [helpers.as_layout(x, layout) for x in tensors]
    for more in ((), (valid,)):
        helpers.opcheck(backend.ops.difference_map.default, [*helpers.leaves(tensors), *more])
    for left in helpers.LAYOUTS:
        images = helpers.as_layout(tensors[0], left), tensors[1]
        helpers.assert_fake_has_real_strides(backend.ops.difference_map.default, *images)
        grad = torch.ones(2, 1, 2, 3, device=backend.device)
        backward = backend.ops._difference_map_backward.default
        helpers.assert_fake_has_real_strides(backward, grad, *images, valid)
    d = backend.ops._difference_map_backward(grad, *tensors, None)
    assert d.stride() == tensors[0].stride()


# ---- empty ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(0, 3, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)], ids=str)
def test_empty_input_gives_empty_output_and_gradients(backend, size):
    tensors = helpers.leaves(make(size, torch.float32, backend.device))
    out = backend.ops.difference_map(*tensors)
    assert out.shape == (size[0], 1, *size[2:])
    for d in helpers.gradients(out, torch.ones_like(out), tensors):
        assert d.shape == size


def test_mean_of_no_channels_is_nan(backend):
    tensors = make((2, 0, 3, 4), torch.float32, backend.device)
    valid = extents([3, 2], [3, 4], device=backend.device)
    out = backend.ops.difference_map(*tensors, valid)
    assert torch.equal(out.isnan(), difference_map_reference(*tensors, valid).isnan())


# ---- errors --------------------------------------------------------------------------------------


def bad_arguments():
    image = torch.zeros(2, 3, 4, 5)
    good = {"reconstruction": image, "image": image, "valid": torch.zeros(2, 2, dtype=torch.int64)}

    def case(message, **changes):
        return pytest.param({**good, **changes}, message, id=message)

    yield case(
        "reconstruction must have 4 dimensions [N, C, H, W], got [3, 4, 5]",
        reconstruction=image[0],
    )
    yield case(
        "reconstruction must be float32, float64, float16 or bfloat16, got int64",
        reconstruction=image.long(),
    )
    yield case("image must have 4 dimensions [N, C, H, W], got [3, 4, 5]", image=image[0])
    yield case("image must be float32 like reconstruction, got float64", image=image.double())
    yield case("image must be [2, 3, 4, 5], got [2, 3, 4, 4]", image=image[..., 1:])
    yield case(
        "valid must be [2, 2], height and width of every image, got [2]", valid=good["valid"][0]
    )
    yield case(
        "valid must be [2, 2], height and width of every image, got [1, 2]",
        valid=good["valid"][:1],
    )
    yield case("valid must be int64, got int32", valid=good["valid"].int())


@pytest.mark.parametrize(("arguments", "message"), list(bad_arguments()))
@pytest.mark.parametrize("form", ["real", "fake", "backward"])
def test_bad_argument_is_named_with_expectation_and_value(backend, form, arguments, message):
    device = "meta" if form == "fake" else backend.device
    arguments = {k: v.to(device) for k, v in arguments.items()}
    run = backend.ops.difference_map
    if form == "backward":
        arguments["grad"] = torch.zeros(2, 1, 4, 5, device=device)
        run = backend.ops._difference_map_backward
    with pytest.raises(RuntimeError) as error:
        run(**arguments)
    assert str(error.value).splitlines()[0] == f"tinyops: difference_map: {message}"


@pytest.mark.parametrize("device", ["real", "meta"])
def test_bad_gradient_is_named(backend, device):
    device = backend.device if device == "real" else device
    image = torch.zeros(2, 3, 4, 5, device=device)
    backward = backend.ops._difference_map_backward
    with pytest.raises(RuntimeError, match=r"grad must be \[2, 1, 4, 5\], got \[2, 3, 4, 5\]"):
        backward(image, image, image, None)
    with pytest.raises(RuntimeError, match="grad must be float32 like reconstruction, got float64"):
        backward(image[:, :1].double(), image, image, None)


def test_device_mix_is_an_error():
    left, right = make()
    with pytest.raises(RuntimeError, match="image must be on cpu like reconstruction, got meta"):
        difference_map(left, right.to("meta"))
    with pytest.raises(RuntimeError, match="valid must be on cpu like reconstruction, got meta"):
        difference_map(left, right, extents([1, 1], [1, 1]).to("meta"))


# ---- with the rest of torch ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_float32(backend, dtype):
    left, right = make((2, 3, 4, 6), torch.float32, backend.device)
    tensors = helpers.leaves([left.to(dtype), right])
    with torch.autocast(backend.device, dtype=dtype):
        out = backend.ops.difference_map(*tensors)
    assert out.dtype == torch.float32
    assert torch.equal(out, backend.ops.difference_map(left.to(dtype).float(), right))
    out.sum().backward()
    assert [x.grad.dtype for x in tensors] == [dtype, torch.float32]
    with torch.autocast(backend.device, dtype=dtype):
        assert backend.ops.difference_map(left.double(), right.double()).dtype == torch.float64


def test_compile_without_graph_break(backend):
    tensors = helpers.leaves(make((2, 3, 4, 6), torch.float32, backend.device))
    valid = extents([4, 6], [3, 5], device=backend.device)

    def step(reconstruction, image):
        return backend.ops.difference_map(reconstruction.sigmoid(), image, valid) + 1

    helpers.assert_compiles(step, tensors, backend="aot_eager")


def test_export_with_dynamic_sizes():
    class Step(torch.nn.Module):
        def forward(self, reconstruction, image, valid):
            return difference_map(reconstruction, image, valid)

    n, h, w = (torch.export.Dim(name, min=1, max=512) for name in ("n", "h", "w"))
    shapes = {"reconstruction": {0: n, 2: h, 3: w}, "image": {0: n, 2: h, 3: w}, "valid": {0: n}}
    example = *make(), extents([4, 6], [3, 2])
    program = torch.export.export(Step(), example, dynamic_shapes=shapes)
    other = *make((3, 3, 5, 7)), extents([4, 6], [3, 2], [1, 1])
    assert torch.equal(program.module()(*other), difference_map(*other))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("width", "dtype"), [(256, torch.float32), (250, torch.float32), (512, torch.bfloat16)]
)
def test_threads_and_streaming_change_nothing(width, dtype, layout):
    tensors = make((1, 70, 256, width), dtype)
    tensors = [helpers.as_layout(x, layout) for x in tensors]
    assert tensors[0].nbytes > 16 << 20
    grad = torch.randn(1, 1, 256, width).to(dtype)

    def run():
        backward = torch.ops.tinyops._difference_map_backward
        return difference_map(*tensors), backward(grad, *tensors, None)

    one = helpers.same_for_any_threads(run)
    wide = [x.double().requires_grad_() for x in tensors]
    expected = difference_map_reference(*wide)
    helpers.assert_close(one[0], expected.detach())
    helpers.assert_close(one[1], helpers.gradients(expected, grad.double(), wide)[0])
