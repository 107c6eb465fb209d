"""COCO sets: reading, checking, writing, and tiles of them as samples."""

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from tinyops.data import dataset as dataset_module
from tinyops.data import read as read_set
from tinyops.data.dataset import CocoTiles, check_headers
from tinyops.data.transforms import simple_augmentation
from tinyops.data.types import AnnotatedImage, AnnotatedSet

CONTENT = {
    "images": [
        {"id": 4, "file_name": "a.png", "width": 100, "height": 80},
        {"id": 2, "file_name": "b.png", "width": 30, "height": 20},
    ],
    "categories": [{"id": 9, "name": "drone"}, {"id": 3, "name": "person"}],
    "annotations": [
        {"id": 0, "image_id": 4, "category_id": 9, "bbox": [10, 20, 5, 6.5], "iscrowd": 0},
        {"id": 1, "image_id": 4, "category_id": 3, "bbox": [55, 5, 10, 4], "uncertain": True},
        {"id": 2, "image_id": 4, "category_id": 3, "bbox": [57, 60, 10, 8], "ignore": 0},
    ],
}


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for image in CONTENT["images"]:
        pixels = rng.integers(0, 256, (image["height"], image["width"], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / image["file_name"])
    return tmp_path


def read(folder, content=CONTENT, **options):
    (folder / "set.json").write_text(json.dumps(content))
    return read_set(folder / "set.json", "coco", folder, **options)


def changed(path, value):
    content = copy.deepcopy(CONTENT)
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return content


def test_a_set_is_read(folder):
    data = read(folder)
    assert data.classes == ("person", "drone")  # in the order of their ids
    assert data.category_ids == (3, 9)
    first, second = data.images
    assert (first.id, first.width, first.height) == (4, 100, 80)
    assert first.boxes.tolist() == [[10, 20, 15, 26.5], [55, 5, 65, 9], [57, 60, 67, 68]]
    assert first.labels.tolist() == [2, 1, 1]
    assert first.ignore.tolist() == [False, True, False]
    assert second.boxes.shape == (0, 4)  # an image without objects stays
    assert data.folder == folder


@pytest.mark.parametrize("flag", ["iscrowd", "ignore", "uncertain"])
def test_flags_mean_ignore(folder, flag):
    data = read(folder, changed(("annotations", 0, flag), 1))
    assert data.images[0].ignore.tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("images",), None, "images must be a list"),
        (("categories",), [], "categories must not be empty"),
        (("categories", 0, "id"), 3, r"categories\[1\]: id 3 is taken"),
        (("categories", 1, "name"), None, r"categories\[1\]: name must be a text, got None"),
        (("images", 0), 7, r"images\[0\] must be an object"),
        (("images", 1, "id"), 4, r"images\[1\]: id 4 is taken"),
        (("images", 1, "id"), "4", r"images\[1\]: id must be an int"),
        (("images", 1, "width"), 0, r"images\[1\]: width must be a positive int"),
        (("images", 1, "height"), 2.5, r"images\[1\]: height must be a positive int"),
        (("images", 1, "file_name"), None, r"images\[1\]: file_name must be a text"),
        (("annotations", 1), [], r"annotations\[1\] must be an object"),
        (("annotations", 1, "image_id"), 5, r"annotations\[1\]: image_id 5 does not exist"),
        (("annotations", 1, "image_id"), [4], r"annotations\[1\]: image_id \[4\] does not exist"),
        (("annotations", 1, "image_id"), None, r"annotations\[1\]: image_id None does not exist"),
        (("annotations", 1, "category_id"), 1, r"annotations\[1\]: category_id 1 does not exist"),
        (("annotations", 1, "category_id"), {}, r"annotations\[1\]: category_id {} does not exist"),
        (("annotations", 1, "area"), None, r"annotations\[1\]: area must be a finite number"),
        (
            ("annotations", 1, "bbox"),
            [1, 2, 10**400, 4],
            r"annotations\[1\]: bbox must be of finite",
        ),
        (("annotations", 1, "bbox"), [1, 2, 3], r"annotations\[1\]: bbox must be \[x, y"),
        (("annotations", 1, "bbox"), None, r"annotations\[1\]: bbox must be \[x, y"),
        (("annotations", 1, "bbox"), [1, 2, "3", 4], r"annotations\[1\]: bbox must be of finite"),
        (
            ("annotations", 1, "bbox"),
            [1, float("nan"), 3, 4],
            r"annotations\[1\]: bbox must be of finite",
        ),
        (("annotations", 1, "bbox"), [1, 2, -3, 4], r"annotations\[1\]: bbox must not have"),
        (("annotations", 1, "bbox"), [1, 2, 0, 4], r"annotations\[1\]: bbox has no area"),
    ],
)
def test_wrong_entries_are_named(folder, path, value, message):
    with pytest.raises(ValueError, match=r"set\.json: " + message):
        read(folder, changed(path, value))


