"""Describes the machine and prints results as a text table, a Markdown table and JSON."""

import datetime
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import tinyops
from tinyops import _eval

Result = dict[str, Any]


def environment(device: torch.device, malloc: str, command: str) -> dict[str, Any]:
    facts = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "command": command,
        "cpu": cpu_name(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "allocator": allocator(malloc),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "tinyops": tinyops.__version__,
        "tinyops_build": _eval.build_facts(),
        "cuda_kernels": tinyops.has_cuda_kernels,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts["gpu"] = properties.name
        facts["gpu_multiprocessors"] = properties.multi_processor_count
        facts["gpu_l2_bytes"] = properties.L2_cache_size
        facts["cuda"] = torch.version.cuda
        facts["driver"] = driver()
    return facts


def cpu_name() -> str:
    """Model and the widest vectors that torch uses."""
    try:
        name = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        name = None
    model = name[1] if name else platform.processor() or platform.machine()
    return f"{model} ({torch.backends.cpu.get_cpu_capability()})"


def driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def allocator(malloc: str) -> str:
    name = " ".join(platform.libc_ver()).strip() or platform.system()
    preloaded = os.environ.get("LD_PRELOAD")
    tunables = " ".join(f"{k}={v}" for k, v in os.environ.items() if k.startswith("MALLOC_"))
    return (
        f"{name} malloc, {malloc}"
        + (f" ({tunables})" if tunables else "")
        + (f", LD_PRELOAD={preloaded}" if preloaded else "")
    )


def headline(facts: dict[str, Any]) -> str:
    """Machine, versions, date, allocator, threads and command in one line."""
    threads = f"{facts['threads']} thread{'s' * (facts['threads'] != 1)}"
    machine = f"{facts['cpu']}, {facts['cpus']} CPUs, {threads}"
    memory = facts["allocator"]
    if "gpu" in facts:
        kernels = "CUDA binary" if facts["cuda_kernels"] else "Triton kernels"
        machine = f"{facts['gpu']}, driver {facts['driver']}, CUDA {facts['cuda']}, {kernels}"
        memory = "torch caching allocator"
    versions = f"torch {facts['torch']}, tinyops {facts['tinyops']}"
    return f"{machine}; {versions}; {facts['date']}; {memory}; `{facts['command']}`"


NOTE = (
    "ms: median over interleaved rounds with rotating inputs. GB/s: compulsory bytes over the time "
    "of tinyops; of copy: that over the GB/s of a copy of as many bytes in the same run. "
    "Extra MB: peak above the inputs, result included, of eager / compiled / tinyops."
)


def cells(result: Result) -> dict[str, str]:
    """One row: column -> text."""
    ms, memory = result["ms"], result["peak_extra_bytes"]
    names = [name for name in memory if name != "tinyops"]
    row = {key: result[key] for key in ("shape", "mode", "dtype", "layout")}
    row |= {f"{name} ms": _ms(ms[name]) for name in memory}
    row |= {f"{name}/tinyops": f"{result['speedup'][name]:.2f}" for name in names}
    row["GB/s"] = f"{result['gb_per_s']:.1f}"
    row["of copy"] = f"{100 * result['share_of_copy']:.0f} %"
    row["extra MB"] = " / ".join(f"{size / 1e6:.1f}" for size in memory.values())
    graphs = [_ms(ms[f"{name} graph"]) for name in memory if f"{name} graph" in ms]
    row["CUDA graph ms"] = " / ".join(graphs)
    return row


def _ms(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.2f}"


def grid(results: list[Result]) -> list[list[str]]:
    """Header and rows, without columns that are empty everywhere."""
    rows = [cells(result) for result in results]
    columns = [c for c in (rows[0] if rows else {}) if any(row[c] for row in rows)]
    return [columns, *([row[c] for c in columns] for row in rows)]


def text_table(results: list[Result]) -> str:
    table = grid(results)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ("  ".join(map(str.rjust, row, widths)) for row in table)
    return "\n".join(lines)


def markdown(facts: dict[str, Any], results: list[Result]) -> str:
    head, *body = grid(results)
    rule = ["---" if column in ("shape", "mode", "dtype", "layout") else "---:" for column in head]
    lines = (f"| {' | '.join(row)} |" for row in (head, rule, *body))
    return "\n".join([headline(facts), "", *lines, "", NOTE, ""])


def write(
    facts: dict[str, Any],
    results: list[Result],
    failures: list[dict[str, str]],
    json_file: Path | None,
    markdown_file: Path | None,
) -> None:
    if json_file:
        everything = {"environment": facts, "results": results, "failures": failures}
        json_file.write_text(json.dumps(everything, indent=1, default=str) + "\n")
    if markdown_file:
        markdown_file.write_text(markdown(facts, results))


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
