"""Find a thousand tiny people in a large picture that is drawn for it, and say how well.

The folder gets scene.png, truth.json and detections.json (COCO), measures.json, picture.jpg and
report.html. The same seed, size and number of people give the same scene.
"""

import functools
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from torch import nn

import tinyops
from tinyops._files import replacing
from tinyops.cli.detection_file import read_detections
from tinyops.cli.device import choose_device
from tinyops.data.synth import CLASS_NAMES, make_scene
from tinyops.evaluation.details import DUPLICATE, FALSE, FOUND, LEFT_OUT
from tinyops.evaluation.matcher import match_image
from tinyops.evaluation.tinyperson import sized_ap
from tinyops.inference.engine import detect_sources
from tinyops.inference.source import open_source
from tinyops.inference.types import Detection
from tinyops.inference.views import plan_tiles
from tinyops.models import load
from tinyops.plot.page import write_page
from tinyops.plot.picture import annotate, save

# Of the sets 2026 to 2049, which no training of this package draws from, the one whose picture has
# the most even mix of sizes.
SEED = 2039
BANDS = {  # limits of sqrt(area) in pixels
    "tiny1": (1.0, 8.0),
    "tiny2": (8.0, 12.0),
    "tiny3": (12.0, 20.0),
    "above 8 px": (8.0, 32.0),
    "all": (1.0, 1e5),
}
PEOPLE = 2000  # at most, so that MAX_DETECTIONS are enough
MAX_DETECTIONS = 3000  # that AP counts
IOU = 0.5
SURE = 0.5  # score of what is shown, and counted as found or as a false alarm
SCENE = "scene.png"
FILES = ("truth.json", SCENE, "detections.json", "measures.json", "picture.jpg", "report.html")
MARK = "drawn by tinyops demo"  # in truth.json


@dataclass
class Demo:
    """The settings of a demonstration."""

    out: Path = Path("demo")
    """Folder to write into; files of an earlier demo in it are replaced."""
    seed: int = SEED
    """Of the scene. The default is one that no training of this package draws from."""
    size: tuple[int, int] = (4064, 6354)
    """Width and height of the scene in pixels."""
    people: int = 1000
    """About so many are drawn."""
    model: str = "embedded"
    """embedded, or the file of a model of one class."""
    device: str = "auto"
    """auto: a GPU if there is one; or cpu, cuda, cuda:1."""
    amp: Literal["none", "bf16"] = "none"
    """bf16: mixed precision, faster on processors that have it in hardware."""


def main(arguments: Sequence[str]) -> int:
    """Run `tinyops demo <arguments>`; returns the exit code."""
    demo = tyro.cli(Demo, prog="tinyops demo", description=__doc__, args=list(arguments))
    try:
        return run(demo)
    except (ValueError, OSError) as error:  # the caller's mistakes: one line, no traceback
        print(f"tinyops demo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tinyops demo: interrupted", file=sys.stderr)
        return 130


def run(demo: Demo) -> int:
    """The `demo` command.

    Raises:
        ValueError: a setting is out of range, or the file is not of a model of one class.
        OSError: a file cannot be read or written, or would replace one that is not of a demo.
    """
    if not 1 <= demo.people <= PEOPLE:
        raise ValueError(f"people must be 1 to {PEOPLE}, got {demo.people}")
    density = demo.people * 256**2 / max(1, demo.size[0] * demo.size[1])
    _refuse_others(demo.out)
    seconds: dict[str, float] = {}
    device = choose_device(demo.device)
    how = Detection(overlap=60, amp=demo.amp)
    with Progress(console=Console(stderr=True)) as progress:
        with _stage("load the model", seconds, progress):
            model = _model(demo.model, device)
        with _stage("draw the scene", seconds, progress):
            image, annotations = make_scene(demo.seed, 0, demo.size, density=density)
        with _stage("write the scene", seconds, progress):
            truth = _coco(demo, annotations)
            _write_scene(demo.out, image, truth)
        task = progress.add_task("detect", total=len(plan_tiles(*demo.size, how)))
        (result,) = detect_sources(
            model,
            [open_source(demo.out / SCENE)],
            how,
            progress=functools.partial(progress.advance, task),
        )
        result.name = SCENE
        seconds.update(result.seconds)
        with _stage("measure", seconds, progress):
            result.save(demo.out / "detections.json")
            found = read_detections(demo.out / "detections.json").results.entries()
            measures = measure(truth, found)
        with _stage("pictures", seconds, progress):
            picture = _picture(image, truth, found)
            save(picture, demo.out / "picture.jpg")
    measures["seconds"] = seconds
    _write_json(demo.out / "measures.json", measures)
    _write_report(demo, measures, picture)
    print(_text(measures), demo.out / "report.html", sep="\n")
    return 0


