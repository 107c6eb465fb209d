"""The command `tinyops detect`, within this process and mostly with a quick model."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from detect_program import Bright, boxes_of, detect, draw_image, use_quick_model
from pictures import write_raster
from PIL import Image

import tinyops
import tinyops.cli.detect
from tinyops.cli import main
from tinyops.cli.detect import Detect, parse
from tinyops.config import load_yaml
from tinyops.inference.maps import image_maps
from tinyops.inference.source import open_source
from tinyops.inference.types import Detection
from tinyops.models import create, save

NUMBER = r"\d+\.\d\d"
TIMES = f"seconds: read {NUMBER}, network {NUMBER}, stitch {NUMBER}, write {NUMBER}"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    use_quick_model(monkeypatch.setattr)


@pytest.fixture
def images(tmp_path):
    for k in range(3):
        draw_image(tmp_path / f"images/{k}.png", k)
    return tmp_path / "images"


def final_files(out):
    """All but the settings, in which the folder is."""
    files = [path for path in out.rglob("*") if path.is_file() and ".parts" not in path.parts]
    return {p.relative_to(out): p.read_bytes() for p in files if p.name != "settings.yaml"}


def test_a_directory_becomes_files_pictures_and_lines(images, tmp_path, capsys):
    out = tmp_path / "new" / "out"
    assert detect(images, "--out", out, "--format", "coco", "csv", "geojson") == 0
    *lines, last = capsys.readouterr().out.splitlines()
    for k, line in enumerate(lines):
        expected = re.escape(f"{images}/{k}.png: 40x30 px, 2 tiles, ") + rf"\d objects; {TIMES}"
        assert re.fullmatch(expected, line)
    assert re.fullmatch(
        r"3 images, 6 tiles, 1\d objects in \d+\.\d s: \d+\.\d tiles/s; "
        r"\d+\.\d% of the time outside the network",
        last,
    )
    names = {str(path) for path in final_files(out)}
    pictures = {name for name in names if name.startswith("pictures/")}
    assert names - pictures == {f"detections.{kind}" for kind in ("json", "csv", "geojson")}
    assert len(pictures) == 3
    for name in pictures:
        with Image.open(out / name) as picture:
            assert picture.getextrema() != ((0, 0),) * 3
    settings = load_yaml(Detect, out / "settings.yaml")
    assert (settings.images, settings.tile, settings.overlap) == ((str(images),), (32, 32), 8)
    names = json.loads((out / "detections.json").read_text())["categories"]
    assert [entry["name"] for entry in names] == ["1", "2"]


def test_boxes_are_around_the_objects(images, tmp_path):
    assert detect(images / "1.png", "--out", tmp_path / "out") == 0
    ((name, boxes),) = boxes_of(tmp_path / "out").items()
    assert name == str(images / "1.png")
    white = np.argwhere(np.asarray(Image.open(name))[..., 0] > 250)
    assert sorted(boxes) == sorted([x - 1.0, y - 1.0, 3.0, 3.0] for y, x in white.tolist())


def test_a_saved_detector_gives_what_tinyops_detect_gives(images, tmp_path, monkeypatch):
    monkeypatch.undo()
    torch.manual_seed(0)
    small = {"neck_channels": 8, "score_threshold": 0.0, "max_per_image": 20}
    model = create("retinanet_fpn_resnet_nano", 2, **small).eval()
    save(model.half(), tmp_path / "model.safetensors", categories=["boat", "person"])
    words = ["--model", tmp_path / "model.safetensors", "--min-score", "0", "--no-picture"]
    assert detect(images / "0.png", "--out", tmp_path / "out", *words) == 0
    result = tinyops.detect(model.float(), images / "0.png", tile=(32, 32), overlap=8, batch=3)
    assert len(result["boxes"]) > 5
    found = torch.tensor(boxes_of(tmp_path / "out")[str(images / "0.png")])
    corners = torch.cat([found[:, :2], found[:, :2] + found[:, 2:]], 1)
    torch.testing.assert_close(corners, result["boxes"], rtol=0, atol=2e-3)
    table = json.loads((tmp_path / "out/detections.json").read_text())
    assert [entry["name"] for entry in table["categories"]] == ["boat", "person"]
    assert not (tmp_path / "out/pictures").exists()


@pytest.mark.parametrize("system", ["rfla", "srtod", "efpn", "gdl"])
def test_models_of_every_system_are_what_the_command_takes(images, tmp_path, system, monkeypatch):
    monkeypatch.undo()
    torch.manual_seed(0)
    widths = {"efpn": {"texture_width": 8}, "gdl": {"generator_width": 8, "upscale": 2}}
    options = {"neck_channels": 8, "head_channels": 8, **widths.get(system, {})}
    model = create(f"faster_rcnn_{system}_resnet_nano", **options)
    if system in widths:
        model.set_phase(model.phases[-1])
    save(model, tmp_path / "model.safetensors")
    words = ["--model", tmp_path / "model.safetensors", "--min-score", "0", "--no-picture"]
    assert detect(images / "0.png", "--out", tmp_path / "out", *words) == 0
    expected = tinyops.detect(model, images / "0.png", tile=(32, 32), overlap=8, batch=3)
    found = torch.tensor(boxes_of(tmp_path / "out")[str(images / "0.png")])
    corners = torch.cat([found[:, :2], found[:, :2] + found[:, 2:]], 1)
    apart = torch.cdist(corners, expected["boxes"], p=float("inf"))
    # Convolutions round differently from call to call, and suppression may then keep another box.
    for closest in (apart.amin(0), apart.amin(1)):
        assert (closest < 4e-3).float().mean() > 0.95


@pytest.mark.parametrize("picture", [True, False])
def test_maps_are_beside_the_pictures(images, tmp_path, monkeypatch, picture):
    monkeypatch.undo()
    torch.manual_seed(0)
    model = create("faster_rcnn_sspnet_srtod_resnet_nano", neck_channels=8, head_channels=8)
    save(model, tmp_path / "model.safetensors")
    words = [images, "--out", tmp_path / "out", "--model", tmp_path / "model.safetensors"]
    kept = ["--heat"] if picture else ["--no-picture"]
    assert detect(*words, "--maps", *kept) == 0
    names = sorted(path.name for path in (tmp_path / "out/pictures").iterdir())
    kinds = (".attention.png", ".difference.png", ".mask.png", ".reconstruction.png")
    annotated = [name for name in names if name.endswith(".jpg")]
    maps = [name for name in names if name.endswith(".png")]
    assert names == sorted(annotated + maps)
    assert len(annotated) == (3 if picture else 0)
    stems = sorted({name.partition(".")[0] for name in names})
    assert maps == [stem + kind for stem in stems for kind in kinds]
    assert [stem.partition("-")[0] for stem in stems] == ["0", "1", "2"]
    with Image.open(tmp_path / "out/pictures" / maps[3]) as drawn:  # 40 x 30, and its legend
        pixels = np.asarray(drawn.crop((0, 0, 40, 30))) / 255
    shown = image_maps(model, open_source(images / "0.png"), Detection((32, 32), 8, 3))
    assert np.abs(pixels - shown.reconstruction).max() < 0.01
    assert detect(*words, "--fresh", "--no-picture") == 0
    assert list((tmp_path / "out/pictures").iterdir()) == []


def test_interrupted_and_continued_is_uninterrupted(images, tmp_path, capsys, monkeypatch):
    words = [images, "--format", "coco", "csv", "geojson", "--show-tiles", "--out"]
    for k in range(3, 9):
        draw_image(images / f"{k}.png", k)  # a group of six images and one of three
    draw_image(images / "big.png", 7, (200, 90))  # more tiles than a group
    assert detect(*words, tmp_path / "whole") == 0
    forward, calls = Bright.forward, []

    def interrupted(self, batch):
        calls.append(batch)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return forward(self, batch)

    monkeypatch.setattr(Bright, "forward", interrupted)
    capsys.readouterr()
    assert detect(*words, tmp_path / "out") == 130
    captured = capsys.readouterr()
    assert (
        captured.err == "tinyops detect: interrupted; the same command, without --fresh, goes on\n"
    )
    done = len(captured.out.splitlines())
    assert not (tmp_path / "out/detections.json").exists()
    assert detect(*words, tmp_path / "out") == 0
    lines = capsys.readouterr().out.splitlines()
    assert done == 6
    names = [line.partition(":")[0] for line in lines[:-1]]
    assert names == [f"{images}/{name}.png" for name in ("big", "6", "7", "8")]
    assert lines[-1].endswith(f"; {done} images were done before")
    assert final_files(tmp_path / "out") == final_files(tmp_path / "whole")


def test_new_and_changed_images_alone_are_detected_in(images, tmp_path, capsys):
    words = [images, "--out", tmp_path / "out"]
    assert detect(*words) == 0
    draw_image(images / "05.png", 5)
    draw_image(images / "1.png", 8, (50, 30))
    before = boxes_of(tmp_path / "out")
    capsys.readouterr()
    assert detect(*words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines[:-1]] == [
        f"{images}/05.png",
        f"{images}/1.png",
    ]
    assert "2 images were done before" in lines[-1]
    after = boxes_of(tmp_path / "out")
    assert list(after) == [f"{images}/{name}.png" for name in ("0", "05", "1", "2")]
    same = {name for name, boxes in before.items() if after[name] == boxes}
    assert same == {f"{images}/0.png", f"{images}/2.png"}
    assert len(list((tmp_path / "out/pictures").iterdir())) == 4
    assert detect(*words) == 0
    assert capsys.readouterr().out == "0 images, 0 tiles, 0 objects; 4 images were done before\n"


def test_other_settings_do_not_go_on(images, tmp_path, capsys, monkeypatch):
    words = [images, "--out", tmp_path / "out"]
    assert detect(*words) == 0
    before = final_files(tmp_path / "out")
    capsys.readouterr()
    assert detect(*words, "--min-score", "0.9", "--no-picture") == 2
    expected = (
        f"tinyops detect: {tmp_path}/out has results of other settings: min_score was 0.25 and is "
        "0.9; picture was True and is False. Give another folder, or --fresh to replace them\n"
    )
    assert capsys.readouterr().err == expected
    assert final_files(tmp_path / "out") == before
    with monkeypatch.context() as later:
        later.setattr(tinyops, "__version__", "9.9")
        assert detect(*words) == 2
    assert f"tinyops was {tinyops.__version__} and is 9.9. Give" in capsys.readouterr().err
    monkeypatch.setattr(tinyops.cli.detect, "load", lambda name: Bright().bfloat16())
    assert detect(*words) == 2
    assert re.search(r"settings: model was \w{16} and is \w{16}\. Give", capsys.readouterr().err)
    assert detect(*words, "--fresh", "--min-score", "1") == 0
    assert "done before" not in capsys.readouterr().out
    assert not any(boxes_of(tmp_path / "out").values())
    assert detect(*words, "--min-score", "1") == 0
    assert "3 images were done before" in capsys.readouterr().out


def test_another_format_needs_no_other_detection(images, tmp_path, capsys):
    assert detect(images, "--out", tmp_path / "out") == 0
    capsys.readouterr()
    assert detect(images, "--out", tmp_path / "out", "--format", "csv") == 0
    assert capsys.readouterr().out.startswith("0 images, ")
    assert detect(images, "--out", tmp_path / "other", "--format", "csv") == 0
    tables = [(tmp_path / name / "detections.csv").read_bytes() for name in ("out", "other")]
    assert tables[0] == tables[1]


def test_files_of_other_formats_are_not_left_outdated(images, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "detections.csv").write_text("of somebody else")
    assert detect(images / "0.png", "--out", out) == 0
    assert (out / "detections.csv").read_text() == "of somebody else"
    assert detect(images, "--out", out, "--format", "geojson") == 0
    assert len(boxes_of(out)) == 3
    old = sorted((out / "pictures").iterdir())
    assert detect(images / "0.png", "--out", out, "--no-picture", "--fresh") == 0
    assert (len(old), sorted((out / "pictures").iterdir())) == (3, [])


def test_a_name_of_any_bytes_is_one_line_of_text(images, tmp_path, capsys):
    (images / "0.png").rename(images / "two\nlines\udcff.png")
    (images / "1.png").rename(images / "red\x1b[31m.png")
    (images / "2.png").rename(images / ("x" * 251 + ".png"))
    (images / "bad\udcff.png").write_text("x")
    assert detect(images, "--out", tmp_path / "out", "--format", "csv") == 1
    said = capsys.readouterr()
    assert len(said.out.encode().splitlines()) == 4
    assert "two\\nlines\\udcff.png: 40x30 px" in said.out
    assert "\x1b" not in said.out
    assert (
        said.err == f"tinyops detect: cannot read {images}/bad\\udcff.png: no image of a kind "
        "that can be decoded\n"
    )
    assert b"/bad\xff.png," in (tmp_path / "out/failures.csv").read_bytes()


def test_patterns_and_folders_may_have_the_same_names_and_the_same_files(images, tmp_path):
    draw_image(tmp_path / "more/0.png", 9)
    words = [tmp_path / "*" / "0.png", images, tmp_path / "more", "--out", tmp_path / "out"]
    assert detect(*words) == 0
    names = [f"{images}/{k}.png" for k in range(3)] + [f"{tmp_path}/more/0.png"]
    assert list(boxes_of(tmp_path / "out")) == names
    pictures = [path.read_bytes() for path in (tmp_path / "out/pictures").iterdir()]
    assert len(set(pictures)) == 4


def test_pictures_are_no_images_of_the_next_call(images):
    words = [images / "**", "--out", images / "out"]
    assert detect(*words[:1], "--out", images / "out") == 0
    (images / "out/detections.json").unlink()
    for path in (images / "out").glob("settings*"):
        path.unlink()
    detect(images / "**" / "*.[jp][pn]g", "--out", images / "out")
    assert [Path(name).name for name in boxes_of(images / "out")] == ["0.png", "1.png", "2.png"]


def test_both_spellings_of_a_tile(tmp_path):
    for words in (["--tile", "64x48"], ["--tile=64x48"], ["--tile", "64", "48"]):
        settings = parse(["a", "--out", str(tmp_path), *words, "--overlap", "9"])
        assert settings.how.tile == (64, 48)
    assert parse(["a", "64x48", "--out", "b"]).images == ("a", "64x48")


def test_scales_and_flips_are_all_combined(images, tmp_path, capsys):
    words = ["--scales", "1", "2", "--flips", "none", "horizontal"]
    settings = parse(["a", "--out", "b", *words])
    assert [(view.scale, view.flip) for view in settings.how.views] == [
        (1.0, "none"),
        (1.0, "horizontal"),
        (2.0, "none"),
        (2.0, "horizontal"),
    ]
    assert detect(images / "0.png", "--out", tmp_path / "out", *words) == 0
    tiles = 2 * (2 + 9)
    assert f"40x30 px, {tiles} tiles, " in capsys.readouterr().out


def test_exif_stretch_and_bands_reach_the_reader(tmp_path):
    pixels = np.zeros((30, 40), np.uint16)
    pixels[10, 20] = 900
    Image.fromarray(pixels).save(tmp_path / "deep.png")
    assert detect(tmp_path / "deep.png", "--out", tmp_path / "a") == 0
    assert not any(boxes_of(tmp_path / "a").values())
    assert detect(tmp_path / "deep.png", "--out", tmp_path / "b", "--stretch", "0", "900") == 0
    assert boxes_of(tmp_path / "b") == {str(tmp_path / "deep.png"): [[19.0, 9.0, 3.0, 3.0]]}
    values = np.zeros((5, 30, 40), np.uint8)
    values[3, 5, 6] = 255
    write_raster(tmp_path / "bands.tif", values, photometric="MINISBLACK")
    words = [tmp_path / "bands.tif", "--no-picture", "--bands", "4", "1", "5"]
    assert detect(*words, "--out", tmp_path / "e") == 0
    assert boxes_of(tmp_path / "e") == {str(tmp_path / "bands.tif"): [[5.0, 4.0, 3.0, 3.0]]}
    draw_image(tmp_path / "turned.png", 3)
    image = Image.open(tmp_path / "turned.png")
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    for out, words, size in (("c", [], (30, 40)), ("d", ["--no-exif"], (40, 30))):
        assert detect(tmp_path / "turned.png", "--out", tmp_path / out, *words) == 0
        (entry,) = json.loads((tmp_path / out / "detections.json").read_text())["images"]
        assert (entry["width"], entry["height"]) == size


def test_geojson_has_a_file_for_each_system_of_coordinates(images, tmp_path):
    pixels = np.moveaxis(np.asarray(Image.open(images / "0.png")), 2, 0)
    place = {"crs": "EPSG:32633", "transform": rasterio.Affine(0.5, 0, 4e5, 0, -0.5, 6e6)}
    shape = {"driver": "GTiff", "count": 3, "height": 30, "width": 40, "dtype": "uint8"}
    with rasterio.open(tmp_path / "map.tif", "w", **shape, **place) as file:
        file.write(pixels)
    words = ["--out", tmp_path / "out", "--format", "geojson"]
    for files, names in (
        ([tmp_path / "map.tif"], ["detections.geojson"]),
        (
            [images, tmp_path / "map.tif"],
            ["detections-EPSG_32633.geojson", "detections-pixels.geojson"],
        ),
        ([images], ["detections.geojson"]),
    ):
        assert detect(*files, *words) == 0
        assert sorted(path.name for path in (tmp_path / "out").glob("*.geojson")) == names
        if len(names) == 2:
            tables = [json.loads((tmp_path / "out" / name).read_text()) for name in names]
    first, second = (
        sorted(
            f["geometry"]["coordinates"][0][0]
            for f in table["features"]
            if Path(f["properties"]["image"]).name in ("map.tif", "0.png")
        )
        for table in tables
    )
    expected = np.array([4e5, 6e6]) + np.array(second) * [0.5, -0.5]
    assert len({f["properties"]["image"] for f in tables[1]["features"]}) == 3
    np.testing.assert_allclose(first, expected, rtol=0, atol=1.6)  # another corner comes first


def test_help_explains_every_setting(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["detect", "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for word in ("--min-score", "--no-exif", "--show-tiles", "torchrun", "Exit codes", "IMAGES"):
        assert word in text
