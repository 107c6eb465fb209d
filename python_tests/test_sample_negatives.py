"""What sample_negatives draws: the same sample everywhere, from the right distribution."""

import os
import subprocess
import sys

import pytest
import sampling
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyops.ops import (
    sample_negatives,
    sample_negatives_padded,
    sample_negatives_reference,
)


def make(count, dtype=torch.float32, device="cpu", share=0.8):
    scores, overlaps = torch.rand(2, count).to(dtype).to(device)
    return scores, overlaps, (torch.rand(count) < share).to(device)


def seed_of(number):
    return torch.tensor([number], dtype=torch.int64)


def expect(backend, tensors, num_samples, seed, **options):
    """The sample of `backend` is that of the plain Python."""
    actual = backend.ops.sample_negatives(*tensors, num_samples, seed_of(seed), **options)
    expected = sampling.sample(*tensors, num_samples, seed, **options)
    assert actual.device.type == backend.device
    assert actual.tolist() == expected.tolist()
    indices, count = backend.ops.sample_negatives_padded(
        *tensors, num_samples, seed_of(seed), **options
    )
    padding = [-1] * (num_samples - len(expected))
    assert indices.tolist() == expected.tolist() + padding
    assert count.shape == ()
    assert int(count) == len(expected)


# ---- the sample ----------------------------------------------------------------------------------

KNOWN_ANSWERS = [  # of philox4x32-10: counter, key, words (Random123's kat_vectors)
    ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (2**32 - 1,) * 4,
        2**64 - 1,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        0x299F31D0A4093822,
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_in_python_gives_the_known_answers(counter, key, words):
    assert sampling.philox(key, counter) == words


def test_cold_temperature_takes_the_best_in_order(backend):
    scores = torch.tensor([0.1, 0.9, 0.5, 0.7, 0.3], device=backend.device)
    overlaps = torch.zeros(5, device=backend.device)
    candidates = torch.tensor([True, True, True, False, True], device=backend.device)
    options = {"temperature": 1e-4}  # gaps of 0.12 / 1e-4: another order has chance e^-1200
    out = backend.ops.sample_negatives(scores, overlaps, candidates, 3, seed_of(1), **options)
    assert out.tolist() == [1, 2, 4]
    out = backend.ops.sample_negatives(
        overlaps, scores, candidates, 9, seed_of(1), balance_on=1, **options
    )
    assert out.tolist() == [1, 2, 4, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 0.02, 1e5])
def test_the_sample_is_that_of_the_plain_python(backend, dtype, temperature):
    tensors = make(200, dtype, backend.device)
    for balance_on in (0, 1):
        options = {"balance": 0.3, "balance_on": balance_on, "temperature": temperature}
        expect(backend, tensors, 40, 2**62 - 5, **options)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    count=st.integers(0, 150),
    num_samples=st.integers(0, 170),
    share=st.sampled_from([0.0, 0.1, 0.9, 1.0]),
    seed=st.integers(-(2**63), 2**63 - 1),
    balance=st.sampled_from([0.0, 0.6, 1.0]),
)
@pytest.mark.parametrize("name", ["cpu", "sim"])
def test_any_size_and_seed(name, count, num_samples, share, seed, balance):
    import backends

    tensors = make(count, share=share)
    expect(backends.get(name), tensors, num_samples, seed, balance=balance, temperature=0.2)


def test_scores_and_overlaps_of_different_dtypes(backend):
    scores, overlaps, candidates = make(100, device=backend.device)
    expect(backend, (scores.half(), overlaps, candidates), 9, 3)
    expect(backend, (scores, overlaps.double(), candidates), 9, 3)
    expect(backend, (scores.double(), overlaps.bfloat16(), candidates), 9, 3)


def test_views_with_strides(backend):
    table = torch.rand(130, 3, device=backend.device)
    mask = torch.rand(260, device=backend.device) < 0.5
    expect(backend, (table[:, 0], table[:, 2], mask[::2]), 30, 8)
    shifted = torch.rand(131, device=backend.device)[1:]
    expect(backend, (shifted, shifted, mask[129:259]), 30, 8)


def test_no_items_no_candidates_and_no_samples(backend):
    nothing = torch.zeros(0, dtype=torch.int64)
    for count, share, num_samples in ((0, 1, 5), (70, 0, 5), (70, 1, 0)):
        tensors = make(count, device=backend.device, share=share)
        out = backend.ops.sample_negatives(*tensors, num_samples, seed_of(1))
        assert torch.equal(out.cpu(), nothing)
        assert out.dtype == torch.int64
        indices, size = backend.ops.sample_negatives_padded(*tensors, num_samples, seed_of(1))
        assert indices.tolist() == [-1] * num_samples
        assert int(size) == 0