def test_many_objects_keep_their_order_and_fields(folder):
    """As many as are read in several parts, which have different fields."""
    rows = [
        {"image_id": (4, 2)[k % 3 == 0], "category_id": 3, "bbox": [k, 0, 1, 1]} for k in range(999)
    ]
    for k in range(700, 999):
        rows[k] |= {"ignore": 1, "score": k / 2}
    first, second = read(folder, {**CONTENT, "annotations": rows}).images
    assert first.bbox[:, 0].tolist() == [k for k in range(999) if k % 3]
    assert second.bbox[:, 0].tolist() == list(range(0, 999, 3))
    assert second.ignore.tolist() == [k >= 700 for k in range(0, 999, 3)]
    scores = [k / 2 if k >= 700 else None for k in range(0, 999, 3)]
    assert second.attributes["score"].tolist() == scores


def test_empty_boxes_can_be_left_out(folder):
    content = changed(("annotations", 1, "bbox"), [1, 2, 0, 4])
    assert len(read(folder, content, drop_empty_boxes=True).images[0].boxes) == 2


def test_missing_files_are_counted(folder):
    (folder / "b.png").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"1 image files are missing, the first is .*b\.png"
    ):
        read(folder)
    with pytest.raises(FileNotFoundError):
        read_set(folder / "none.json", "coco", folder)


def test_text_that_is_no_json_is_refused(folder):
    (folder / "set.json").write_text("{")
    with pytest.raises(ValueError, match=r"set\.json is not JSON"):
        read_set(folder / "set.json", "coco", folder)
    (folder / "set.json").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"set\.json is not JSON"):
        read_set(folder / "set.json", "coco", folder)


def test_tiles_show_the_pixels_and_boxes_of_their_window(folder):
    tiles = CocoTiles(read(folder), tile=(60, 50), overlap=10)
    corners = [tuple(tiles[k][1]["corner"].tolist()) for k in range(len(tiles))]
    assert corners == [(0, 0), (40, 0), (0, 30), (40, 30), (0, 0)]
    image, target = tiles[3]
    pixels = np.asarray(Image.open(folder / "a.png"))[30:80, 40:100]
    assert image.dtype == torch.float32
    torch.testing.assert_close(image, torch.tensor(pixels).permute(2, 0, 1) / 255)
    assert target["boxes"].tolist() == [[17, 30, 27, 38]]
    assert target["labels"].tolist() == [1]
    assert target["ignore"].tolist() == [False]
    assert target["image_id"] == 4
    small, nothing = tiles[4]  # smaller than a tile: whole
    assert small.shape == (3, 20, 30)
    assert nothing["boxes"].shape == (0, 4)


def test_sets_of_tiles_show_the_pixels_of_the_large_image(folder):
    content = copy.deepcopy(CONTENT)
    content["images"] = [
        {"id": 4, "file_name": "a.png", "width": 60, "height": 50, "corner": [40, 30, 100, 80]},
        {"id": 2, "file_name": "a.png", "width": 60, "height": 50, "corner": [0, 0, 60, 50]},
    ]
    tiles = CocoTiles(read(folder, content), tile=(50, 50), overlap=40)
    pixels = torch.tensor(np.asarray(Image.open(folder / "a.png"))).permute(2, 0, 1) / 255
    check_headers(tiles.data)
    assert len(tiles) == 4
    torch.testing.assert_close(tiles[0][0], pixels[:, 30:80, 40:90])
    torch.testing.assert_close(tiles[1][0], pixels[:, 30:80, 50:100])
    torch.testing.assert_close(tiles[3][0], pixels[:, :50, 10:60])
    assert tiles[1][1]["corner"].tolist() == [10, 0]  # in the tile that is the image here
    assert tiles[1][1]["boxes"].tolist() == [[0, 20, 5, 26.5], [45, 5, 50, 9]]
    content["images"][0]["corner"] = [41, 30, 101, 80]
    with pytest.raises(ValueError, match=r"a\.png must .* hold the tile \(41, 30, 101, 80\), got"):
        check_headers(read(folder, content))
    content["images"][0]["corner"] = [41, 30, 101, 81]
    with pytest.raises(ValueError, match=r"images\[0\]: corner must be .* a tile of 60x50, got"):
        read(folder, content)


