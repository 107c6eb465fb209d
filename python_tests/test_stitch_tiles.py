"""stitch_tiles with merge="none" and its padded form against a plain Python oracle."""

import helpers
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stitching import NAMES, grid, keep_oracle, make, scene

SETTINGS = settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # a backend has no state
)


def run(backend, arguments, **options):
    """The indices that the operator keeps, on the CPU."""
    arguments = {k: v.to(backend.device) for k, v in arguments.items()}
    tensors = [arguments[name] for name in NAMES]
    return backend.ops.stitch_tiles(
        *tensors, tile_images=arguments.get("tile_images"), **options
    ).cpu()


def oracle(arguments, **options):
    tensors = [arguments[name] for name in NAMES]
    return keep_oracle(*tensors, tile_images=arguments.get("tile_images"), **options)


def assert_is_oracle(backend, arguments, **options):
    assert run(backend, arguments, **options).tolist() == oracle(arguments, **options)


# ---- by hand -------------------------------------------------------------------------------------

# Two tiles of 100x100 that overlap by 20 pixels, in an image of 100x180.
WINDOWS, SIZE = [[0, 0, 100, 100], [80, 0, 180, 100]], [[100, 180]]


def two(*seen, **options):
    return make(WINDOWS, SIZE, seen, **options)


def test_object_in_the_overlap_is_kept_once(backend):
    arguments = two((0, [84, 40, 94, 50], 0.5), (1, [84, 40, 94, 51], 0.75))
    assert run(backend, arguments).tolist() == [1]


def test_whole_box_beats_a_truncated_one_of_higher_score(backend):
    arguments = two((0, [90, 40, 99, 50], 0.875), (1, [90, 40, 108, 50], 0.5))
    assert run(backend, arguments).tolist() == [1]
    # Tile 0 sees half of it: IoU is exactly 1/2, but it lies inside.
    assert run(backend, arguments, ios_threshold=1.0).tolist() == [1, 0]
    assert run(backend, arguments, ios_threshold=1.0, iou_threshold=0.4999).tolist() == [1]


def test_neighbours_seen_by_one_tile_are_never_compared(backend):
    arguments = two((0, [40, 40, 50, 50], 0.5), (0, [40, 40, 50, 50], 0.75))
    assert run(backend, arguments).tolist() == [1, 0]
    arguments = two((0, [90, 40, 100, 50], 0.5), (0, [90, 40, 100, 50], 0.75))  # truncated
    assert run(backend, arguments).tolist() == [1, 0]


def test_small_neighbour_inside_a_box_is_kept_if_it_is_whole(backend):
    arguments = two((0, [82, 20, 96, 40], 0.75), (1, [84, 22, 88, 26], 0.5))
    assert run(backend, arguments).tolist() == [0, 1]


def test_labels_and_class_agnostic(backend):
    arguments = two((0, [84, 40, 94, 50], 0.5, 7), (1, [84, 40, 94, 50], 0.75, 1 << 40))
    assert run(backend, arguments).tolist() == [1, 0]
    assert run(backend, arguments, class_agnostic=True).tolist() == [1]


def test_images_are_apart(backend):
    seen = [(0, [84, 40, 94, 50], 0.5), (1, [84, 40, 94, 50], 0.75)]
    arguments = make(WINDOWS, SIZE * 2, seen, tile_images=[0, 1])
    assert run(backend, arguments).tolist() == [1, 0]
    arguments = make(WINDOWS, SIZE * 2, seen, tile_images=[1, 1])
    assert run(backend, arguments).tolist() == [1]


@pytest.mark.parametrize("side", ["left", "right", "top", "bottom"])
@pytest.mark.parametrize(("distance", "cut"), [(0, True), (2, True), (2.25, False), (-1, True)])
def test_a_side_is_cut_at_the_edge_distance_or_nearer(backend, side, distance, cut):
    # The tile lies inside the image; a covering box of another tile removes what is truncated.
    windows = [[100, 100, 200, 200], [50, 50, 250, 250]]
    box = [140.0, 140, 160, 160]
    axis, sign = {"left": (0, 1), "top": (1, 1), "right": (2, -1), "bottom": (3, -1)}[side]
    box[axis] = (100 if sign > 0 else 200) + sign * distance
    cover = [95, 95, 205, 205]
    arguments = make(windows, [[300, 300]], [(0, box, 0.75), (1, cover, 0.5)])
    assert run(backend, arguments).tolist() == ([1] if cut else [0, 1])
    assert run(backend, arguments, edge=2.25).tolist() == [1]


