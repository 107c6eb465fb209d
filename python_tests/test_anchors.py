"""Anchors: their sizes, their places, and which of them lie in the images."""

import math

import pytest
import torch
from detection import STRIDES, batch_of, pyramid

from tinyops.nn.anchors import AnchorGenerator, octave_scales


def levels_of(*shapes, dtype=torch.float32):
    return [torch.zeros(1, 1, *shape, dtype=dtype) for shape in shapes]


def test_by_hand():
    anchors = AnchorGenerator([4], [2.0], [4.0])(levels_of((2, 2)))[0]
    # 4 * 2 = 8 pixels; ratio 4: twice as high and half as wide.
    half_w, half_h = 2.0, 8.0
    centres = [(0, 0), (4, 0), (0, 4), (4, 4)]
    expected = [(x - half_w, y - half_h, x + half_w, y + half_h) for x, y in centres]
    torch.testing.assert_close(anchors, torch.tensor(expected))


def test_sizes_of_levels_replace_their_strides():
    found = AnchorGenerator([4, 8], [2.0], [4.0], sizes=[10.0, 3.0])(levels_of((1, 2), (1, 2)))
    # 10 * 2 = 20 pixels, 10 wide and 40 high; 3 * 2 = 6, 3 wide and 12 high.
    expected = [(-5, -20, 5, 20), (-1, -20, 9, 20)], [(-1.5, -6, 1.5, 6), (6.5, -6, 9.5, 6)]
    for anchors, boxes in zip(found, expected, strict=True):
        torch.testing.assert_close(anchors, torch.tensor(boxes).float())


def test_sizes_are_not_rounded():
    anchors = AnchorGenerator([4], [1.5], [0.4])(levels_of((1, 1)))[0][0]
    assert anchors[2] - anchors[0] == pytest.approx(6 / math.sqrt(0.4))
    assert anchors[3] - anchors[1] == pytest.approx(6 * math.sqrt(0.4))


def test_order_is_ratio_then_scale():
    scales, ratios = (1.0, 3.0), (0.25, 1.0, 4.0)
    generator = AnchorGenerator([8], scales, ratios)
    anchors = generator(levels_of((1, 1)))[0]
    assert generator.per_cell == 6
    sizes = anchors[:, 2:] - anchors[:, :2]
    expected = [(8 * s / r**0.5, 8 * s * r**0.5) for r in ratios for s in scales]
    torch.testing.assert_close(sizes, torch.tensor(expected))


def test_plain_loop_over_levels_rows_and_columns():
    scales, ratios, strides = (1.5, 2.5), (0.4, 1.4), (4, 8)
    shapes = [(3, 5), (2, 3)]
    found = AnchorGenerator(strides, scales, ratios)(levels_of(*shapes))
    for (height, width), stride, anchors in zip(shapes, strides, found, strict=True):
        expected = []
        for row in range(height):
            for column in range(width):
                for ratio in ratios:
                    for scale in scales:
                        w, h = stride * scale / ratio**0.5, stride * scale * ratio**0.5
                        x, y = column * stride, row * stride
                        expected.append((x - w / 2, y - h / 2, x + w / 2, y + h / 2))
        torch.testing.assert_close(anchors, torch.tensor(expected))


def test_octaves():
    assert octave_scales(2, 3) == pytest.approx((2, 2 ** (4 / 3), 2 ** (5 / 3)))


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_anchors_are_at_least_float32(dtype, expected):
    exact = AnchorGenerator([4], [3.7], [1.4])(levels_of((3, 3), dtype=torch.float64))[0]
    anchors = AnchorGenerator([4], [3.7], [1.4]).to(dtype)(levels_of((3, 3), dtype=dtype))[0]
    assert anchors.dtype == expected
    torch.testing.assert_close(anchors, exact.to(expected))


def test_images_that_fill_the_batch_have_all_anchors():
    batch = batch_of((96, 128), (96, 128))
    generator = AnchorGenerator(STRIDES, [2.0], [0.5, 1.0])
    anchors = generator.of_batch(pyramid(batch), batch)
    one = torch.cat(anchors.levels)
    assert anchors.inside is None
    assert anchors.rows is None
    assert torch.equal(anchors.boxes, torch.cat([one, one]))
    assert anchors.image_ids.tolist() == [0] * len(one) + [1] * len(one)


def test_cells_in_the_padding_are_left_out():
    batch = batch_of((96, 128), (50, 33))
    generator = AnchorGenerator(STRIDES, [2.0, 3.0], [1.0])
    levels = pyramid(batch)
    anchors = generator.of_batch(levels, batch)
    expected, ids, rows, row = [], [], [], 0
    for image, (height, width) in enumerate(batch.sizes):
        for level, boxes, stride in zip(levels, anchors.levels, STRIDES, strict=True):
            for k, box in enumerate(boxes):
                cell = k // 2
                y, x = divmod(cell, level.shape[3])
                if y * stride < height and x * stride < width:
                    expected.append(box)
                    ids.append(image)
                    rows.append(row)
                row += 1
    assert torch.equal(anchors.boxes, torch.stack(expected))
    assert anchors.image_ids.tolist() == ids
    assert anchors.rows.tolist() == rows
    assert len(rows) < row


def test_select_takes_the_rows_of_the_anchors():
    batch = batch_of((64, 64), (40, 20))
    generator = AnchorGenerator(STRIDES, [2.0], [1.0])
    anchors = generator.of_batch(pyramid(batch), batch)
    per_level = [x.expand(2, -1, -1) for x in anchors.levels]  # predictions that are the anchors
    assert torch.equal(anchors.select(per_level), anchors.boxes)


def test_anchors_of_an_image_do_not_depend_on_the_padding():
    generator = AnchorGenerator(STRIDES, [2.0], [1.0])
    alone, beside = batch_of((50, 33)), batch_of((96, 128), (50, 33))
    one = generator.of_batch(pyramid(alone), alone)
    two = generator.of_batch(pyramid(beside), beside)
    assert torch.equal(one.boxes, two.boxes[two.image_ids == 1])


def test_wrong_arguments():
    with pytest.raises(ValueError, match="strides must be numbers above 0"):
        AnchorGenerator([], [1.0], [1.0])
    with pytest.raises(ValueError, match=r"ratios must be numbers above 0, got \[0\.0\]"):
        AnchorGenerator([4], [1.0], [0.0])
    with pytest.raises(ValueError, match=r"sizes must be numbers above 0, got \[0\]"):
        AnchorGenerator([4], [1.0], [1.0], sizes=[0])
    with pytest.raises(ValueError, match=r"sizes must be one per stride \(2\), got 1"):
        AnchorGenerator([4, 8], [1.0], [1.0], sizes=[9])
    with pytest.raises(ValueError, match=r"one per stride \(2\), got 1"):
        AnchorGenerator([4, 8], [1.0], [1.0])(levels_of((1, 1)))


def test_compiles():
    generator = AnchorGenerator([4, 8], [1.5, 2.5], [0.4, 1.4])
    levels = levels_of((3, 5), (2, 3))
    compiled = torch.compile(generator, fullgraph=True, backend="eager")
    for found, expected in zip(compiled(levels), generator(levels), strict=True):
        assert torch.equal(found, expected)
