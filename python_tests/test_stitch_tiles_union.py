"""stitch_tiles with merge="union": pieces of one object become one box again."""

import helpers
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stitching import NAMES, grid, keep_oracle, make, scene, union_oracle
from test_stitch_tiles import SETTINGS, SIZE, WINDOWS, two


def run(backend, arguments, **options):
    """Boxes, scores, labels and indices, on the CPU."""
    arguments = {k: v.to(backend.device) for k, v in arguments.items()}
    tensors = [arguments[name] for name in NAMES]
    result = backend.ops.stitch_tiles_union(
        *tensors, tile_images=arguments.get("tile_images"), **options
    )
    return tuple(x.cpu() for x in result)


def assert_is_oracle(backend, arguments, **options):
    boxes, scores, labels, keep = run(backend, arguments, **options)
    tensors = [arguments[name] for name in NAMES]
    expected, indices = union_oracle(*tensors, tile_images=arguments.get("tile_images"), **options)
    assert keep.tolist() == indices
    assert torch.equal(boxes, torch.tensor(expected, dtype=boxes.dtype).reshape(-1, 4))
    assert torch.equal(scores, arguments["scores"][keep])
    assert torch.equal(labels, arguments["labels"][keep])
    return boxes, keep


# ---- by hand -------------------------------------------------------------------------------------


def test_object_cut_by_one_seam(backend):
    arguments = two((0, [50, 40, 100, 60], 0.5, 3), (1, [80, 40, 130, 60], 0.75, 3))
    boxes, scores, labels, keep = run(backend, arguments)
    assert boxes.tolist() == [[50, 40, 130, 60]]
    assert (scores.tolist(), labels.tolist(), keep.tolist()) == ([0.75], [3], [1])


def corner(x1, y1, x2, y2, label=0, first_score=0.5):
    """What four tiles of 100x100 that overlap by 20 see of an object that covers their corner."""
    windows = grid(180, 180, 100, 100, 20)
    for k, (a, b, c, d) in enumerate(windows):
        part = [max(x1, a), max(y1, b), min(x2, c), min(y2, d)]
        yield k, part, first_score + k / 16, label


def test_object_cut_into_four_by_a_corner(backend):
    windows = grid(180, 180, 100, 100, 20)
    assert windows == [[0, 0, 100, 100], [80, 0, 180, 100], [0, 80, 100, 180], [80, 80, 180, 180]]
    seen = list(corner(60, 50, 150, 160))
    boxes, scores, _, keep = run(backend, make(windows, [[180, 180]], seen))
    assert boxes.tolist() == [[60, 50, 150, 160]]
    assert (scores.tolist(), keep.tolist()) == ([0.6875], [3])
    # Also where one of the four was missed.
    for missed in range(4):
        three = make(windows, [[180, 180]], seen[:missed] + seen[missed + 1 :])
        boxes, _, _, keep = run(backend, three)
        assert boxes.tolist() == [[60, 50, 150, 160]]


def test_chain_through_three_tiles(backend):
    windows = [[0, 0, 100, 100], [80, 0, 180, 100], [160, 0, 260, 100]]
    seen = [
        (1, [80, 40, 180, 60], 0.75),
        (2, [160, 40, 200, 60], 0.5),
        (0, [50, 40, 100, 60], 0.875),
    ]
    boxes, scores, _, keep = run(backend, make(windows, [[100, 260]], seen))
    assert boxes.tolist() == [[50, 40, 200, 60]]
    assert (scores.tolist(), keep.tolist()) == ([0.875], [2])


def test_neighbours_along_a_seam_stay_apart(backend):
    # Each overlaps the next by more than half of its height; one chain of links joins them all.
    seen = []
    for k, (top, bottom) in enumerate(((10, 40), (22, 52), (34, 64), (46, 76))):
        seen.append((0, [50, top, 100, bottom], 0.5 + k / 16))
        seen.append((1, [80, top, 130, bottom], 0.25))
    boxes, _, _, keep = run(backend, two(*seen))
    assert boxes.tolist() == [
        [50, 46, 130, 76],
        [50, 34, 130, 64],
        [50, 22, 130, 52],
        [50, 10, 130, 40],
    ]
    assert keep.tolist() == [6, 4, 2, 0]


