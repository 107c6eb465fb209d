"""Images and targets become batches."""

import pytest
import torch
import torch.nn.functional as F
from detection import target

from tinyops.nn.batch import (
    ImageBatch,
    check_images,
    check_targets,
    collate_images,
    collate_targets,
)

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def test_images_are_normalised_and_padded_with_zeros():
    images = [torch.rand(3, 40, 20), torch.rand(3, 33, 50)]
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    batch = collate_images(images, mean=mean, std=std)
    assert batch.pixels.shape == (2, 3, 64, 64)
    assert batch.sizes == ((40, 20), (33, 50))
    assert batch.size_table().tolist() == [[40, 20], [33, 50]]
    for padded, image in zip(batch.pixels, images, strict=True):
        height, width = image.shape[-2:]
        expected = torch.zeros(3, 64, 64)
        for c in range(3):
            expected[c, :height, :width] = (image[c] - mean[c]) / std[c]
        torch.testing.assert_close(padded, expected)


@pytest.mark.parametrize(("size", "expected"), [((32, 64), (32, 64)), ((33, 65), (64, 96))])
def test_sides_are_multiples_of_the_divisor(size, expected):
    batch = collate_images([torch.rand(3, *size)], **PLAIN)
    assert batch.pixels.shape[-2:] == expected


@pytest.mark.parametrize("scale", [2.0, 0.5, 1.3])
def test_images_are_resized_by_scale(scale):
    image = torch.rand(3, 41, 27)
    batch = collate_images([image], **PLAIN, scale=scale)
    height, width = round(41 * scale), round(27 * scale)
    assert batch.sizes == ((height, width),)
    expected = F.interpolate(image[None], (height, width), mode="bilinear", antialias=scale < 1)
    torch.testing.assert_close(batch.pixels[:, :, :height, :width], expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_images_keep_their_dtype(dtype):
    assert collate_images([torch.rand(3, 8, 8).to(dtype)], **PLAIN).pixels.dtype == dtype


def test_images_get_gradients():
    image = torch.rand(3, 8, 8, requires_grad=True)
    collate_images([image], **PLAIN).pixels.sum().backward()
    assert torch.equal(image.grad, torch.ones_like(image))


def test_targets_are_joined():
    first = target((1, 2, 3, 4), (5, 6, 7, 8), (0, 0, 9, 9), labels=[2, 1, 7])
    first["ignore"] = torch.tensor([False, False, True])
    truth = collate_targets([first, target(), target((4, 4, 5, 5), labels=[3])])
    assert truth.boxes.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [4, 4, 5, 5]]
    assert truth.labels.tolist() == [2, 1, 3]
    assert truth.image_ids.tolist() == [0, 0, 2]
    assert truth.ignored_boxes.tolist() == [[0, 0, 9, 9]]
    assert truth.ignored_image_ids.tolist() == [0]


def test_boxes_are_resized_by_the_factors_of_their_image():
    targets = [target((1, 2, 3, 4)), target((1, 2, 3, 4), (0, 0, 8, 8), ignore=[False, True])]
    truth = collate_targets(targets, factors=[(1, 1), (2, 3)])
    assert truth.boxes.tolist() == [[1, 2, 3, 4], [2, 6, 6, 12]]
    assert truth.ignored_boxes.tolist() == [[0, 0, 16, 24]]


def test_boxes_get_the_dtype_asked_for():
    assert collate_targets([target((1, 2, 3, 4))]).boxes.dtype == torch.float32
    truth = collate_targets([target((1, 2, 3, 4))], dtype=torch.float64)
    assert truth.boxes.dtype == truth.ignored_boxes.dtype == torch.float64


def test_good_images_and_targets_pass():
    images = [torch.rand(3, 5, 7), torch.rand(3, 9, 4)]
    check_images(images)
    check_targets([target(), target((1, 1, 2, 2), (1, 1, 1, 1), labels=[1, 3])], images, 3)
    region = target((0, 0, 4, 4), labels=[0], ignore=[True])  # a region needs no label
    check_targets([target(), region], images, 3)


IMAGE = torch.rand(3, 8, 8)


@pytest.mark.parametrize(
    ("images", "text"),
    [
        ([], "images must hold at least one image"),
        ([IMAGE, "x"], r"images\[1\] must be a tensor, got str"),
        ([IMAGE, IMAGE[0]], r"images\[1\] must be \[3, H, W\], got \[8, 8\]"),
        ([IMAGE[:1]], r"images\[0\] must be \[3, H, W\], got \[1, 8, 8\]"),
        ([IMAGE[:, :0]], r"images\[0\] must be \[3, H, W\], got \[3, 0, 8\]"),
        ([(255 * IMAGE).byte()], r"images\[0\] must be float in 0\.\.1, got torch.uint8"),
        ([IMAGE, IMAGE.to("meta")], r"images\[1\] must be on cpu like images\[0\], got meta"),
    ],
)
def test_bad_images(images, text):
    with pytest.raises(ValueError, match=text):
        check_images(images)


def with_(**entries):
    return {**target((1, 1, 2, 2)), **entries}


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        ({"boxes": torch.zeros(0, 4)}, r"must have boxes and labels, got \['boxes'\]"),
        (with_(boxes=torch.zeros(1, 5)), r"'boxes'\] must be float \[K, 4\].*\[1, 5\]"),
        (with_(boxes=torch.zeros(1, 4).long()), r"'boxes'\] must be float \[K, 4\].*int64"),
        (with_(labels=torch.ones(2).long()), r"'labels'\] must be int64 \[1\].*\[2\]"),
        (with_(labels=torch.ones(1)), r"'labels'\] must be int64 \[1\].*float32"),
        (with_(ignore=torch.ones(1)), r"'ignore'\] must be bool \[1\].*float32"),
        (with_(labels=torch.zeros(1).long()), r"'labels'\]\[0\] must be in 1\.\.3, got 0"),
        (with_(labels=torch.tensor([4])), r"'labels'\]\[0\] must be in 1\.\.3, got 4"),
        (with_(boxes=torch.tensor([[5.0, 1, 2, 2]])), r"'boxes'\]\[0\] must be finite with x2"),
        (with_(boxes=torch.tensor([[1.0, 1, 2, torch.nan]])), r"'boxes'\]\[0\] must be finite"),
        (with_(boxes=torch.zeros(1, 4, device="meta")), r"'boxes'\] must be on cpu.*got meta"),
        (with_(labels=torch.ones(1, device="meta").long()), r"'labels'\] must be on cpu.*got meta"),
        (with_(ignore=torch.ones(1, device="meta").bool()), r"'ignore'\] must be on cpu.*got meta"),
        (with_(boxes=[[1, 1, 2, 2]]), r"'boxes'\] must be a tensor, got list"),
    ],
)
def test_bad_targets(bad, text):
    with pytest.raises(ValueError, match=r"targets\[1\].*" + text):
        check_targets([target(), bad], [IMAGE, IMAGE], 3)


def test_as_many_targets_as_images():
    with pytest.raises(ValueError, match=r"one per image \(2\), got 1"):
        check_targets([target()], [IMAGE, IMAGE], 1)


def test_batches_do_not_change():
    batch = ImageBatch(torch.rand(1, 3, 4, 4), ((4, 4),))
    with pytest.raises(AttributeError):
        batch.sizes = ((1, 1),)
