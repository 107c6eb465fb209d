"""What a training leaves in its folder and on the terminal."""

import csv
import io
import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from tinyops._files import replacing


class Log:
    """Rows of numbers by step: all in log.jsonl, and those of each kind in <kind>.csv.

    Rows hold nothing that differs between two runs of one training, no times above all, so that
    the files of a resumed training are those of one that never stopped.

    Args:
        folder: of the run; it exists.
        step: rows of later steps are removed, as is a last line that is not complete; 0: all rows.
        tensorboard: write events for TensorBoard, too, which must be installed.
    """

    kinds = ("train", "val")

    def __init__(self, folder: Path, step: int = 0, *, tensorboard: bool = False) -> None:
        self.folder = folder
        _cut(folder / "log.jsonl", lambda line: json.loads(line)["step"] <= step)
        for kind in self.kinds:
            path = folder / f"{kind}.csv"
            _cut(path, lambda line: line.startswith("step,") or int(line.split(",")[0]) <= step)
        self._columns: dict[str, list[str]] = {}
        self._writer = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, kind: str, row: Mapping[str, float]) -> None:
        """Add a row, which has a "step" and in all rows of a kind the same columns."""
        columns = self._columns.setdefault(kind, list(row))
        if list(row) != columns:
            raise ValueError(f"rows of {kind} must have the columns {columns}, got {list(row)}")
        _append(self.folder / "log.jsonl", json.dumps({"kind": kind, **row}) + "\n")
        path = self.folder / f"{kind}.csv"
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if not path.exists():
            writer.writerow(columns)
        writer.writerow(row.values())
        _append(path, text.getvalue())
        if self._writer is not None:
            for name, value in row.items():
                self._writer.add_scalar(f"{kind}/{name}", value, int(row["step"]))

    def close(self) -> None:
        """Write what TensorBoard has not written yet."""
        if self._writer is not None:
            self._writer.close()


def _cut(path: Path, keep: Any) -> None:
    """Keep the complete lines for which `keep` holds; no row, no file."""
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    kept = [line for line in lines if keep(line)]
    if not [line for line in kept if not line.startswith("step,")]:
        path.unlink()
    elif "".join(kept) != text:
        with replacing(path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")


def _append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


class Display:
    """The state of a training on the terminal: a bar, or where there is none a line now and then.

    Args:
        total: steps of the training.
        batch: images of a step.
        start: steps done before.
        console: to write to.
        quiet: show nothing, as all processes but the first do.
        seconds: between two lines.
    """

    def __init__(
        self,
        total: int,
        batch: int,
        start: int = 0,
        *,
        console: Console | None = None,
        quiet: bool = False,
        seconds: float = 10.0,
    ) -> None:
        self.console = console or Console()
        self.total, self.batch, self.start = total, batch, start
        self.quiet, self.seconds = quiet, seconds
        self._since = self._shown = time.monotonic()
        self._bar = Progress(
            TextColumn("step {task.completed:.0f} of {task.total:.0f}"),
            BarColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=quiet or not self.console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total, completed=start)

    def __enter__(self) -> "Display":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def update(self, row: Mapping[str, float]) -> None:
        """Show a row of the log of the training."""
        if self.quiet:
            return
        now, step = time.monotonic(), int(row["step"])
        speed = (step - self.start) * self.batch / max(now - self._since, 1e-9)
        losses = " ".join(
            f"{name.removeprefix('loss_')} {value:.4g}"
            for name, value in row.items()
            if name not in ("step", "rate")
        )
        text = f"rate {row['rate']:.3g}  {losses}  {speed:.3g} images/s"
        self._bar.update(self._task, completed=step, description=text)
        if not self.console.is_terminal and (
            now - self._shown >= self.seconds or step in (self.start + 1, self.total)
        ):
            self._shown = now
            self.say(f"step {step} of {self.total}  {text}")

    def say(self, text: str) -> None:
        """Print a line."""
        if not self.quiet:
            self.console.print(text, highlight=False, soft_wrap=True, markup=False)
