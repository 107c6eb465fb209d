"""Checks and measures one case: the same work done by several peers on rotating inputs."""

import gc
import itertools
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Call = Callable[[], Any]  # does the work once and returns its results, a tuple of tensors
Peer = Callable[..., Call]  # prepares a call from one set of inputs
Turn = Callable[[], float]  # one measurement: milliseconds per call

# Largest error over largest value of the float64 reference. Half formats: the eager peers round
# after every step.
TOLERANCES = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 1e-2,
}
MOST_SETS = 128


@dataclass(frozen=True)
class Case:
    shape: str
    mode: str
    dtype: torch.dtype
    layout: torch.memory_format
    bytes_moved: int  # compulsory: each input read once, each result written once
    make: Callable[[torch.Generator], tuple[Any, ...]]  # random inputs, the arguments of a peer
    peers: dict[str, Peer]
    reference: Peer  # called with float64 inputs
    graph: bool = False  # on a GPU, also measure replays of a CUDA graph


def measure(case: Case, device: torch.device, seconds: float) -> dict[str, Any]:
    """Check every peer, then measure all of them in turns for about `seconds`."""
    torch._dynamo.reset()
    errors = check(case, device)

    generator = torch.Generator(device).manual_seed(1)
    inputs = [case.make(generator)]
    size = sum(x.nbytes for x in _tensors(inputs[0]))
    sets = number_of_sets(size, device)
    inputs += [case.make(generator) for _ in range(sets - 1)]
    calls = {name: [peer(*x) for x in inputs] for name, peer in case.peers.items()}
    calls["copy"] = copies(case.bytes_moved, device)

    for several in calls.values():  # compiles; fills allocator and caches
        for call in itertools.islice(itertools.cycle(several), max(20, 2 * len(several))):
            call()
    memory = {name: peak_memory(calls[name][0], device) for name in case.peers}
    turn = cuda_turn if device.type == "cuda" else cpu_turn
    turns = {name: turn(several) for name, several in calls.items()}
    if case.graph and device.type == "cuda":
        turns |= {f"{name} graph": graph_turn(calls[name]) for name in case.peers}
    times = interleave(turns, seconds)

    ms = {name: statistics.median(each) for name, each in times.items()}
    gb_per_s, copy = (case.bytes_moved / ms[name] / 1e6 for name in ("tinyops", "copy"))
    return {
        "shape": case.shape,
        "mode": case.mode,
        "dtype": str(case.dtype).removeprefix("torch."),
        "layout": "nhwc" if case.layout == torch.channels_last else "nchw",
        "ms": ms,
        "speedup": {name: ms[name] / ms["tinyops"] for name in case.peers if name != "tinyops"},
        "quartiles_ms": {name: quartiles(each) for name, each in times.items()},
        "rounds": len(times["tinyops"]),
        "input_sets": sets,
        "input_bytes": size,
        "bytes_moved": case.bytes_moved,
        "gb_per_s": gb_per_s,
        "copy_gb_per_s": copy,
        "share_of_copy": gb_per_s / copy,
        "peak_extra_bytes": memory,
        "error": errors,
    }


def check(case: Case, device: torch.device) -> dict[str, float]:
    """Largest error of every peer; AssertionError where one is not right."""

    def inputs(dtype: torch.dtype) -> tuple[Any, ...]:
        made = case.make(torch.Generator(device).manual_seed(0))
        return _map(lambda x: x.to(dtype), made)

    expected = [x.detach() for x in case.reference(*inputs(torch.float64))()]
    errors = {}
    for name, peer in case.peers.items():
        results = [x.detach() for x in peer(*inputs(case.dtype))()]
        assert len(results) == len(expected), f"{name} returns {len(results)} results"
        errors[name] = max(map(_error, results, expected))
        # Peers only have to do the same; those that sum in another order may round worse.
        tolerance = TOLERANCES[case.dtype] * (1 if name == "tinyops" else 10)
        # Not `>`: a NaN must fail.
        assert errors[name] <= tolerance, f"{name} is off by {errors[name]:.2g} > {tolerance:.2g}"
    return errors


def _error(result: Tensor, expected: Tensor) -> float:
    assert result.shape == expected.shape, f"{tuple(result.shape)} != {tuple(expected.shape)}"
    return ((result.double() - expected).abs().max() / expected.abs().max()).item()


def number_of_sets(size: int, device: torch.device) -> int:
    """Sets of inputs of `size` bytes: together beyond the last-level cache, if memory allows."""
    wanted = max(3, min(MOST_SETS, math.ceil(2 * last_level_cache(device) / max(size, 1))))
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(wanted, max(1, free // 8 // max(size, 1)))


def last_level_cache(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    files = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    sizes = [int(f.read_text().strip().removesuffix("K")) * 1024 for f in files]
    return max(sizes, default=32 << 20)


def copies(bytes_moved: int, device: torch.device) -> list[Call]:
    """Copies into existing memory that read and write `bytes_moved` together.

    Of float32: on one CPU thread torch copies bytes a third slower.
    """

    def one() -> Call:
        source = torch.rand(bytes_moved // 8, device=device)
        target = source.clone()
        return lambda: (target.copy_(source),)

    return [one() for _ in range(number_of_sets(bytes_moved, device))]


def interleave(turns: dict[str, Turn], seconds: float) -> dict[str, list[float]]:
    """Rounds A B C A B C ..., so that a slow moment of the machine hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in turns}
    gc.collect()
    gc.disable()
    end = time.monotonic() + seconds
    while len(times["copy"]) < 3 or time.monotonic() < end:
        for name, turn in turns.items():
            times[name].append(turn())
    gc.enable()
    return times


def cpu_turn(calls: list[Call]) -> Turn:
    """Median over one pass through all sets of inputs."""

    def turn() -> float:
        times = []
        for call in calls:
            start = time.perf_counter_ns()
            call()  # its results are freed here, inside the measured time
            times.append(time.perf_counter_ns() - start)
        return statistics.median(times) / 1e6

    return turn


def cuda_turn(calls: list[Call], repeats: int | None = None) -> Turn:
    """Mean over one pass through all sets of inputs, host overhead included."""

    def turn() -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for call in calls:
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / (repeats or len(calls))

    return turn


def graph_turn(calls: list[Call]) -> Turn:
    """The same pass as one CUDA graph: what the kernels alone cost."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    return cuda_turn([graph.replay], len(calls))


def peak_memory(call: Call, device: torch.device) -> int:
    """Most bytes of tensors above the inputs during one call, its results included.

    On the CPU the profiler counts what torch allocates: the resident set also shows what the
    allocator keeps or cannot reuse, and so depends on what ran before.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True, acc_events=True) as profile:
        call()
    with tempfile.TemporaryDirectory() as directory:
        trace = Path(directory) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = [(e["ts"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]"]
    # A sort by time alone: it is stable, and equal times are in order of happening.
    in_order = (change for _, change in sorted(changes, key=lambda x: x[0]))
    return max(itertools.accumulate(in_order), default=0)


def quartiles(times: list[float]) -> list[float]:
    return statistics.quantiles(times, n=4, method="inclusive")


def _map(function: Callable[[Tensor], Tensor], x: Any) -> Any:
    """`function` of every tensor in nested tuples."""
    if isinstance(x, tuple):
        return tuple(_map(function, y) for y in x)
    return function(x) if isinstance(x, Tensor) else x


def _tensors(x: Any) -> list[Tensor]:
    """Every tensor in nested tuples."""
    if isinstance(x, tuple):
        return [tensor for y in x for tensor in _tensors(y)]
    return [x] if isinstance(x, Tensor) else []
