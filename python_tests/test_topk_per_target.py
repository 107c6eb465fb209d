import hypothesis
import overlap_oracle as oracle
import pytest
import torch
from hypothesis import strategies as st
from overlap_oracle import random_boxes, random_options, to_device

from tinyops.ops import topk_per_target
from tinyops.ops.max_overlap import MODES


def check(backend, boxes, targets, k, modes=MODES, *, min_value=0.0, **options):
    """The results of `backend`, with ties and without, are those of the oracle."""
    boxes_there, targets_there, options_there = (
        to_device(x, backend.device) for x in (boxes, targets, options)
    )
    for mode in modes:
        expected = oracle.topk_per_target(
            boxes, targets, k, mode=mode, min_value=min_value, **options
        )
        code = MODES.index(mode)
        value, index, assigned = backend.ops.topk_per_target_ties(
            boxes_there, targets_there, k, mode=code, min_value=min_value, **options_there
        )
        assert torch.equal(index.cpu(), expected[1]), mode
        oracle.assert_values(value, expected[0], mode)
        assert torch.equal(assigned.cpu(), expected[2]), mode
        plain = backend.ops.topk_per_target(
            boxes_there, targets_there, k, mode=code, **options_there
        )
        assert torch.equal(plain[0], value)
        assert torch.equal(plain[1], index)


# ---- values --------------------------------------------------------------------------------------


def test_numbers_worked_out_by_hand(backend):
    boxes = torch.tensor(
        [[0.0, 0, 4, 4], [0, 0, 4, 2], [50, 50, 51, 51], [0, 2, 4, 4], [0, 0, 2, 2]],
        device=backend.device,
    )
    targets = torch.tensor([[0.0, 0, 4, 4], [40, 40, 41, 41], [0, 0, 4, 1]], device=backend.device)
    value, index, assigned = backend.ops.topk_per_target_ties(boxes, targets, 2)
    assert value.tolist() == [[1.0, 0.5], [0.0, 0.0], [0.5, pytest.approx(2 / 6)]]
    assert index.tolist() == [[0, 1], [0, 1], [1, 4]]
    # Box 3 ties with box 1 for target 0; target 2 overwrites box 1; target 1 overlaps nothing.
    assert assigned.tolist() == [0, 2, -1, 0, 2]
    *_, assigned = backend.ops.topk_per_target_ties(boxes, targets, 2, min_value=0.5)
    assert assigned.tolist() == [0, 2, -1, 0, -1]
    *_, assigned = backend.ops.topk_per_target_ties(boxes, targets, 1)
    assert assigned.tolist() == [0, 2, -1, -1, -1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("sizes", "k"), [((70, 12), 3), ((300, 3), 1), ((9, 40), 12), ((1, 1), 1)])
def test_random_boxes(backend, sizes, k, dtype):
    for grid in (None, 4.0):
        boxes, targets = (random_boxes(n, grid=grid, dtype=dtype) for n in sizes)
        check(backend, boxes, targets, k)
        options = random_options(*sizes)
        check(backend, boxes, targets, k, ("iou", "giou", "nwd"), min_value=0.2, **options)


LAYOUTS = st.lists(
    st.tuples(*[st.integers(0, 6)] * 4, st.integers(0, 2), st.booleans()), max_size=20
)


@hypothesis.settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(
    LAYOUTS,
    LAYOUTS,
    st.integers(1, 24),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([1.0, 0.1, 1e6, 1e-20, 1e18]),
    st.booleans(),
)
def test_any_layout(backend, boxes, targets, k, min_value, scale, by_image):
    def tensor(rows):
        table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 6)
        corner = table[:, :2] * scale
        return torch.cat([corner, corner + table[:, 2:4] * scale], 1).float(), table

    (boxes, box_table), (targets, target_table) = tensor(boxes), tensor(targets)
    options = {"target_mask": target_table[:, 5] == 0}
    if by_image:
        options |= {
            "image_ids": box_table[:, 4].long(),
            "target_image_ids": target_table[:, 4].long(),
        }
    check(backend, boxes, targets, k, ("iou", "giou", "rfd_w"), min_value=min_value, **options)


