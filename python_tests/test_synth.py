"""TinySea: pictures, boxes, layout, files and the command."""

import json
import subprocess
import sys

import numpy as np
import pytest
from backends import ROOT
from PIL import Image

from tinyops.cli import main
from tinyops.data import read, synth, synth_layout, synth_sprites, synth_write
from tinyops.data.synth import make_scene
from tinyops.data.synth_fields import Relief, Texture, spectral_noise
from tinyops.data.synth_write import Preset, write_preset, write_tinysea

MAKERS = [
    synth_sprites.swimmer,
    synth_sprites.earth_person,
    synth_sprites.drone,
    *dict.fromkeys([*synth_sprites.ON_WATER, *synth_sprites.ON_LAND]),
]


def test_a_picture_is_a_function_of_seed_and_index():
    image, annotations = make_scene(3, 5, (72, 64))
    again, same = make_scene(3, 5, (72, 64))
    assert image.dtype == np.uint8
    assert image.shape == (64, 72, 3)
    np.testing.assert_array_equal(image, again)
    assert annotations == same
    for other in ((3, 6), (4, 5)):
        assert not np.array_equal(image, make_scene(*other, (72, 64))[0])


@pytest.mark.parametrize("ground", ["sea", "shore", "sand", "fields", "sky"])
def test_every_ground_gives_a_picture_with_contrast(ground):
    image, _ = make_scene(0, 1, (96, 64), ground=ground, classes=3)
    assert 15 < image.mean() < 245
    assert image.std(axis=(0, 1)).min() > 2


@pytest.mark.parametrize("index", range(4))  # of which some have blur
def test_blocks_do_not_show(monkeypatch, index):
    """Without noise and JPEG, which belong to a block, any block size gives the same picture."""
    monkeypatch.setattr(synth._Camera, "compress", lambda self, pixels: pixels)
    monkeypatch.setattr(synth._Camera, "develop", lambda self, light, rng: light.astype(np.uint8))
    whole, boxes = make_scene(1, index, (120, 90), density=40)
    monkeypatch.setattr(synth, "_BLOCK", 32)
    blocks, same = make_scene(1, index, (120, 90), density=40)
    assert boxes == same
    assert abs(whole.astype(int) - blocks.astype(int)).max() <= 1  # float32 sums differ


def test_textures_larger_than_their_tiles_are_continuous_and_do_not_repeat():
    texture = Texture(np.random.default_rng(0), 3000, 3000, 1.5)
    y, x = np.arange(-4, 60), np.arange(-4, 2500)
    values = texture.at(y, x)
    assert abs(np.diff(values, axis=1)).max() < 12 * abs(np.diff(values, axis=1)).std()
    for period in (512, 675, 1024, 1350):
        a, b = values[:, :-period].ravel(), values[:, period:].ravel()
        assert np.corrcoef(a, b)[0, 1] < 0.9
    np.testing.assert_array_equal(texture.at(y[10:20], x[700:800]), values[10:20, 700:800])


def test_noise_has_the_spectrum_asked_for():
    rng = np.random.default_rng(0)
    power = np.mean(
        [abs(np.fft.rfft2(spectral_noise(rng, 128, 128, 1.5))) ** 2 for _ in range(20)], axis=0
    )
    slope = np.polyfit(np.log(np.arange(2, 60)), np.log(power[0, 2:60]), 1)[0]
    assert slope == pytest.approx(-3, abs=0.2)


def test_relief_at_points_equals_relief_on_a_grid():
    relief = Relief(np.random.default_rng(0), 400, 900, 2.0)
    grid = relief.at(np.array([3, 250]), np.array([0, 555, 899]))
    points = relief.at_points(np.array([3, 250, 250]), np.array([0, 555, 899]))
    np.testing.assert_allclose(points, [grid[0, 0], grid[1, 1], grid[1, 2]], rtol=1e-4)


def test_opacity_of_a_sprite_is_the_covered_area_at_any_position():
    square = synth_sprites.Shape(
        0, 0, 1.75, 1.25, np.array([10.0, 20, 30], np.float32), square=True
    )
    left, top, colour, opacity = synth_sprites.paint([square], 10.5, 7.75)
    assert (left, top) == (8, 6)
    x = np.array([0.25, 1, 1, 1, 0.25])  # from 8.75 to 12.25
    y = np.array([0.5, 1, 1])  # from 6.5 to 9
    np.testing.assert_allclose(opacity[..., 0], y[:, None] * x, atol=1 / 12)
    np.testing.assert_allclose(colour, opacity * [10, 20, 30], rtol=1e-5)


