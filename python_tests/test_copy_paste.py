"""Copies of small objects, pasted elsewhere."""

import math
import pickle

import numpy as np
import pytest
import torch
from annotated import annotated_image, annotated_set
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import tv_tensors
from torchvision.ops import box_iou

from tinyops.data.copy_paste import CopyPaste, Crop, copyable, crop_bank

EXACT = {"scale": (1, 1), "turn": 0}


def scene(boxes, ignore=None, size=(80, 120)):
    """A dark noisy image; object k has the brightness 100 + 10 k."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 60, (3, *size), generator=generator, dtype=torch.uint8)
    for k, (x1, y1, x2, y2) in enumerate(boxes):
        image[:, math.floor(y1) : math.ceil(y2), math.floor(x1) : math.ceil(x2)] = 100 + 10 * k
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    target = {
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
        "labels": torch.arange(1, 1 + len(boxes)),
        "ignore": torch.tensor(ignore or [False] * len(boxes), dtype=torch.bool),
        "image_id": torch.tensor(3),
    }
    return tv_tensors.Image(image), target


def plain(x):
    return x.as_subclass(torch.Tensor)


@pytest.mark.parametrize("shape", ["ellipse", "box"])
def test_a_copy_has_the_pixels_of_the_object(shape):
    image, target = scene([[50.25, 30, 58, 40.5]])
    image[:] = torch.randint(0, 256, image.shape, dtype=torch.uint8)
    out, new = CopyPaste(4, shape=shape, **EXACT)(image, target)
    assert len(new["boxes"]) == 5
    assert new["labels"].tolist() == [1] * 5
    assert not new["ignore"].any()
    assert new["image_id"] == 3
    assert new["boxes"].canvas_size == (80, 120)
    source = plain(image)[:, 30:41, 51:58]
    for box in plain(new["boxes"]):
        assert (box[2:] - box[:2]).tolist() == [7.75, 10.5]
        x, y = (box[:2] + 0.75).floor().long().tolist()
        # Pixels the centres of which lie in the box.
        assert torch.equal(plain(out)[:, y : y + 10, x : x + 7], source[:, :10])
    assert torch.equal(plain(image)[:, 30:41, 50:58], plain(out)[:, 30:41, 50:58])


def test_only_an_ellipse_or_a_box_changes():
    image, target = scene([[50, 30, 60, 50]])
    changed = {}
    for shape in ("ellipse", "box"):
        torch.manual_seed(1)
        out, new = CopyPaste(shape=shape, **EXACT)(image, target)
        centre = plain(new["boxes"])[1].view(2, 2).mean(0)
        y, x = (plain(out) != plain(image)).any(0).nonzero().unbind(1)
        offset = torch.stack([x, y], 1) + 0.5 - centre
        assert (abs(offset).amax(0) >= torch.tensor([4.5, 9.5])).all()
        relative = offset / torch.tensor([5, 10])
        if shape == "ellipse":
            assert (relative.square().sum(1) <= 2).all()
            assert (relative.abs().amax(0) > 1.2).all()  # beyond the sides of the box
        else:
            assert (relative.abs() <= 1).all()
        changed[shape] = len(x)
    assert changed["box"] == pytest.approx(200, abs=2)
    assert changed["ellipse"] == pytest.approx(math.pi * 100, rel=0.03)  # (a b pi) of both radii


def test_scaled_and_turned_copies_have_tight_boxes():
    # A bright disc: whatever is done with it, its box is the one around its pixels.
    y, x = torch.meshgrid(torch.arange(80) + 0.5, torch.arange(120) + 0.5, indexing="ij")
    image, target = scene([[40, 20, 64, 44]])
    image[:] = (200 * ((x - 52) ** 2 + (y - 32) ** 2 < 12**2)).to(torch.uint8)
    sizes = set()
    for seed in range(20):
        torch.manual_seed(seed)
        out, new = CopyPaste(turn=40, scale=(0.7, 1.3))(image, target)
        if len(new["boxes"]) == 1:
            continue
        out = plain(out)[0].clone()
        out[20:44, 40:64] = 0
        rows, columns = (out > 100).nonzero().unbind(1)
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        torch.testing.assert_close(
            plain(new["boxes"])[1], torch.stack(seen).float(), atol=1.01, rtol=0
        )
        sizes.add(int(seen[2] - seen[0]))
    assert min(sizes) < 20
    assert max(sizes) > 28


def test_a_turned_upright_bar_leans():
    image, target = scene([[60, 30, 62, 50]])
    for seed in range(5):
        torch.manual_seed(seed)
        out, new = CopyPaste(turn=15, scale=(1, 1))(image, target)
        width, height = (plain(new["boxes"])[1].view(2, 2).diff(dim=0))[0].tolist()
        assert 2 <= width <= 2 * math.hypot(1, 10 * math.sin(math.radians(15)))
        assert 2 * 10 * math.cos(math.radians(15)) - 0.1 <= height <= 20.01
        x1, y1, x2, y2 = plain(new["boxes"])[1].tolist()
        lit = plain(out)[0, int(y1) : int(y2) + 1, int(x1) : int(x2) + 1] > 75
        assert 25 < lit.sum() < 45


def test_soft_edges_lie_between():
    image, target = scene([[50, 30, 60, 50]])
    image[:] = 0
    image[:, 25:55, 45:65] = 200
    torch.manual_seed(1)
    hard = plain(CopyPaste(**EXACT)(image, target)[0])
    torch.manual_seed(1)
    soft = plain(CopyPaste(soft=3, **EXACT)(image, target)[0])
    assert set(hard.unique().tolist()) == {0, 200}
    between = (soft > 0) & (soft < 200)
    assert between.sum() > 60
    assert (hard[between] == 200).all()


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 12),
    st.sampled_from(["ellipse", "box"]),
    st.integers(0, 12),
)
def test_copies_never_overlap_anything(seed, count, shape, margin):
    torch.manual_seed(seed)
    low = torch.rand(count, 2) * torch.tensor([110.0, 70])
    boxes = torch.cat([low, low + 0.5 + torch.rand(count, 2) * 9], 1)
    image, target = scene(boxes.tolist(), (torch.rand(count) < 0.3).tolist())
    options = {"margin": margin, "shape": shape}
    out, new = CopyPaste(3, turn=30, **options)(image, target)
    old, pasted = plain(new["boxes"])[:count], plain(new["boxes"])[count:]
    assert torch.equal(old, boxes)
    assert len(new["labels"]) == len(new["ignore"]) == count + len(pasted)
    assert box_iou(pasted, old).sum() == 0
    assert torch.triu(box_iou(pasted, pasted), 1).sum() == 0
    changed = (plain(out) != plain(image)).any(0)
    for x1, y1, x2, y2 in old.tolist():  # not a pixel of them
        assert not changed[int(y1) : math.ceil(y2), int(x1) : math.ceil(x2)].any()
    if margin:
        edge = torch.ones_like(changed)
        edge[margin:-margin, margin:-margin] = False
        assert not (changed & edge).any()
        assert (pasted >= margin).all()
        assert (pasted[:, 2] <= 120 - margin).all()
        assert (pasted[:, 3] <= 80 - margin).all()


def test_what_is_copied():
    boxes = torch.tensor(
        [
            [10.0, 10, 16, 20],  # good
            [30, 10, 70, 50],  # large
            [80, 10, 86, 20],  # to be ignored
            [0, 40, 6, 50],  # at the border
            [90, 40, 96, 50],  # two that touch
            [96, 40, 102, 50],
            [20, 60, 20, 70],  # without area
        ]
    )
    ignore = torch.tensor([False, False, True, False, False, False, False])
    expected = [True, False, False, False, False, False, False]
    assert copyable(boxes, ignore, (120, 80), 32).tolist() == expected
    assert copyable(boxes, ignore, (120, 80), 45).tolist() == [True, True, *expected[2:]]
    assert copyable(boxes[:0], ignore[:0], (120, 80), 32).shape == (0,)


def test_objects_of_a_bank_are_pasted_too():
    image, _ = scene([[50, 30, 60, 50]])
    crop = Crop.of(plain(image), torch.tensor([50.0, 30, 60, 50]), 7)
    assert crop.pixels.shape[1] < 36
    empty, target = scene([])
    out, new = CopyPaste(bank=[crop], from_bank=2, **EXACT)(empty, target)
    assert new["labels"].tolist() == [7, 7]
    x, y = plain(new["boxes"])[0, :2].long().tolist()
    assert (plain(out)[:, y : y + 20, x : x + 10] == 100).all()
    assert plain(CopyPaste()(empty, target)[0]).equal(plain(empty))


def test_an_image_without_room_stays():
    image, target = scene([[10, 10, 14, 14], [0, 0, 120, 80]], [False, True])
    out, new = CopyPaste(5)(image, target)
    assert len(new["boxes"]) == 2
    assert torch.equal(plain(out), plain(image))
    tiny, target = scene([[5, 5, 8, 8]], size=(13, 13))
    assert len(CopyPaste(5)(tiny, target)[1]["boxes"]) == 1


def test_the_generator_decides_and_the_input_stays():
    paste = pickle.loads(pickle.dumps(CopyPaste(2)))
    image, target = scene([[50, 30, 56, 42], [20, 20, 25, 24]])
    before = plain(image).clone()
    results = []
    for seed in (4, 4, 5):
        torch.manual_seed(seed)
        results.append(paste(image, target))
    assert torch.equal(plain(image), before)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1]["boxes"], results[1][1]["boxes"])
    assert not torch.equal(results[0][0], results[2][0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"copies": -1}, "copies must be at least 0"),
        ({"margin": -1}, "margin must be at least 0"),
        ({"soft": float("nan")}, "soft must be at least 0 and finite"),
        ({"scale": (0, 1)}, "scale must be positive"),
        ({"scale": (2, 1)}, "scale must be positive and rising"),
        ({"shape": "mask"}, "shape must be"),
        ({"from_bank": 1}, "bank must have objects"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CopyPaste(**options)


def test_a_bank_is_drawn_from_the_copyable_objects(tmp_path):
    rng = np.random.default_rng(0)
    images = []
    for number in range(3):
        boxes = [(10 + 30 * k + number / 4, 12, 6, 9 + number) for k in range(3)]
        pixels = rng.integers(0, 256, (40, 120, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        images.append(annotated_image(number, (120, 40), boxes, [1, 2, 2], [0, 0, 1]))
    data = annotated_set(*images, classes=("a", "b"), folder=tmp_path)
    assert len(crop_bank(data)) == 6
    crops = crop_bank(data, 4, seed=1)
    assert [c.label for c in crops] != [c.label for c in crop_bank(data, 4, seed=2)]
    for crop, again in zip(crops, crop_bank(data, 4, seed=1), strict=True):
        assert torch.equal(crop.pixels, again.pixels)
        x1, y1, x2, y2 = crop.box
        assert crop.label in (1, 2)
        number = round(y2 - y1) - 9
        whole = torch.tensor(np.asarray(Image.open(tmp_path / f"{number}.png"))).permute(2, 0, 1)
        left = round(10 + 30 * (crop.label - 1) + number / 4 - x1)
        top = round(12 - y1)
        height, width = crop.pixels.shape[1:]
        assert torch.equal(crop.pixels, whole[:, top : top + height, left : left + width])
        assert x2 - x1 == 6
    with pytest.raises(ValueError, match="objects of up to 3 px to be copied, got none"):
        crop_bank(data, largest=3)
