"""What attention_targets promises besides its values: errors, the rest of torch."""

import math

import backends
import pytest
import torch
from helpers import opcheck
from test_attention_targets import random_boxes, run

from tinyops.ops import attention_targets

# ---- errors --------------------------------------------------------------------------------------


def bad_arguments():
    good = {
        "boxes": torch.zeros(3, 4),
        "image_ids": torch.zeros(3, dtype=torch.int64),
        "images": 1,
        "height": 64,
        "width": 64,
        "strides": [4, 8],
        "bands": [4.0, 32.0, 8.0, 64.0],
        "strict": False,
    }
    sizes = "sizes must be images, height and width of at least 0 and below 2^31, got"

    def case(message, **changes):
        return pytest.param({**good, **changes}, message, id=message)

    yield case("boxes must be [K, 4], got [4]", boxes=torch.zeros(4))
    yield case(
        "boxes must be float32, float64, float16 or bfloat16, got int64",
        boxes=torch.zeros(3, 4, dtype=torch.int64),
    )
    yield case("image_ids must be [3] like boxes, got [2]", image_ids=good["image_ids"][:2])
    yield case("image_ids must be int64, got int32", image_ids=good["image_ids"].int())
    yield case(f"{sizes} -1", images=-1)
    yield case(f"{sizes} -2", height=-2)
    yield case(f"{sizes} 2147483648", width=2**31)
    yield case("strides must be from 1 to 16 numbers, got 0", strides=[], bands=[])
    yield case("strides must be from 1 to 16 numbers, got 17", strides=[4] * 17, bands=[1.0] * 34)
    yield case("strides must be at least 1 and below 2^31, got 0", strides=[4, 0])
    yield case("bands must be 2 numbers for each of 2 strides, got 3", bands=[4.0, 32.0, 8.0])
    yield case(
        "bands must be (low, high) with low <= high, got (64, 8)", bands=[4.0, 32.0, 64.0, 8.0]
    )
    yield case(
        "bands must be (low, high) with low <= high, got (nan, 8)",
        bands=[4.0, 32.0, math.nan, 8.0],
    )


@pytest.mark.parametrize(("arguments", "message"), list(bad_arguments()))
@pytest.mark.parametrize("form", ["real", "fake"])
def test_bad_argument_is_named_with_expectation_and_value(backend, form, arguments, message):
    device = "meta" if form == "fake" else backend.device
    arguments = {k: v.to(device) if torch.is_tensor(v) else v for k, v in arguments.items()}
    with pytest.raises(RuntimeError) as error:
        backend.ops.attention_targets(**arguments)
    assert str(error.value).splitlines()[0] == f"tinyops: attention_targets: {message}"


def test_bad_values_are_named(backend):
    sizes = (2, 64, 64)
    boxes, ids = random_boxes(300, sizes)
    stem = "tinyops: attention_targets: "

    def refused(message):
        with pytest.raises(RuntimeError) as error:
            run(backend, boxes, ids, sizes)
        assert str(error.value).splitlines()[0] == stem + message

    ids[299] = 2
    refused("image_ids must be at least 0 and below 2, got 2 at index 299")
    ids[7] = -1
    refused("image_ids must be at least 0 and below 2, got -1 at index 7")
    inside = (ids >= 0) & (ids < 2)
    unchecked = run(backend, boxes, ids, sizes, check=False)
    expected = run(backend, boxes[inside], ids[inside], sizes)
    assert all(torch.equal(a, b) for a, b in zip(unchecked, expected, strict=True))
    boxes[5] = torch.tensor([1.0, 2, 3, math.nan])
    refused("boxes must be finite with x1 <= x2 and y1 <= y2, got [1, 2, 3, nan] at index 5")
    boxes[4] = torch.tensor([4.0, 2, 3, 9])
    refused("boxes must be finite with x1 <= x2 and y1 <= y2, got [4, 2, 3, 9] at index 4")


def test_public_function_names_wrong_sizes_and_bands():
    boxes, ids = random_boxes(3, (1, 64, 64))
    with pytest.raises(RuntimeError, match="sizes must be images, height and width, got 2 numbers"):
        attention_targets(boxes, ids, (64, 64))
    with pytest.raises(RuntimeError, match=r"bands must be pairs \(low, high\), got"):
        attention_targets(boxes, ids, (1, 64, 64), strides=[4], bands=[(1, 2, 3)])
    with pytest.raises(RuntimeError, match="image_ids must be on meta like boxes, got cpu"):
        attention_targets(boxes.to("meta"), ids, (1, 64, 64))


# ---- with the rest of torch ----------------------------------------------------------------------


def test_opcheck(backend):
    sizes = (2, 30, 50)
    boxes, ids = (x.to(backend.device) for x in random_boxes(9, sizes))
    arguments = (boxes, ids, *sizes, [4, 8], [4.0, 32.0, 8.0, 64.0], True)
    opcheck(backend.ops.attention_targets.default, arguments)


def test_fake_results_look_like_real_ones(backend):
    from torch._subclasses.fake_tensor import FakeTensorMode

    sizes = (2, 30, 51)
    boxes, ids = (x.to(backend.device) for x in random_boxes(9, sizes))
    boxes = boxes.half()
    real = run(backend, boxes, ids, sizes)
    with FakeTensorMode() as mode:
        fakes = mode.from_tensor(boxes), mode.from_tensor(ids)
        fake = run(backend, *fakes, sizes)
    for a, b in zip(real, fake, strict=True):
        assert (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
        assert a.stride() == b.stride()


def test_compile_and_gradient():
    sizes = (2, 60, 50)
    boxes, ids = random_boxes(20, sizes)
    boxes.requires_grad_()

    def step(boxes, ids):
        return [x * 2 for x in attention_targets(boxes + 1, ids, sizes)]

    expected = step(boxes, ids)
    assert not any(x.requires_grad for x in expected)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(boxes, ids)
    assert all(torch.equal(a, b) for a, b in zip(compiled, expected, strict=True))


def test_export_with_dynamic_sizes():
    class Targets(torch.nn.Module):
        def forward(self, boxes, image_ids, images):
            sizes = images.shape[0], images.shape[2], images.shape[3]
            return attention_targets(boxes, image_ids, sizes)

    def example(count, *sizes):
        return (*random_boxes(count, sizes), torch.zeros(sizes[0], 1, *sizes[1:]))

    k, n = (torch.export.Dim(name, max=4000) for name in "kn")
    h, w = (torch.export.Dim(name, min=33, max=4000) for name in "hw")  # above one coarse cell
    shapes = {"boxes": {0: k}, "image_ids": {0: k}, "images": {0: n, 2: h, 3: w}}
    program = torch.export.export(Targets(), example(20, 2, 60, 50), dynamic_shapes=shapes)
    other = example(30, 3, 77, 45)
    expected = Targets()(*other)
    for a, b in zip(program.module()(*other), expected, strict=True):
        assert torch.equal(a, b)


def test_cuda_graph_replays():
    backend = backends.get("cuda")
    sizes = (2, 160, 128)
    boxes, ids = (x.cuda() for x in random_boxes(50, sizes))
    run(backend, boxes, ids, sizes, check=False)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(backend, boxes, ids, sizes, check=False)
    boxes.copy_(random_boxes(50, sizes)[0])
    graph.replay()
    for a, b in zip(captured, run(backend, boxes, ids, sizes), strict=True):
        assert torch.equal(a, b)
