"""One epoch of training, and all of them."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from torch import Tensor, nn

from tinyops._files import MODEL, remove_temporaries, write_tensors
from tinyops.nn.distributed import world_size
from tinyops.train.batches import Order, make_loader
from tinyops.train.log import Display, Log
from tinyops.train.processes import gather, rank, wait_for_all
from tinyops.train.training import Batch, Training

Row = dict[str, float]


def train_one_epoch(
    training: Training,
    batches: Iterable[Batch],
    *,
    parts: int = 1,
    every: int | None = None,
    on_row: Callable[[Row], None] = lambda row: None,
    after_step: Callable[[Callable[[], None]], None] = lambda flush: None,
) -> Row:
    """Do a step with every `parts` of the batches.

    Losses are looked at every `every` steps, since looking makes a GPU wait.

    Args:
        training: the model and its optimizer.
        batches: (images, targets) of this process.
        parts: batches of one step.
        every: steps; None: 1 on a CPU and 20 elsewhere.
        on_row: gets a row for each step, in order, with "step" (counted from 1), "rate", "loss"
            (the sum) and all losses, means over the processes.
        after_step: called after each step with a function that makes `on_row` get all rows so far.

    Returns:
        The means of the losses.

    Raises:
        FloatingPointError: naming the loss and the step that is the first not to be finite.
    """
    losses = _Losses(on_row)
    if every is None:
        every = 1 if training.device.type == "cpu" else 20
    stream = iter(batches)
    while part := list(itertools.islice(stream, parts)):
        rate = training.schedule.at(training.step)
        try:
            losses.add(training.step + 1, rate, training.update(part))
        except Exception:
            losses.check()  # of not finite losses other errors follow
            raise
        if training.step % every == 0:
            losses.flush()
        after_step(losses.flush)
    losses.flush()
    return losses.means()


class _Losses:
    """Losses of the last steps, left on their device until somebody looks at them."""

    def __init__(self, on_row: Callable[[Row], None]) -> None:
        self.on_row = on_row
        self.names: list[str] = []
        self.waiting: list[tuple[int, float, Tensor]] = []
        self.sums: Row = {}
        self.count = 0

    def add(self, step: int, rate: float, losses: Mapping[str, Tensor]) -> None:
        names = list(losses)
        if self.names and names != self.names:
            raise ValueError(
                f"the losses of step {step} must be those of the step before, {self.names}, "
                f"got {names}"
            )
        self.names = names
        self.waiting.append((step, rate, torch.stack(list(losses.values()))))

    def check(self) -> None:
        """Look at the losses of this process."""
        for step, _, values in self.waiting:
            self._check(step, values.tolist())

    def _check(self, step: int, values: list[float]) -> None:
        for name, value in zip(self.names, values, strict=True):
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"{name} must be finite, got {value} at step {step}; "
                    "a lower rate, a longer warm-up or clipped gradients may help"
                )

    def flush(self) -> None:
        """Look at the losses of all processes and pass them on."""
        if not self.waiting:
            return
        table = torch.stack([values for _, _, values in self.waiting])
        if world_size() > 1:
            dist.all_reduce(table)
            table /= world_size()
        waiting, self.waiting = self.waiting, []
        for (step, rate, _), values in zip(waiting, table.tolist(), strict=True):
            self._check(step, values)
            losses = dict(zip(self.names, values, strict=True))
            row = {"loss": sum(values), **losses}
            self.on_row({"step": step, "rate": rate, **row})
            self.sums = {name: self.sums.get(name, 0.0) + value for name, value in row.items()}
            self.count += 1

    def means(self) -> Row:
        return {name: value / self.count for name, value in self.sums.items()}


def fit(
    training: Training,
    dataset: Any,
    folder: Path | str,
    *,
    steps: int,
    batch: int,
    description: Mapping[str, Any],
    configuration: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
    parts: int = 1,
    workers: int = 0,
    measure: Callable[[nn.Module], Mapping[str, float]] | None = None,
    best: str = "ap50_tiny",
    measure_every: int = 1,
    save_every: int = 500,
    every: int | None = None,
    resume: bool = True,
    tensorboard: bool = False,
    console: Console | None = None,
) -> Row:
    """Train to the end, or from where an interrupted training stopped to the end.

    The folder gets last.safetensors (everything, to go on), best.safetensors (the model), and
    log.jsonl, train.csv and val.csv. On a CPU a training that was killed at any moment and then
    resumed leaves the same models and logs as one that was not; on a GPU some kernels of torch add
    in an order that varies.

    An epoch ends with the step that completes it; see `Order` for which images a step has.

    Args:
        training: as new.
        dataset: see `make_loader`; `len(dataset)` images are an epoch.
        folder: made if it is not there. All processes must see it.
        steps: of the training.
        batch: images of a step, in all parts and processes together.
        description: of the model, for the files; see `tinyops.models.checkpoint.describe`.
        configuration: values of JSON that the result depends on; a state of others is refused.
        defaults: see `Training.restore`.
        parts: of a batch, one after the other, so that memory suffices.
        workers: processes that load images.
        measure: metrics of a model in eval mode, called in all processes; the same in all of them.
        best: the metric by which the best model is chosen, the greater the better.
        measure_every: epochs; the last step is always measured.
        save_every: steps; the state is also written at the end of each epoch.
        every: steps after which losses are looked at; see `train_one_epoch`.
        resume: go on from last.safetensors if it is there. False: start anew; old files go.
        tensorboard: see `Log`.
        console: for the display.

    Returns:
        The last metrics, or without `measure` the mean losses of the last epoch; {} if the training
        was complete already.

    Raises:
        StateError: naming the state and what differs, if it is of another configuration.
        FloatingPointError: see `train_one_epoch` and `Training.check_weights`; the state on disk
            stays that of before.
    """
    folder = Path(folder)
    if rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
    last = folder / "last.safetensors"
    wait_for_all()
    resume = resume and last.is_file()
    if resume:
        training.restore(last, description, configuration, defaults)
    starts = gather([training.step])
    if len(set(starts)) > 1:
        raise ValueError(f"{folder}: all processes must see this folder, but resume at {starts}")
    wait_for_all()  # until all have read
    log = None
    if rank() == 0:
        remove_temporaries(folder)
        if not resume:
            for path in (last, folder / "best.safetensors"):
                path.unlink(missing_ok=True)
        log = Log(folder, training.step, tensorboard=tensorboard)

    count, first = len(dataset), training.step
    order = Order(count, batch, parts=parts, seed=training.seed, first=first, last=steps)
    on_gpu = training.device.type == "cuda"
    batches = iter(make_loader(dataset, order, workers=workers, pin=on_gpu))
    result: Row = {}
    with Display(steps, batch, first, console=console, quiet=rank() > 0) as display:
        if resume:
            display.say(f"{last}: resumed after step {first} of {steps}")

        def on_row(row: Row) -> None:
            if log is not None:
                log.write("train", row)
            display.update(row)

        def save() -> None:
            if rank() == 0:
                training.save(last, description, configuration)

        def after_step(flush: Callable[[], None]) -> None:
            if training.step % save_every == 0 and training.step != end:
                flush()  # a state without its rows would leave a gap in the log
                training.check_weights()
                save()

        while training.step < steps:
            before = training.step * batch // count  # epochs that are complete
            end = min(steps, -(-(before + 1) * count // batch))
            own = itertools.islice(batches, (end - training.step) * parts)
            result = train_one_epoch(
                training, own, parts=parts, every=every, on_row=on_row, after_step=after_step
            )
            training.check_weights()
            epoch = training.step * batch // count
            due = epoch // measure_every > before // measure_every or training.step == steps
            if measure is not None and due:
                result = dict(measure(training.result.eval()))
                _note(training, result, best, folder, description)
                if log is not None:
                    log.write("val", {"step": training.step, "epoch": epoch, **result})
                similar = [name for name in result if name.startswith(best.partition("_")[0])]
                metrics = "  ".join(f"{name} {result[name]:.4g}" for name in similar)
                display.say(f"epoch {epoch}, step {training.step}  {metrics}")
            save()
    if log is not None:
        log.close()
    wait_for_all()
    return result


def _note(
    training: Training, metrics: Row, best: str, folder: Path, description: Mapping[str, Any]
) -> None:
    """Keep the model if it is the best so far."""
    if best not in metrics:
        raise ValueError(f"best must be one of {', '.join(metrics)}, got {best!r}")
    value = metrics[best]
    if training.best is None or value > training.best:
        training.best = value
        if rank() == 0:
            tensors = training.result.state_dict()
            write_tensors(folder / "best.safetensors", MODEL, tensors, description)