def test_an_object_is_painted_where_its_box_is():
    square = synth_sprites.Shape(0, 0, 2.5, 1.5, np.full(3, 99, np.float32), square=True)
    item = synth_layout.Placed([square], 30.5, 21.5, "drone", 1.0)
    light = np.zeros((40, 40, 3), np.float32)
    synth._blend(light, item, 20, 10)
    y, x = light[..., 0].nonzero()
    assert (x.min() + 20, y.min() + 10, x.max() + 21, y.max() + 11) == item.box == (28, 20, 33, 23)
    synth._blend(light, item, 500, 10)  # beyond the block: nothing to paint
    assert len(light.nonzero()[0]) == 3 * len(x)


@pytest.mark.parametrize("make", MAKERS, ids=lambda m: m.__name__)
def test_boxes_are_tight_and_of_the_size_asked_for(make):
    for seed in range(3):
        rng = np.random.default_rng(seed)
        sprite = synth_sprites.fit(make(rng, (0.8, 0.3)), 40.0)
        x1, y1, x2, y2 = synth_sprites.bounds(sprite, solid=True)
        assert (x2 - x1) * (y2 - y1) == pytest.approx(1600)
        axis = np.arange(-75, 75, 0.2)
        covered = np.zeros((len(axis), len(axis)), bool)
        for shape in (s for s in sprite if s.solid):
            covered |= shape.covers(axis, axis)
        columns, rows = axis[covered.any(0)], axis[covered.any(1)]
        found = [columns[0], rows[0], columns[-1], rows[-1]]
        np.testing.assert_allclose(found, [x1, y1, x2, y2], atol=0.45)


def layouts(count=150, **kind):
    sky = kind.get("sky", False)
    for seed in range(count):
        rng = np.random.default_rng(seed)
        yield synth_layout.lay_out(rng, lambda y, x: x < 128, (256, 256), 12.0, sky)


def test_sizes_are_those_of_tiny_objects():
    boxes = np.array([p.box for layout in layouts() for p in layout.objects])
    sizes = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(1))
    assert sizes.min() >= 2 - 1e-6
    assert sizes.max() <= 32 + 1e-6
    aimed = [3, 6, 8.5, 11, 18]  # pixels at these percentiles
    np.testing.assert_allclose(np.percentile(sizes, [5, 25, 50, 75, 95]), aimed, rtol=0.2)
    assert 7 < len(boxes) / 150 < 13


def test_people_belong_to_their_ground_and_distractors_are_half_as_many():
    everything = [p for layout in layouts() for p in layout.placed]
    objects = [p for layout in layouts() for p in layout.objects]
    assert all((p.x < 128) == (p.kind == "sea_person") for p in objects)
    assert {p.kind for layout in layouts(3, sky=True) for p in layout.objects} == {"drone"}
    distractors = sum(p.kind == "distractor" for p in everything)
    assert distractors / len(objects) == pytest.approx(0.5, abs=0.12)


def test_objects_hide_each_other_little_and_crowds_lie_apart():
    regions = 0
    for layout in layouts(60):
        boxes = np.array([p.box for p in layout.objects])
        area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
        high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
        shared = np.clip(high - low, 0, None).prod(2)
        np.fill_diagonal(shared, 0)
        assert (shared <= 0.36 * np.minimum(area[:, None], area[None])).all()
        for _, region, _ in layout.regions:
            regions += 1
            low, high = np.maximum(boxes[:, :2], region[:2]), np.minimum(boxes[:, 2:], region[2:])
            inside = np.clip(high - low, 0, None).prod(1)
            assert (inside <= 0.36 * area).all()
    assert regions > 1


def test_annotations_have_the_fields_of_tinyperson():
    annotations = [a for k in range(12) for a in make_scene(0, k, (128, 96), density=30)[1]]
    for entry in annotations:
        assert set(entry) == {
            "category_id", "bbox", "area", "iscrowd", "segmentation",
            "ignore", "uncertain", "logo", "in_dense_image",
        }  # fmt: skip
        x, y, w, h = entry["bbox"]
        assert x >= 0
        assert y >= 0
        assert x + w <= 128.001
        assert y + h <= 96.001
        assert entry["area"] == pytest.approx(w * h)
        assert entry["segmentation"] == [
            pytest.approx([x, y, x + w, y, x + w, y + h, x, y + h], abs=0.002)
        ]
        assert entry["category_id"] == 1
    assert any(a["ignore"] for a in annotations)
    assert not all(a["ignore"] for a in annotations)


def test_three_classes_have_their_own_ids():
    ids = {
        a["category_id"]
        for ground in ("sea", "sand", "sky")
        for a in make_scene(0, 0, (96, 96), classes=3, ground=ground, density=40)[1]
    }
    assert ids == {1, 2, 3}


@pytest.mark.parametrize(
    "change",
    [
        {"seed": -1}, {"index": -1}, {"size": (15, 64)}, {"size": (64, 20_001)}, {"classes": 2},
        {"density": -1}, {"density": float("nan")}, {"ground": "moon"},
    ],
)  # fmt: skip
def test_arguments_out_of_range_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        make_scene(**{"seed": 0, "index": 0, "size": (64, 64), **change})


