"""Two processes train GDL as one with their batches together, turn by turn. gloo."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detection import target

from tinyops.models import create
from tinyops.train import Schedule, Training, make_optimizer

SMALL = {
    "neck_channels": 8,
    "head_channels": 16,
    "rpn_samples": 32,
    "samples": 80,  # more than there are: their number differs between the processes
    "proposals": [60, 60],
    "pre_nms": [100, 100],
    "generator_width": 8,
    "generator_blocks": 1,
    "generator_norms": True,
    "crop_size": 8,
    "upscale": 2,
    "crop_samples": 80,
    "discriminator_width": 8,
    "discriminator_hidden": 16,
}
CASES = [
    (phase, mode, weight)
    for mode in ("crop", "feature")
    for phase, weight in (("generator", 0.0), ("adversarial", 0.0), ("adversarial", 0.1))
]


def batch():
    """Four images; those of the second half have one object, and regions that are ignored."""
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(3, 64, 64, generator=generator, dtype=torch.float64) for _ in range(4)]
    targets = [
        target((10, 10, 18, 22), (40, 30, 49, 38), (2, 50, 8, 56)),
        target((30, 5, 36, 12)),
        target((20, 40, 28, 50), (0, 0, 64, 30), ignore=[False, True]),
        target(),
    ]
    return images, targets


def trained(case, part):
    """Losses of two steps, and the model after them."""
    phase, mode, weight = case
    torch.manual_seed(0)
    scale = 0.5 if mode == "feature" else 1.0
    name = "faster_rcnn_gdl_resnet_nano"
    model = create(name, mode=mode, adversarial_weight=weight, scale=scale, **SMALL).double()
    model.set_phase(phase)
    training = Training(model, make_optimizer(model), Schedule(0.05, 2, warmup=0), seed=1)
    images, targets = batch()
    losses = [training.update([(images[part], targets[part])]) for _ in range(2)]
    return losses, training.model.state_dict()


def process(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        for case in CASES:
            losses, state = trained(case, slice(2 * rank, 2 * rank + 2))
            for step in losses:
                for value in step.values():
                    dist.all_reduce(value)
                    value /= 2
            torch.save((losses, state), folder / f"{CASES.index(case)}-{rank}")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two processes compute, by case and process."""
    path = tmp_path_factory.mktemp("ddp")
    mp.spawn(process, (path,), nprocs=2)
    return path


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_two_processes_train_as_one(case, folder):
    losses, state = trained(case, slice(None))
    both = [torch.load(folder / f"{CASES.index(case)}-{rank}") for rank in (0, 1)]
    for found, expected in zip(both[0][0], losses, strict=True):
        assert set(found) == set(expected)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-7)
    for name, value in state.items():
        assert torch.equal(both[0][1][name], both[1][1][name]), name
        torch.testing.assert_close(both[0][1][name], value, rtol=1e-4, atol=1e-6, msg=name)
