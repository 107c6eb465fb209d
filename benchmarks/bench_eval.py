"""AP from json files: time, processor time and memory, against other evaluators.

    python benchmarks/bench_eval.py --json out.json --markdown out.md
    python benchmarks/bench_eval.py --images 100 --rounds 1

One class, 200 objects and 200 detections per image. `tinyperson`: seven sizes, three IoU, the best
200 detections; tinyops also applies the rules that the others lack, and computes the miss rates.
`coco`: four sizes, ten IoU, 100 detections. From the files to the numbers, in a process of its own
without the imports, in rounds A B C A B C; pycocotools once. Values are compared first: without
the rules that are TinyPerson's alone, all must give the same to 1e-9. `million`: a million
detections in 5000 images.
"""

import argparse
import contextlib
import io
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PEERS = ("tinyops", "faster-coco-eval", "hotcoco", "pycocotools")
SETTINGS = ("tinyperson", "coco")
Result = dict[str, Any]


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=800)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers", nargs="+", default=PEERS, choices=PEERS)
    parser.add_argument("--settings", nargs="+", default=SETTINGS, choices=SETTINGS)
    parser.add_argument("--million", type=int, default=1_000_000, help="detections; 0: not run")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--make", nargs=4, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def make(folder: Path, images: int, objects: int, detections: int) -> None:
    """Boxes of 2 to 40 px in 640 x 512; of the detections three quarters lie on objects."""
    import numpy as np

    rng = np.random.default_rng(0)
    annotations, found = [], []
    for image in range(images):
        size = rng.uniform(2, 40, (objects, 2))
        corner = rng.uniform(0, 1, (objects, 2)) * (np.array([640, 512]) - size)
        boxes = np.concatenate([corner, size], 1)
        for box in boxes.round(3).tolist():
            entry = {"id": len(annotations) + 1, "image_id": image, "category_id": 1, "bbox": box}
            area = box[2] * box[3]
            annotations.append({**entry, "area": area, "iscrowd": 0, "ignore": 0, "uncertain": 0})
        near = boxes[rng.integers(0, objects, detections)]
        near[:, :2] += rng.normal(0, 0.1, (detections, 2)) * near[:, 2:]
        near[:, 2:] *= np.exp(rng.normal(0, 0.1, (detections, 2)))
        away = rng.random(detections) < 0.25
        near[away, :2] = rng.uniform(0, 500, (away.sum(), 2))
        scores = rng.random(detections).round(5).tolist()
        for box, score in zip(near.round(3).tolist(), scores, strict=True):
            found.append({"image_id": image, "category_id": 1, "bbox": box, "score": score})
    truth = {
        "images": [{"id": k, "width": 640, "height": 512} for k in range(images)],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": annotations,
    }
    (folder / "gt.json").write_text(json.dumps(truth))
    (folder / "dt.json").write_text(json.dumps(found))


def run_one(peer: str, setting: str, folder: Path, threads: int) -> Result:
    """In this process: what it took, and AP by band and IoU."""
    measure = of_tinyops if peer == "tinyops" else of_coco_api
    call, values = measure(peer, setting, str(folder / "gt.json"), str(folder / "dt.json"), threads)
    before = resident("VmHWM")
    wall, processor = time.perf_counter(), time.process_time()
    call()
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    peak = resident("VmHWM")
    return {"s": wall, "cpu s": processor, "MB": peak, "imports MB": before, "values": values()}


def of_tinyops(_peer: str, setting: str, truth: str, found: str, threads: int) -> Any:
    from tinyops.evaluation import evaluate

    def values() -> list[float]:
        options = {"flags": False} if setting == "tinyperson" else {}
        result = evaluate(setting, truth, found, threads=threads, **options)
        rows = [
            row for key, row in result["AP"].items() if key.endswith(f"@{result['maxDets'][-1]}")
        ]
        return [value for row in rows for iou, value in row.items() if iou != "mean"]

    return lambda: evaluate(setting, truth, found, threads=threads), values


