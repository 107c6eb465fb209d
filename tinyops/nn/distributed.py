"""Random numbers and sums that are those of the whole batch, however many processes share it."""

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def image_generators(count: int) -> list[torch.Generator]:
    """A generator of random numbers for every image of this process.

    Seeds come from torch's default generator of the CPU, which must be in the same state in all
    processes: each takes its part of the seeds of the whole batch, so that a batch draws the same
    numbers in one process and split over several. Every process must have `count` images.
    """
    rank = dist.get_rank() if world_size() > 1 else 0
    seeds = torch.randint(2**62, (world_size() * count,)).tolist()
    return [torch.Generator().manual_seed(s) for s in seeds[rank * count : (rank + 1) * count]]


def mean_over_processes(x: Tensor) -> Tensor:
    """The mean of a number over all processes, the right divisor of a local sum.

    DistributedDataParallel takes the mean of the gradients, so that a loss sum / count of the
    whole batch is local sum / (mean of the local counts).
    """
    if world_size() == 1:
        return x
    total = x.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def count_over_processes(count: int | Tensor, like: Tensor) -> Tensor:
    """The divisor of a loss that is a sum over `count` things, 0-dim, on the device of `like`.

    1 / processes where nowhere is any, so that the loss is 0 there, not NaN.
    """
    here = torch.as_tensor(count, dtype=torch.float32, device=like.device)
    return mean_over_processes(here).clamp(min=1 / world_size())
