"""Several processes that train one model."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from tinyops.nn.distributed import world_size


def rank() -> int:
    """The number of this process; number 0 writes the files."""
    return dist.get_rank() if world_size() > 1 else 0


@contextmanager
def process_group(
    device: torch.device, *, timeout: timedelta = timedelta(hours=1)
) -> Iterator[torch.device]:
    """Join the processes that torchrun started, if it did; gives the device of this process.

    NCCL joins GPUs, one per process, gloo joins CPUs. An error in one process is not waited for:
    it ends the process, and torchrun then ends the others. `timeout` is how long one
    may wait for another.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    on_gpu = device.type == "cuda"
    if on_gpu:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timeout)
    yield device
    dist.barrier()
    dist.destroy_process_group()


def wait_for_all() -> None:
    """Return when all processes are here."""
    if world_size() > 1:
        dist.barrier()


def gather(values: list) -> list:
    """The lists of all processes, one after the other, in every process."""
    if world_size() == 1:
        return values
    parts: list = [None] * world_size()
    dist.all_gather_object(parts, values)
    return [value for part in parts for value in part]
