"""What stitch_tiles promises besides its values: errors, the public function, the rest of torch."""

import math

import backends
import helpers
import pytest
import torch
from stitching import NAMES, scene
from test_stitch_tiles import two

from tinyops.ops import stitch_tiles

FORMS = ("stitch_tiles", "stitch_tiles_padded", "stitch_tiles_union")


def call(ops, form, arguments, **options):
    options |= {k: v for k, v in arguments.items() if k not in NAMES and k != "max_outputs"}
    tensors = [arguments[name] for name in NAMES]
    most = [arguments.get("max_outputs", 5)] if form == "stitch_tiles_padded" else []
    return getattr(ops, form)(*tensors, *most, **options)


def moved(arguments, device):
    return {k: v.to(device) if torch.is_tensor(v) else v for k, v in arguments.items()}


# ---- the public function -------------------------------------------------------------------------


def test_public_function_chooses_the_form():
    arguments, ops = scene(1), backends.get("cpu").ops
    options = {"iou_threshold": 0.25, "ios_threshold": 0.75, "edge": 1.0, "class_agnostic": True}
    keep = stitch_tiles(**arguments, **options)
    assert torch.equal(keep, call(ops, "stitch_tiles", arguments, **options))
    assert not torch.equal(keep, stitch_tiles(**arguments))
    padded, count = stitch_tiles(**arguments, **options, max_outputs=1000)
    assert torch.equal(padded[:count], keep)
    united = stitch_tiles(**arguments, **options, merge="union")
    expected = call(ops, "stitch_tiles_union", arguments, **options)
    assert all(map(torch.equal, united, expected))
    assert len(united) == 4


def test_public_function_refuses_unknown_merges_and_a_padded_union():
    with pytest.raises(RuntimeError, match="merge must be one of 'none', 'union', got 'hull'"):
        stitch_tiles(**two(), merge="hull")
    message = "stitch_tiles: max_outputs must be None with merge='union', got 3"
    with pytest.raises(RuntimeError, match=message):
        stitch_tiles(**two(), merge="union", max_outputs=3)


# ---- errors --------------------------------------------------------------------------------------


def bad_arguments():
    ids = torch.zeros(3, dtype=torch.int64)
    good = {
        "boxes": torch.zeros(3, 4),
        "scores": torch.zeros(3),
        "labels": ids,
        "tile_ids": ids,
        "tile_windows": torch.zeros(2, 4),
        "image_sizes": torch.zeros(1, 2),
        "tile_images": ids[:2],
    }

    def case(message, **changes):
        return pytest.param({**good, **changes}, f"tinyops: stitch_tiles: {message}", id=message)

    floats = "must be float32, float64, float16 or bfloat16, got"
    numbers = "must be int64, float32 or float64, got"
    yield case("boxes must be [K, 4], got [3, 5]", boxes=torch.zeros(3, 5))
    yield case(f"boxes {floats} int64", boxes=torch.zeros(3, 4).long())
    yield case("scores must be [3] like boxes, got [4]", scores=torch.zeros(4))
    yield case(f"scores {floats} int64", scores=ids)
    for name in ("labels", "tile_ids"):
        yield case(f"{name} must be [3] like boxes, got [2]", **{name: ids[:2]})
        yield case(f"{name} must be int64, got int32", **{name: ids.int()})
    for name, shape, columns in (("tile_windows", "[T, 4]", 4), ("image_sizes", "[I, 2]", 2)):
        wrong = torch.zeros(2, columns + 1)
        yield case(f"{name} must be {shape}, got [2, {columns + 1}]", **{name: wrong})
        yield case(f"{name} must be {shape}, got [{columns}]", **{name: torch.zeros(columns)})
        wrong = torch.zeros(2, columns)
        yield case(f"{name} {numbers} int32", **{name: wrong.int()})
        yield case(f"{name} {numbers} float16", **{name: wrong.half()})
    yield case("tile_images must be [2] like tile_windows, got [3]", tile_images=ids)
    yield case("tile_images must be [2] like tile_windows, got [2, 1]", tile_images=ids[:2, None])
    yield case("tile_images must be int64, got bool", tile_images=ids[:2].bool())
    yield case(
        "tile_windows must have a row for the tiles of 3 boxes, got [0, 4]",
        tile_windows=torch.zeros(0, 4),
        tile_images=ids[:0],
    )
    yield case(
        "image_sizes must have a row for the images of 2 tiles, got [0, 2]",
        image_sizes=torch.zeros(0, 2),
    )
    for name in ("iou_threshold", "ios_threshold"):
        for value, text in ((-0.5, "-0.5"), (1.5, "1.5"), (math.nan, "nan")):
            yield case(f"{name} must be in [0, 1], got {text}", **{name: value})
    for value, text in ((-0.5, "-0.5"), (math.inf, "inf"), (math.nan, "nan")):
        yield case(f"edge must be finite and at least 0, got {text}", edge=value)