@pytest.mark.parametrize("vertical", [False, True])
@pytest.mark.parametrize(("gap", "joined"), [(0, True), (2, True), (2.25, False)])
def test_gap_of_at_most_edge(backend, gap, joined, vertical):
    windows, size = [[0, 0, 100, 100], [100, 0, 200, 100]], [100, 200]
    a, b = [50, 40, 100 - gap / 2, 60], [100 + gap / 2, 40, 150, 60]
    if vertical:
        windows, size = [[y1, x1, y2, x2] for x1, y1, x2, y2 in windows], size[::-1]
        a, b = ([y1, x1, y2, x2] for x1, y1, x2, y2 in (a, b))
    boxes, _, _, keep = run(backend, make(windows, [size], [(0, a, 0.5), (1, b, 0.75)]))
    assert keep.tolist() == ([1] if joined else [1, 0])
    assert boxes.tolist() == ([a[:2] + b[2:]] if joined else [b, a])


@pytest.mark.parametrize(("shift", "joined"), [(9.75, True), (10, False)])
def test_extents_along_the_seam_must_agree(backend, shift, joined):
    arguments = two((0, [50, 40, 100, 60], 0.75), (1, [80, 40 + shift, 130, 60 + shift], 0.5))
    boxes, *_ = run(backend, arguments)
    assert len(boxes) == (1 if joined else 2)
    assert boxes[0].tolist() == ([50, 40, 130, 60 + shift] if joined else [50, 40, 100, 60])


@pytest.mark.parametrize(("end", "joined"), [(98, True), (97.75, False)])
def test_each_piece_must_reach_the_cut_of_the_other(backend, end, joined):
    # Tile 1 saw an end of its object short of where tile 0 saw none.
    arguments = two((0, [95, 40, 100, 60], 0.75), (1, [80, 40, end, 60], 0.5))
    options = {"ios_threshold": 0.9}
    boxes, *_ = run(backend, arguments, **options)
    assert len(boxes) == 2 if not joined else 1
    # And the mirror image.
    arguments = two((1, [80, 40, 85, 60], 0.75), (0, [180 - end, 40, 100, 60], 0.5))
    mirrored, *_ = run(backend, arguments, **options)
    assert len(mirrored) == len(boxes)


def test_labels_and_images_keep_pieces_apart(backend):
    seen = [(0, [50, 40, 100, 60], 0.5, 1), (1, [80, 40, 130, 60], 0.75, 2)]
    assert run(backend, two(*seen))[3].tolist() == [1, 0]
    boxes, _, labels, keep = run(backend, two(*seen), class_agnostic=True)
    assert boxes.tolist() == [[50, 40, 130, 60]]
    assert (labels.tolist(), keep.tolist()) == ([2], [1])
    same = [(*x[:3], 0) for x in seen]
    apart = make(WINDOWS, SIZE * 2, same, tile_images=[0, 1])
    assert run(backend, apart)[3].tolist() == [1, 0]


def test_whole_box_suppresses_pieces_instead(backend):
    windows = [*WINDOWS, [40, 0, 140, 100]]
    seen = [
        (0, [60, 40, 100, 60], 0.75),
        (1, [80, 40, 120, 60], 0.875),
        (2, [60, 40, 120, 60], 0.25),
    ]
    boxes, scores, _, keep = run(backend, make(windows, SIZE, seen))
    assert boxes.tolist() == [[60, 40, 120, 60]]
    assert (scores.tolist(), keep.tolist()) == ([0.25], [2])


def test_hull_is_compared_by_iou_and_with_other_tiles_alone(backend):
    windows = [*WINDOWS, [40, 0, 140, 100]]
    pieces = [(0, [30, 40, 100, 60], 0.5), (1, [80, 40, 135, 60], 0.625)]
    hull = [30, 40, 135, 60]
    # A small whole neighbour inside the hull takes nothing from it.
    boxes, *_ = run(backend, make(windows, SIZE, [*pieces, (2, [60, 42, 66, 50], 0.75)]))
    assert boxes.tolist() == [[60, 42, 66, 50], hull]
    # A single piece inside it goes where it is of another tile ...
    extra = [41, 42, 47, 58]
    arguments = make(windows, SIZE, [*pieces, (2, extra, 0.75)])
    assert run(backend, arguments)[0].tolist() == [hull]
    # ... and stays where the detector has told it apart.
    arguments = make(windows, SIZE, [*pieces, (1, [80, 41, 90, 59], 0.125)])
    assert run(backend, arguments)[0].tolist() == [hull, [80, 41, 90, 59]]


