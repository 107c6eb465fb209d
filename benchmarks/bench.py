"""Times an operator against eager and compiled torch, or against other packages.

    python benchmarks/bench.py gated_upsample_add --threads 1 --shapes p2,p4
    python benchmarks/bench.py nms --threads 1 --shapes crowd-100k --peers torchvision,lsnms

Runs with the installed tinyops from any directory. Exits with 1 if a result is wrong.
"""

import argparse
import functools
import importlib
import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# glibc as jemalloc or tcmalloc behave: freed memory is kept, not handed back to the system and
# faulted in again page by page. Read once, when a process starts.
TUNED_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
DTYPES = ("float32", "float64", "float16", "bfloat16")
LAYOUTS = ("nchw", "nhwc")


def operators() -> list[str]:
    files = (Path(__file__).parent / "ops").glob("bench_*.py")
    return sorted(file.stem.removeprefix("bench_") for file in files)


def parse(arguments: list[str]) -> argparse.Namespace:
    def some(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("operator", choices=operators(), metavar="operator", help=f"{operators()}")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all CPUs")
    parser.add_argument("--dtype", type=some, help="float32,bfloat16,...; of feature maps")
    parser.add_argument("--layout", type=some, help="nchw,nhwc; of feature maps")
    parser.add_argument("--shapes", type=some, help="names from the operator's file")
    parser.add_argument("--modes", type=some, help="names from the operator's file")
    parser.add_argument("--peers", type=some, help="of box operators: only these, and tinyops")
    parser.add_argument("--malloc", default="tuned", choices=("tuned", "default"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="every number")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="a table to paste")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, fewer shapes")
    options = parser.parse_args(arguments)
    for name, known in (("dtype", DTYPES), ("layout", LAYOUTS)):
        if unknown := set(getattr(options, name) or ()) - set(known):
            parser.error(f"--{name}: {unknown} is not in {known}")
    return options


def restart_in(environment: dict[str, str]) -> None:
    """Replace this process by itself in `environment`, unless it is there already."""
    if environment != dict(os.environ):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def wanted_environment(options: argparse.Namespace) -> dict[str, str]:
    environment = {k: v for k, v in os.environ.items() if k not in TUNED_MALLOC}
    if options.malloc == "tuned":
        environment |= TUNED_MALLOC
    # One cache per number of threads: Inductor bakes it into the code that it caches.
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = home / "tinyops-benchmarks" / f"inductor-{options.threads}-threads"
    return environment | {
        "TORCHINDUCTOR_CACHE_DIR": str(cache),
        "OMP_NUM_THREADS": str(options.threads),
        "KINETO_LOG_LEVEL": "5",  # silent where there is no GPU
    }


Run = Callable[[], dict[str, Any]]


def plan(options: argparse.Namespace, module: Any, device: Any) -> list[tuple[str, Run]]:
    """Name and measurement of every case."""
    default = module.DEFAULT_SHAPES
    if options.quick:
        default = getattr(module, "QUICK_SHAPES", default)
    shapes = options.shapes or default[options.device]
    modes = options.modes or module.DEFAULT_MODES
    for name, chosen, known in (
        ("shapes", shapes, module.SHAPES),
        ("modes", modes, module.MODES),
    ):
        if unknown := set(chosen) - set(known):
            raise SystemExit(f"bench.py: --{name}: {unknown} is not in {tuple(known)}")
    of_maps = hasattr(module, "HALF_SHAPES")
    for name in ("peers",) if of_maps else ("dtype", "layout"):
        if getattr(options, name):
            raise SystemExit(f"bench.py: {options.operator} has no --{name}")
    several = itertools.product(shapes, modes)
    if of_maps:
        return [each for case in several for each in plan_maps(options, module, device, *case)]
    return [plan_boxes(options, module, device, *case) for case in several]


def plan_maps(
    options: argparse.Namespace, module: Any, device: Any, shape: str, mode: str
) -> list[tuple[str, Run]]:
    import torch
    from harness import measure

    formats = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
    dtypes = options.dtype or ["float32", "bfloat16"][: 1 + (shape in module.HALF_SHAPES)]

    def run(dtype: str, layout: str) -> dict[str, Any]:
        case = module.case(shape, mode, getattr(torch, dtype), formats[layout])
        return measure(case, device, 0.5 if options.quick else 3.0)

    return [
        (f"{shape} {mode} {dtype} {layout}", functools.partial(run, dtype, layout))
        for dtype, layout in itertools.product(dtypes, options.layout or LAYOUTS)
    ]


def plan_boxes(
    options: argparse.Namespace, module: Any, device: Any, shape: str, mode: str
) -> tuple[str, Run]:
    from box_harness import measure

    def run() -> dict[str, Any]:
        if mode in getattr(module, "TABLES", ()):
            return module.TABLES[mode](shape, device, options.peers)
        seconds = 0.3 if options.quick else 1.5  # per peer
        case = module.case(shape, mode, device)
        return measure(case, options.operator, device, seconds, options.peers)

    return f"{shape} {mode}", run


def command(options: argparse.Namespace) -> str:
    """The call that gives the same again, with nothing left to defaults of this machine."""
    words = [f"python benchmarks/bench.py {options.operator}"]
    for name in ("device", "threads", "dtype", "layout", "shapes", "modes", "peers", "malloc"):
        if value := getattr(options, name):
            words.append(f"--{name} {value if isinstance(value, str | int) else ','.join(value)}")
    return " ".join(words + ["--quick"] * options.quick)


def main() -> int:
    options = parse(sys.argv[1:])
    restart_in(wanted_environment(options))

    # Only now: these import torch, which starts allocating.
    import report
    import torch

    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("bench.py: --device cuda: torch finds no GPU")
    module = importlib.import_module(f"ops.bench_{options.operator}")
    planned = plan(options, module, device)
    facts = report.environment(device, options.malloc, command(options))
    if packages := getattr(module, "PACKAGES", ()):
        from peers import versions

        facts["peers"] = versions(packages)
    print(report.headline(facts), flush=True)
    if facts["load_average"] > 0.5:
        report.progress(f"The machine is busy: load average {facts['load_average']:.1f}")

    results: list[dict[str, Any]] = []
    failures: list[dict[str, str]] = []
    for number, (name, run) in enumerate(planned, 1):
        report.progress(f"[{number}/{len(planned)}] {name}")
        try:
            results.append(run())
        except Exception as error:  # a peer that fails must not cost the other cases
            failures.append({"case": name, "error": f"{type(error).__name__}: {error}"})
            report.progress(f"FAILED {failures[-1]['error']}")
        # After every case, so that a run that is cut off leaves what it has.
        report.write(facts, results, failures, options.json, options.markdown)

    print(f"\n{report.text(results)}")
    for failure in failures:
        print(f"FAILED {failure['case']}: {failure['error']}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