@pytest.mark.parametrize("side", ["left", "right", "top", "bottom"])
@pytest.mark.parametrize("beyond", [0, 10])  # a tile may be padded beyond its image
def test_sides_of_the_image_cut_nothing(backend, side, beyond):
    window = [0, 0, 100, 100]
    axis = ["left", "top", "right", "bottom"].index(side)
    size = [200, 200]  # height, width
    box = [40.0, 40, 60, 60]
    if axis < 2:
        window = [0 if a % 2 == axis else 50 for a in range(4)]
        window[axis] -= beyond
        window[2], window[3] = window[0] + 100, window[1] + 100
        box = [window[0] + 40, window[1] + 40, window[0] + 60, window[1] + 60]
        box[axis] = window[axis]
    else:
        window = [50, 50, 150, 150]
        size[1 if axis == 2 else 0] = 150 - beyond
        box = [90, 90, 110, 110]
        box[axis] = 150
    cover = [-300, -300, 400, 400]
    far = [-400, -400, 500, 500]
    arguments = make([window, far], [size], [(0, box, 0.75), (1, cover, 0.5)])
    assert run(backend, arguments).tolist() == [0, 1]
    size[:] = [400, 400]
    window[:] = [x + 60 for x in window]
    arguments = make([window, far], [size], [(0, [x + 60 for x in box], 0.75), (1, cover, 0.5)])
    assert run(backend, arguments).tolist() == [1]


def test_order_is_whole_boxes_then_score_then_index(backend):
    arguments = two(
        (0, [10, 90, 20, 95], 0.25),
        (0, [95, 10, 100, 20], 0.875),  # truncated
        (0, [10, 10, 20, 20], 0.5),
        (1, [80, 70, 85, 75], 0.875),  # truncated
        (1, [150, 10, 160, 20], 0.5),
        (1, [170, 90, 180, 100], 0.75),  # at sides of the image
    )
    assert run(backend, arguments).tolist() == [5, 2, 4, 0, 1, 3]


def test_boxes_without_area_are_kept(backend):
    arguments = two((0, [84, 40, 84, 50], 0.5), (1, [84, 40, 84, 50], 0.75), (1, [90, 9, 90, 9], 1))
    assert run(backend, arguments, iou_threshold=0, ios_threshold=0).tolist() == [2, 1, 0]


# ---- against the oracle --------------------------------------------------------------------------


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scenes_are_those_of_the_oracle(backend, dtype, ties):
    variants = (
        {},
        {"class_agnostic": True},
        {"iou_threshold": 0.2, "ios_threshold": 0.8, "edge": 0.0},
        {"iou_threshold": 0.0, "ios_threshold": 0.0, "edge": 5.5},
        {"iou_threshold": 1.0, "ios_threshold": 1.0},
    )
    for seed, options in enumerate(variants):
        arguments = scene(seed, dtype=dtype, ties=ties)
        assert len(set(arguments["tile_ids"].tolist())) > 8
        assert_is_oracle(backend, arguments, **options)


side = st.integers(0, 24).map(lambda x: x / 2)
seen_boxes = st.tuples(
    st.integers(0, 3), side, side, side, side, st.integers(1, 3), st.integers(0, 1)
)


@SETTINGS
@given(
    data=st.lists(seen_boxes, max_size=10),
    iou_threshold=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    ios_threshold=st.sampled_from([0.0, 0.5, 1.0]),
    edge=st.sampled_from([0.0, 1.0, 2.0]),
    tile_images=st.sampled_from([None, [0, 0, 0, 0], [0, 0, 1, 1]]),
    class_agnostic=st.booleans(),
)
def test_small_layouts_with_ties(backend, data, tile_images, **options):
    windows = grid(20, 20, 12, 12, 4)
    arguments = make(windows, [[20, 20]] * 2, [(t, [0.0] * 4, s / 4, c) for t, *_, s, c in data])
    rows = [[min(a, c), min(b, d), max(a, c), max(b, d)] for _, a, b, c, d, _, _ in data]
    arguments["boxes"] = torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)
    if tile_images is not None:
        arguments["tile_images"] = torch.tensor(tile_images)
    assert_is_oracle(backend, arguments, **options)


def test_order_of_the_input_does_not_matter(backend):
    arguments = scene(11)
    keep = run(backend, arguments)
    order = torch.randperm(len(arguments["scores"]))
    shuffled = {k: v[order] if k in NAMES[:4] else v for k, v in arguments.items()}
    assert torch.equal(order[run(backend, shuffled)], keep)


