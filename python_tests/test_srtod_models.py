"""Detectors with SR-TOD: systems, files, resumed training, processes, and other detectors."""

import copy
import importlib.util
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detection import batch_of, pyramid, target
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FasterRCNN, FastRCNNPredictor, TwoMLPHead

import tinyops
from tinyops.models import create, load, save
from tinyops.nn.batch import ImageBatch
from tinyops.nn.fpn import FPN
from tinyops.nn.srtod import SelfReconstruction
from tinyops.nn.sspnet import SSPNet
from tinyops.train import Schedule, Training, make_optimizer

STRIDES = (4, 8, 16, 32, 64)
SYSTEMS = {
    "faster_rcnn_srtod": (FPN, 4),
    "cascade_rcnn_srtod": (FPN, 4),
    "retinanet_srtod": (FPN, 8),
    "faster_rcnn_sspnet_srtod": (SSPNet, 4),
    "cascade_rcnn_sspnet_srtod": (SSPNet, 4),
}
TARGETS = [target((10, 10, 18, 22), (40, 30, 49, 38)), target()]


def small(system="faster_rcnn_srtod", backbone="resnet_nano", **options):
    torch.manual_seed(0)
    options = {"neck_channels": 16, "score_threshold": 0.001, **options}
    if not system.startswith("retinanet"):
        options = {"head_channels": 32, "proposals": [60, 60], "samples": 32, **options}
    return create(f"{system}_{backbone}", **options)


def images():
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(3, *size, generator=generator) for size in ((61, 96), (50, 33))]