def of_coco_api(peer: str, setting: str, truth: str, found: str, _threads: int) -> Any:
    import numpy as np

    if peer == "faster-coco-eval":
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as COCOeval
    elif peer == "hotcoco":
        from hotcoco import COCO, COCOeval
    else:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    results: list[Any] = []

    def call() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            index = COCO(truth)
            evaluation = COCOeval(index, index.loadRes(found), "bbox")
            if setting == "tinyperson":
                sizes = [(1, 1e5), (1, 20), (1, 8), (8, 12), (12, 20), (20, 32), (32, 1e5)]
                evaluation.params.areaRng = [[low**2, high**2] for low, high in sizes]
                evaluation.params.areaRngLbl = [str(k) for k in range(len(sizes))]
                evaluation.params.iouThrs = np.array([0.25, 0.5, 0.75])
                evaluation.params.maxDets = [200]
            evaluation.evaluate()
            evaluation.accumulate()
            results.append(evaluation)

    def values() -> list[float]:
        precision = np.asarray(results[0].eval["precision"])[:, :, 0, :, -1]  # [T, 101, A]
        return precision.mean(1).T.ravel().tolist()

    return call, values


def resident(field: str) -> float:
    found = re.search(rf"^{field}:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
    assert found
    return int(found[1]) / 1e3


def in_process(*arguments: str, threads: int) -> str:
    """This file on the first `threads` processors."""
    cpus = sorted(os.sched_getaffinity(0))[:threads]
    limits = {name: str(threads) for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, __file__, "--threads", str(threads), *arguments],
        env=os.environ | limits,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cpus),
    )
    return done.stdout.splitlines()[-1] if done.stdout else ""


def measure_all(options: argparse.Namespace, folder: Path) -> list[Result]:
    in_process("--make", str(folder), str(options.images), "200", "200", threads=options.threads)
    rows = []
    for setting in options.settings:
        runs: dict[str, list[Result]] = {peer: [] for peer in options.peers}
        for number in range(options.rounds):
            for peer in options.peers:
                if number == 0 or peer != "pycocotools":
                    text = in_process("--one", peer, setting, str(folder), threads=options.threads)
                    runs[peer].append(json.loads(text))
        expected = runs[options.peers[0]][0]["values"]
        for peer, done in runs.items():
            worst = max(abs(a - b) for a, b in zip(expected, done[0]["values"], strict=True))
            assert worst <= 1e-9, f"{peer} differs by {worst} in {setting}"
            row: Result = {"setting": setting, "evaluator": peer, "runs": len(done)}
            for name in ("s", "cpu s", "MB", "imports MB"):
                row[name] = statistics.median(run[name] for run in done)
            rows.append(row)
    return rows


def million(options: argparse.Namespace, folder: Path) -> list[Result]:
    images = max(1, options.million // 200)
    in_process("--make", str(folder), str(images), "50", "200", threads=options.threads)
    rows = []
    for setting in options.settings:
        text = in_process("--one", "tinyops", setting, str(folder), threads=options.threads)
        row = {k: v for k, v in json.loads(text).items() if k != "values"}
        name = f"{setting}, {200 * images:,} detections, {50 * images:,} objects"
        rows.append({"setting": name, "evaluator": "tinyops", "runs": 1, **row})
    return rows


def markdown(rows: list[Result]) -> str:
    names = list(rows[0])
    lines = [names, ["---"] * len(names)]
    for row in rows:
        lines.append([f"{x:.2f}" if isinstance(x, float) else str(x) for x in row.values()])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def main() -> None:
    options = parse(sys.argv[1:])
    if options.make:
        make(Path(options.make[0]), *map(int, options.make[1:]))
        return
    if options.one:
        peer, setting, folder = options.one
        print(json.dumps(run_one(peer, setting, Path(folder), options.threads)))
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = measure_all(options, Path(folder))
        if options.million:
            rows += million(options, Path(folder))
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    facts = (
        f"{model[1] if model else platform.machine()}, {options.threads} threads, load "
        f"{os.getloadavg()[0]:.1f}, Python {platform.python_version()}, {options.images} images"
    )
    print(facts, markdown(rows), sep="\n\n")
    if options.json:
        options.json.write_text(json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(f"{facts}\n\n{markdown(rows)}")


if __name__ == "__main__":
    main()
