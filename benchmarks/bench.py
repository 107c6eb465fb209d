"""Times an operator against eager and compiled torch.

    python benchmarks/bench.py gated_upsample_add --threads 1 --shapes p2,p4

Runs with the installed tinyops from any directory. Exits with 1 if a result is wrong.
"""

import argparse
import importlib
import itertools
import os
import sys
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
    parser.add_argument("--dtype", type=some, help="float32,bfloat16,...")
    parser.add_argument("--layout", type=some, default=LAYOUTS, help="nchw,nhwc")
    parser.add_argument("--shapes", type=some, help="names from the operator's file")
    parser.add_argument("--modes", type=some, help="names from the operator's file")
    parser.add_argument("--malloc", default="tuned", choices=("tuned", "default"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="every number")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="a table to paste")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
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


def select(options: argparse.Namespace, module: Any) -> list[tuple[str, str, str, str]]:
    """(shape, mode, dtype, layout) of every case."""
    shapes = options.shapes or module.DEFAULT_SHAPES[options.device]
    modes = options.modes or module.DEFAULT_MODES
    for name, chosen, known in (
        ("shapes", shapes, module.SHAPES),
        ("modes", modes, module.MODES),
    ):
        if unknown := set(chosen) - set(known):
            raise SystemExit(f"bench.py: --{name}: {unknown} is not in {tuple(known)}")

    def dtypes(shape: str) -> list[str]:
        return options.dtype or ["float32", "bfloat16"][: 1 + (shape in module.HALF_SHAPES)]

    return [
        (shape, mode, dtype, layout)
        for shape in shapes
        for dtype, mode, layout in itertools.product(dtypes(shape), modes, options.layout)
    ]


def command(options: argparse.Namespace) -> str:
    """The call that gives the same again, with nothing left to defaults of this machine."""
    words = [f"python benchmarks/bench.py {options.operator}"]
    for name in ("device", "threads", "dtype", "layout", "shapes", "modes", "malloc"):
        if value := getattr(options, name):
            words.append(f"--{name} {value if isinstance(value, str | int) else ','.join(value)}")
    return " ".join(words + ["--quick"] * options.quick)


def main() -> int:
    options = parse(sys.argv[1:])
    restart_in(wanted_environment(options))

    # Only now: these import torch, which starts allocating.
    import report
    import torch
    from harness import measure

    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("bench.py: --device cuda: torch finds no GPU")
    module = importlib.import_module(f"ops.bench_{options.operator}")
    selected = select(options, module)
    layouts = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
    facts = report.environment(device, options.malloc, command(options))
    print(report.headline(facts), flush=True)
    if facts["load_average"] > 0.5:
        report.progress(f"The machine is busy: load average {facts['load_average']:.1f}")

    results: list[dict[str, Any]] = []
    failures: list[dict[str, str]] = []
    for number, (shape, mode, dtype, layout) in enumerate(selected, 1):
        name = f"{shape} {mode} {dtype} {layout}"
        report.progress(f"[{number}/{len(selected)}] {name}")
        case = module.case(shape, mode, getattr(torch, dtype), layouts[layout])
        try:
            results.append(measure(case, device, 0.5 if options.quick else 3.0))
        except Exception as error:  # a peer that fails must not cost the other cases
            failures.append({"case": name, "error": f"{type(error).__name__}: {error}"})
            report.progress(f"FAILED {failures[-1]['error']}")
        # After every case, so that a run that is cut off leaves what it has.
        report.write(facts, results, failures, options.json, options.markdown)

    print(f"\n{report.text_table(results)}\n\n{report.NOTE}")
    for failure in failures:
        print(f"FAILED {failure['case']}: {failure['error']}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