def measure(truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How well the objects of one image were found, by size.

    Args:
        truth: COCO's images, categories and annotations.
        detections: COCO results.

    Returns:
        bands: for each its ap50, its people, and recall, the share of them that a detection of
            score 0.5 or more found. Of those detections false_alarms and duplicates.
    """
    image = truth["images"][0]
    ap = sized_ap(truth, detections, bands=BANDS, thresholds=[IOU], max_detections=MAX_DETECTIONS)
    objects, sure, kinds, targets = _outcome(truth, detections)
    found = np.zeros(len(objects), bool)
    found[targets[kinds == FOUND]] = True
    sizes = np.sqrt([x["area"] for x in objects])
    bands = {}
    for band, (low, high) in BANDS.items():
        here = (sizes >= low) & (sizes <= high)
        bands[band] = {
            "ap50": ap[band, IOU],
            "people": int(here.sum()),
            "recall": float(found[here].mean()) if here.any() else None,
        }
    return {
        "bands": bands,
        "max_detections": MAX_DETECTIONS,
        "score": SURE,
        "detections": len(sure),
        "false_alarms": int((kinds == FALSE).sum()),
        "duplicates": int((kinds == DUPLICATE).sum()),
        "left_out": int((kinds == LEFT_OUT).sum()),
        "megapixels": image["width"] * image["height"] / 1e6,
    }


def _outcome(
    truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]]
) -> tuple[list[Any], list[Any], NDArray[np.uint8], NDArray[np.int64]]:
    """The objects, the sure detections, and what `match_image` says of these."""
    entries = truth["annotations"]
    regions = [x for x in entries if x["ignore"] or x["uncertain"]]
    objects = [x for x in entries if not (x["ignore"] or x["uncertain"])]
    sure = [x for x in detections if x["score"] >= SURE]
    scores = [x["score"] for x in sure]
    found = match_image(_corners(sure), scores, _corners(objects), _corners(regions), threshold=IOU)
    return objects, sure, *found


def _picture(
    image: NDArray[np.uint8], truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]]
) -> Image.Image:
    """Hits, false alarms and misses; what lies in a region is none of these."""
    objects, sure, kinds, _ = _outcome(truth, detections)
    shown = [x for x, kind in zip(sure, kinds, strict=True) if kind != LEFT_OUT]
    scores = [x["score"] for x in shown]
    return annotate(image, _corners(shown), scores, truth=_corners(objects))


def _write_report(demo: Demo, measures: Mapping[str, Any], picture: Image.Image) -> None:
    bands = measures["bands"]
    width, height = demo.size
    unseen = " No training of tinyops draws from its set of scenes." * (demo.seed == SEED)
    found = {
        f"found, {band}": f"{row['recall']:.1%} of {row['people']:,} people"
        for band, row in bands.items()
        if row["people"]
    }
    facts = {
        "scene": f"{width:,} x {height:,} px, TinySea's set {demo.seed}, picture 0",
        "model": demo.model,
        **found,
        "false alarms": _per_megapixel(measures),
        "duplicates": f"{measures['duplicates']:,}",
        "device": f"{choose_device(demo.device)}, {torch.get_num_threads()} threads, "
        f"amp {demo.amp}",
        "versions": f"tinyops {tinyops.__version__}, torch {torch.__version__}",
    }
    write_page(
        demo.out / "report.html",
        f"{bands['all']['people']:,} tiny people",
        lead=f"A picture drawn for this page, and what was found in it.{unseen} "
        f"Found, false alarms and duplicates are those of a score of at least {SURE}; "
        f"AP50 counts up to {MAX_DETECTIONS:,} detections.",
        facts=facts,
        precision={band: None if x["ap50"] < 0 else x["ap50"] for band, x in bands.items()},
        seconds=measures["seconds"],
        pictures={"Hits, false alarms and people who were missed": picture},
        links={name: name for name in FILES if name != "report.html"},
    )


def _refuse_others(out: Path) -> None:
    """Files of the same name are replaced only if truth.json says that they are of a demo."""
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out} is not a folder")
    there = [name for name in FILES if (out / name).exists()]
    truth = out / "truth.json"
    if there and not (truth.is_file() and MARK in truth.read_text(errors="replace")[:200]):
        raise FileExistsError(f"{out / there[0]} is not of a demo: choose another folder")


def _model(name: str, device: torch.device) -> nn.Module:
    model = load(name, device)
    if model.num_classes != 1:
        raise ValueError(f"{name}: expected a model of one class, got {model.num_classes}")
    return model.float().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _coco(demo: Demo, annotations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    width, height = demo.size
    about = f"{MARK}: picture 0 of TinySea's set {demo.seed}, about {demo.people} people"
    return {
        "info": {"description": about},
        "images": [{"id": 1, "file_name": SCENE, "width": width, "height": height}],
        "categories": [{"id": 1, "name": CLASS_NAMES[1][0]}],
        "annotations": [{"id": k, "image_id": 1, **x} for k, x in enumerate(annotations, 1)],
    }


def _write_scene(out: Path, image: NDArray[np.uint8], truth: Mapping[str, Any]) -> None:
    """Begin anew: the picture and its truth, without what an earlier demo found."""
    out.mkdir(parents=True, exist_ok=True)
    _write_json(out / "truth.json", truth)  # first: it says that the files are of a demo
    for name in set(FILES) - {"truth.json"}:
        (out / name).unlink(missing_ok=True)
    with replacing(out / SCENE) as file:
        # Noise does not compress: more effort than level 1 costs time for 3 % of the size.
        Image.fromarray(image).save(file, "png", compress_level=1)


def _write_json(path: Path, content: Any) -> None:
    with replacing(path) as file:
        file.write_text(json.dumps(content) + "\n")


def _corners(entries: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
    """Boxes [K, 4] x1 y1 x2 y2 of entries of COCO."""
    boxes = np.array([x["bbox"] for x in entries], np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)


@contextmanager
def _stage(name: str, seconds: dict[str, float], progress: Progress) -> Iterator[None]:
    """Show what is being done, and keep its time."""
    task = progress.add_task(name, total=None)
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start
    progress.update(task, total=1, completed=1)


def _text(measures: Mapping[str, Any]) -> str:
    lines = ["size          people    AP50   found"]
    for band, row in measures["bands"].items():
        ap = "-" if row["ap50"] < 0 else f"{row['ap50']:.3f}"
        recall = "-" if row["recall"] is None else f"{row['recall']:.1%}"
        lines.append(f"{band:12}  {row['people']:6,}  {ap:>6}  {recall:>6}")
    lines.append(
        f"AP50 counts up to {MAX_DETECTIONS:,} detections; found are people with a score of at "
        f"least {SURE}. False alarms of such a score: {_per_megapixel(measures)}, "
        f"duplicates: {measures['duplicates']:,}."
    )
    seconds = measures["seconds"]
    stages = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())
    lines.append(f"{sum(seconds.values()):.1f} s: {stages}.")
    return "\n".join(lines)


def _per_megapixel(measures: Mapping[str, Any]) -> str:
    count = measures["false_alarms"]
    return f"{count:,} ({count / measures['megapixels']:.2f} per megapixel)"
