"""Trains all systems on one backbone alike, with several seeds, and compares their AP.

    python benchmarks/compare_models.py --data synth --out runs/tinysea
    python benchmarks/compare_models.py --data DIR --out runs/cells --tile 320 256

DIR holds train.json, val.json and the folders train and val; `synth` draws TinySea first. Every
training is one call of `tinyops train`; all have the same data, steps, optimizer and, but for RFLA,
anchors. EFPN and GDL begin with the FPN of the same seed, and have half as many steps in each of
their two further phases. An interrupted comparison goes on when it is called again. On a GPU:
`--device cuda --backbone resnet50 --steps 12000 --batch 16 --small "" --proposals 1000 1000
--size 640 512`.
"""

import argparse
import datetime
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torchvision
from report import cpu_name

import tinyops
from tinyops.data.synth_write import PRESETS, Preset, write_tinysea
from tinyops.models import create
from tinyops.models.phases import PhasedDetector
from tinyops.nn.complexity import complexity

LAYOUTS = {
    "FPN": "faster_rcnn_fpn_{}",
    "SSPNet": "faster_rcnn_sspnet_{}",
    "FPN, bottom-heavy": "faster_rcnn_fpn_bh_{}",
    "SR-TOD": "faster_rcnn_srtod_{}",
    "RFLA": "faster_rcnn_rfla_{}",
    "EFPN": "faster_rcnn_efpn_{}",
    "GDL": "faster_rcnn_gdl_{}",
}
BANDS = ("tiny", "tiny1", "tiny2", "tiny3", "all")
# Both sets have objects of 2 to 30 px; the same anchors, sampling and suppression for all layouts.
ALIKE = {
    "anchor_scales": [2.0],
    "anchor_ratios": [0.5, 1.0, 2.0],
    "weighted_negatives": False,
    "nms": "nms",
    "nms_threshold": 0.5,
    "max_per_image": 500,
}
SMALL = "neck_channels=64 head_channels=256 rpn_samples=128 samples=128 pre_nms=[500,500]"
SMALL_TOO = {  # what systems need besides, to be as small
    "EFPN": "texture_width=64",
    "GDL": "crop_size=16 upscale=2 generator_width=16 generator_blocks=2 discriminator_width=32 "
    "discriminator_hidden=128 crop_samples=32",
}
PHASED = ("EFPN", "GDL")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="a folder, or synth")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--backbone", default="resnet_nano")
    parser.add_argument("--layouts", nargs="+", default=list(LAYOUTS), choices=list(LAYOUTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--tile", type=int, nargs=2, default=(256, 256))
    parser.add_argument("--size", type=int, nargs=2, help="of synth's images; default: its preset")
    parser.add_argument("--max-detections", type=int, default=500)
    parser.add_argument("--small", default=SMALL, help="overrides for a CPU")
    # As many in both: those beyond are of levels that RFLA's second stage never saw in training,
    # and takes for objects. More than objects in an image, of course.
    parser.add_argument("--proposals", type=int, nargs=2, default=(300, 300), help="train, test")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at once, 1 thread each")
    parser.add_argument("--markdown", type=Path)
    return parser.parse_args()


def folder_of_data(options: argparse.Namespace) -> Path:
    if options.data != "synth":
        return Path(options.data)
    folder = options.out / "data"
    preset, first = PRESETS["tinysea-s"], 0
    if options.size:
        preset = Preset((("train", 8000), ("val", 1000)), tuple(options.size))
    for split, count in preset.splits:
        if not (folder / f"{split}.json").is_file():
            write_tinysea(
                folder,
                images=count,
                size=preset.size,
                split=split,
                first=first,
                workers=options.jobs,
            )
        first += count
    return folder


def overrides(options: argparse.Namespace, layout: str) -> dict[str, Any]:
    """Settings of a model."""
    alike = {k: v for k, v in ALIKE.items() if "RFLA" not in layout or k != "anchor_scales"}
    words = f"{options.small} {SMALL_TOO.get(layout, '')}" if options.small else ""
    small = dict(map(_pair, shlex.split(words)))
    return {**alike, "proposals": list(options.proposals), **small}


def folder_of_run(options: argparse.Namespace, layout: str, seed: int) -> Path:
    out: Path = options.out / f"{LAYOUTS[layout].format(options.backbone)}-seed{seed}"
    return out


def train(options: argparse.Namespace, data: Path, layout: str, seed: int) -> dict[str, float]:
    """One run, unless it is complete; the metrics at its end."""
    name = LAYOUTS[layout].format(options.backbone)
    out = folder_of_run(options, layout, seed)
    steps = options.steps // 2 if layout in PHASED else options.steps
    if found := metrics_at(out / "log.jsonl", steps):
        return found
    command = [sys.executable, "-m", "tinyops", "train", "--model", name, "--out", str(out)]
    if layout in PHASED:
        command += ["--start", str(folder_of_run(options, "FPN", seed))]
        command += ["--phase-steps", "0", str(steps), str(steps)]
    for split, prefix in (("train", ""), ("val", "val-")):
        command += [f"--{prefix}annotations", str(data / f"{split}.json")]
        command += [f"--{prefix}images", str(data / split)]
    command += ["--tile", *map(str, options.tile), "--steps", str(options.steps)]
    command += ["--batch", str(options.batch), "--lr", str(options.lr), "--seed", str(seed)]
    command += ["--optimizer", "adamw", "--schedule", "cosine", "--warmup", "100", "--clip", "10"]
    command += ["--val-every", "1000000", "--save-every", "200"]
    command += ["--workers", "0" if options.device == "cpu" else "8"]
    command += ["--max-detections", str(options.max_detections), "--device", options.device]
    settings = overrides(options, layout)
    command += ["--override", *(f"{k}={json.dumps(v)}" for k, v in settings.items())]
    environment = os.environ | {"OMP_NUM_THREADS": "1" if options.device == "cpu" else "8"}
    out.mkdir(parents=True, exist_ok=True)
    with (out / "output.txt").open("w") as output:
        subprocess.run(command, check=True, env=environment, stdout=output, stderr=output)
    found = metrics_at(out / "log.jsonl", steps)
    assert found is not None
    return found


def metrics_at(log: Path, step: int) -> dict[str, float] | None:
    """What validation found at a step."""
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    return next((row for row in rows if row["kind"] == "val" and row["step"] == step), None)


def cost(options: argparse.Namespace, data: Path, layout: str) -> str:
    """Millions of parameters and billions of multiply-accumulates of a tile."""
    settings = overrides(options, layout)
    classes = len(json.loads((data / "train.json").read_text())["categories"])
    model = create(LAYOUTS[layout].format(options.backbone), classes, **settings)
    if isinstance(model, PhasedDetector):
        model.set_phase(model.phases[-1])
    width, height = options.tile
    found = complexity(model, [torch.rand(3, height, width)])
    return f"{found.parameters / 1e6:.2f} | {found.macs / 1e9:.2f}"


def _pair(word: str) -> tuple[str, object]:
    key, _, value = word.partition("=")
    return key, json.loads(value)


def table(options: argparse.Namespace, data: Path, found: dict[str, list[dict[str, float]]]) -> str:
    def cell(values: Sequence[float]) -> str:
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        return f"{100 * statistics.mean(values):.1f} ± {100 * spread:.1f}"

    lines = [
        "| neck, layout | M params | GMAC | " + " | ".join(f"AP50 {b}" for b in BANDS) + " |",
        "| --- | ---: | ---: | " + " | ".join("---:" for _ in BANDS) + " |",
    ]
    for layout, runs in found.items():
        cells = [cell([run[f"ap50_{band}"] for run in runs]) for band in BANDS]
        lines.append(f"| {layout} | {cost(options, data, layout)} | " + " | ".join(cells) + " |")
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    machine = cpu_name() if options.device == "cpu" else torch.cuda.get_device_name()
    head = (
        f"{machine}; {versions}, tinyops {tinyops.__version__}; "
        f"{datetime.date.today()}; mean ± standard deviation of {len(options.seeds)} seeds; "
        f"`{shlex.join(['python', *sys.argv])}`"
    )
    return f"{head}\n\n" + "\n".join(lines) + "\n"


def main() -> None:
    options = parse()
    data = folder_of_data(options)
    found: dict[str, list[dict[str, float]]] = {layout: [] for layout in options.layouts}
    for wave in (set(LAYOUTS) - set(PHASED), set(PHASED)):  # the second begins with the first
        layouts = [layout for layout in options.layouts if layout in wave]
        plan = [(layout, seed) for seed in options.seeds for layout in layouts]
        with ThreadPoolExecutor(options.jobs) as pool:
            results = list(pool.map(lambda each: train(options, data, *each), plan))
        for (layout, _), metrics in zip(plan, results, strict=True):
            found[layout].append(metrics)
    text = table(options, data, found)
    print(text)
    if options.markdown:
        options.markdown.write_text(text)


if __name__ == "__main__":
    main()
