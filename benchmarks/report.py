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
    versions += "".join(f", {name} {version}" for name, version in facts.get("peers", {}).items())
    return f"{machine}; {versions}; {facts['date']}; {memory}; `{facts['command']}`"


NOTES = {
    "maps": "ms: median over interleaved rounds with rotating inputs. GB/s: compulsory bytes over "
    "the time of tinyops; of copy: that over the GB/s of a copy of as many bytes in the same run. "
    "Extra MB: peak above the inputs, result included, of eager / compiled / tinyops.",
    "boxes": "ms: median over interleaved rounds with rotating inputs (once: a single call), and "
    "in brackets the ratio to tinyops. Extra MB: what the process grows by in one call; on a GPU, "
    "what torch allocates. differ: indices that only one of tinyops and the peer returns.",
    "quality": "One-to-one matches at IoU 0.5, best score first. duplicates: detections of people "
    "who are found already; false: of nobody (halves at seams). ms: one call, from arrays to "
    "arrays.",
}
WORDS = ("shape", "mode", "dtype", "layout", "distribution", "method", "differ")  # left-aligned


def rows(result: Result) -> list[dict[str, str]]:
    """Rows of a table: column -> text."""
    kind = _kind(result)
    return quality_rows(result) if kind == "quality" else [CELLS[kind](result)]


def _kind(result: Result) -> str:
    return result.get("kind", "maps")


def map_cells(result: Result) -> dict[str, str]:
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


def box_cells(result: Result) -> dict[str, str]:
    def peer(name: str) -> str:
        if name in result["not_measured"]:
            refusal = result["not_measured"][name]
            return refusal if refusal == "not installed" else "-"
        text = _ms(result["ms"][name])
        if name != "tinyops":
            text += f" ({_ratio(result['speedup'][name])}x)"
        return text + " once" * (name in result["measured_once"])

    row = {"shape": result["shape"], "mode": result["mode"]}
    row |= {
        name: f"{value:,}" if isinstance(value, int) else value
        for name, value in result["columns"].items()
    }
    facts = {
        name: f"{value:,}" if isinstance(value, int) else value
        for name, value in result["facts"].items()
    }
    row |= {name: text for name, text in facts.items() if name != "differ"}
    row |= {f"{name} ms": peer(name) for name in result["peers"]}
    memory = result["peak_extra_bytes"]
    row |= {f"extra MB {name}": f"{size / 1e6:.1f}" for name, size in memory.items()}
    row["differ"] = facts.get("differ", "")
    return row


def quality_rows(result: Result) -> list[dict[str, str]]:
    head = {
        "shape": result["shape"],
        "people": f"{result['people']:,}",
        "boxes": f"{result['boxes']:,}",
    }
    table = []
    for method in result["methods"]:
        row = head | {"method": method["method"]}
        for name in ("TP", "duplicates", "false", "missed"):
            row[name] = f"{method[name]:,}" if name in method else "-"
        row["ms"] = _ms(method["ms"]) if "ms" in method else method["not_measured"]
        table.append(row)
    return table


CELLS = {"maps": map_cells, "boxes": box_cells}


def _ms(value: float) -> str:
    """Three digits that count; microseconds are the finest."""
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def tables(results: list[Result]) -> list[tuple[list[list[str]], str]]:
    """Header and rows, without columns that are empty everywhere, and the note below, by kind."""
    found = []
    for kind, note in NOTES.items():
        several = [row for result in results if _kind(result) == kind for row in rows(result)]
        columns = list(dict.fromkeys(c for row in several for c in row))
        columns = [c for c in columns if any(row.get(c) for row in several)]
        if several:
            table = [columns, *([row.get(c, "") for c in columns] for row in several)]
            found.append((table, note + _refusals(results)))
    return found


def _refusals(results: list[Result]) -> str:
    reasons = {
        f"{name} {reason}"
        for result in results
        for name, reason in result.get("not_measured", {}).items()
    }
    return f" Not measured (-): {'; '.join(sorted(reasons))}." if reasons else ""


def text(results: list[Result]) -> str:
    parts = []
    for table, note in tables(results):
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(map(str.rjust, row, widths)) for row in table]
        parts.append("\n".join([*lines, "", note]))
    return "\n\n".join(parts)


def markdown(facts: dict[str, Any], results: list[Result]) -> str:
    parts = [headline(facts), ""]
    for (head, *body), note in tables(results):
        rule = ["---" if column in WORDS else "---:" for column in head]
        parts += [f"| {' | '.join(row)} |" for row in (head, rule, *body)]
        parts += ["", note, ""]
    return "\n".join(parts)


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