def test_files_are_equal_for_any_number_of_workers_and_read_back(tmp_path):
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        write_tinysea(folder, images=3, size=(64, 48), seed=7, density=60, workers=workers)
    files = sorted(str(p.relative_to(tmp_path / "1")) for p in (tmp_path / "1").rglob("*"))
    assert files == [
        "train", "train.json", "train/000000.png", "train/000001.png", "train/000002.png",
    ]  # fmt: skip
    for file in files[1:]:
        assert (tmp_path / "1" / file).read_bytes() == (tmp_path / "2" / file).read_bytes()
    data = read(tmp_path / "1/train.json", images=tmp_path / "1/train")
    assert data.classes == ("person",)
    assert [image.id for image in data.images] == [1, 2, 3]
    image, annotations = make_scene(7, 2, (64, 48), density=60)
    np.testing.assert_array_equal(np.asarray(Image.open(data.path(data.images[2]))), image)
    assert len(data.images[2].boxes) == len(annotations)
    ids = np.concatenate([image.attributes["id"] for image in data.images]).tolist()
    assert ids == list(range(1, len(ids) + 1))
    assert len(ids) > 3


def test_splits_of_a_preset_share_no_picture(tmp_path):
    preset = Preset((("train", 2), ("val", 1)), (48, 32))
    tables = write_preset(tmp_path, preset, seed=1)
    assert [t.name for t in tables] == ["train.json", "val.json"]
    picture = np.asarray(Image.open(tmp_path / "val/000002.png"))
    np.testing.assert_array_equal(picture, make_scene(1, 2, (48, 32))[0])


def test_tinysea_s_has_600_and_150_tiles_of_256():
    preset = synth_write.PRESETS["tinysea-s"]
    assert preset == Preset((("train", 600), ("val", 150)), (256, 256))


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    def fail(seed, index, *args, **kwargs):
        if index == 1:
            raise KeyboardInterrupt
        return make_scene(seed, index, *args, **kwargs)

    monkeypatch.setattr(synth_write, "make_scene", fail)
    with pytest.raises(KeyboardInterrupt):
        write_tinysea(tmp_path, images=2, size=(32, 32))
    assert list(tmp_path.iterdir()) == []


def test_existing_files_are_not_overwritten(tmp_path):
    write_tinysea(tmp_path, images=1, size=(32, 32))
    before = (tmp_path / "train.json").read_bytes()
    with pytest.raises(FileExistsError, match="train"):
        write_tinysea(tmp_path, images=1, size=(32, 32), seed=1)
    (tmp_path / "train.json").rename(tmp_path / "val.json")
    with pytest.raises(FileExistsError, match="val"):
        write_preset(tmp_path / ".", Preset((("a", 1), ("val", 1)), (32, 32)))
    assert not (tmp_path / "a").exists()
    assert (tmp_path / "val.json").read_bytes() == before


@pytest.mark.parametrize("split", ["", "..", "a/b", ".hidden"])
def test_a_split_is_a_plain_name(tmp_path, split):
    with pytest.raises(ValueError, match="split"):
        write_tinysea(tmp_path, images=1, size=(32, 32), split=split)


def test_the_command_writes_a_set(tmp_path, capsys):
    arguments = ["data", "synth", "--out", str(tmp_path), "--images", "2", "--size", "48", "32"]
    assert main([*arguments, "--classes", "3", "--seed", "5"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "train.json")
    content = json.loads((tmp_path / "train.json").read_text())
    assert [c["name"] for c in content["categories"]] == ["sea_person", "earth_person", "drone"]
    assert {(i["width"], i["height"]) for i in content["images"]} == {(48, 32)}
    picture = np.asarray(Image.open(tmp_path / "train/000001.png"))
    np.testing.assert_array_equal(picture, make_scene(5, 1, (48, 32), classes=3)[0])


@pytest.mark.parametrize("extra", [[], ["--images", "1", "--preset", "tinysea-s"]])
def test_the_command_wants_a_preset_or_a_number(tmp_path, capsys, extra):
    assert main(["data", "synth", "--out", str(tmp_path), *extra]) == 2
    error = capsys.readouterr().err
    assert "either --preset or --images" in error
    assert error.count("\n") == 1


def test_without_tyro_the_command_says_what_to_install_and_info_works():
    code = (
        "import sys; sys.modules['tyro'] = None; from tinyops.cli import main; "
        "code = main(['data', 'synth', '--out', 'x']); sys.exit(10 * code + main(['info']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 20
    message = '`tinyops data synth` needs the package tyro: pip install "tinyops[cli]"'
    assert done.stderr.strip() == message
    assert "versions" in done.stdout