def test_seed_of_any_shape_with_one_element(backend):
    tensors = make(50, device=backend.device)
    expected = backend.ops.sample_negatives(*tensors, 9, seed_of(7))
    seed = torch.tensor(7, device=backend.device)
    assert torch.equal(backend.ops.sample_negatives(*tensors, 9, seed), expected)
    assert torch.equal(backend.ops.sample_negatives(*tensors, 9, seed.view(1, 1)), expected)
    assert not torch.equal(backend.ops.sample_negatives(*tensors, 9, seed + 1), expected)


@pytest.mark.parametrize(("count", "num_samples"), [(3000, 2500), (20_000, 300), (9000, 9000)])
def test_every_backend_draws_the_sample_of_the_cpu(backend, count, num_samples):
    for dtype in (torch.float32, torch.float64):
        tensors = make(count, dtype)
        for temperature in (1.0, 0.001):
            options = {"temperature": temperature}
            expected = torch.ops.tinyops.sample_negatives(
                *tensors, num_samples, seed_of(5), **options
            )
            there = [x.to(backend.device) for x in tensors]
            actual = backend.ops.sample_negatives(*there, num_samples, seed_of(5), **options)
            assert torch.equal(actual.cpu(), expected)


def test_equal_times_go_to_the_lower_index(backend):
    # logits of -inf, all of them: the times are infinite
    scores = torch.full((3000,), -3e38, device=backend.device)
    candidates = torch.ones(3000, dtype=torch.bool, device=backend.device)
    candidates[:2] = False
    for k in (0, 1, 7, 1500, 2997, 2998, 3000):
        out = backend.ops.sample_negatives(
            scores, scores, candidates, k, seed_of(1), temperature=1e-5
        )
        assert out.tolist() == list(range(2, 3000))[:k]


def test_unchecked_values_have_a_defined_place(backend):
    inf, nan = float("inf"), float("nan")
    scores = torch.tensor([0.0, nan, inf, -inf, inf, 1.0], device=backend.device)
    candidates = torch.ones(6, dtype=torch.bool, device=backend.device)
    out = backend.ops.sample_negatives(
        scores, torch.zeros_like(scores), candidates, 6, seed_of(1), check=False
    )
    first, others, last = out.tolist()[:2], out.tolist()[2:4], out.tolist()[4:]
    assert (first, sorted(others), last) == ([2, 4], [0, 5], [1, 3])


