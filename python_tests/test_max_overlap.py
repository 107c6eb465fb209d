import math
import subprocess
import sys

import helpers
import hypothesis
import overlap_oracle as oracle
import pytest
import torch
from hypothesis import strategies as st
from overlap_oracle import random_boxes, random_options, to_device
from test_cpu_kernels import CAPABILITIES, run, supports

from tinyops.ops import max_overlap
from tinyops.ops.max_overlap import MODES

BOX_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def check(backend, boxes, targets, modes=MODES, **options):
    """The results of `backend` are those of the oracle."""
    on_device = [to_device(x, backend.device) for x in (boxes, targets, options)]
    for mode in modes:
        expected = oracle.max_overlap(boxes, targets, mode=mode, **options)
        value, index = backend.ops.max_overlap(
            *on_device[:2], mode=MODES.index(mode), **on_device[2]
        )
        assert torch.equal(index.cpu(), expected[1]), mode
        oracle.assert_values(value, expected[0], mode)


# ---- values --------------------------------------------------------------------------------------


def test_numbers_worked_out_by_hand(backend):
    boxes = torch.tensor([[0.0, 0, 4, 4], [2, 0, 6, 2], [20, 20, 21, 21]], device=backend.device)
    targets = torch.tensor([[2.0, 0, 4, 2], [0, 0, 4, 8]], device=backend.device)

    def best(mode):
        value, index = backend.ops.max_overlap(boxes, targets, mode=MODES.index(mode))
        assert value.dtype == torch.float32
        assert index.dtype == torch.int64
        return value.tolist(), index.tolist()

    def about(*values):
        return pytest.approx(values, rel=1e-5)

    assert best("iou") == ([0.5, 0.5, 0.0], [1, 0, 0])
    assert best("iof_target") == ([1.0, 1.0, 0.0], [0, 0, 0])
    assert best("iof_box") == ([1.0, 0.5, 0.0], [1, 0, 0])
    assert best("ios") == ([1.0, 1.0, 0.0], [0, 0, 0])
    assert best("giou") == (about(0.5, 0.5, -408 / 441), [1, 0, 1])
    assert best("rfd_w") == (about(1 / 5, 1 / 3, 1 / 630), [0, 0, 1])
    distances = (math.sqrt(w) for w in (4, 2, 629))
    assert best("nwd") == (about(*(math.exp(-d / 12.8) for d in distances)), [0, 0, 1])
    value, index = best("rfd_kl")
    assert value[:2] == about(1 / (1 + math.log(2) - 0.25), 1 / (1 + 2 - math.log(2)))
    assert index == [1, 0, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", [(33, 45), (33, 5), (9, 70), (1, 1)])
def test_random_boxes(backend, sizes, dtype):
    for grid in (None, 4.0):
        boxes, targets = (random_boxes(n, grid=grid, dtype=dtype) for n in sizes)
        check(backend, boxes, targets)
        check(backend, boxes, targets, ("iou", "nwd"), **random_options(*sizes))


LAYOUTS = st.lists(
    st.tuples(*[st.integers(0, 6)] * 4, st.integers(0, 2), st.booleans()), max_size=20
)


@hypothesis.settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(LAYOUTS, LAYOUTS, st.sampled_from([1.0, 0.1, 1e6, 1e-20, 1e18]), st.booleans())
def test_any_layout(backend, boxes, targets, scale, by_image):
    def tensor(rows):
        table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 6)
        size = table[:, 2:4] * scale
        corner = table[:, :2] * scale + (scale if scale >= 1e6 else 0)
        return torch.cat([corner, corner + size], 1).float(), table

    (boxes, box_table), (targets, target_table) = tensor(boxes), tensor(targets)
    options = {"target_mask": target_table[:, 5] == 0}
    if by_image:
        options |= {
            "image_ids": box_table[:, 4].long(),
            "target_image_ids": target_table[:, 4].long(),
        }
    check(backend, boxes, targets, oracle.EXACT_MODES, **options)


