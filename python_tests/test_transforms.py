"""Augmentation."""

import pickle

import pytest
import torch
from torchvision import tv_tensors

from tinyops.data import transforms


def sample(height=40, width=60, boxes=((10.0, 5.0, 20.0, 12.0), (50.0, 30.0, 55.0, 38.0))):
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    target = {
        "boxes": tv_tensors.BoundingBoxes(
            torch.tensor(boxes), format="XYXY", canvas_size=(height, width)
        ),
        "labels": torch.arange(1, len(boxes) + 1),
        "ignore": torch.tensor([k == 1 for k in range(len(boxes))]),
        "image_id": torch.tensor(7),
    }
    return tv_tensors.Image(image), target


def plain(image):
    return image.as_subclass(torch.Tensor)


def dot(value=90):
    image = torch.zeros(3, 7, 7, dtype=torch.uint8)
    image[:, 3, 3] = value
    return tv_tensors.Image(image)


def test_box_blur_is_the_mean_of_nine_pixels():
    blurred = plain(transforms.BoxBlur(3)(dot()))
    expected = torch.zeros(7, 7, dtype=torch.uint8)
    expected[2:5, 2:5] = 10
    assert (blurred == expected).all()


def test_median_blur_removes_a_dot_and_keeps_an_edge():
    assert plain(transforms.MedianBlur(3)(dot())).max() == 0
    edge = torch.zeros(3, 6, 8, dtype=torch.uint8)
    edge[:, :, 4:] = 200
    edge = tv_tensors.Image(edge)
    assert torch.equal(plain(transforms.MedianBlur(3)(edge)), plain(edge))
    image, _ = sample(9, 11)
    median = plain(transforms.MedianBlur(3)(image))
    assert median[1, 4, 5] == plain(image)[1, 3:6, 4:7].flatten().median()


def test_motion_blur_spreads_a_dot_along_a_line():
    shapes = set()
    for _ in range(60):
        blurred = plain(transforms.MotionBlur(3)(dot()))[0]
        assert blurred.sum() == 90
        lit = blurred.nonzero() - 3
        assert len(lit) == 3
        assert (lit[0] == -lit[2]).all()  # through the centre
        shapes.add(tuple(map(tuple, lit.tolist())))
    assert len(shapes) == 4  # level, upright and both diagonals


def test_longer_motion_blur_keeps_the_sum():
    for _ in range(20):
        params = transforms.MotionBlur(7).make_params([])
        assert params["kernel"].sum() == pytest.approx(1)


@pytest.mark.parametrize("make", [transforms.BoxBlur, transforms.MedianBlur, transforms.MotionBlur])
@pytest.mark.parametrize("size", [0, 4, -3])
def test_even_kernels_are_refused(make, size):
    with pytest.raises(ValueError, match="size must be odd"):
        make(size)


def test_colours_move_within_their_limits():
    grey = tv_tensors.Image(torch.full((3, 4, 4), 100, dtype=torch.uint8))
    shifts = torch.stack([plain(transforms.RGBShift(10)(grey))[:, 0, 0] for _ in range(200)])
    shifts = shifts.int() - 100
    assert shifts.min() >= -10
    assert shifts.max() <= 10
    assert (shifts.amax(1) > shifts.amin(1)).any()  # channels move apart
    assert shifts.min() < -7
    assert shifts.max() > 7
    light = [plain(transforms.BrightnessContrast()(grey)).float() for _ in range(200)]
    assert all(len(x.unique()) == 1 for x in light)
    values = torch.stack([x[0, 0, 0] for x in light])
    assert values.min() >= 110 - 25.5 - 1  # 1.1 x - 0.1
    assert values.max() <= 130 + 76.5 + 1  # 1.3 x + 0.3
    assert values.max() - values.min() > 60


def test_bright_pixels_stop_at_255():
    white = tv_tensors.Image(torch.full((3, 4, 4), 250, dtype=torch.uint8))
    bright = transforms.BrightnessContrast((0.3, 0.3), (0.3, 0.3))
    assert (plain(bright(white)) == 255).all()


