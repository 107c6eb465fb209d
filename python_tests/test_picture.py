"""Annotated pictures, by their pixels."""

import itertools
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from tinyops.inference.result import Result
from tinyops.inference.source import ArraySource
from tinyops.plot import panels, picture, pixels
from tinyops.plot.ink import rgb
from tinyops.plot.picture import BANDS, OUTCOMES, annotate
from tinyops.plot.places import choose_windows, match

MARGIN = panels.MARGIN
SIDES = (5, 10, 16, 25, 40)  # one of each band
COLORS = [rgb(band.color) for band in BANDS]


def noise(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def draw(image, boxes, **options):
    return np.asarray(annotate(image, np.array(boxes, float).reshape(-1, 4), **options))


def whole(image, boxes, **options):
    """The part of the picture that shows the image, without insets."""
    height, width = image.shape[:2]
    drawn = draw(image, boxes, **{"insets": 0, **options})
    return drawn[MARGIN : MARGIN + height, MARGIN : MARGIN + width]


def is_color(pixels, color):
    return (pixels == color).all(-1)


@pytest.fixture
def texts(monkeypatch):
    """What the legend says."""
    lines = []
    entry = panels.entry
    monkeypatch.setattr(panels, "entry", lambda text, *a: (lines.append(text), entry(text, *a))[1])
    return lines


def test_a_line_of_the_bands_color_runs_around_each_object_and_leaves_it_as_it_is():
    image = noise(300, 80)
    boxes = [(20 + 55 * k, 20, 20 + 55 * k + side, 20 + side) for k, side in enumerate(SIDES)]
    drawn = whole(image, boxes)
    for (x1, y1, x2, y2), color in zip(boxes, COLORS, strict=True):
        gap = slice(y1 - 1, y2 + 1), slice(x1 - 1, x2 + 1)
        assert (drawn[gap] == image[gap]).all()
        for line in (
            drawn[y1 - 2, x1 - 2 : x2 + 2],
            drawn[y2 + 1, x1 - 2 : x2 + 2],
            drawn[y1 - 2 : y2 + 2, x1 - 2],
            drawn[y1 - 2 : y2 + 2, x2 + 1],
        ):
            assert is_color(line, color).all()


def test_boxes_between_pixels_keep_every_pixel_that_they_touch():
    image = noise(60, 60)
    drawn = whole(image, [(20.9, 30.1, 24.1, 33.9)])
    assert (drawn[29:35, 19:26] == image[29:35, 19:26]).all()
    assert is_color(drawn[28, 18:27], COLORS[0]).all()
    assert is_color(drawn[35, 18:27], COLORS[0]).all()


def test_lines_do_not_cross_neighbours():
    image = noise(120, 100)
    boxes = [(x, y, x + 4, y + 6) for x, y in itertools.product(range(20, 60, 5), range(20, 60, 7))]
    drawn = whole(image, boxes)
    for x1, y1, x2, y2 in boxes:
        assert (drawn[y1:y2, x1:x2] == image[y1:y2, x1:x2]).all()


def test_an_object_inside_of_a_large_one_has_a_line_of_its_own():
    drawn = whole(noise(200, 200), [(20, 20, 180, 180), (50, 50, 55, 55)])
    assert is_color(drawn[48, 48:57], COLORS[0]).all()
    assert is_color(drawn[18, 18:182], COLORS[4]).all()


def test_bands_end_at_the_side_of_a_square_of_equal_area():
    image = noise(100, 60)
    for box, color in (((20, 20, 24, 36), COLORS[0]), ((20, 20, 24, 36.1), COLORS[1])):
        assert tuple(whole(image, [box])[18, 20]) == color


@pytest.mark.parametrize("vision", ["normal", "protanopia", "deuteranopia", "tritanopia"])
def test_colors_of_bands_differ_for_everybody(vision):
    # Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB; then CIE 1976.
    seen = {
        "normal": np.eye(3),
        "protanopia": [
            (0.152286, 1.052583, -0.204868),
            (0.114503, 0.786281, 0.099216),
            (-0.003882, -0.048116, 1.051998),
        ],
        "deuteranopia": [
            (0.367322, 0.860646, -0.227968),
            (0.280085, 0.672501, 0.047413),
            (-0.011820, 0.042940, 0.968881),
        ],
        "tritanopia": [
            (1.255528, -0.076749, -0.178779),
            (-0.078411, 0.930809, 0.147602),
            (0.004733, 0.691367, 0.303900),
        ],
    }[vision]
    to_xyz = np.array(
        [(0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505)]
    )
    values = np.array(COLORS) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    xyz = (linear @ np.array(seen).T).clip(0, 1) @ to_xyz.T / (0.9505, 1, 1.089)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    lab = np.stack([116 * f[:, 1], 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)
    for a, b in itertools.combinations(lab, 2):
        assert np.linalg.norm(a - b) > 20


def blocks(width, height):
    """Squares of 8 px, each of one color, all different from their neighbours."""
    return np.kron(noise(width // 8, height // 8, 3), np.ones((8, 8, 1), np.uint8))


def test_an_inset_shows_its_window_magnified_with_lines_between_pixels():
    image, box = blocks(320, 240), (100.25, 60, 104.25, 66)
    drawn = draw(image, [box], insets=1, window=32, zoom=4)
    # 56 px wide, as 1.75 x 32 is the most, in the middle of which the box is.
    x0, y0 = round(102.25 - 28), 63 - 16
    inset = drawn[-MARGIN - 128 : -MARGIN, MARGIN : MARGIN + 224].astype(int)
    for x, y in ((76, 52), (92, 52), (116, 52), (76, 76), (124, 76)):  # middles of squares
        shown = inset[4 * (y - y0), 4 * (x - x0)]
        assert abs(shown - image[y, x]).max() <= 3
    left, right = 4 * 100.25 - 4 * x0, 4 * 104.25 - 4 * x0
    row = is_color(inset[4 * (63 - y0)], COLORS[0])
    edge = [left - 3, left - 2, right + 1, right + 2]  # a gap of 1, a line of 2
    assert np.flatnonzero(row).tolist() == edge


def test_a_numbered_frame_marks_the_window_in_the_whole_image():
    image = blocks(320, 240) // 2
    drawn = draw(image, [(100, 60, 104, 66)], insets=1, window=32, zoom=4)
    x1, y1, x2, y2 = (v + MARGIN for v in (74, 47, 130, 79))
    for line in (drawn[y1 - 1, x1:x2], drawn[y2, x1:x2], drawn[y1:y2, x1 - 1], drawn[y1:y2, x2]):
        assert is_color(line, (255, 255, 255)).all()


def test_windows_show_the_cluster_and_other_places_and_do_not_overlap():
    rng = np.random.default_rng(0)
    corners = np.concatenate([rng.uniform(400, 440, (30, 2)), rng.uniform(0, 980, (40, 2))])
    boxes = np.hstack([corners, corners + 6])
    groups = np.arange(70) % 3
    windows = choose_windows(boxes, groups, (1000, 1000), (64, 64), 6)
    assert windows == choose_windows(boxes, groups, (1000, 1000), (64, 64), 6)
    assert len(windows) == 6
    assert any(x1 <= 400 and y1 <= 400 and x2 >= 446 and y2 >= 446 for x1, y1, x2, y2 in windows)
    for a, b in itertools.combinations(windows, 2):
        assert a[0] >= b[2] or b[0] >= a[2] or a[1] >= b[3] or b[1] >= a[3]
    assert all(x1 >= 0 and y1 >= 0 and x2 <= 1000 and y2 <= 1000 for x1, y1, x2, y2 in windows)


def test_no_object_is_shown_twice():
    boxes = np.array([(x, 500, x + 6, 506) for x in range(300, 700, 25)], float)
    windows = choose_windows(boxes, np.zeros(16, int), (1000, 1000), (64, 64), 16)
    assert 3 < len(windows) < 8
    assert all(b[0] - a[0] >= 64 for a, b in itertools.pairwise(sorted(windows)))


def test_a_place_is_shown_once(monkeypatch):
    boxes = np.array([(500 + k, 500, 506 + k, 506) for k in range(30)], float)
    assert len(choose_windows(boxes, np.arange(30) % 2, (1000, 1000), (64, 64), 6)) == 1
    monkeypatch.setattr("tinyops.plot.places._MOST", 40)  # places that are looked at
    boxes = np.repeat(boxes, 10, 0)
    assert len(choose_windows(boxes, np.arange(300) % 2, (1000, 1000), (64, 64), 6)) == 1


def test_windows_show_each_group():
    boxes = np.array(
        [(x, 500, x + 5, 505) for x in range(10, 900, 30)] + [(500, 20, 505, 25)], float
    )
    groups = np.array([0] * (len(boxes) - 1) + [1])
    windows = choose_windows(boxes, groups, (1000, 1000), (64, 64), 2)
    assert any(y1 <= 20 and y2 >= 25 for _, y1, _, y2 in windows)


def test_the_legend_counts_objects_by_band(texts):
    boxes = [(10 * k, 10, 10 * k + side, 10 + side) for k, side in enumerate((3, 4, 5, 10, 50))]
    draw(noise(200, 100), boxes)
    assert "200 x 100 px" in texts
    assert "5 objects" in texts
    counted = [text for text in texts if text.startswith(tuple(band.name for band in BANDS))]
    assert counted == [f"{band.name}: {n}" for band, n in zip(BANDS, (3, 1, 0, 0, 1), strict=True)]


def test_boxes_of_low_score_are_left_out_and_the_legend_says_so(texts):
    image, boxes = noise(100, 60), [(20, 20, 25, 25), (60, 20, 65, 25)]
    drawn = whole(image, boxes, scores=[0.9, 0.4], min_score=0.5)
    assert "1 of 2 objects, score at least 0.5" in texts
    assert is_color(drawn[18, 20:25], COLORS[0]).all()
    assert (drawn[10:40, 50:80] == image[10:40, 50:80]).all()


def test_with_the_truth_colors_tell_hits_false_alarms_and_misses(texts):
    truth = [(20, 20, 28, 28), (60, 20, 68, 28)]
    drawn = whole(noise(160, 60), [(20, 20, 28, 27), (110, 20, 118, 28)], truth=truth)
    hit, false, missed = (rgb(group.color) for group in OUTCOMES)
    for x, color in ((20, hit), (110, false), (60, missed)):
        assert is_color(drawn[18, x : x + 8], color).all()
    assert {"hits: 1", "false alarms: 1", "missed: 1"} <= set(texts)


def test_an_object_is_hit_once_by_the_best_box_from_an_iou_of_one_half():
    truth = np.array([(0, 0, 10, 10), (30, 0, 40, 10), (60, 0, 70, 10)], float)
    boxes = np.array(
        [(0, 0, 10, 9), (0, 0, 10, 10), (30, 0, 40, 5), (60, 0, 70, 4.9), (5, 50, 5, 50)], float
    )
    hit, found = match(boxes, np.array([0.5, 0.9, 0.3, 0.3, 0.3]), truth)
    assert hit.tolist() == [False, True, True, False, False]
    assert found.tolist() == [True, True, False]


class HugeSource:
    """Squares of 1000 px, made when they are read; the rows and the largest window are counted."""

    def __init__(self, width, height):
        self.width, self.height, self.largest, self.rows = width, height, 0, set()

    def color(self, x, y):
        return 40 + x // 1000 * 7 % 97, 40 + y // 1000 * 23 % 97, 200

    def read(self, window):
        x1, y1, x2, y2 = window
        assert 0 <= x1 < x2 <= self.width
        assert 0 <= y1 < y2 <= self.height
        self.largest = max(self.largest, (x2 - x1) * (y2 - y1))
        self.rows |= set(range(y1, y2))
        result = np.empty((y2 - y1, x2 - x1, 3), np.uint8)
        red, green, blue = self.color(np.arange(x1, x2), np.arange(y1, y2)[:, None])
        result[..., 0], result[..., 1], result[..., 2] = red, green, blue
        return result


def test_a_huge_image_is_read_by_windows_and_its_objects_are_seen():
    source = HugeSource(20_000, 4_000)
    tracemalloc.start()
    try:
        drawn = draw(source, [(10_500, 2_500, 10_502, 2_502)], insets=1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert source.largest <= pixels.MAX_READ < source.width * source.height / 9
    assert len(source.rows) == source.height
    assert peak < source.width * source.height * 3 / 2  # half of its bytes
    for x, y in ((500, 500), (7_500, 1_500), (19_500, 3_500)):
        assert tuple(drawn[MARGIN + y // 10, MARGIN + x // 10]) == source.color(x, y)
    mark = is_color(drawn[MARGIN + 230 : MARGIN + 270, MARGIN + 1030 : MARGIN + 1070], COLORS[0])
    assert 2 * 4 * 5 <= mark.sum() <= 2 * 4 * 9  # a line of 2 px around at least 5
    assert np.ptp(np.flatnonzero(mark.any(0))) + 1 >= 9


@pytest.mark.parametrize("size", [(90, 70), (33, 21), (199, 149)])
def test_shrinking_by_strips_is_shrinking_at_once(size, monkeypatch):
    source = ArraySource(noise(200, 150))
    at_once = pixels.shrink(source, *size)
    monkeypatch.setattr(pixels, "MAX_READ", 200 * 24)
    by_strips = pixels.shrink(source, *size)
    assert abs(by_strips.astype(int) - at_once).max() <= 1  # Pillow rounds where a strip begins
    assert abs(at_once.mean() - source.read((0, 0, 200, 150)).mean()) < 1


def test_without_boxes_the_image_stays_as_it_is(texts):
    image = noise(100, 80)
    assert (whole(image, []) == image).all()
    assert "0 objects" in texts
    assert draw(image, []).shape == draw(image, [], insets=0).shape


def test_lines_around_objects_at_the_border_run_outside_of_the_image():
    image = noise(100, 80)
    drawn = draw(image, [(0, 30, 5, 35), (95, -3, 103, 5)], insets=0)
    assert is_color(drawn[MARGIN + 28 : MARGIN + 37, MARGIN - 2], COLORS[0]).all()
    assert is_color(drawn[MARGIN - 2, MARGIN + 95 : MARGIN + 100], COLORS[0]).all()
    assert (drawn[MARGIN : MARGIN + 5, MARGIN + 95 : MARGIN + 100] == image[:5, 95:]).all()


def test_boxes_beyond_the_image_are_counted_and_not_drawn(texts):
    image = noise(100, 80)
    beyond = [(100, 10, 110, 20), (-20, 10, -5, 20), (10, 90, 20, 99), (-9, -9, 0, 0)]
    drawn = draw(image, beyond)
    assert "4 objects" in texts
    area = drawn[: 80 + 2 * MARGIN]
    assert (area == draw(image, [])[: 80 + 2 * MARGIN]).all()


def test_a_box_without_size_has_a_mark_that_can_be_seen():
    drawn = whole(noise(60, 60), [(30, 30, 30, 30)])
    mark = is_color(drawn, COLORS[0])
    assert (np.ptp(np.flatnonzero(mark.any(0))), np.ptp(np.flatnonzero(mark.any(1)))) == (6, 6)


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (640, 2)])
def test_images_of_any_shape_have_a_picture(size):
    image = noise(*size)
    drawn = draw(image, [(0, 0, 1, 1)])
    assert (drawn[MARGIN, MARGIN] == image[0, 0]).all()


def test_grey_palette_and_transparent_images_look_like_their_rgb():
    colors = noise(50, 40)
    grey = colors[..., 0]
    boxes = [(10, 10, 14, 15)]
    as_grey = draw(np.repeat(grey[..., None], 3, 2), boxes)
    for image in (grey, grey[..., None], Image.fromarray(grey), ArraySource(grey)):
        assert (draw(image, boxes) == as_grey).all()
    palette = Image.fromarray(colors).quantize(16)
    assert (draw(palette, boxes) == draw(np.asarray(palette.convert("RGB")), boxes)).all()
    clear = np.dstack([colors, np.zeros_like(grey)])
    for image in (clear, Image.fromarray(clear)):
        assert (draw(image, boxes) == draw(colors, boxes)).all()


def test_heat_colors_what_is_hot_alone():
    image, heat = noise(160, 80), np.zeros((8, 16))
    heat[2:6, 10:14] = 1
    drawn = whole(image, [], heat=heat)
    assert (drawn[:, :80] == image[:, :80]).all()
    hot = drawn[35:45, 115:125].astype(int)
    assert abs(hot - (0.25 * image[35:45, 115:125] + 0.75 * np.array((252, 255, 164)))).max() <= 2


def test_tiles_have_borders_and_overlaps_are_brighter():
    image = np.full((80, 160, 3), 100, np.uint8)
    boxes = [(76, 38, 82, 44)]
    drawn = whole(image, boxes, tiles=[(0, 0, 90, 80), (70, 0, 160, 80)])
    assert (drawn[10, [30, 130]] == 100).all()
    assert (drawn[10, 80] > 110).all()
    assert (drawn[10, [70, 89]] > 180).all()
    assert (drawn[38:44, 76:82] == 100).all()  # an object in an overlap stays as it is


def test_removed_boxes_are_dashed(texts):
    drawn = whole(np.full((80, 160, 3), 100, np.uint8), [], removed=[(40, 20, 100, 60)])
    line = is_color(drawn[18, 38:102], (255, 255, 255))
    assert 0.4 < line.mean() < 0.6
    assert "removed: 1" in texts


def test_insets_name_the_category_only_if_there_are_several(monkeypatch):
    written = []
    from tinyops.plot import scene

    monkeypatch.setattr(scene, "pill", lambda draw, xy, text, *a, **k: written.append(text))
    box, image = [(40, 40, 46, 46)], noise(100, 80)
    draw(image, box, scores=[0.5], labels=[2], categories=["<car>", "boat & co"])
    draw(image, box, scores=[0.5], labels=[1], categories=["boat"])
    draw(image, box, scores=[0.25])
    draw(image, box)
    assert written == ["boat & co .50", ".50", ".25"]


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("boxes", {"boxes": [(1, 2, 3)]}),
        ("boxes", {"boxes": [(1, 2, np.nan, 3)]}),
        ("scores", {"scores": [0.5, 0.5]}),
        ("labels", {"labels": [3], "categories": ["a", "b"]}),
        ("heat", {"heat": np.full((2, 2), 2.0)}),
        ("truth", {"truth": [1.0, 2.0]}),
        ("zoom", {"zoom": 0}),
        ("max_side", {"max_side": 0}),
        ("image", {"image": np.zeros((4, 4, 3))}),
        ("image", {"image": Image.new("I;16", (4, 4))}),
        ("image", {"image": "beach.jpg"}),
    ],
)
def test_wrong_arguments_are_named(argument, options):
    arguments = {"image": noise(20, 20), "boxes": [(1, 2, 3, 4)], **options}
    with pytest.raises(ValueError, match=f"^{argument} must"):
        annotate(**arguments)


@pytest.fixture
def result(tmp_path):
    path = tmp_path / "beach.png"
    Image.fromarray(noise(120, 80)).save(path)
    found = {
        "boxes": torch.tensor([[20.0, 20, 25, 25], [60, 20, 65, 25]]),
        "scores": torch.tensor([0.9, 0.1]),
        "labels": torch.tensor([1, 1]),
    }
    return Result(found, name=str(path), width=120, height=80, categories=("person",))


def test_a_result_opens_its_image_and_draws_what_is_likely(result, texts):
    drawn = np.asarray(result.plot())[MARGIN:, MARGIN:]
    assert is_color(drawn[18, 20:25], COLORS[0]).all()
    assert "1 of 2 objects, score at least 0.3" in texts
    assert not any(text.startswith(("removed", "0 tiles")) for text in texts)
    result.plot(stitching=True)
    assert {"removed: 0", "0 tiles"} <= set(texts)


def test_a_result_draws_on_any_kind_of_image_and_leaves_sources_open(result):
    array = noise(120, 80)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    source = ArraySource(array)
    expected = np.asarray(result.plot())
    for image in (array, tensor, tensor / 255, Image.fromarray(array), source, result.name):
        assert (np.asarray(result.plot(image)) == expected).all()
    assert source.read((0, 0, 1, 1)).shape == (1, 1, 3)


def test_a_result_refuses_an_image_of_another_size(result):
    with pytest.raises(ValueError, match="image must be 120x80 like the result, got 80x120"):
        result.plot(noise(80, 120))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_pictures_are_written_as_the_suffix_says(result, tmp_path, suffix):
    path = tmp_path / f"out{suffix}"
    drawn = result.plot(path=path)
    with Image.open(path) as image:
        assert image.size == drawn.size
        assert image.format == {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP"}[suffix]


def test_a_picture_that_cannot_be_written_leaves_nothing(result, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"^path must end in"):
        result.plot(path=tmp_path / "out.gif")

    def fail(self, path, *arguments, **options):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(picture.Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        result.plot(path=tmp_path / "out.png")
    assert [path.name for path in tmp_path.iterdir()] == ["beach.png"]