@pytest.mark.parametrize("mode", oracle.LOCAL_MODES)
@pytest.mark.parametrize("k", [1, 5, 150])
def test_sparse_and_crowded_boxes_of_all_sizes_equal_the_matrix(backend, mode, k):
    boxes_each, m = (150, 60) if backend.name == "sim" else (700, 100)
    giant = torch.tensor([[-10.0, -10, 2100, 2100]])
    crowd, sparse = random_boxes(m, extent=30.0), random_boxes(m, extent=2000.0, smallest=2.0)
    large = random_boxes(m, extent=1500.0, largest=600.0)
    for targets in (sparse, torch.cat([crowd, sparse, large, giant]), large[:3]):
        boxes = torch.cat(
            [
                random_boxes(boxes_each, extent=2000.0, largest=40.0),
                random_boxes(boxes_each, extent=40.0),
                sparse[::2],
            ]
        )
        overlaps = oracle.matrix(boxes, targets, mode)
        expected = overlaps.sort(dim=0, descending=True, stable=True)
        value, index, assigned = backend.ops.topk_per_target_ties(
            boxes.to(backend.device), targets.to(backend.device), k, mode=MODES.index(mode)
        )
        assert torch.equal(value.cpu(), expected.values[:k].t())
        assert torch.equal(index.cpu(), expected.indices[:k].t())
        ties = (overlaps >= expected.values[k - 1]) & (overlaps > 0)
        highest = torch.where(ties, torch.arange(len(targets)), -1).max(1).values
        assert torch.equal(assigned.cpu(), highest)


def test_images_are_as_if_alone(backend):
    boxes, targets = random_boxes(300, extent=200.0), random_boxes(120, extent=200.0)
    image, target_image = torch.randint(0, 4, (300,)), torch.randint(0, 3, (120,))
    ids = to_device({"image_ids": image, "target_image_ids": target_image}, backend.device)
    for mode in range(len(MODES)):
        value, index, assigned = backend.ops.topk_per_target_ties(
            boxes.to(backend.device), targets.to(backend.device), 4, mode=mode, **ids
        )
        assert (assigned.cpu()[image == 3] == -1).all()
        for i in range(3):
            mine, theirs = ((x == i).nonzero().flatten() for x in (image, target_image))
            alone = backend.ops.topk_per_target_ties(
                boxes[mine].to(backend.device), targets[theirs].to(backend.device), 4, mode=mode
            )
            assert torch.equal(value.cpu()[theirs], alone[0].cpu())
            assert torch.equal(index.cpu()[theirs], mine[alone[1].cpu()])
            there = alone[2].cpu()
            expected = torch.where(there < 0, -1, theirs[there.clamp(min=0)])
            assert torch.equal(assigned.cpu()[mine], expected)


def test_boxes_that_come_in_rising_order_replace_all_before_them(backend):
    width = torch.arange(1.0, 2101.0)  # many times what waits for a merge on a GPU
    boxes = torch.stack([width * 0, width * 0, width, width * 0 + 1], 1).to(backend.device)
    target = torch.tensor([[0.0, 0, 5000, 1]], device=backend.device)
    for k in (1, 7, 1500):
        _, index = backend.ops.topk_per_target(boxes, target, k)
        assert torch.equal(index.cpu()[0], torch.arange(2099, 2099 - k, -1))
        _, index = backend.ops.topk_per_target(boxes.flip(0), target, k)
        assert torch.equal(index.cpu()[0], torch.arange(k))
    _, index = backend.ops.topk_per_target(boxes[:1].repeat(1300, 1), target, 40)
    assert torch.equal(index.cpu()[0], torch.arange(40))


def test_low_quality_matches_of_max_iou_assigner(backend):
    """Written as in mmdet: later targets overwrite, every box that ties gets its target."""
    boxes, targets = random_boxes(400, grid=2.0), random_boxes(30, grid=2.0, smallest=2.0)
    overlaps = oracle.matrix(boxes, targets, "iou").t()
    expected = torch.full((400,), -1)
    for i in range(len(targets)):
        if overlaps[i].max() >= 0.3:
            expected[overlaps[i] == overlaps[i].max()] = i
    *_, assigned = backend.ops.topk_per_target_ties(
        boxes.to(backend.device), targets.to(backend.device), 1, min_value=0.3
    )
    assert torch.equal(assigned.cpu(), expected)


def test_hierarchical_assignment_of_rfla(backend):
    """The two steps of Xu et al. 2022, section 3.3, from the matrix of distances."""
    boxes, targets = random_boxes(300, smallest=4.0), random_boxes(20, smallest=2.0)
    expected = ours = torch.full((300,), -1)
    for k, scale in ((3, 1.0), (1, 0.9)):
        center, size = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) * scale
        scaled = torch.cat([center - size / 2, center + size / 2], 1)
        pairs = oracle.all_pairs(scaled, targets, "rfd_kl")
        matrix = torch.tensor([[float(v) for v in row] for row in pairs.values])
        step = torch.full((300,), -1)
        for t in range(20):
            step[matrix[:, t] >= matrix[:, t].topk(k).values[-1]] = t
        expected = torch.where(expected < 0, step, expected)
        *_, assigned = backend.ops.topk_per_target_ties(
            scaled.to(backend.device), targets.to(backend.device), k, mode=MODES.index("rfd_kl")
        )
        ours = torch.where(ours < 0, assigned.cpu(), ours)
    assert torch.equal(ours, expected)


