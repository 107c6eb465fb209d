"""Two processes with half the batch each have the gradients of one with all of it. gloo."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detection import target

from tinyops.models import create
from tinyops.nn.global_norm import use_global_norms

NAMES = (
    "faster_rcnn_sspnet_resnet_nano",
    "cascade_rcnn_fpn_resnet_nano",
    "retinanet_fpn_resnet_nano",
    "faster_rcnn_srtod_resnet_nano",
    "faster_rcnn_rfla_resnet_nano",
    "retinanet_rfla_resnet_nano",
    "faster_rcnn_efpn_resnet_nano:distillation",  # what is trained in phases, in one of them
    "faster_rcnn_efpn_resnet_nano:refinement",
)
SMALL = {"neck_channels": 16}
SMALL_HEADS = {"head_channels": 32, "rpn_samples": 32, "samples": 32, "proposals": [60, 60]}


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


def losses_and_gradients(name, part):
    torch.manual_seed(0)
    options = SMALL if name.startswith("retinanet") else SMALL | SMALL_HEADS
    name, _, phase = name.partition(":")
    model = use_global_norms(create(name, **options)).double().train()
    if phase:
        model.set_phase(phase)
    images, targets = batch()
    losses = model(images[part], targets[part])
    sum(losses.values()).backward()
    learning = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    names, parameters = zip(*learning, strict=True)
    values = [x.detach() for x in losses.values()] + [p.grad for p in parameters]
    return [*losses, *names], values


def process(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        for name in NAMES:
            names, values = losses_and_gradients(name, slice(2 * rank, 2 * rank + 2))
            for value in values:
                dist.all_reduce(value)
            if rank == 0:
                torch.save({k: v / 2 for k, v in zip(names, values, strict=True)}, folder / name)
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """What two processes compute, by model."""
    folder = tmp_path_factory.mktemp("ddp")
    mp.spawn(process, (folder,), nprocs=2)
    return {name: torch.load(folder / name) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_compute_what_one_does(name, halves):
    names, values = losses_and_gradients(name, slice(None))
    assert list(halves[name]) == names
    for key, value in zip(names, values, strict=True):
        scale = value.abs().max().clamp(min=1e-3)
        difference = (halves[name][key] - value).abs().max() / scale
        assert difference < 1e-3, key
