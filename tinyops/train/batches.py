"""Which images a step sees: a function of the seed and the step alone."""

import hashlib
import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from tinyops.nn.distributed import world_size
from tinyops.train.processes import rank


def mix(*numbers: int) -> int:
    """A seed of 63 bits that is a function of all the numbers."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Order(Sampler[list[tuple[int, int]]]):
    """The batches of this process from step `first` to step `last`, as (epoch, index) pairs.

    The images of all epochs, each in an order of its own, form one row, and every step takes the
    next `batch` of them. So all batches are full, no image is left out, and a batch may lie across
    the end of an epoch. The batch of a step consists of `parts` parts, and a part of one equal
    share per process, in the order of the row: with more processes every step sees the same images.

    Args:
        count: images of the data set.
        batch: images of a step, in all parts of all processes together.
        parts: how many batches of this sampler make a step.
        seed: of the orders.
        first: step to begin with, counted from 0.
        last: step to end before.

    Raises:
        ValueError: if there are no images, or `batch` is no multiple of parts * processes.
    """

    def __init__(
        self, count: int, batch: int, *, parts: int = 1, seed: int = 0, first: int = 0, last: int
    ) -> None:
        if count < 1:
            raise ValueError("the data set must hold at least one image, got none")
        if parts < 1 or batch < 1 or batch % (parts * world_size()):
            raise ValueError(
                f"batch must be a multiple of parts * processes = {parts} * {world_size()}, "
                f"got {batch}"
            )
        self.count, self.batch, self.parts, self.seed = count, batch, parts, seed
        self.first, self.last = first, last
        self.rank, self.processes = rank(), world_size()

    def __len__(self) -> int:
        return (self.last - self.first) * self.parts

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        part = self.batch // self.parts
        share = part // self.processes
        orders: dict[int, list[int]] = {}
        for k in range(self.first * self.parts, self.last * self.parts):
            start = k * part + self.rank * share
            places = [divmod(place, self.count) for place in range(start, start + share)]
            epochs = {epoch for epoch, _ in places}
            orders = {epoch: orders.get(epoch) or self._order(epoch) for epoch in epochs}
            yield [(epoch, orders[epoch][place]) for epoch, place in places]

    def _order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(mix(self.seed, epoch))
        return torch.randperm(self.count, generator=generator).tolist()


class _Samples(Dataset[Any]):
    """A data set indexed by (epoch, index), each sample with random numbers of its own."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, place: tuple[int, int]) -> Any:
        epoch, index = place
        seed = mix(self.seed, epoch, index)
        torch.manual_seed(seed)
        random.seed(seed)
        if hasattr(self.dataset, "sample"):
            return self.dataset.sample(index, epoch)
        return self.dataset[index]

    def __getitems__(self, places: list[tuple[int, int]]) -> Any:
        """What DataLoader asks for: the samples of a batch."""
        if not hasattr(self.dataset, "batch"):
            return [self[place] for place in places]
        seeds = [mix(self.seed, epoch, index) for epoch, index in places]
        return self.dataset.batch([index for _, index in places], seeds)


def make_loader(dataset: Any, order: Order, *, workers: int = 0, pin: bool = False) -> DataLoader:
    """Batches (images, targets), two tuples; or whatever `dataset.batch` gives.

    Args:
        dataset: map-style; `dataset.sample(index, epoch)`, or where there is no such method
            `dataset[index]`, is (image, target). torch's and Python's random numbers are then a
            function of (seed, epoch, index), so that it does not matter which worker draws them.
            A data set of many small images has `dataset.batch(indices, seeds)` instead, where the
            seed of every image, of 63 bits, is such a function.
        order: which samples.
        workers: processes that load; 0: this one.
        pin: put the tensors into memory that a GPU can read.
    """
    return DataLoader(
        _Samples(dataset, order.seed),
        batch_sampler=order,
        num_workers=workers,
        collate_fn=_whole if hasattr(dataset, "batch") else _collate,
        pin_memory=pin,
        generator=torch.Generator(),
    )


def _collate(samples: Sequence[tuple[Any, Any]]) -> tuple[tuple[Any, ...], ...]:
    return tuple(zip(*samples, strict=True))


def _whole(batch: Any) -> Any:
    return batch
