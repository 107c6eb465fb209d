"""Training steps of SSPNet with tinyops against the same model in plain PyTorch, in one run.

    python benchmarks/train_step.py --threads 1
    python benchmarks/train_step.py --device cuda --batch 8 --amp

Two models with the same weights and images; one runs tinyops' operators and the collapsed
attention, the other what models/plain.py has. First the losses of the necks are compared (those of
whole steps depend on draws), then steps, forward and backward without the optimizer, are timed in
turns. Memory, of each model in a process of its own: the most bytes of tensors that one step adds,
and on a CPU by how much the process grows, which includes the scratch memory of convolutions and
what the allocator cannot reuse, and varies by a tenth.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from bench import restart_in, wanted_environment

PEERS = ("tinyops", "plain")
PARTS = ("detector", "neck")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="faster_rcnn_sspnet_resnet50")
    parser.add_argument("--size", type=int, nargs=2, default=(640, 512), help="width, height")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--objects", type=int, default=30, help="per image")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--seconds", type=float, default=60, help="of each part")
    parser.add_argument("--malloc", default="tuned", choices=("tuned", "default"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)  # a process of its own
    return parser.parse_args(arguments)


Step = Callable[[], float]


def make(options: argparse.Namespace, peer: str) -> tuple[dict[str, Step], Any]:
    """A step of every part, which returns its loss; and the model."""
    import torch
    from models import plain

    from tinyops.models import create
    from tinyops.nn.batch import collate_images, collate_targets

    torch.manual_seed(0)
    device = torch.device(options.device)
    # Frozen as with pretrained weights, and as in the released settings.
    model = create(options.model, collapse=peer == "tinyops", frozen_stages=1, norm_eval=True)
    model.to(device).train()
    images, targets = scene(options, device)
    batch = collate_images(images, mean=model.mean, std=model.std)
    truth = collate_targets(targets)
    with torch.no_grad():
        features = [x.detach() for x in model.backbone(batch.pixels)]

    def under() -> AbstractContextManager[Any]:
        return plain.installed() if peer == "plain" else nullcontext()

    def autocast() -> AbstractContextManager[Any]:
        return torch.autocast(options.device, torch.bfloat16, enabled=options.amp)

    def finish(loss: Any) -> float:
        model.zero_grad(set_to_none=True)
        loss.backward()
        return float(loss.detach())  # waits for a GPU

    def whole() -> float:
        torch.manual_seed(0)
        with under(), autocast():
            return finish(sum(model(images, targets).values()))

    def neck() -> float:
        with under(), autocast():
            levels, aux = model.neck([x.requires_grad_() for x in features])
            losses = model.neck.losses(aux, batch, truth)
            return finish(sum(losses.values()) + sum(x.float().square().mean() for x in levels))

    return {"detector": whole, "neck": neck}, model


def scene(options: argparse.Namespace, device: Any) -> tuple[list[Any], list[dict[str, Any]]]:
    import torch

    generator = torch.Generator().manual_seed(1)
    width, height = options.size
    images, targets = [], []
    for _ in range(options.batch):
        images.append(torch.rand(3, height, width, generator=generator).to(device))
        centres = torch.rand(options.objects, 2, generator=generator)
        centres = 20 + centres * (torch.tensor([width, height]) - 40)
        halves = 1 + 9 * torch.rand(options.objects, 2, generator=generator)
        boxes = torch.cat([centres - halves, centres + halves], 1).to(device)
        labels = torch.ones(options.objects, dtype=torch.int64, device=device)
        targets.append({"boxes": boxes, "labels": labels})
    return images, targets


def check(options: argparse.Namespace) -> dict[str, float]:
    """Relative difference of the necks' losses; the draws of a whole step differ."""
    losses = {peer: make(options, peer)[0]["neck"]() for peer in PEERS}
    error = abs(losses["tinyops"] / losses["plain"] - 1)
    tolerance = 1e-2 if options.amp else 1e-4
    assert error < tolerance, f"losses differ: {losses}"
    return losses


def peak_memory(options: argparse.Namespace, peer: str) -> dict[str, dict[str, int]]:
    """Most bytes of tensors, and on a CPU growth of the process, in a step of every part."""
    import harness
    import torch
    from memory import growth

    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    steps, _ = make(options, peer)
    sizes = {}
    for name, step in steps.items():
        step()
        sizes[name] = {"tensors": harness.peak_memory(step, device)}
        if device.type == "cpu":
            sizes[name]["process"] = growth(step)
    return sizes


def main() -> None:
    options = parse(sys.argv[1:])
    if options.memory_of:
        print(json.dumps(peak_memory(options, options.memory_of)))
        return
    restart_in(wanted_environment(options))
    import torch
    from report import environment

    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    check(options)
    memory = {}
    # The default allocator, which gives memory back, so that it can be seen.
    plain_environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    for peer in PEERS:
        command = [sys.executable, *sys.argv, "--memory-of", peer]
        done = subprocess.run(
            command, env=plain_environment, check=True, capture_output=True, text=True
        )
        memory[peer] = json.loads(done.stdout.splitlines()[-1])
    steps = {peer: make(options, peer)[0] for peer in PEERS}
    rows = []
    for part in PARTS:
        times: dict[str, list[float]] = {peer: [] for peer in PEERS}
        end = time.monotonic() + options.seconds
        rounds = 0
        while rounds < 4 or time.monotonic() < end:
            for peer in PEERS:
                start = time.perf_counter()
                steps[peer][part]()
                if rounds:  # the first one warms up
                    times[peer].append(time.perf_counter() - start)
            rounds += 1
        ms = {peer: 1e3 * statistics.median(each) for peer, each in times.items()}
        rows.append(
            {
                "part": part,
                "rounds": rounds - 1,
                "ms": ms,
                "speedup": ms["plain"] / ms["tinyops"],
                "peak_bytes": {peer: memory[peer][part] for peer in PEERS},
                "memory_saved": {
                    kind: 1 - memory["tinyops"][part][kind] / size
                    for kind, size in memory["plain"][part].items()
                },
            }
        )
    facts = environment(device, options.malloc, " ".join(["python", *sys.argv]))
    if options.json:
        options.json.write_text(json.dumps({"environment": facts, "rows": rows}, indent=1) + "\n")
    text = table(rows)
    print(text)
    if options.markdown:
        options.markdown.write_text(text)


def table(rows: list[dict[str, Any]]) -> str:
    kinds = list(rows[0]["memory_saved"])
    columns = ["plain ms", "tinyops ms", "plain/tinyops"]
    for kind in kinds:
        columns += [f"plain MB {kind}", f"tinyops MB {kind}", "saved"]
    lines = ["| part | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * len(columns)]
    for row in rows:
        ms, size = row["ms"], row["peak_bytes"]
        cells = [f"{ms['plain']:.0f}", f"{ms['tinyops']:.0f}", f"{row['speedup']:.2f}"]
        for kind in kinds:
            cells += [f"{size[peer][kind] / 1e6:.0f}" for peer in ("plain", "tinyops")]
            cells.append(f"{row['memory_saved'][kind]:.0%}")
        lines.append(f"| {row['part']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
