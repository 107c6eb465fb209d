"""Measure detections against a data set, by the rules of its benchmark.

Detections are a file of `tinyops detect` (.json or .csv) or what the benchmark's own evaluation
reads. Of the former, images are matched by file name and categories by name, or by their ids where
the file has no names. Images without detections count as missed.
"""

import csv
import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from tinyops._files import replacing
from tinyops.cli.eval_inputs import UnknownImagesError, read_inputs
from tinyops.cli.eval_report import note, write_evaluation
from tinyops.evaluation import PROTOCOLS
from tinyops.evaluation.details import DUPLICATE, FALSE, FOUND, MISSED, Details
from tinyops.evaluation.matcher import usable
from tinyops.plot.report import cell

_PROGRAM = "tinyops eval"


@dataclass
class Eval:
    """The settings of a measurement."""

    gt: Annotated[Path, tyro.conf.arg(aliases=("--annotations",))]
    """Ground truth: COCO json, or a data set of another format that `tinyops data` reads; visdrone:
    folder of a split, or of its .txt; tt100k: annotations.json; widerface: the folder of .mat."""
    detections: Path
    """COCO json, list of COCO results, CSV, or what the protocol's own evaluation reads."""
    protocol: Literal[
        "tinyperson",
        "coco",
        "aitod",
        "droneswarms",
        "visdrone",
        "visdrone-coco",
        "soda-d",
        "tt100k",
        "widerface",
    ] = "tinyperson"
    """By whose rules."""
    out: Path | None = None
    """Folder for metrics.json, metrics.csv and report.html."""
    images: Path | None = None
    """Folder of the images: what was missed is shown in the report. visdrone needs their sizes."""
    max_detections: int | None = None
    """Best detections counted per image and class, instead of the protocol's number: it changes
    the AP."""
    areas: Literal["coco", "aitod"] | None = None
    """Of visdrone-coco: whose size bands, instead of COCO's; SR-TOD and RFLA have AI-TOD's."""
    min_score: float | None = None
    """Of tt100k: least score of 100 of a detection that counts, instead of 40."""
    threads: int | None = None
    """For counting; all cores by default."""
    not_compatible: bool = False
    """Leave out the quirks of the original evaluations. Published numbers have them."""
    ignore_unknown_images: bool = False
    """Leave out detections in images that the data set does not have, which are errors else."""


def main(arguments: Sequence[str]) -> int:
    """Run `tinyops eval <arguments>`; returns the exit code."""
    settings = tyro.cli(Eval, prog=_PROGRAM, description=__doc__, args=list(arguments))
    try:
        metrics, details = measure(settings)
        show(metrics, Console())
        if settings.out is not None:
            settings.out.mkdir(parents=True, exist_ok=True)
            write_evaluation(settings.out / "report.html", metrics, details, settings.images)
            write_metrics(metrics, settings.out)
    except (ValueError, OSError) as error:  # the caller's mistakes: no traceback
        print(f"{_PROGRAM}: {error}", file=sys.stderr)
        return 2
    except MemoryError:
        print(f"{_PROGRAM}: there is not enough memory for this", file=sys.stderr)
        return 1
    return 0


def measure(settings: Eval) -> tuple[dict[str, Any], Details]:
    """The content of metrics.json, of which `result` is what the protocol gives; and the details.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file or setting is not what it should be, or they do not fit together.
    """
    module = PROTOCOLS[settings.protocol]
    known = inspect.signature(module.evaluate).parameters
    if settings.images is not None and settings.out is None and "images" not in known:
        raise ValueError("--images is for the report, which needs --out")
    options = {
        name: value
        for name in ("max_detections", "areas", "min_score", "images")
        if (value := getattr(settings, name)) is not None
    }
    for name in options:
        if name not in known and name != "images":
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag}: {settings.protocol} has no such setting")
    options = {name: value for name, value in options.items() if name in known}
    options |= {"compatible": not settings.not_compatible, "threads": usable(settings.threads)}
    try:
        truth, found, unknown = read_inputs(
            settings.protocol, settings.gt, settings.detections, settings.ignore_unknown_images
        )
    except UnknownImagesError as error:
        raise ValueError(f"{error}; --ignore-unknown-images leaves them out") from None
    result = module.evaluate(truth, found, **options)
    details = module.details(truth, found, **options)
    kinds, objects = details.kinds, details.object_kinds
    metrics = {
        "protocol": settings.protocol,
        "setting": details.setting,
        "compatible": not settings.not_compatible,
        "gt": str(settings.gt),
        "detections": str(settings.detections),
        "images": len(details.image_ids),
        "images_without_detections": len(details.image_ids) - len(set(details.images.tolist())),
        "unknown_images": unknown,
        "detection_count": len(kinds),
        "found": int((objects == FOUND).sum()),
        "missed": int((objects == MISSED).sum()),
        "false_alarms": int((kinds == FALSE).sum()),
        "duplicates": int((kinds == DUPLICATE).sum()),
        "table": module.table(result),
        "result": result,
    }
    return metrics, details


def write_metrics(metrics: Mapping[str, Any], folder: Path) -> None:
    """Write metrics.json, and metrics.csv with the table and what changes its numbers."""
    with replacing(folder / "metrics.json") as path:
        text = json.dumps(metrics, indent=1, ensure_ascii=False, allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
    facts = {key: metrics[key] for key in ("protocol", "setting", "compatible")}
    rows = [{**row, **facts} for row in metrics["table"]]
    with (
        replacing(folder / "metrics.csv") as path,
        path.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def show(metrics: Mapping[str, Any], console: Console) -> None:
    """Print the table, with columns below each other if it is too wide; and what it depends on."""
    rows = metrics["table"]
    columns = [[name, *(cell(row[name]) for row in rows)] for name in rows[0]]
    if sum(max(map(len, column)) + 3 for column in columns) + 1 > console.width:
        table = Table(show_header=False)
        lines = columns
    else:
        table = Table(*columns[0][:1])
        for name, *_ in columns[1:]:
            table.add_column(name, justify="right")
        lines = [list(line) for line in zip(*columns, strict=True)][1:]
    for line in lines:
        table.add_row(*line)
    console.print(table)
    console.print(note(metrics), highlight=False, soft_wrap=True, markup=False)