@pytest.mark.parametrize("cut", ["ignore", "drop"])
def test_objects_cut_beyond_half_are_ignored_or_dropped(folder, cut):
    tiles = CocoTiles(read(folder), tile=(60, 50), overlap=10, cut=cut)
    target = tiles[2][1]  # x 0..60 of y 30..80: 3 of 10 columns of the object at 57..67
    if cut == "ignore":
        assert target["boxes"].tolist() == [[57, 30, 60, 38]]
        assert target["ignore"].tolist() == [True]
    else:
        assert target["boxes"].shape == (0, 4)
    # 5 of 10 columns are 50 % of the area, more than 0.7^2.
    data = read(folder, changed(("annotations", 2, "bbox"), [55, 60, 10, 8]))
    target = CocoTiles(data, tile=(60, 50), overlap=10, cut=cut)[2][1]
    assert target["boxes"].tolist() == [[55, 30, 60, 38]]
    assert target["ignore"].tolist() == [False]


def test_whole_images_and_tiles_with_objects_alone(folder):
    data = read(folder)
    assert [tuple(image.shape) for image, _ in CocoTiles(data, tile=None)] == [
        (3, 80, 100),
        (3, 20, 30),
    ]
    tiles = CocoTiles(data, tile=(60, 50), overlap=10, keep_empty=False)
    assert [t[1]["corner"].tolist() for t in tiles] == [[0, 0], [40, 30]]


def test_tiles_with_small_objects_are_repeated(folder):
    rows = [
        {"image_id": 4, "category_id": 3, "bbox": [0, 0, 32, 28]},  # in the tile at (0, 0)
        {"image_id": 4, "category_id": 3, "bbox": [61, 0, 39, 28]},  # at (40, 0): too large
        {"image_id": 4, "category_id": 3, "bbox": [0, 60, 5, 5], "ignore": 1},  # at (0, 30)
    ]
    data = read(folder, {**CONTENT, "annotations": rows})
    corners = [
        [target["corner"].tolist() for _, target in CocoTiles(data, tile=(60, 50), **options)]
        for options in ({"overlap": 10}, {"overlap": 10, "repeat_small": 3})
    ]
    assert corners[1] == [corners[0][0]] * 2 + corners[0]
    with pytest.raises(ValueError, match="repeat_small must be at least 1, got 0"):
        CocoTiles(data, repeat_small=0)


def samples(tiles, workers, **options):
    loader = DataLoader(tiles, batch_size=None, num_workers=workers, **options)
    return [torch.cat([image.flatten(), target["boxes"].flatten()]) for image, target in loader]


def test_samples_depend_on_seed_epoch_and_index_alone(folder):
    data = read(folder)
    tiles = CocoTiles(data, tile=(60, 50), transform=simple_augmentation(), seed=3)
    tiles.set_epoch(2)
    torch.manual_seed(1)
    alone = samples(tiles, 0)
    state = torch.get_rng_state()
    tiles[0]
    assert torch.equal(torch.get_rng_state(), state)  # the caller's numbers are left alone
    torch.manual_seed(2)
    backwards = [tiles[k] for k in reversed(range(len(tiles)))][::-1]
    torch.testing.assert_close(backwards[1][0].flatten(), alone[1][: backwards[1][0].numel()])
    loader = DataLoader(tiles, batch_size=None, num_workers=2, persistent_workers=True)
    for epoch, equal in ((2, True), (5, False), (2, True)):  # also for workers that live on
        tiles.set_epoch(epoch)
        parallel = [torch.cat([i.flatten(), t["boxes"].flatten()]) for i, t in loader]
        assert all(map(torch.equal, alone, parallel)) == equal
    other = CocoTiles(data, tile=(60, 50), transform=simple_augmentation(), seed=4)
    other.set_epoch(2)
    assert not all(map(torch.equal, alone, samples(other, 0)))


