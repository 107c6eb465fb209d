"""Every detector learns four small pictures by heart."""

import pytest
import torch
from torch import Tensor

from tinyops.evaluation.tinyperson import sized_ap
from tinyops.models import create

SQUARE, DISC = 1, 2
COLOURS = {SQUARE: (0.95, 0.6, 0.3), DISC: (0.3, 0.95, 0.6)}
SCENES = ((96, 96, 4), (96, 96, 3), (80, 96, 4), (96, 64, 3))  # height, width, objects
STEPS, RATE = 60, 2e-3
TWO_STAGES = {
    "head_channels": 128,
    "rpn_samples": 64,
    "samples": 64,
    "pre_nms": [100, 100],
    "proposals": [60, 60],
}
DETECTORS = {"faster_rcnn": TWO_STAGES, "cascade_rcnn": TWO_STAGES, "retinanet": {"convs": 1}}
SYSTEMS = [
    *(f"{detector}_{neck}" for detector in DETECTORS for neck in ("fpn", "sspnet", "rfla")),
    "faster_rcnn_srtod",
]


def draw_scene(height: int, width: int, count: int, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Noise with reddish squares and greenish discs of 6 to 12 pixels that do not touch."""
    generator = torch.Generator().manual_seed(seed)

    def choose(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    image = (0.35 + 0.08 * torch.randn(3, height, width, generator=generator)).clamp(0, 1)
    taken = torch.zeros(height, width, dtype=torch.bool)
    boxes, labels = [], []
    while len(boxes) < count:
        side, label = choose(6, 13), choose(1, 3)
        x, y = choose(2, width - side - 1), choose(2, height - side - 1)
        if taken[y - 2 : y + side + 2, x - 2 : x + side + 2].any():
            continue
        taken[y : y + side, x : x + side] = True
        inside = torch.ones(side, side, dtype=torch.bool)
        if label == DISC:
            place = (torch.arange(side) + 0.5) * 2 / side - 1  # -1..1
            inside = place[:, None] ** 2 + place**2 <= 1
        image[:, y : y + side, x : x + side][:, inside] = torch.tensor(COLOURS[label])[:, None]
        boxes.append([x, y, x + side, y + side])
        labels.append(label)
    return image, {"boxes": torch.tensor(boxes).float(), "labels": torch.tensor(labels)}


def sized(boxes: Tensor) -> list[list[float]]:
    """x y w h, as COCO has them."""
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()


def measure(found: list[dict[str, Tensor]], targets: list[dict[str, Tensor]]) -> float:
    """AP at an IoU of 0.5, mean of the two classes."""
    objects = [
        {"id": 10 * k + n, "image_id": k, "category_id": int(label), "bbox": box}
        for k, target in enumerate(targets)
        for n, (box, label) in enumerate(zip(sized(target["boxes"]), target["labels"], strict=True))
    ]
    results = [
        {"image_id": k, "category_id": int(label), "bbox": box, "score": float(score)}
        for k, one in enumerate(found)
        for box, label, score in zip(sized(one["boxes"]), one["labels"], one["scores"], strict=True)
    ]
    truth = {
        "images": [{"id": k} for k in range(len(targets))],
        "categories": [{"id": label} for label in COLOURS],
        "annotations": objects,
    }
    return sized_ap(truth, results, thresholds=(0.5,))["all", 0.5]


def scenes():
    return zip(*(draw_scene(*scene, k) for k, scene in enumerate(SCENES)), strict=True)


def learn(model, images, targets, steps):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, RATE, total_steps=steps, pct_start=0.2
    )
    model.train()
    for _ in range(steps):
        for turn in getattr(model, "turns", ()) or ("",):
            model.turn = turn
            optimizer.zero_grad()
            sum(model(images, targets).values()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 10)
            optimizer.step()
        schedule.step()


@pytest.mark.parametrize("system", SYSTEMS)
def test_four_pictures_are_learnt(system):
    torch.manual_seed(0)
    detector = next(name for name in DETECTORS if system.startswith(name))
    model = create(
        f"{system}_resnet_nano",
        num_classes=2,
        neck_channels=32,
        max_per_image=50,
        **DETECTORS[detector],
    )
    images, targets = scenes()
    learn(model, images, targets, STEPS)
    with torch.no_grad():
        found = model.eval()(images)
    assert measure(found, targets) > 0.9
    swapped = [{**one, "labels": 3 - one["labels"]} for one in found]
    assert measure(swapped, targets) < 0.5  # the classes are told apart


def test_the_new_head_of_efpn_learns_them_alone():
    torch.manual_seed(0)
    model = create(
        "faster_rcnn_efpn_resnet_nano",
        num_classes=2,
        neck_channels=32,
        max_per_image=50,
        keep_coarse=False,
        **TWO_STAGES,
    )
    images, targets = scenes()
    for phase, steps in (("detector", STEPS), ("distillation", 10), ("refinement", 30)):
        model.set_phase(phase)
        learn(model, images, targets, steps)
    torch.nn.init.zeros_(model.roi_heads.head.fc_cls.weight)  # it no longer knows anything
    with torch.no_grad():
        found = model.eval()(images)
    assert measure(found, targets) > 0.9


@pytest.mark.parametrize("mode", ["crop", "feature"])
def test_gdl_learns_them_by_what_it_restores(mode):
    torch.manual_seed(0)
    model = create(
        "faster_rcnn_gdl_resnet_nano",
        num_classes=2,
        neck_channels=32,
        max_per_image=50,
        mode=mode,
        generator_width=16,
        generator_blocks=1,
        crop_size=16,
        upscale=2,
        crop_samples=16,
        discriminator_width=16,
        discriminator_hidden=64,
        **TWO_STAGES,
    )
    images, targets = scenes()
    for phase, steps in (("detector", STEPS), ("generator", 10), ("adversarial", 60)):
        model.set_phase(phase)
        learn(model, images, targets, steps)
    with torch.no_grad():
        if mode == "crop":  # the second stage no longer knows which class it sees
            model.roi_heads.head.fc_cls.weight[1:] = model.roi_heads.head.fc_cls.weight[1:].mean(0)
        found = model.eval()(images)
    assert measure(found, targets) > 0.6  # so short a training ends differently on each machine
