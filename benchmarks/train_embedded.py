"""Makes the model inside the package, tinyops.models.load("embedded"), from nothing.

    python benchmarks/train_embedded.py --out runs/embedded

Draws TinySea tiles of a seed of their own, trains by `tinyops train` with the settings beside the
model (tinyops/models/embedded/config.yaml), measures on scenes of another seed that training never
saw, and writes the model in half precision, its log and its AP to tinyops/models/embedded. An
interrupted run goes on when it is called again. `--measure` only measures the committed model.
"""

import argparse
import csv
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from report import cpu_name

from tinyops._files import replacing
from tinyops.data.synth import make_scene
from tinyops.data.synth_write import write_tinysea
from tinyops.evaluation.tinyperson import sized_ap
from tinyops.inference.detect import detect
from tinyops.models import load, save

HOME = Path(__file__).resolve().parents[1] / "tinyops" / "models" / "embedded"
TEST = 9001  # seed of the scenes to measure on; `tinyops demo` has another one
SETS = {  # split -> seed, images, size, objects in 256x256 px
    "sparse": (77, 6000, (256, 256), 6.0),
    "dense": (77, 4000, (256, 256), 14.0),
    "val": (78, 5, (2048, 2048), 2.6),
}
SIZE, DENSITY = (4064, 6354), 2.6  # of the scenes: about a thousand people each
BANDS = {
    "all": (1, 1e5),
    "tiny": (1, 20),
    "tiny1": (1, 8),
    "tiny2": (8, 12),
    "tiny3": (12, 20),
    "above 8 px": (8, 1e5),
}
MAX_DETECTIONS = 3000


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder of the data and of the run")
    parser.add_argument("--scenes", type=int, default=8, help="to measure on")
    parser.add_argument("--measure", action="store_true", help="the committed model")
    options = parser.parse_args()
    if options.out is None and not options.measure:
        parser.error("--out is needed")
    return options


def join(data: Path, splits: Sequence[str], path: Path) -> None:
    """One json of several sets, each in its folder."""
    whole: dict[str, Any] = {"images": [], "annotations": []}
    for split in splits:
        part = json.loads((data / f"{split}.json").read_text())
        images, objects = len(whole["images"]), len(whole["annotations"])
        whole["categories"] = part["categories"]
        for image in part["images"]:
            name = f"{split}/{image['file_name']}"
            whole["images"].append({**image, "id": image["id"] + images, "file_name": name})
        for entry in part["annotations"]:
            ids = {"id": entry["id"] + objects, "image_id": entry["image_id"] + images}
            whole["annotations"].append({**entry, **ids})
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(whole))


def train(out: Path) -> Path:
    """The file of the trained model."""
    data = out / "data"
    for split, (seed, images, size, density) in SETS.items():
        if not (data / f"{split}.json").is_file():
            write_tinysea(
                data, images=images, size=size, seed=seed, split=split, density=density, workers=2
            )
    join(data, ["sparse", "dense"], data / "train.json")
    command = [sys.executable, "-m", "tinyops", "train", "--config", str(HOME / "config.yaml")]
    command += ["--annotations", str(data / "train.json"), "--images", str(data)]
    command += ["--val-annotations", str(data / "val.json"), "--val-images", str(data / "val")]
    command += ["--out", str(out / "run")]
    subprocess.run(command, check=True)
    return out / "run" / "last.safetensors"


def measure(model: torch.nn.Module, scenes: int) -> dict[str, Any]:
    """AP on whole scenes, all together and one by one."""
    truth: dict[str, Any] = {"images": [], "annotations": []}
    truth["categories"] = [{"id": 1, "name": "person"}]
    found: list[dict[str, Any]] = []
    single = []
    for index in range(scenes):
        picture, annotations = make_scene(TEST, index, SIZE, density=DENSITY)
        start = time.perf_counter()
        result = detect(model, picture)
        seconds = time.perf_counter() - start
        image = {"id": index + 1, "file_name": f"{index}", "width": SIZE[0], "height": SIZE[1]}
        objects = [{**a, "image_id": image["id"]} for a in annotations]
        corners = result["boxes"].double()
        boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1).tolist()
        here = [
            {"image_id": image["id"], "category_id": 1, "bbox": box, "score": score}
            for box, score in zip(boxes, result["scores"].tolist(), strict=True)
        ]
        own = {**truth, "images": [image], "annotations": objects}
        single.append({"scene": index, "seconds": seconds, "objects": _counts(objects)})
        single[-1]["ap50"] = _ap(own, here)
        print(single[-1], flush=True)
        truth["images"].append(image)
        truth["annotations"] += objects
        found += here
    return {"ap50": _ap(truth, found), "objects": _counts(truth["annotations"]), "scenes": single}


def _counts(annotations: list[dict[str, Any]]) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for entry in annotations:
        if not (entry["ignore"] or entry["uncertain"]):
            for band, (low, high) in BANDS.items():
                counts[band] += low**2 <= entry["area"] <= high**2
    return dict(counts)


def _ap(truth: dict[str, Any], found: list[dict[str, Any]]) -> dict[str, float]:
    values = sized_ap(truth, found, bands=BANDS, thresholds=(0.5,), max_detections=MAX_DETECTIONS)
    return {band: round(value, 4) for (band, _), value in values.items()}


def main() -> None:
    options = parse()
    if not options.measure:
        model = load(train(options.out))
        save(model.half(), HOME / "model.safetensors")
        thin(options.out / "run" / "train.csv", HOME / "train.csv")
    metrics = measure(load(HOME / "model.safetensors").float(), options.scenes)
    metrics["machine"] = (
        f"{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    metrics["max_detections"] = MAX_DETECTIONS
    (HOME / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print(json.dumps(metrics["ap50"]))


def thin(log: Path, target: Path, every: int = 20) -> None:
    """The mean of every `every` rows of a training's log."""
    with log.open() as file:
        rows = list(csv.DictReader(file))
    with target.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(rows[0])
        for k in range(0, len(rows) - every + 1, every):
            group = rows[k : k + every]
            mean = [sum(float(r[c]) for r in group) / every for c in list(rows[0])[1:]]
            writer.writerow([group[-1]["step"], *(f"{x:.5g}" for x in mean)])


if __name__ == "__main__":
    main()