def test_every_sample_draws_its_own_numbers(folder):
    def draw(image, target):
        return image, {**target, "drawn": torch.rand(1)}

    tiles = CocoTiles(read(folder), tile=(60, 50), transform=draw)
    assert len({float(tiles[k][1]["drawn"]) for k in range(len(tiles))}) == len(tiles)


def test_decoded_images_are_kept_up_to_a_limit(folder, monkeypatch):
    decoded = []
    decode = dataset_module.decode

    def counted(path, image):
        decoded.append(image.id)
        return decode(path, image)

    monkeypatch.setattr(dataset_module, "decode", counted)
    data = read(folder)
    both = CocoTiles(data, tile=(60, 50), overlap=10, cache_bytes=100 * 80 * 3 + 30 * 20 * 3)
    [both[k] for k in (0, 4, 1, 4)]
    assert decoded == [4, 2]
    decoded.clear()
    one = CocoTiles(data, tile=(60, 50), overlap=10, cache_bytes=100 * 80 * 3)
    [one[k] for k in (0, 1, 4, 4, 2)]
    assert decoded == [4, 2, 4]
    assert one._images._held == 100 * 80 * 3


def test_the_image_used_longest_ago_is_forgotten_first(folder, monkeypatch):
    decoded = []

    def fake(path, image):
        decoded.append(image.id)
        return np.zeros((2, 2, 3), np.uint8)

    monkeypatch.setattr(dataset_module, "decode", fake)
    none = np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, np.bool_)
    images = [AnnotatedImage(k, f"{k}.png", 2, 2, *none) for k in range(3)]
    data = AnnotatedSet(tuple(images), (), (), folder)
    cache = dataset_module._ImageCache(2 * 12)
    for k in (0, 1, 0, 2, 0, 1):
        cache.get(data, images[k])
    assert decoded == [0, 1, 2, 1]


def test_wrong_files_are_named(folder):
    tiles = CocoTiles(read(folder))
    check_headers(tiles.data)
    Image.new("RGB", (30, 21)).save(folder / "b.png")
    with pytest.raises(
        ValueError, match=r"b\.png must be 30x20 px as its annotations say, got 30x21"
    ):
        tiles[1]
    with pytest.raises(ValueError, match=r"b\.png must be 30x20"):
        check_headers(tiles.data)
    Image.fromarray(np.zeros((20, 30), np.uint16)).save(folder / "b.png")
    with pytest.raises(ValueError, match=r"b\.png must have 8-bit pixels"):
        tiles[1]
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:200])
    with pytest.raises((OSError, ValueError), match=r"b\.png"):
        tiles[1]
    (folder / "b.png").write_bytes(b"no image")
    with pytest.raises(OSError, match=r"cannot decode .*b\.png"):
        tiles[1]
    with pytest.raises(OSError, match=r"cannot decode .*b\.png"):
        check_headers(tiles.data)


def test_orientation_in_exif_is_not_applied(folder):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    image = Image.open(folder / "b.png")
    image.save(folder / "b.png", exif=exif)
    turned = CocoTiles(read(folder))[1][0]
    assert turned.shape == (3, 20, 30)


def test_grey_and_transparent_images_become_rgb(folder):
    original = Image.open(folder / "b.png").convert("RGB")
    for mode in ("L", "RGBA", "P"):
        original.convert(mode).save(folder / "b.png")
        assert CocoTiles(read(folder))[1][0].shape == (3, 20, 30)


def test_arguments_out_of_range_are_refused(folder):
    data = read(folder)
    with pytest.raises(ValueError, match="cut"):
        CocoTiles(data, cut="keep")
    with pytest.raises(ValueError, match="min_visible"):
        CocoTiles(data, min_visible=0)
    with pytest.raises(IndexError):
        CocoTiles(data)[2]