@pytest.mark.parametrize("mode", oracle.LOCAL_MODES)
def test_sparse_and_crowded_boxes_of_all_sizes_equal_the_matrix(backend, mode):
    k, m = (200, 100) if backend.name == "sim" else (1000, 200)
    giant = torch.tensor([[-10.0, -10, 2100, 2100]])
    crowd = random_boxes(m // 2, extent=30.0)
    sparse = random_boxes(m // 2, extent=2000.0, smallest=2.0)
    large = random_boxes(m // 2, extent=1500.0, largest=600.0)
    one_line = torch.tensor([[0.0, 5, 3, 9]]) + torch.arange(m // 2)[:, None] * torch.tensor(
        [7.0, 0, 7, 0]
    )
    few = random_boxes(40, extent=2000.0)
    for targets in (sparse, large, one_line, torch.cat([crowd, sparse, large, giant]), few):
        for largest in (20.0, 400.0):
            boxes = torch.cat(
                [random_boxes(k, extent=2000.0, largest=largest), random_boxes(k, extent=40.0)]
            )
            expected = oracle.matrix(boxes, targets, mode).max(1)
            value, index = backend.ops.max_overlap(
                boxes.to(backend.device), targets.to(backend.device), mode=MODES.index(mode)
            )
            assert torch.equal(value.cpu(), expected.values)
            assert torch.equal(index.cpu(), expected.indices)


def test_giou_equals_the_matrix(backend):
    boxes, targets = random_boxes(500, smallest=0.1), random_boxes(60, smallest=0.1)
    expected = oracle.matrix(boxes, targets, "giou").max(1)
    value, index = backend.ops.max_overlap(
        boxes.to(backend.device), targets.to(backend.device), mode=MODES.index("giou")
    )
    assert torch.equal(value.cpu(), expected.values)
    assert torch.equal(index.cpu(), expected.indices)


def test_images_are_as_if_alone(backend):
    boxes, targets = random_boxes(400, extent=300.0), random_boxes(200, extent=300.0)
    image, target_image = torch.randint(0, 4, (400,)), torch.randint(0, 3, (200,))
    on_device = to_device({"image_ids": image, "target_image_ids": target_image}, backend.device)
    for mode in range(len(MODES)):
        value, index = backend.ops.max_overlap(
            boxes.to(backend.device), targets.to(backend.device), mode=mode, **on_device
        )
        for i in range(4):
            mine, theirs = image == i, (target_image == i).nonzero().flatten()
            alone = backend.ops.max_overlap(
                boxes[mine].to(backend.device), targets[theirs].to(backend.device), mode=mode
            )
            assert torch.equal(value.cpu()[mine], alone[0].cpu())
            if len(theirs) == 0:
                assert (index.cpu()[mine] == -1).all()
            else:
                assert torch.equal(index.cpu()[mine], theirs[alone[1].cpu()])


def test_ties_go_to_the_lower_index(backend):
    targets = torch.tensor([[0.0, 0, 1, 1]] + [[5.0, 5, 9, 9]] * 80, device=backend.device)
    boxes = torch.tensor([[5.0, 5, 9, 9], [5, 5, 9, 7], [30, 30, 31, 31]], device=backend.device)
    for mode in MODES:
        _, index = backend.ops.max_overlap(boxes, targets, mode=MODES.index(mode))
        far = 0 if mode in oracle.LOCAL_MODES else 1
        assert index.tolist() == [1, 1, far], mode


def test_zero_areas_overlap_nothing(backend):
    point, line = [3.0, 3, 3, 3], [0.0, 3, 9, 3]
    boxes = torch.tensor([point, line, [0.0, 0, 9, 9]], device=backend.device)
    targets = torch.tensor([point, line], device=backend.device)
    for mode in oracle.LOCAL_MODES:
        value, index = backend.ops.max_overlap(boxes, targets, mode=MODES.index(mode))
        assert value.tolist() == [0.0] * 3
        assert index.tolist() == [0] * 3
    check(backend, boxes.cpu(), targets.cpu())


def test_far_away_and_enormous_coordinates(backend):
    for scale, dtype in ((1e6, torch.float32), (1e17, torch.float32), (1e300, torch.float64)):
        boxes = random_boxes(40, dtype=dtype) * scale
        check(backend, boxes, random_boxes(20, dtype=dtype) * scale, oracle.EXACT_MODES)
        check(backend, boxes, boxes.clone(), ("iou",))
    largest = torch.finfo(torch.float32).max
    boxes = torch.tensor([[-largest, -largest, largest, largest], [0, 0, 1, 1]])
    for mode in MODES:
        value, index = backend.ops.max_overlap(
            boxes.to(backend.device),
            boxes.repeat(40, 1).to(backend.device),
            mode=MODES.index(mode),
        )
        assert not value.isnan().any(), mode
        assert index.cpu().ge(0).all()


def test_nwd_has_an_order_where_its_value_is_zero(backend):
    boxes = torch.tensor([[0.0, 0, 2, 2]], device=backend.device)
    targets = torch.tensor([[9e5, 0, 9e5 + 2, 2], [8e5, 0, 8e5 + 2, 2]], device=backend.device)
    value, index = backend.ops.max_overlap(boxes, targets, mode=MODES.index("nwd"))
    assert value.tolist() == [0.0]
    assert index.tolist() == [1]


# ---- empty inputs, masks ---------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_without_targets_there_is_no_index(backend, mode):
    nothing = float("-inf") if mode == "giou" else 0.0
    boxes, none = random_boxes(5).to(backend.device), torch.empty(0, 4, device=backend.device)
    masked = torch.zeros(5, dtype=torch.bool, device=backend.device)
    ids = torch.zeros(5, dtype=torch.int64, device=backend.device)
    for targets, options in (
        (none, {}),
        (none, {"image_ids": ids, "target_image_ids": ids[:0]}),
        (boxes, {"target_mask": masked}),
        (boxes, {"image_ids": ids, "target_image_ids": ids + 1}),
    ):
        value, index = backend.ops.max_overlap(boxes, targets, mode=MODES.index(mode), **options)
        assert value.tolist() == [nothing] * 5
        assert index.tolist() == [-1] * 5
    value, index = backend.ops.max_overlap(none, boxes, mode=MODES.index(mode))
    assert value.shape == index.shape == (0,)


# ---- dtypes, strides, threads, instruction sets ------------------------------------------------


@pytest.mark.parametrize("dtype", BOX_DTYPES)
def test_narrow_types_are_computed_in_float32(backend, dtype):
    boxes, targets = (random_boxes(n).to(dtype) for n in (90, 40))
    check(backend, boxes, targets)


@pytest.mark.parametrize("layout", ["transposed", "sliced", "shifted", "expanded"])
def test_strides_do_not_matter(backend, layout):
    boxes, targets = random_boxes(50), random_boxes(37)

    def lay(x):
        if layout == "transposed":
            return x.t().contiguous().t()
        if layout == "expanded":
            return x[:1].expand(x.shape)
        return helpers.as_layout(x[None, None], layout)[0, 0]

    options = random_options(50, 37)
    strided = {name: torch.stack([x, torch.zeros_like(x)], 1)[:, 0] for name, x in options.items()}
    expected = oracle.max_overlap(lay(boxes), lay(targets), mode="iou", **options)
    boxes, targets = lay(boxes.to(backend.device)), lay(targets.to(backend.device))
    value, index = backend.ops.max_overlap(boxes, targets, **to_device(strided, backend.device))
    assert torch.equal(value.cpu(), expected[0])
    assert torch.equal(index.cpu(), expected[1])


def test_threads_do_not_change_results():
    boxes, targets = random_boxes(30000, extent=3000.0), random_boxes(300, extent=3000.0)
    options = random_options(30000, 300)
    before = torch.get_num_threads()
    try:
        for mode in MODES:
            results = []
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                results.append(max_overlap(boxes, targets, mode=mode, **options))
            for value, index in results[1:]:
                assert torch.equal(value, results[0][0])
                assert torch.equal(index, results[0][1])
    finally:
        torch.set_num_threads(before)


PROGRAM = """
import hashlib, torch
from tinyops._eval import build_facts
from tinyops.ops import max_overlap, topk_per_target
from tinyops.ops.max_overlap import MODES
torch.manual_seed(0)
for dtype in (torch.float32, torch.float64):
    for extent in (1000, 60):
        corner = torch.rand(2000, 2, dtype=dtype) * extent
        boxes = torch.cat([corner, corner + torch.rand(2000, 2, dtype=dtype) * 20], 1)
        for mode in MODES:
            for x in (*max_overlap(boxes[:1701], boxes[1701:], mode=mode),
                      *topk_per_target(boxes[:1701], boxes[1701:], 3, mode=mode, all_ties=True)):
                print(mode, hashlib.sha256(x.numpy().tobytes()).hexdigest())
print(build_facts()["cpu_instruction_set_in_use"])
"""


def test_every_instruction_set_gives_the_same_bits():
    (expected, used), *others = [run(capability, PROGRAM) for capability in CAPABILITIES]
    assert used == "baseline"
    assert len(set(expected)) > 100
    for (lines, used), capability in zip(others, CAPABILITIES[1:], strict=True):
        assert lines == expected
        if supports(capability):
            assert used == capability


def test_simulated_gpu_gives_the_bits_of_the_cpu():
    import backends

    boxes, targets = random_boxes(200), random_boxes(60)
    for mode in range(len(MODES)):
        on_cpu = torch.ops.tinyops.max_overlap(boxes, targets, mode=mode)
        on_gpu = backends.get("sim").ops.max_overlap(boxes, targets, mode=mode)
        assert all(map(torch.equal, on_cpu, on_gpu))


MEMORY = """
import resource, torch, tinyops
from tinyops.ops import max_overlap, topk_per_target
corner = torch.rand(105000, 2) * 5000
boxes = torch.cat([corner, corner + 12], 1)
boxes, targets = boxes[:100000], boxes[100000:]
max_overlap(boxes[:10], targets[:10])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for mode in ("iou", "rfd_w"):
    max_overlap(boxes, targets, mode=mode)
    topk_per_target(boxes, targets, 3, mode=mode, all_ties=True)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_memory_is_far_below_that_of_the_matrix():  # 2 GB, or 500 MB of bool
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100


def test_area_that_overflows_chooses_no_masked_target_cpu():
    corners = torch.rand(20_000, 2) * 2000
    boxes = torch.cat([corners, corners + 8], 1)
    targets = boxes[:400] + 2
    boxes[7] = torch.tensor([-1e20, -1e20, 1e20, 1e20])  # its IoU with any target is 0
    value, index = max_overlap(boxes, targets, target_mask=torch.arange(400) >= 5)
    assert (value[7], index[7]) == (0, 5)