def test_order_of_tiles_and_images_does_not_matter(backend):
    arguments = scene(12, images=3)
    keep = run(backend, arguments)
    tiles, images = torch.randperm(len(arguments["tile_images"])), torch.tensor([2, 0, 1])
    renamed = {
        **arguments,
        "tile_ids": tiles.argsort()[arguments["tile_ids"]],
        "tile_windows": arguments["tile_windows"][tiles],
        "tile_images": images.argsort()[arguments["tile_images"][tiles]],
        "image_sizes": arguments["image_sizes"][images],
    }
    assert torch.equal(run(backend, renamed), keep)


def test_tiles_far_out_change_nothing(backend):
    # Moving everything by a power of two leaves the arithmetic exact; the border must move along.
    seen = [(0, [84, 40, 94, 50], 0.5), (1, [84, 40, 94, 51], 0.75), (0, [90, 70, 100, 80], 0.5)]
    offset = 1 << 14
    for dx, dy in ((offset, 0), (0, offset), (offset, offset)):
        windows = [[x1 + dx, y1 + dy, x2 + dx, y2 + dy] for x1, y1, x2, y2 in WINDOWS]
        moved = [(t, [a + dx, b + dy, c + dx, d + dy], s) for t, (a, b, c, d), s in seen]
        arguments = make(windows, [[4 * offset, 4 * offset]], moved)
        assert run(backend, arguments).tolist() == oracle(arguments) == [1, 2]


# ---- dtypes, layouts, the padded form ------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_computed_in_float32(backend, dtype):
    arguments = scene(4)
    for name in ("boxes", "scores"):
        arguments[name] = arguments[name].to(dtype)
    expected = {k: v.float() if v.dtype == dtype else v for k, v in arguments.items()}
    assert torch.equal(run(backend, arguments), run(backend, expected))
    assert_is_oracle(backend, arguments)


@pytest.mark.parametrize("box_dtype", helpers.FLOAT_DTYPES)
@pytest.mark.parametrize("table_dtype", [torch.int64, torch.float32, torch.float64])
def test_every_tensor_has_its_own_type(backend, box_dtype, table_dtype):
    arguments = two((0, [84, 40, 94, 50], 0.5), (1, [84, 40, 94, 51], 0.75))
    arguments["boxes"] = arguments["boxes"].to(box_dtype)
    for name in NAMES[4:]:
        arguments[name] = arguments[name].to(table_dtype)
    for score_dtype in helpers.FLOAT_DTYPES:
        arguments["scores"] = arguments["scores"].to(score_dtype)
        assert run(backend, arguments).tolist() == [1]


def test_strides_do_not_matter(backend):
    arguments = scene(5)
    expected = run(backend, arguments)
    spread = {k: torch.stack([v, v], -1)[..., 1] for k, v in arguments.items()}
    assert not any(v.is_contiguous() for v in spread.values())
    assert torch.equal(run(backend, spread), expected)
    turned = {k: v.t().contiguous().t() for k, v in arguments.items()}
    assert torch.equal(run(backend, turned), expected)
    shifted = {}
    for k, v in arguments.items():
        shifted[k] = v.new_zeros(v.numel() + 1)[1:].view(v.shape).copy_(v)
    assert torch.equal(run(backend, shifted), expected)


def test_empty_input_gives_empty_output(backend):
    arguments = two()
    assert run(backend, arguments).shape == (0,)
    assert run(backend, make([], [], [])).shape == (0,)
    assert run(backend, make([], [], [], tile_images=[])).dtype == torch.int64


@pytest.mark.parametrize("most", [0, 1, 7, 1000])
def test_padded_form_is_the_beginning_of_the_other(backend, most):
    arguments = {k: v.to(backend.device) for k, v in scene(6).items()}
    options = {"tile_images": arguments["tile_images"], "edge": 1.0}
    tensors = [arguments[name] for name in NAMES]
    expected = backend.ops.stitch_tiles(*tensors, **options)
    keep, count = backend.ops.stitch_tiles_padded(*tensors, most, **options)
    assert keep.shape == (most,)
    assert count.shape == ()
    assert keep.dtype == count.dtype == torch.int64
    assert count.item() == min(most, len(expected))
    assert torch.equal(keep[: len(expected)], expected[:most])
    assert (keep[len(expected) :] == -1).all()


def test_padded_form_of_nothing(backend):
    arguments = {k: v.to(backend.device) for k, v in two().items()}
    keep, count = backend.ops.stitch_tiles_padded(*arguments.values(), 3)
    assert keep.tolist() == [-1, -1, -1]
    assert count.item() == 0