def test_threads_do_not_change_the_sample():
    tensors = make(500_000)
    threads = torch.get_num_threads()
    try:
        results = []
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            results.append(torch.ops.tinyops.sample_negatives(*tensors, 700, seed_of(2)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(x, results[0]) for x in results)
    candidates = tensors[2]
    assert candidates[results[0]].all()
    assert len(results[0].unique()) == 700


PROGRAM = """
import torch, tinyops
generator = torch.Generator().manual_seed(1)
for dtype in (torch.float32, torch.float64):
    for temperature in (1.0, 0.01):
        scores, overlaps = torch.rand(2, 100_003, generator=generator).to(dtype)
        candidates = torch.rand(100_003, generator=generator) < 0.7
        seed = torch.randint(2**62, (1,), generator=generator)
        out = torch.ops.tinyops.sample_negatives(
            scores, overlaps, candidates, 2000, seed, temperature=temperature)
        print(out.tolist())
"""


def test_every_instruction_set_draws_the_same_sample():
    def run(capability):
        environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
        command = [sys.executable, "-c", PROGRAM]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    expected = run("default")
    assert expected.count("\n") == 4
    assert run("avx2") == expected
    assert run("avx512") == expected


def test_more_than_two_to_the_24_items():
    count = 2**24 + 1000
    scores = torch.rand(count)
    candidates = torch.zeros(count, dtype=torch.bool)
    candidates[-900:] = True
    out = torch.ops.tinyops.sample_negatives(scores, scores, candidates, 800, seed_of(3))
    assert int(out.min()) >= count - 900
    assert len(out.unique()) == 800


# ---- the distribution ----------------------------------------------------------------------------


def chi_square(counts, expected):
    return float(((counts - expected) ** 2 / expected).sum())


def bound(freedom):
    """Six standard deviations above the mean of chi-square."""
    return freedom + 6 * (2 * freedom) ** 0.5


def test_draws_have_the_probabilities_of_the_definition():
    items, draws, k = 12, 20_000, 3
    scores, overlaps = torch.rand(2, items) * 2
    candidates = torch.ones(items, dtype=torch.bool)
    samples = torch.stack(
        [
            torch.ops.tinyops.sample_negatives(scores, overlaps, candidates, k, seed_of(n))
            for n in range(draws)
        ]
    )
    p = (0.6 * scores.double() + 0.4 * overlaps.double()).softmax(0)
    pairs = p[:, None] * p[None, :] / (1 - p)[:, None]  # first i, then j
    pairs.fill_diagonal_(0)
    first = samples[:, 0].bincount(minlength=items)
    second = samples[:, 1].bincount(minlength=items)
    assert chi_square(first, draws * p) < bound(items - 1)
    assert chi_square(second, draws * pairs.sum(0)) < bound(items - 1)
    both = (samples[:, 0] * items + samples[:, 1]).bincount(minlength=items**2).view(items, items)
    off = ~torch.eye(items, dtype=torch.bool)
    assert chi_square(both[off], draws * pairs[off]) < bound(items * (items - 1) - 1)
    # The test has power: the other balance is refused.
    other = (0.4 * scores.double() + 0.6 * overlaps.double()).softmax(0)
    assert chi_square(first, draws * other) > bound(items - 1)


def inclusions(draw, draws, items):
    return torch.stack([draw(n).bincount(minlength=items) for n in range(draws)]).sum(0)


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_inclusion_frequencies_are_those_of_multinomial(temperature):
    items, draws, k = 50, 10_000, 10
    scores, overlaps = torch.rand(2, items)
    candidates = torch.ones(items, dtype=torch.bool)
    ours = inclusions(
        lambda n: torch.ops.tinyops.sample_negatives(
            scores, overlaps, candidates, k, seed_of(n), temperature=temperature
        ),
        draws,
        items,
    )
    weights = ((0.6 * scores + 0.4 * overlaps).double() / temperature).exp()
    theirs = torch.multinomial(weights.expand(draws, items), k).flatten().bincount(minlength=items)
    p = (ours + theirs) / (2 * draws)
    assert int(ours.sum()) == int(theirs.sum()) == draws * k
    # Two samples of the same size; each count has variance draws * p * (1 - p).
    statistic = float(((ours - theirs) ** 2 / (2 * draws * p * (1 - p))).sum())
    assert statistic < bound(items - 1)
    uniform = torch.full((items,), draws * k / items, dtype=torch.float64)
    assert chi_square(ours, uniform) > bound(items - 1)


def test_reference_has_the_same_inclusion_frequencies():
    items, draws, k = 20, 3000, 5
    scores, overlaps = torch.rand(2, items)
    candidates = torch.rand(items) < 0.7
    generator = torch.Generator().manual_seed(3)
    options = {"temperature": 0.3, "balance_on": "overlap", "generator": generator}
    counts = [
        inclusions(lambda n, f=f: f(scores, overlaps, candidates, k, **options), draws, items)
        for f in (sample_negatives, sample_negatives_reference)
    ]
    p = sum(counts) / (2 * draws)
    assert torch.equal(p > 0, candidates)
    variance = (2 * draws * p * (1 - p))[candidates]
    statistic = float(((counts[0] - counts[1])[candidates] ** 2 / variance).sum())
    assert statistic < bound(int(candidates.sum()) - 1)
    assert sample_negatives_reference(scores, overlaps, candidates, 99).tolist() == (
        candidates.nonzero().flatten().tolist()
    )


# ---- the generator -------------------------------------------------------------------------------


def test_generator_reproduces_the_sample():
    tensors = make(300)
    first = sample_negatives(*tensors, 20, generator=torch.Generator().manual_seed(4))
    again = sample_negatives(*tensors, 20, generator=torch.Generator().manual_seed(4))
    other = sample_negatives(*tensors, 20, generator=torch.Generator().manual_seed(5))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(4)
    assert torch.equal(sample_negatives(*tensors, 20), first)
    assert not torch.equal(sample_negatives(*tensors, 20), first)
    torch.manual_seed(4)
    indices, count = sample_negatives_padded(*tensors, 20)
    assert torch.equal(indices, first)
    assert int(count) == 20


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_generator_of_cuda():
    tensors = make(300, device="cuda")
    generator = torch.Generator("cuda").manual_seed(4)
    first = sample_negatives(*tensors, 20, generator=generator)
    assert torch.equal(sample_negatives(*tensors, 20, generator=generator.manual_seed(4)), first)
