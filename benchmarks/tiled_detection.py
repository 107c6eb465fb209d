"""Detection by tiles: speed, memory, and how well people are found, against SAHI and supervision.

    python benchmarks/tiled_detection.py --threads 2
    python benchmarks/tiled_detection.py --model best.safetensors --parts quality --scenes 4

Scenes are TinySea's; tiles have 640 x 512 px.

`speed`: a scene of 6354 x 4064 px in 99 tiles that overlap by 30 px. In the second row the network
runs on them too, but its output is replaced by that of a simulated detector, of which 20,000 boxes
are left after merging. Then without the network, here and in SAHI: the time of all the rest.
`memory`: growth of the process, and the most bytes of tensors, above image and model.
`quality`: tiles overlap by 100 px. The network sees every tile once, and the whole image. Every
method then gets these detections through its own public interface, so that it is the merging alone
that differs. Its tiles per second are those of the faster of two runs with the network itself on
the first scene.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench import restart_in, wanted_environment

PARTS = ("speed", "memory", "quality")
PACKAGES = ("torchvision", "sahi", "supervision", "numba")
NOTES = {
    "speed": "outside: share of the time that is not the network's.",
    "memory": "In a process of its own with the allocator's defaults.",
    "quality": "AP50 counts up to 3,000 detections per image. Each tile by itself: against what it "
    "shows of the truth. The model's limits of proposals and detections hold for the whole image, "
    "too. duplicates, false, missed: of detections with a score of at least 0.5, at IoU 0.5, best "
    "first; across tiles: duplicates of another tile than the detection that has the person. "
    "SAHI's default is scores above 0.3, GREEDYNMM by IoS at 0.5, and a pass over the whole image "
    "besides the tiles. Below 0.1 it takes NMS by IoU.",
}


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="embedded", help="embedded, or a file")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--batch", type=int, default=1, help="tiles; on a CPU 1 is fastest")
    parser.add_argument("--amp", default="none", choices=("none", "bf16"))
    parser.add_argument("--scenes", type=int, default=2, help="of quality")
    parser.add_argument("--size", type=int, nargs=2, default=(1720, 1336), help="of these")
    parser.add_argument("--overlap", type=int, default=100, help="of their tiles")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--malloc", default="tuned", choices=("tuned", "default"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--memory-only", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> None:
    options = parse(sys.argv[1:])
    if options.memory_only:  # a process of its own, see below
        from tiled_measures import measure_memory

        print(json.dumps(measure_memory(options)))
        return
    restart_in(wanted_environment(options))

    import torch
    from peers import versions
    from report import environment, headline
    from tiled_measures import measure_quality, measure_speed

    torch.set_num_threads(options.threads)
    command = " ".join(["python", *sys.argv])
    facts = environment(torch.device("cpu"), options.malloc, command)
    facts["peers"] = versions(PACKAGES)
    measures = {"speed": measure_speed, "memory": memory_elsewhere, "quality": measure_quality}
    results = {part: measures[part](options) for part in options.parts}
    parts = [f"{table(rows)}\n{NOTES[part]}\n" for part, rows in results.items()]
    text = "\n".join([headline(facts), "", *parts])
    print(text)
    if options.json:
        options.json.write_text(json.dumps({"environment": facts, **results}, indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(text)


def memory_elsewhere(options: argparse.Namespace) -> list[dict[str, Any]]:
    """With plain malloc: what is freed goes back, so that it can be seen."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, *sys.argv, "--memory-only"],
        env=plain,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def table(rows: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [
        "| " + " | ".join(columns) + " |",
        "| --- |" + " ---: |" * (len(columns) - 1),
    ]
    lines += ["| " + " | ".join(cell(c, row.get(c)) for c in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def cell(column: str, value: Any) -> str:
    if value is None:
        return "-"
    if column == "outside":
        return f"{value:.1%}"
    if column.startswith("AP"):
        return f"{100 * value:.2f}"
    if isinstance(value, float):
        return f"{value:.2f}"
    return value if isinstance(value, str) else f"{value:,}"


if __name__ == "__main__":
    main()