def test_order_is_whole_boxes_then_hulls_then_single_pieces(backend):
    arguments = two(
        (0, [95, 10, 100, 20], 0.875),  # single piece
        (0, [50, 40, 100, 60], 0.5),
        (1, [80, 40, 130, 60], 0.25),
        (0, [50, 70, 100, 90], 0.25),
        (1, [80, 70, 130, 90], 0.75),
        (0, [10, 10, 20, 20], 0.125),
        (1, [170, 10, 180, 20], 0.125),  # at a side of the image: whole
    )
    boxes, _, _, keep = run(backend, arguments)
    assert keep.tolist() == [5, 6, 4, 1, 0]
    assert boxes[2:4].tolist() == [[50, 70, 130, 90], [50, 40, 130, 60]]


# ---- against the oracle --------------------------------------------------------------------------


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scenes_are_those_of_the_oracle(backend, dtype, ties):
    variants = (
        {},
        {"class_agnostic": True},
        {"iou_threshold": 0.2, "ios_threshold": 0.8, "edge": 0.0},
        {"iou_threshold": 0.75, "ios_threshold": 0.0, "edge": 5.5},
        {"iou_threshold": 1.0, "ios_threshold": 0.25},
    )
    hulls = 0
    for seed, options in enumerate(variants):
        arguments = scene(seed, dtype=dtype, ties=ties)
        boxes, keep = assert_is_oracle(backend, arguments, **options)
        sizes = arguments["boxes"][keep, 2:] - arguments["boxes"][keep, :2]
        hulls += (boxes[:, 2:] - boxes[:, :2] > sizes + 1).any(1).sum()
    assert hulls > 25  # the scenes do what they are for


side = st.integers(0, 24).map(lambda x: x / 2)
cuts = st.tuples(
    st.integers(0, 3), side, side, side, side, st.integers(1, 3), st.sampled_from([0, 0, 0, 1])
)


@SETTINGS
@given(
    data=st.lists(cuts, max_size=12),
    ios_threshold=st.sampled_from([0.0, 0.5, 1.0]),
    edge=st.sampled_from([0.0, 1.0, 4.0]),
    tile_images=st.sampled_from([None, [0, 0, 1, 1]]),
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
    arguments = scene(21)
    boxes, scores, labels, keep = run(backend, arguments)
    order = torch.randperm(len(arguments["scores"]))
    shuffled = {k: v[order] if k in NAMES[:4] else v for k, v in arguments.items()}
    other_boxes, other_scores, other_labels, other_keep = run(backend, shuffled)
    assert torch.equal(order[other_keep], keep)
    assert torch.equal(other_boxes, boxes)
    assert torch.equal(other_scores, scores)
    assert torch.equal(other_labels, labels)


def test_without_truncated_boxes_it_is_the_plain_form(backend):
    arguments = scene(22)
    arguments["image_sizes"] = torch.zeros_like(arguments["image_sizes"])
    arguments["tile_windows"] = arguments["tile_windows"] - 1000  # all sides are of the image
    tensors = [arguments[name] for name in NAMES]
    expected = keep_oracle(*tensors, tile_images=arguments["tile_images"])
    assert run(backend, arguments)[3].tolist() == expected


# ---- dtypes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("box_dtype", helpers.FLOAT_DTYPES)
@pytest.mark.parametrize("score_dtype", helpers.FLOAT_DTYPES)
def test_types_of_the_results(backend, box_dtype, score_dtype):
    arguments = two((0, [50, 40, 100, 60], 0.5, 3), (1, [80, 40, 130, 60], 0.75, 3))
    arguments["boxes"] = arguments["boxes"].to(box_dtype)
    arguments["scores"] = arguments["scores"].to(score_dtype)
    boxes, scores, labels, keep = run(backend, arguments)
    assert boxes.tolist() == [[50, 40, 130, 60]]
    assert boxes.dtype == (torch.float64 if box_dtype == torch.float64 else torch.float32)
    assert scores.dtype == score_dtype
    assert scores.tolist() == [0.75]
    assert labels.dtype == keep.dtype == torch.int64


def test_empty_input_gives_empty_output(backend):
    for arguments in (two(), make([], [], [])):
        boxes, *others = run(backend, arguments)
        assert boxes.shape == (0, 4)
        assert all(x.shape == (0,) for x in others)


def test_strides_do_not_matter(backend):
    arguments = scene(23)
    spread = {k: torch.stack([v, v], -1)[..., 1] for k, v in arguments.items()}
    for a, b in zip(run(backend, arguments), run(backend, spread), strict=True):
        assert torch.equal(a, b)
