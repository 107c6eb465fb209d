"""What sample_negatives promises besides its sample: boxes, errors, the rest of torch."""

import backends
import pytest
import torch
from helpers import assert_fake_has_real_strides, opcheck
from test_sample_negatives import make, seed_of

from tinyops.ops import (
    sample_negatives,
    sample_negatives_from_boxes,
    sample_negatives_padded,
)

# ---- from boxes ----------------------------------------------------------------------------------


def random_boxes(count, dtype=torch.float32, device="cpu"):
    corners = torch.rand(count, 2) * 50
    return torch.cat([corners, corners + torch.rand(count, 2) * 20], 1).to(dtype).to(device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("mode", [1, 2])
def test_from_boxes_is_max_overlap_and_then_the_sample(backend, dtype, mode):
    boxes, targets = (random_boxes(n, dtype, backend.device) for n in (300, 7))
    scores, _, candidates = make(300, device=backend.device)
    options = {"balance": 0.3, "balance_on": 1, "temperature": 0.05}
    overlaps, _ = backend.ops.max_overlap(boxes, targets, mode=mode)
    assert 0 < int((overlaps > 0).sum()) < 300
    for own, number in ((scores, 1), (None, 2)):
        actual = backend.ops.sample_negatives_from_boxes(
            boxes, targets, own, candidates, 50, seed_of(number), mode=mode, **options
        )
        zeros = torch.zeros_like(scores)
        expected = backend.ops.sample_negatives(
            zeros if own is None else own, overlaps, candidates, 50, seed_of(number), **options
        )
        assert len(actual) == 50
        assert torch.equal(actual, expected)


def test_from_boxes_prefers_what_covers_a_target(backend):
    boxes = torch.tensor(
        [[0.0, 0, 40, 40], [10, 10, 12, 12], [50, 50, 60, 60]], device=backend.device
    )
    target = torch.tensor([[8.0, 8, 16, 16]], device=backend.device)
    every = torch.ones(3, dtype=torch.bool, device=backend.device)
    options = {"balance": 0.0, "temperature": 1e-3}
    op = backend.ops.sample_negatives_from_boxes
    # The large box covers all of the target, the small one lies in it.
    assert op(boxes, target, None, every, 3, seed_of(1), mode=1, **options).tolist() == [0, 1, 2]
    assert op(boxes, target, None, every, 3, seed_of(1), mode=2, **options).tolist() == [1, 0, 2]


def test_from_boxes_without_targets_or_boxes(backend):
    boxes, targets = random_boxes(70, device=backend.device), torch.zeros(0, 4)
    scores, overlaps, candidates = make(70, device=backend.device)
    targets = targets.to(backend.device)
    actual = backend.ops.sample_negatives_from_boxes(
        boxes, targets, scores, candidates, 9, seed_of(1)
    )
    zeros = torch.zeros_like(overlaps)
    expected = backend.ops.sample_negatives(scores, zeros, candidates, 9, seed_of(1))
    assert torch.equal(actual, expected)
    out = backend.ops.sample_negatives_from_boxes(
        targets, boxes, None, candidates[:0], 9, seed_of(1)
    )
    assert out.shape == (0,)


def test_public_functions_take_words():
    from tinyops.ops import max_overlap

    boxes, targets = random_boxes(100), random_boxes(5)
    scores, _, candidates = make(100)

    def generator():
        return torch.Generator().manual_seed(3)

    for mode in ("iof_target", "iof_box"):
        options = {"balance": 0.2, "balance_on": "overlap", "temperature": 0.1}
        actual = sample_negatives_from_boxes(
            boxes, targets, scores, candidates, 20, mode=mode, generator=generator(), **options
        )
        overlaps = max_overlap(boxes, targets, mode=mode)[0]
        expected = sample_negatives(
            scores, overlaps, candidates, 20, generator=generator(), **options
        )
        assert torch.equal(actual, expected)
    with pytest.raises(RuntimeError, match="mode must be one of 'iof_target', 'iof_box', got 'i'"):
        sample_negatives_from_boxes(boxes, targets, scores, candidates, 20, mode="i")
    for function in (sample_negatives, sample_negatives_padded):
        with pytest.raises(RuntimeError, match="balance_on must be one of 'confidence', 'overlap'"):
            function(scores, scores, candidates, 20, balance_on="score")


# ---- errors --------------------------------------------------------------------------------------


def bad_arguments():
    scores, overlaps, candidates = torch.rand(6), torch.rand(6), torch.ones(6, dtype=torch.bool)
    good = {
        "scores": scores,
        "overlaps": overlaps,
        "candidates": candidates,
        "num_samples": 3,
        "seed": seed_of(1),
    }

    def case(message, **changes):
        return pytest.param({**good, **changes}, message, id=message)

    floats = "must be float32, float64, float16 or bfloat16, got"
    yield case("scores must be [K], got [2, 3]", scores=scores.view(2, 3))
    yield case(f"scores {floats} int64", scores=scores.long())
    yield case("overlaps must be [6] like scores, got [5]", overlaps=overlaps[:5])
    yield case(f"overlaps {floats} bool", overlaps=candidates)
    yield case("candidates must be [6] like scores, got [6, 1]", candidates=candidates[:, None])
    yield case("candidates must be bool, got uint8", candidates=candidates.byte())
    yield case("num_samples must be at least 0, got -1", num_samples=-1)
    yield case("seed must be int64 with 1 element, got int64 [2]", seed=seed_of(1).repeat(2))
    yield case("seed must be int64 with 1 element, got float32 [1]", seed=torch.zeros(1))
    yield case("balance must be in [0, 1], got 1.5", balance=1.5)
    yield case("balance must be in [0, 1], got nan", balance=float("nan"))
    yield case("balance_on must be 0 or 1, got 2", balance_on=2)
    yield case("temperature must be positive, from 1e-30 to 1e30, got 0", temperature=0.0)
    yield case("temperature must be positive, from 1e-30 to 1e30, got inf", temperature=1e999)


@pytest.mark.parametrize(("arguments", "message"), list(bad_arguments()))
@pytest.mark.parametrize("form", ["real", "fake"])
@pytest.mark.parametrize("name", ["sample_negatives", "sample_negatives_padded"])
def test_bad_argument_is_named_with_expectation_and_value(backend, name, form, arguments, message):
    expect_error(backend, name, form, arguments, message)


def expect_error(backend, name, form, arguments, message):
    device = "meta" if form == "fake" else backend.device
    arguments = {k: v.to(device) if torch.is_tensor(v) else v for k, v in arguments.items()}
    with pytest.raises(RuntimeError) as error:
        getattr(backend.ops, name)(**arguments)
    assert str(error.value).splitlines()[0] == f"tinyops: {name}: {message}"


def bad_boxes():
    boxes, targets = random_boxes(6), random_boxes(2)
    good = {
        "boxes": boxes,
        "targets": targets,
        "scores": torch.rand(6),
        "candidates": torch.ones(6, dtype=torch.bool),
        "num_samples": 3,
        "seed": seed_of(1),
    }

    def case(message, **changes):
        return pytest.param({**good, **changes}, message, id=message)

    yield case("boxes must be [K, 4], got [6, 3]", boxes=boxes[:, :3])
    yield case("targets must be [K, 4], got [8]", targets=targets.flatten())
    yield case("targets must be float32 like boxes, got float64", targets=targets.double())
    yield case("scores must be [6] like boxes, got [7]", scores=torch.rand(7))
    yield case("candidates must be [6] like boxes, got [0]", candidates=good["candidates"][:0])
    yield case("seed must be int64 with 1 element, got int64 [0]", seed=seed_of(1)[:0])
    yield case("mode must be 1 or 2, got 0", mode=0)
    yield case("num_samples must be at least 0, got -2", num_samples=-2)


@pytest.mark.parametrize(("arguments", "message"), list(bad_boxes()))
@pytest.mark.parametrize("form", ["real", "fake"])
def test_bad_argument_of_from_boxes_is_named(backend, form, arguments, message):
    expect_error(backend, "sample_negatives_from_boxes", form, arguments, message)


def test_device_mix_is_an_error():
    scores, overlaps, candidates = make(5)
    op = torch.ops.tinyops.sample_negatives
    with pytest.raises(RuntimeError, match="candidates must be on meta like scores, got cpu"):
        op(scores.to("meta"), overlaps.to("meta"), candidates, 2, seed_of(1))
    with pytest.raises(RuntimeError, match="seed must be on cpu or on cpu like scores, got meta"):
        op(scores, overlaps, candidates, 2, seed_of(1).to("meta"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_first_bad_value_of_a_candidate_is_named(backend, dtype, value):
    scores, overlaps, _ = make(3000, dtype, backend.device)
    candidates = torch.ones(3000, dtype=torch.bool, device=backend.device)
    ops = backend.ops

    def refused(message):
        for name in ("sample_negatives", "sample_negatives_padded"):
            with pytest.raises(RuntimeError) as error:
                getattr(ops, name)(scores, overlaps, candidates, 5, seed_of(1))
            assert str(error.value).splitlines()[0] == f"tinyops: {name}: {message}"

    overlaps[2998] = float(value)
    refused(f"overlaps of candidates must be finite, got {value} at index 2998")
    scores[2998] = float(value)
    refused(f"scores of candidates must be finite, got {value} at index 2998")
    overlaps[70] = float(value)
    refused(f"overlaps of candidates must be finite, got {value} at index 70")
    candidates[70] = False
    refused(f"scores of candidates must be finite, got {value} at index 2998")
    candidates[2998] = False
    assert len(ops.sample_negatives(scores, overlaps, candidates, 5, seed_of(1))) == 5


def test_bad_values_of_from_boxes_are_named(backend):
    boxes, targets = (random_boxes(n, device=backend.device) for n in (20, 3))
    scores, _, candidates = make(20, device=backend.device, share=1)
    op = backend.ops.sample_negatives_from_boxes
    bad = boxes.clone()
    bad[4] = torch.tensor([5.0, 1, 4, 2])
    message = r"from_boxes: boxes must be finite .* got \[5, 1, 4, 2\] at index 4"
    with pytest.raises(RuntimeError, match=message):
        op(bad, targets, scores, candidates, 5, seed_of(1))
    with pytest.raises(RuntimeError, match=r"from_boxes: targets must be finite .* at index 4"):
        op(boxes, bad, scores, candidates, 5, seed_of(1))
    scores[3] = float("nan")
    with pytest.raises(RuntimeError, match="scores of candidates must be finite, got nan at inde"):
        op(boxes, targets, scores, candidates, 5, seed_of(1))


# ---- with the rest of torch ----------------------------------------------------------------------


def test_opcheck(backend):
    tensors = make(40, device=backend.device)
    options = {"balance": 0.2, "temperature": 0.5}
    for name in ("sample_negatives", "sample_negatives_padded"):
        opcheck(getattr(backend.ops, name).default, (*tensors, 7, seed_of(1)), options)


def test_opcheck_of_from_boxes(backend):
    tensors = make(40, device=backend.device)
    boxes, targets = (random_boxes(n, device=backend.device) for n in (40, 3))
    for scores in (tensors[0], None):
        arguments = (boxes, targets, scores, tensors[2], 7, seed_of(1))
        opcheck(backend.ops.sample_negatives_from_boxes.default, arguments)


def test_fake_results_look_like_real_ones(backend):
    scores, overlaps, candidates = make(40, device=backend.device)
    for k in (0, 7, 50):
        assert_fake_has_real_strides(
            backend.ops.sample_negatives_padded, scores, overlaps, candidates, k, seed_of(1)
        )


def test_the_sample_has_no_gradient(backend):
    scores, overlaps, candidates = make(40, device=backend.device)
    out = backend.ops.sample_negatives(scores.requires_grad_(), overlaps, candidates, 7, seed_of(1))
    assert not out.requires_grad


def test_compile_without_graph_break():
    def step(scores, overlaps, candidates):
        picked = sample_negatives(scores * 2, overlaps, candidates, 9, temperature=0.5)
        padded, count = sample_negatives_padded(scores, overlaps, candidates, 30)
        return scores[picked].sum(), padded, count

    torch._dynamo.config.capture_dynamic_output_shape_ops = True
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for count in (40, 20):
        tensors = make(count)
        torch.manual_seed(1)
        expected = step(*tensors)
        torch.manual_seed(1)
        actual = compiled(*tensors)
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_export_with_dynamic_sizes():
    class Sampler(torch.nn.Module):
        def forward(self, scores, overlaps, candidates):
            return sample_negatives_padded(scores, overlaps, candidates, 12)

    dim = torch.export.Dim("k", max=100_000)
    shapes = {name: {0: dim} for name in ("scores", "overlaps", "candidates")}
    program = torch.export.export(Sampler(), make(50), dynamic_shapes=shapes)
    tensors = make(31)
    torch.manual_seed(2)
    expected = sample_negatives_padded(*tensors, 12)
    torch.manual_seed(2)
    actual = program.module()(*tensors)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_cuda_graph_draws_anew_from_a_seed_on_the_gpu():
    ops = backends.get("cuda").ops
    tensors, seed = make(5000, device="cuda"), seed_of(1).cuda()

    def step():
        return ops.sample_negatives_padded(*tensors, 600, seed, check=False)

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured, count = step()
    for number in (1, 2):
        seed.fill_(number)
        graph.replay()
        assert torch.equal(captured, step()[0])
        assert int(count) == 600