@pytest.mark.parametrize(("arguments", "message"), list(bad_arguments()))
@pytest.mark.parametrize("form", FORMS)
def test_bad_argument_is_named_with_expectation_and_value(backend, form, arguments, message):
    for device in (backend.device, "meta"):
        with pytest.raises(RuntimeError) as error:
            call(backend.ops, form, moved(arguments, device))
        assert str(error.value).splitlines()[0] == message


@pytest.mark.parametrize("device", ["real", "meta"])
def test_negative_number_of_outputs_is_named(backend, device):
    device = backend.device if device == "real" else device
    with pytest.raises(RuntimeError) as error:
        call(backend.ops, "stitch_tiles_padded", moved({**two(), "max_outputs": -1}, device))
    expected = "tinyops: stitch_tiles: max_outputs must be at least 0, got -1"
    assert str(error.value).splitlines()[0] == expected


@pytest.mark.parametrize("name", [*NAMES[1:], "tile_images"])
@pytest.mark.parametrize("form", FORMS)
def test_device_mix_is_an_error(form, name):
    arguments = scene(0, objects=5)
    arguments[name] = arguments[name].to("meta")
    with pytest.raises(
        RuntimeError, match=f"stitch_tiles: {name} must be on cpu like boxes, got meta"
    ):
        call(backends.get("cpu").ops, form, arguments)


BAD_ROWS = {
    "[nan, 0, 1, 1]": [math.nan, 0, 1, 1],
    "[0, 0, inf, 1]": [0, 0, math.inf, 1],
    "[2, 0, 1, 1]": [2.0, 0, 1, 1],
    "[0, 1, 1, 0.5]": [0, 1, 1, 0.5],
}


def bad_values():
    boxes = "must be finite with x1 <= x2 and y1 <= y2, got"
    for text, row in BAD_ROWS.items():
        yield "boxes", row, f"{boxes} {text} at index 70"
        yield "tile_windows", row, f"{boxes} {text} at index 5"
    yield "scores", math.nan, "must not be NaN, got nan at index 70"
    yield "tile_ids", 1 << 40, "must be in [0, {tiles}), got 1099511627776 at index 70"
    yield "tile_ids", -1, "must be in [0, {tiles}), got -1 at index 70"
    yield "tile_images", 2, "must be in [0, 2), got 2 at index 5"
    yield "tile_images", -7, "must be in [0, 2), got -7 at index 5"
    for row, text in (
        ([-1.0, 5], "[-1, 5]"),
        ([5, math.nan], "[5, nan]"),
        ([math.inf, 5], "[inf, 5]"),
    ):
        yield "image_sizes", row, f"must be finite and at least 0, got {text} at index 1"


