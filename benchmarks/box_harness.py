"""Checks and measures one case of a box operator: few slow peers among many fast ones."""

import gc
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Call, Turn, cuda_turn, number_of_sets, peak_memory, quartiles

ROUNDS = 50
Inputs = tuple[Any, ...]  # numpy arrays, and what else a peer is prepared from


@dataclass(frozen=True)
class Peer:
    prepare: Callable[..., Call]  # makes a call from one set of inputs, outside the clock
    refusal: str | None = None  # why it is not measured


@dataclass(frozen=True)
class Case:
    shape: str
    mode: str
    columns: dict[str, str | int]  # what the shape says, for the table
    make: Callable[[int], Inputs]  # of a seed
    small: list[Inputs]  # compile and warm up the peers
    peers: dict[str, Peer]
    # Of set 0 and every peer's results: AssertionError, or facts for the table.
    check: Callable[[Inputs, dict[str, Any]], dict[str, str | int]]
    memory: tuple[str, ...] = ()  # the peers whose memory is measured
    most_sets: int = 128


def measure(
    case: Case, operator: str, device: torch.device, seconds: float, only: list[str] | None
) -> dict[str, Any]:
    """Check every peer, then measure all of them in turns, each for about `seconds`."""
    torch._dynamo.reset()
    peers = {
        name: peer
        for name, peer in case.peers.items()
        if name == "tinyops" or only is None or name in only
    }
    refusals = {name: peer.refusal for name, peer in peers.items() if peer.refusal}
    prepare = {name: peer.prepare for name, peer in peers.items() if not peer.refusal}

    inputs = [case.make(0)]
    size = sum(x.nbytes for x in inputs[0] if isinstance(x, np.ndarray))
    sets = min(case.most_sets, number_of_sets(size, device))
    inputs += [case.make(1 + i) for i in range(sets - 1)]
    first, results = {}, {}
    for name, one in list(prepare.items()):
        try:
            for small in case.small:
                one(*small)()
            first[name], results[name] = timed(one(*inputs[0]), device)
        except Exception as error:
            if name == "tinyops":
                raise
            refusals[name] = f"fails: {type(error).__name__}: {str(error)[:80]}"
            del prepare[name]
    facts = case.check(inputs[0], results)
    del results

    once = {name: ms for name, ms in first.items() if ms > 500 * seconds}
    turns, cost = {}, {}
    for name in prepare:
        if name in once:
            continue
        calls = [prepare[name](*each) for each in inputs]
        calls[0]()  # the first one above may have compiled
        ms = max(min(timed(call, device)[0] for call in calls[:3]), 1e-4)
        count = int(max(1, min(len(calls), 1000 * seconds / ROUNDS / ms)))
        turns[name], cost[name] = rotating_turn(calls, count, device), count * ms
    times = {name: [once[name]] for name in once} | interleave(turns, cost, seconds)

    ms = {name: statistics.median(times[name]) for name in prepare}
    return {
        "kind": "boxes",
        "operator": operator,
        "shape": case.shape,
        "mode": case.mode,
        "columns": case.columns,
        "facts": facts,
        "peers": list(peers),
        "ms": ms,
        "speedup": {name: ms[name] / ms["tinyops"] for name in ms if name != "tinyops"},
        "quartiles_ms": {n: quartiles(t) for n, t in times.items() if len(t) > 1},
        "turns": {name: len(times[name]) for name in ms},
        "measured_once": sorted(once),
        "not_measured": refusals,
        "input_sets": len(inputs),
        "input_bytes": size,
        "peak_extra_bytes": memory(case, operator, device, [n for n in case.memory if n in ms]),
    }


def timed(call: Call, device: torch.device) -> tuple[float, Any]:
    """Milliseconds of one call, and its result."""
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter_ns()
    result = call()
    synchronize()
    return (time.perf_counter_ns() - start) / 1e6, result


def rotating_turn(calls: list[Call], count: int, device: torch.device) -> Turn:
    """The next `count` calls: on a CPU the median time of one, on a GPU the mean.

    A branch predictor learns an input of 10,000 boxes by heart, so inputs rotate.
    """
    endless = itertools.cycle(calls)

    def turn() -> float:
        several = list(itertools.islice(endless, count))
        if device.type == "cuda":
            return cuda_turn(several)()
        times = []
        for call in several:
            start = time.perf_counter_ns()
            call()  # its results are freed here, inside the measured time
            times.append(time.perf_counter_ns() - start)
        return statistics.median(times) / 1e6

    return turn


def interleave(
    turns: dict[str, Turn], cost: dict[str, float], seconds: float
) -> dict[str, list[float]]:
    """Rounds A B C A B C ..., of which a slow peer sits some out, evenly spread."""
    share = {name: min(1.0, 1000 * seconds / (ROUNDS * cost[name])) for name in turns}
    times: dict[str, list[float]] = {name: [] for name in turns}
    gc.collect()
    gc.disable()
    for n in range(ROUNDS):
        for name, turn in turns.items():
            if n == 0 or int((n + 1) * share[name]) > int(n * share[name]):
                times[name].append(turn())
    gc.enable()
    return times


def memory(
    case: Case, operator: str, device: torch.device, names: list[str]
) -> dict[str, int | None]:
    """Most bytes above the inputs during one call."""
    if not names:
        return {}
    if device.type == "cuda":
        inputs = case.make(1)
        return {name: peak_memory(case.peers[name].prepare(*inputs), device) for name in names}
    # The tuned malloc of this process keeps freed memory, so its growth would not be seen.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    script = Path(__file__).with_name("memory.py")
    run = subprocess.run(
        [sys.executable, script, operator, case.shape, case.mode, ",".join(names)],
        env=environment | {"MALLOC_MMAP_THRESHOLD_": str(64 << 10)},
        capture_output=True,
        text=True,
    )
    if run.returncode:
        raise RuntimeError(f"memory.py: {run.stderr.strip().splitlines()[-1:]}")
    return json.loads(run.stdout.splitlines()[-1])