@pytest.mark.parametrize("system", SYSTEMS)
def test_systems_train_and_detect(system):
    model = small(system, calibration=1)
    neck, stride = SYSTEMS[system]
    assert isinstance(model.neck, neck)
    assert isinstance(model.refiner, SelfReconstruction)
    assert model.refiner.stride == stride
    for targets in (TARGETS, [target(), target()]):
        model.zero_grad()
        losses = model(images(), targets)
        sum(losses.values()).backward()
        assert "reconstruction" in losses
        assert all(x.isfinite() for x in losses.values())
        assert all(p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        found = model.eval()(images())
    assert all(len(one["boxes"]) > 0 for one in found)


def test_settings():
    for system in ("faster_rcnn_srtod", "cascade_rcnn_srtod"):
        with torch.device("meta"):
            model = create(f"{system}_resnet_nano")
        assert model.rpn.anchors.scales == (2.0,)
        assert (model.rpn.pre_nms, model.rpn.post_nms) == ((3000, 3000), (3000, 3000))
        heads = getattr(model.roi_heads, "stages", [model.roi_heads])[-1]
        assert (heads.nms, heads.nms_threshold, heads.max_per_image) == ("nms", 0.5, 3000)
    assert small("faster_rcnn_sspnet_srtod").rpn.anchors.scales == (1.5, 2.5, 3.7, 8.0)
    assert len(small("retinanet_srtod").refiner.head.ups) == 3
    assert len(small(backbone="bh_resnet_fine").refiner.head.ups) == 1
    model = small(threshold=4 / 255, resize="nearest", ste="none", mask_padding=False)
    assert (model.refiner.resize, model.refiner.calibration) == ("nearest", 0)
    assert create(**model.recipe).refiner.threshold.item() == pytest.approx(4 / 255)


def test_the_reconstruction_teaches_the_backbone():
    model = small()
    model(images(), TARGETS)["reconstruction"].backward()
    assert model.backbone.conv1.weight.grad.any()
    assert model.neck.output_convs[0].weight.grad.any()
    assert model.neck.output_convs[1].weight.grad is None


def test_p6_comes_from_p5():
    model, seen = small(), []
    model.refiner.register_forward_hook(lambda module, args, out: seen.append((args[0], out[0])))
    model(images(), TARGETS)
    (before, after) = seen[0]
    assert [one is two for one, two in zip(before, after, strict=True)] == [False] + [True] * 4


def test_a_step_lowers_the_loss():
    model = small(threshold=0.2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def loss():
        torch.manual_seed(1)
        return sum(model(images(), TARGETS).values())

    before = loss()
    before.backward()
    optimizer.step()
    assert loss() < before


def test_models_are_saved_and_loaded(tmp_path):
    model = small("cascade_rcnn_srtod", calibration=5)
    model(images(), TARGETS)
    model.eval()
    save(model, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    assert again.refiner.seen == 1
    assert torch.equal(again.refiner.threshold, model.refiner.threshold)
    assert model.refiner.threshold.item() != pytest.approx(4 / 255)
    with torch.no_grad():
        for one, two in zip(model(images()), again(images()), strict=True):
            assert len(one["scores"]) > 0
            assert torch.equal(one["boxes"], two["boxes"])
            assert torch.equal(one["scores"], two["scores"])


@pytest.mark.parametrize("amp", ["none", "bf16"])
def test_a_resumed_training_is_the_same(tmp_path, amp):
    def training():
        model = small(calibration=4)
        optimizer = make_optimizer(model, weight_decay=1e-2)
        return Training(
            model, optimizer, Schedule(0.02, 8, warmup=2), amp=amp, average_decay=0.9, clip=5.0
        )

    def run(one, steps):
        thresholds = []
        for _ in range(steps):
            losses = one.update([(images(), TARGETS)])
            assert all(x.isfinite() for x in losses.values())
            thresholds.append(one.model.refiner.threshold.item())
        return thresholds

    whole, first, second = training(), training(), training()
    thresholds = run(whole, 7)
    assert thresholds[3] != thresholds[4] != thresholds[5]  # after the calibration it learns
    run(first, 3)
    first.save(tmp_path / "state", {}, {})
    second.restore(tmp_path / "state", {}, {})
    assert run(second, 4) == thresholds[3:]
    for one, two in ((whole.model, second.model), (whole.result, second.result)):
        one, two = one.state_dict(), two.state_dict()
        assert all(torch.equal(one[name], two[name]) for name in one)
    assert whole.result.refiner.seen == 4


def batch_of_four():
    torch.manual_seed(3)
    batch = batch_of((64, 96), (50, 33), (20, 96), (64, 64))
    return pyramid(batch, channels=8), batch


def enhance(part):
    """A step of half a batch or the whole: loss, threshold, gradients."""
    levels, batch = batch_of_four()
    levels = [x[part].double() for x in levels]
    batch = ImageBatch(batch.pixels[part].double(), batch.sizes[part])
    torch.manual_seed(0)
    module = SelfReconstruction(8, STRIDES, calibration=1).double()
    values = []
    for _ in range(2):  # the second is not calibrated any more
        refined, shown = module(levels, batch)
        loss = module.loss(shown)
        (loss + refined[0].sum() / len(batch.sizes)).backward()
        values += [loss.detach(), module.threshold.detach().clone()]
    return values + [p.grad for p in module.parameters()]


def process(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        values = enhance(slice(2 * rank, 2 * rank + 2))
        for value in values:
            dist.all_reduce(value)
        if rank == 0:
            torch.save([value / 2 for value in values], folder / "values")
    finally:
        dist.destroy_process_group()


def test_two_processes_compute_what_one_does(tmp_path):
    mp.spawn(process, (tmp_path,), nprocs=2)
    for one, two in zip(torch.load(tmp_path / "values"), enhance(slice(None)), strict=True):
        assert torch.allclose(one, two, rtol=1e-5, atol=1e-9)


def test_tiled_detection():
    model = small(backbone="bh_resnet_nano")
    model(images(), TARGETS)
    image = (255 * torch.rand(3, 90, 130)).byte().permute(1, 2, 0).numpy()
    result = tinyops.detect(model.eval(), image, tile=(64, 64), overlap=16, min_score=0.0)
    assert len(result.tiles) == 6
    assert len(result["boxes"]) > 0


def example():
    path = Path(__file__).parents[1] / "examples" / "torchvision_srtod.py"
    spec = importlib.util.spec_from_file_location("torchvision_srtod", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_detector_of_torchvision_with_it_learns():
    torch.manual_seed(0)
    body = resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5)
    anchors = AnchorGenerator(((8,), (16,), (32,), (64,), (128,)), ((1.0,),) * 5)
    plain = FasterRCNN(
        body,
        min_size=64,
        max_size=96,
        rpn_anchor_generator=anchors,
        rpn_post_nms_top_n_train=50,
        box_head=TwoMLPHead(256 * 49, 16),
        box_predictor=FastRCNNPredictor(16, 2),
    )
    model = example().SelfReconstructedRCNN(copy.deepcopy(plain))
    srtod = model.pyramid.srtod
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    dark = [0.3 * image for image in images()]
    values = []
    for _ in range(3):
        losses = model(dark, TARGETS)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
        values.append(losses["loss_reconstruction"].item())
    assert values[2] < values[1] < values[0]
    shown = model.pyramid.shown
    assert shown.valid.tolist() != [list(shown.image.shape[-2:])] * 2  # it knows of padding
    assert 0 <= shown.image.min() <= shown.image.max() <= 1.0001
    assert srtod.seen == 3
    names = losses.keys() - {"loss_reconstruction"}
    assert names == plain.train()(images(), TARGETS).keys()
    result = tinyops.detect(model.eval(), 255 * images()[0].permute(1, 2, 0).byte().numpy())
    assert result.width == 96