@pytest.mark.parametrize(("name", "value", "text"), list(bad_values()))
@pytest.mark.parametrize("form", FORMS)
def test_bad_values_are_named_with_their_index(backend, form, name, value, text):
    arguments = scene(2)
    tiles = len(arguments["tile_windows"])
    if name in NAMES[4:]:
        arguments[name] = arguments[name].float()
    bad = arguments[name] = arguments[name].clone()
    rows = {"image_sizes": [1], "tile_windows": [5, 7], "tile_images": [5, 7]}.get(name, [70, 90])
    bad[rows] = torch.tensor(value, dtype=bad.dtype)
    arguments = moved(arguments, backend.device)
    with pytest.raises(RuntimeError) as error:
        call(backend.ops, form, arguments)
    expected = f"tinyops: stitch_tiles: {name} {text.format(tiles=tiles)}"
    assert str(error.value).splitlines()[0] == expected
    if name != "scores":
        call(backend.ops, form, arguments, check=False)  # whatever comes out, it ends


def test_unchecked_ids_are_read_as_the_nearest_in_range(backend):
    arguments = moved(scene(3), backend.device)
    last = len(arguments["tile_windows"]) - 1
    assert (arguments["tile_ids"] == last).any()
    assert (arguments["tile_ids"] == 0).any()
    wild = {**arguments, "tile_ids": arguments["tile_ids"].clone()}
    wild["tile_ids"][arguments["tile_ids"] == last] = 1 << 40
    wild["tile_ids"][arguments["tile_ids"] == 0] = -(1 << 40)
    expected = call(backend.ops, "stitch_tiles", arguments)
    assert torch.equal(call(backend.ops, "stitch_tiles", wild, check=False), expected)


# ---- with the rest of torch ----------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_opcheck(backend, form):
    arguments = moved(scene(4, objects=12), backend.device)
    tensors = [arguments[name] for name in NAMES]
    most = [7] if form == "stitch_tiles_padded" else []
    options = {"tile_images": arguments["tile_images"], "class_agnostic": True}
    helpers.opcheck(getattr(backend.ops, form).default, (*tensors, *most), options)


@pytest.mark.parametrize("form", FORMS)
def test_results_have_no_gradient(backend, form):
    arguments = moved(scene(4, objects=12), backend.device)
    arguments["boxes"].requires_grad_()
    arguments["scores"].requires_grad_()
    result = call(backend.ops, form, arguments)
    result = result if isinstance(result, tuple) else (result,)
    assert not any(x.requires_grad for x in result)


@pytest.mark.parametrize("form", FORMS)
def test_compile_without_graph_break(backend, form):
    arguments = moved(scene(5, objects=20), backend.device)

    def step(arguments):
        result = call(backend.ops, form, arguments)
        result = result if isinstance(result, tuple) else (result,)
        return tuple(x + 1 for x in result)

    torch.compiler.reset()  # one function in many variants: dynamo counts recompilations
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, compiled(arguments), step(arguments)))


@pytest.mark.parametrize(
    "options", [{}, {"max_outputs": 9}, {"merge": "union"}], ids=["none", "padded", "union"]
)
def test_export_with_dynamic_sizes(options):
    class Step(torch.nn.Module):
        def forward(self, arguments):
            return stitch_tiles(**arguments, **options)

    k, t = torch.export.Dim("k", min=2, max=100000), torch.export.Dim("t", min=2, max=1000)
    sizes = {name: {0: k} for name in NAMES[:4]}
    sizes |= {name: {0: t} for name in ("tile_windows", "tile_images")}
    shapes = {"arguments": sizes | {"image_sizes": None}}
    program = torch.export.export(Step(), (scene(6),), dynamic_shapes=shapes)
    actual, expected = (f(scene(7)) for f in (program.module(), Step()))
    if torch.is_tensor(expected):
        actual, expected = (actual,), (expected,)
    assert all(map(torch.equal, actual, expected))


def test_cuda_graph_of_the_padded_form_replays():
    ops = backends.get("cuda").ops
    arguments = moved(scene(8), "cuda")
    options = {"check": False, "max_outputs": 50}
    arguments |= options

    def step():
        return call(ops, "stitch_tiles_padded", arguments)

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    arguments["scores"].copy_(arguments["scores"].flip(0))
    graph.replay()
    assert all(map(torch.equal, captured, step()))