# ---- empty inputs, few boxes -------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_where_there_are_too_few_boxes_the_rest_is_marked(backend, mode):
    nothing = float("-inf") if mode == "giou" else 0.0
    boxes, targets = random_boxes(2).to(backend.device), random_boxes(3).to(backend.device)
    code = MODES.index(mode)
    value, index = backend.ops.topk_per_target(boxes, targets, 4, mode=code)
    assert (value[:, 2:] == nothing).all()
    assert index[:, 2:].tolist() == [[-1, -1]] * 3
    assert index[:, :2].sort().values.tolist() == [[0, 1]] * 3
    value, index, assigned = backend.ops.topk_per_target_ties(boxes[:0], targets, 2, mode=code)
    assert value.tolist() == [[nothing] * 2] * 3
    assert index.tolist() == [[-1, -1]] * 3
    assert assigned.shape == (0,)
    value, index, assigned = backend.ops.topk_per_target_ties(boxes, targets[:0], 2, mode=code)
    assert value.shape == index.shape == (0, 2)
    assert assigned.tolist() == [-1, -1]
    mask = torch.tensor([False, True, False], device=backend.device)
    value, index, assigned = backend.ops.topk_per_target_ties(
        boxes, targets, 1, mode=code, target_mask=mask
    )
    assert (value[~mask] == nothing).all()
    assert (index[~mask] == -1).all()
    assert index[1] >= 0
    assert set(assigned.tolist()) <= {-1, 1}


def test_zero_areas_are_nobodys_match(backend):
    flat = torch.tensor([[3.0, 3, 3, 9], [0, 0, 9, 9]], device=backend.device)
    for mode in range(4):
        value, index, assigned = backend.ops.topk_per_target_ties(flat, flat[:1], 2, mode=mode)
        assert value.tolist() == [[0.0, 0.0]]
        assert index.tolist() == [[0, 1]]
        assert assigned.tolist() == [-1, -1]


def test_min_value_is_compared_in_the_dtype_of_the_value(backend):
    boxes = torch.tensor([[0.0, 0, 7, 1]], device=backend.device)
    target = torch.tensor([[0.0, 0, 10, 1]], device=backend.device)  # float32(0.7) < 0.7
    *_, assigned = backend.ops.topk_per_target_ties(boxes, target, 1, min_value=0.7)
    assert assigned.tolist() == [0]


# ---- dtypes, threads ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_types_are_computed_in_float32(backend, dtype):
    check(backend, random_boxes(60).to(dtype), random_boxes(20).to(dtype), 3)


def test_strides_do_not_matter(backend):
    boxes, targets = random_boxes(60), random_boxes(20)
    options = random_options(60, 20)
    on_device = to_device(options, backend.device)
    arguments = [x.to(backend.device) for x in (boxes, targets)]
    expected = backend.ops.topk_per_target_ties(*arguments, 3, **on_device)
    strided = [x.t().contiguous().t() for x in arguments]
    apart = {
        k: torch.stack([x, x.logical_not().to(x.dtype)], 1)[:, 0] for k, x in on_device.items()
    }
    actual = backend.ops.topk_per_target_ties(*strided, 3, **apart)
    assert all(map(torch.equal, actual, expected))


def test_threads_do_not_change_results():
    boxes = random_boxes(40000, extent=2000.0, grid=1.0)
    targets = random_boxes(300, extent=2000.0, grid=1.0)
    options = random_options(40000, 300)
    before = torch.get_num_threads()
    try:
        for mode in MODES:
            for k, some in ((1, {}), (9, options)):
                results = []
                for threads in (1, 2, 5):
                    torch.set_num_threads(threads)
                    results.append(
                        topk_per_target(boxes, targets, k, mode=mode, all_ties=True, **some)
                    )
                for result in results[1:]:
                    assert all(map(torch.equal, result, results[0]))
    finally:
        torch.set_num_threads(before)


def test_simulated_gpu_gives_the_bits_of_the_cpu():
    import backends

    boxes, targets = random_boxes(200), random_boxes(60)
    for mode in range(len(MODES)):
        on_cpu = torch.ops.tinyops.topk_per_target_ties(boxes, targets, 5, mode=mode)
        on_gpu = backends.get("sim").ops.topk_per_target_ties(boxes, targets, 5, mode=mode)
        assert all(map(torch.equal, on_cpu, on_gpu))
