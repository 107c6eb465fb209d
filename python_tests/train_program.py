"""A training as a program of its own, to be killed, or to be run by torchrun.

python train_program.py FOLDER OPTIONS, where OPTIONS is JSON: what `fit` takes, and
  kill: ["step" | "rows" | "state" | "best", number]: SIGKILL to itself in the middle of that write;
  fail: [rank, step]: an error in one process; make: arguments of `make_training`;
  detector: a name and overrides for `tinyops.models.create`.
`start` does the same from a process that has imported everything, which is faster.
"""

import json
import multiprocessing
import os
import signal
import socket
import sys
from pathlib import Path

import torch
from rich.console import Console
from training import Spots, Squares, description_of, make_training

import tinyops._files
import tinyops.train.log
from tinyops.models import create
from tinyops.train import fit, process_group
from tinyops.train.processes import gather, rank


def measure(model):
    """Sums over the parameters and over a few detections, shared among the processes."""
    with torch.no_grad():
        found = [float(len(model([Squares()[k][0]])[0]["boxes"])) for k in range(2)]
    total = sum(float(p.double().sum()) for p in model.parameters())
    return {"ap50_tiny": round(total % 0.01, 5), "found": sum(gather([sum(found)]))}


tinyops._files._sync = lambda path: None  # a killed process loses nothing that it wrote


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def kill_in(what, number):
    """Arrange the death of this process in the `number`-th write of a kind, half of it done."""
    calls = {"count": 0}

    def due():
        calls["count"] += 1
        return calls["count"] == number

    if what == "rows":
        append = tinyops.train.log._append

        def half_a_row(path, text):
            if due():
                append(path, text[: len(text) // 2])
                die()
            append(path, text)

        tinyops.train.log._append = half_a_row
    else:
        write = tinyops._files.save_file

        def half_a_file(tensors, path, metadata):
            write(tensors, path, metadata)
            if (metadata["format"] == tinyops._files.TRAINING) == (what == "state") and due():
                os.truncate(path, os.path.getsize(path) // 2)
                die()

        tinyops._files.save_file = half_a_file


def main(folder, options):
    options = dict(options)
    kill, fail = options.pop("kill", None), options.pop("fail", None)
    detector = options.pop("detector", None)
    with process_group(torch.device("cpu")):
        torch.manual_seed(0)
        model = Spots() if detector is None else create(detector[0], **detector[1])
        training = make_training(model=model, steps=options["steps"], **options.pop("make", {}))
        update = training.update

        def watched(parts):
            if kill is not None and kill == ["step", training.step]:
                die()
            if fail == [rank(), training.step]:
                raise RuntimeError("this process fails")
            return update(parts)

        training.update = watched
        if kill is not None and kill[0] != "step":
            kill_in(*kill)
        fit(
            training,
            Squares(size=64) if detector else Squares(),
            Path(folder),
            description=description_of(training.model),
            configuration={"batch": options["batch"]},
            measure=None if detector else measure,
            console=Console(quiet=True),
            **options,
        )


def start(target, *arguments, processes=1):
    """Call a function in new processes that could be those of torchrun; gives them."""
    folders = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    os.environ["PYTHONPATH"] = os.pathsep.join([*folders, os.environ.get("PYTHONPATH", "")])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train_program"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        context.Process(target=_begin, args=(rank, processes, port, target, arguments))
        for rank in range(processes)
    ]
    for process in started:
        process.start()
    return started


def _begin(rank, processes, port, target, arguments):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    target(*arguments)


def exit_codes(processes):
    """Wait for processes of `start`; their exit codes."""
    for process in processes:
        process.join(timeout=600)
    return [process.exitcode for process in processes]


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], json.loads(sys.argv[2]))