def test_resize_fits_the_frame_and_takes_the_boxes_along():
    seen = set()
    for _ in range(30):
        image, target = sample(512, 640)
        resized, moved = transforms.RandomResize()(image, target)
        height, width = resized.shape[-2:]
        assert 640 <= width <= 960
        assert 512 <= height <= 768
        torch.testing.assert_close(
            plain(moved["boxes"]), plain(target["boxes"]) * (width / 640), rtol=2e-3, atol=0.05
        )
        assert moved["boxes"].canvas_size == (height, width)
        seen.add(width)
    assert len(seen) > 10
    tall, target = sample(640, 512)
    assert transforms.RandomResize((64, 64), (64, 64))(tall, target)[0].shape[-2:] == (64, 51)
    assert transforms.RandomResize((64, 64), (32, 32))(tall, target)[0].shape[-2:] == (40, 32)


@pytest.mark.parametrize("build", [transforms.simple_augmentation, transforms.sspnet_augmentation])
def test_pipelines_keep_rows_together(build):
    pipeline = pickle.loads(pickle.dumps(build()))  # workers may be spawned
    changed = 0
    for seed in range(30):
        torch.manual_seed(seed)
        image, target = sample(51, 64)
        before = plain(image).clone()
        out, moved = pipeline(image, target)
        assert out.dtype == torch.uint8
        assert out.shape[0] == 3
        height, width = out.shape[-2:]
        labels, ignore = moved["labels"], moved["ignore"]
        assert len(moved["boxes"]) == len(labels) == len(ignore)
        assert torch.equal(ignore, labels == 2)
        boxes = plain(moved["boxes"])
        assert (boxes >= 0).all()
        assert (boxes[:, 2] <= width).all()
        assert (boxes[:, 3] <= height).all()
        assert ((boxes[:, 2:] - boxes[:, :2]) >= 1).all()
        assert moved["image_id"] == 7
        assert torch.equal(plain(image), before)  # in place would spoil the cache
        changed += out.shape != image.shape or not torch.equal(plain(out), before)
    assert changed > 20


def test_objects_shifted_out_lose_their_labels_and_flags():
    pipeline = transforms.sspnet_augmentation((64, 64), (51, 51))
    lost = 0
    for seed in range(60):
        torch.manual_seed(seed)
        image, target = sample(51, 64, ((0.0, 0.0, 4.0, 3.0), (30.0, 20.0, 40.0, 28.0)))
        _, moved = pipeline(image, target)
        lost += len(moved["labels"]) == 1
        assert moved["labels"].tolist() in ([1, 2], [2])
        assert moved["ignore"].tolist() == [label == 2 for label in moved["labels"].tolist()]
    assert lost > 3


def test_a_flip_moves_pixels_and_boxes_alike():
    flip = transforms.simple_augmentation().transforms[0]
    flip.p = 1.0
    image, target = sample()
    out, moved = flip(image, target)
    assert torch.equal(plain(out), plain(image).flip(-1))
    assert moved["boxes"][0].tolist() == [40, 5, 50, 12]


def test_the_same_numbers_give_the_same_sample():
    pipeline = transforms.sspnet_augmentation()
    image, target = sample(51, 64)
    results = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        results.append(plain(pipeline(image, target)[0]))
    assert torch.equal(results[0], results[1])
    assert results[0].shape != results[2].shape or not torch.equal(results[0], results[2])


def test_images_without_objects_pass():
    for build in (transforms.simple_augmentation, transforms.sspnet_augmentation):
        image, target = sample(boxes=((0.0, 0.0, 1.0, 1.0),))
        target = {**target, "boxes": target["boxes"][:0], "labels": target["labels"][:0]}
        target["boxes"] = tv_tensors.BoundingBoxes(
            torch.zeros(0, 4), format="XYXY", canvas_size=(40, 60)
        )
        target["ignore"] = target["ignore"][:0]
        _, moved = build()(image, target)
        assert moved["boxes"].shape == (0, 4)
        assert moved["ignore"].shape == (0,)
