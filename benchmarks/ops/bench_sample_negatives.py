"""sample_negatives: 512 of K candidates, SSPNet's eq. 4.

Mode `given`: scores and overlaps are there. Mode `from_boxes`: the overlap with 200 targets is part
of the work; the peer makes the K x 200 matrix of intersection over target area.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from box_harness import Call, Case, Inputs, Peer
from distributions import proposals_and_targets
from numpy.typing import NDArray
from peers import as_array, on
from torch import Tensor

from ops.bench_max_overlap import in_chunks, matrix_max
from tinyops.ops import sample_negatives, sample_negatives_from_boxes

SAMPLES, TARGETS = 512, 200
BALANCE = 0.6
CANDIDATES = 0.9  # their share
SHAPES = {"2k": 2_000, "20k": 20_000, "100k": 100_000, "300k": 300_000, "1M": 1_000_000}
MODES = ("given", "from_boxes")
PACKAGES = ()

DEFAULT_SHAPES = {"cpu": tuple(SHAPES), "cuda": tuple(SHAPES)}
QUICK_SHAPES = {"cpu": ("2k", "100k"), "cuda": ("2k", "100k", "1M")}
DEFAULT_MODES = MODES

Given = Callable[[Tensor, Tensor, Tensor], Tensor]


def weights(scores: Tensor, overlaps: Tensor, candidates: Tensor) -> Tensor:
    return torch.where(candidates, torch.exp(BALANCE * scores + (1 - BALANCE) * overlaps), 0.0)


def multinomial(scores: Tensor, overlaps: Tensor, candidates: Tensor) -> Tensor:
    return torch.multinomial(weights(scores, overlaps, candidates), SAMPLES)


def top_keys(scores: Tensor, overlaps: Tensor, candidates: Tensor) -> Tensor:
    """What multinomial does inside, written out: the smallest exponential keys."""
    keys = torch.empty_like(scores).exponential_() / weights(scores, overlaps, candidates)
    return keys.topk(SAMPLES, largest=False).indices


def case(shape: str, mode: str, device: torch.device) -> Case:
    k = SHAPES[shape]
    generator = torch.Generator(device).manual_seed(0)
    overlap = matrix_max("iof_target")

    def make(seed: int) -> Inputs:
        rng = np.random.default_rng(seed)
        scores = rng.beta(2, 5, k).astype(np.float32)
        candidates = rng.random(k) < CANDIDATES
        if mode == "given":
            return scores, rng.beta(1, 5, k).astype(np.float32), candidates
        return scores, *proposals_and_targets(k, TARGETS, seed), candidates

    def prepared(function: Callable[..., Tensor]) -> Callable[..., Call]:
        def prepare(*arrays: NDArray) -> Call:
            tensors = on(device, *arrays)
            return lambda: function(*tensors)

        return prepare

    def with_matrix(function: Given) -> Callable[..., Tensor]:
        if mode == "given":
            return function
        return lambda s, boxes, targets, c: function(s, overlap(boxes, targets)[0], c)

    def given(scores: Tensor, overlaps: Tensor, candidates: Tensor) -> Tensor:
        return sample_negatives(
            scores, overlaps, candidates, SAMPLES, balance=BALANCE, generator=generator
        )

    def from_boxes(scores: Tensor, boxes: Tensor, targets: Tensor, candidates: Tensor) -> Tensor:
        return sample_negatives_from_boxes(
            boxes, targets, scores, candidates, SAMPLES, balance=BALANCE, generator=generator
        )

    def check(inputs: Inputs, results: dict[str, Any]) -> dict[str, str | int]:
        scores, *others, candidates = on(torch.device("cpu"), *inputs)
        overlaps = others[0] if mode == "given" else in_chunks(overlap)(*others)[0]
        logit = (BALANCE * scores + (1 - BALANCE) * overlaps).double()
        expected = torch.exp(logit)[candidates] / torch.exp(logit)[candidates].sum()
        mean = (expected * logit[candidates]).sum()
        deviation = ((expected * (logit[candidates] - mean) ** 2).sum() / SAMPLES) ** 0.5
        for name, result in results.items():
            drawn = as_array(result)
            assert len(np.unique(drawn)) == len(drawn) == SAMPLES, f"{name}: {len(drawn)} drawn"
            assert candidates[drawn].all(), f"{name} draws what is no candidate"
            # A fourth of 2,000 drawn without replacement comes from a flatter distribution.
            off = ((logit[drawn].mean() - mean) / deviation).item()
            assert abs(off) < 6, f"{name}: the mean logit is off by {off:.1f} standard deviations"
        return {}

    refusal = (
        "only up to 100k boxes: K x M matrix" if mode == "from_boxes" and k > 100_000 else None
    )
    functions = {"multinomial": multinomial, "top keys": top_keys}
    peers = {"tinyops": Peer(prepared(given if mode == "given" else from_boxes))}
    peers |= {
        name: Peer(prepared(with_matrix(function)), refusal) for name, function in functions.items()
    }
    return Case(
        shape=shape,
        mode=mode,
        columns={"K": k, "M": TARGETS if mode == "from_boxes" else 0},
        make=make,
        small=[make(1000)],
        peers=peers,
        check=check,
        memory=("tinyops", "multinomial"),
    )
