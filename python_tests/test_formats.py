"""Files of results: COCO json, CSV and GeoJSON."""

import csv
import functools
import itertools
import json
import math
import os
import tracemalloc

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rasterio.crs import CRS
from results import make_result, random_results

from tinyops.cli.detection_file import read_detections
from tinyops.inference.formats import (
    match_images,
    write_coco,
    write_coco_results,
    write_csv,
    write_geojson,
    write_results,
)
from tinyops.inference.types import Georeference

NAMES = ("person", "Möwe", "船")
UTM = Georeference((0.5, 0.0, 600000.0, 0.0, -0.5, 5000000.0), "EPSG:32633")
WRITERS = {"x.json": write_coco, "x.csv": write_csv, "x.geojson": write_geojson}
each_writer = pytest.mark.parametrize("file", WRITERS)
# A list needs ids, which the others make themselves.
LIST = functools.partial(write_coco_results, image_ids={f"a/{k}.png": 10 + k for k in range(9)})


def corners(entry):
    x, y, width, height = entry["bbox"]
    return [x, y, x + width, y + height]


@pytest.mark.parametrize("file", ["x.json", "x.csv"])
@pytest.mark.parametrize("categories", [NAMES, None])
def test_what_was_written_is_read(tmp_path, file, categories):
    results = random_results(4, 50, categories=categories)
    WRITERS[file](results, tmp_path / file)
    content = read_detections(tmp_path / file)
    assert content.images == {k + 1: result.name for k, result in enumerate(results)}
    assert content.categories == (dict(enumerate(NAMES, 1)) if categories else {})
    assert len(content.results.entries()) == 200
    for k, result in enumerate(results):
        found = [entry for entry in content.results.entries() if entry["image_id"] == k + 1]
        assert [entry["category_id"] for entry in found] == result["labels"].tolist()
        boxes = torch.tensor([corners(entry) for entry in found])
        torch.testing.assert_close(boxes, result["boxes"], rtol=0, atol=0.00055)  # 0.001 / 2
        # Bit by bit: no order and no tie is lost.
        assert torch.equal(torch.tensor([entry["score"] for entry in found]), result["scores"])


def test_json_and_csv_hold_the_same(tmp_path):
    results = random_results(3, 20, categories=NAMES)
    write_coco(results, tmp_path / "x.json")
    write_csv(results, tmp_path / "x.csv")
    one, other = (read_detections(tmp_path / name) for name in ("x.json", "x.csv"))
    assert (one.images, one.categories) == (other.images, other.categories)
    assert one.results.entries() == other.results.entries()


def test_neighbouring_scores_stay_apart_and_small_ones_above_0(tmp_path):
    one = torch.tensor(1.0)
    scores = [1.0, torch.nextafter(one, one * 0).item(), 1e-30]
    make_result([[0, 0, 5, 5]] * 3, scores).save(tmp_path / "x.csv")
    found = [entry["score"] for entry in read_detections(tmp_path / "x.csv").results.entries()]
    assert found[0] > found[1] > found[2] > 0


def test_an_entry_in_coco_is_what_it_is_by_hand(tmp_path):
    result = make_result([[1.23456, 2, 5, 7.5]], [0.9], [2], categories=NAMES)
    result.save(tmp_path / "x.json")
    assert json.loads((tmp_path / "x.json").read_text("utf-8")) == {
        "images": [{"id": 1, "file_name": "a.png", "width": 640, "height": 512}],
        "categories": [{"id": k, "name": name} for k, name in enumerate(NAMES, 1)],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 2,
                "bbox": [1.235, 2, 3.765, 5.5],
                "area": 20.7075,
                "iscrowd": 0,
                "score": 0.9,
            }
        ],
    }


def test_csv_is_what_it_is_by_hand(tmp_path):
    result = make_result([[-0.0001, 2, 5, 7.5]], [0.25], name='a "b",c.png', categories=NAMES)
    write_csv([result], tmp_path / "x.csv")
    assert (tmp_path / "x.csv").read_bytes() == (
        b'image,label,name,score,x1,y1,x2,y2\r\n"a ""b"",c.png",1,person,0.25,0.0,2.0,5.0,7.5\r\n'
    )


def test_pycocotools_reads_both_forms_and_finds_every_object(tmp_path, capsys):
    results = random_results(3, 20, categories=NAMES)
    write_coco(results, tmp_path / "x.json", image_ids=LIST.keywords["image_ids"])
    LIST(results, tmp_path / "list.json")
    truth = COCO(str(tmp_path / "x.json"))
    assert truth.getImgIds() == [10, 11, 12]
    evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / "list.json")), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)


def test_a_list_has_the_ids_of_the_benchmark(tmp_path):
    result = make_result([[0, 0, 5, 5], [1, 1, 2, 2]], labels=[1, 2], name="a/4.png")
    LIST([result], tmp_path / "x.json", category_ids=(7, 9))
    content = read_detections(tmp_path / "x.json")
    assert (content.images, content.categories) == ({}, {})
    assert content.results.image_ids.tolist() == [14, 14]
    assert content.results.category_ids.tolist() == [7, 9]
    with pytest.raises(ValueError, match=r"a/4.png: labels must be in 1..1"):
        LIST([result], tmp_path / "x.json", category_ids=(7,))
    with pytest.raises(ValueError, match=r"b.png: expected an id in image_ids"):
        LIST([make_result([], name="b.png")], tmp_path / "x.json")


@each_writer
def test_no_results_and_no_objects_give_valid_files(tmp_path, file):
    WRITERS[file]([], tmp_path / file)
    WRITERS[file]([make_result([])], tmp_path / f"1{file}")
    for path in (tmp_path / file, tmp_path / f"1{file}"):
        if file == "x.geojson":
            empty = {"type": "FeatureCollection", "features": []}
            assert json.loads(path.read_text()) == empty
        else:
            assert read_detections(path).results.entries() == []
    if file == "x.json":
        assert read_detections(tmp_path / "1x.json").images == {1: "a.png"}


def test_results_without_names_get_numbers_in_coco(tmp_path):
    make_result([[0, 0, 1, 1]], labels=[2]).save(tmp_path / "x.json")
    categories = json.loads((tmp_path / "x.json").read_text())["categories"]
    assert categories == [{"id": 1, "name": "1"}, {"id": 2, "name": "2"}]
    write_coco([make_result([])], tmp_path / "x.json", categories=NAMES)
    assert read_detections(tmp_path / "x.json").categories == dict(enumerate(NAMES, 1))


@pytest.mark.parametrize("file", ["x.json", "x.csv"])
@pytest.mark.parametrize("name", ["Küste/船 1.png", "a,\n\"b'.png", os.fsdecode(b"\xff\xfe.png")])
def test_any_file_name_comes_back(tmp_path, file, name):
    make_result([[0, 0, 1, 1]], name=name).save(tmp_path / file)
    assert read_detections(tmp_path / file).images == {1: name}
    if "船" in name:
        assert "船".encode() in (tmp_path / file).read_bytes()


def test_csv_saved_by_a_spreadsheet_is_read(tmp_path):
    path = tmp_path / "x.csv"
    make_result([[0, 0, 1, 1]]).save(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\r\n", b"\n"))
    assert len(read_detections(path).results.entries()) == 1


def features(path):
    content = json.loads(path.read_text("utf-8"))
    return content.get("crs"), content["features"]


def turn(ring):
    """Twice the signed area; above 0 if the ring is counter-clockwise."""
    return sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in itertools.pairwise(ring))


def test_geojson_of_a_map_is_in_its_coordinates_with_y_up(tmp_path):
    result = make_result([[10, 20, 14, 26]], [0.5], georeference=UTM, categories=NAMES)
    result.save(tmp_path / "x.geojson")
    crs, (feature,) = features(tmp_path / "x.geojson")
    assert CRS.from_user_input(crs["properties"]["name"]).to_epsg() == 32633
    (ring,) = feature["geometry"]["coordinates"]
    assert sorted(ring[1:]) == [
        [600005, 4999987],
        [600005, 4999990],
        [600007, 4999987],
        [600007, 4999990],
    ]
    assert ring[0] == ring[-1]
    assert turn(ring) == 2 * 2 * 3
    assert feature["properties"] == {
        "image": "a.png",
        "label": 1,
        "name": "person",
        "score": 0.5,
        "box": [10, 20, 14, 26],
        "coordinates": "map",
    }


@pytest.mark.parametrize("mirrored", [1, -1])
def test_geojson_of_a_rotated_map_has_its_corners(tmp_path, mirrored):
    c, s = 0.3 * math.cos(0.7), 0.3 * math.sin(0.7)
    place = Georeference((c, -s * mirrored, 100.0, s, c * mirrored, 200.0), "EPSG:32633")
    make_result([[10, 20, 14, 26]], georeference=place).save(tmp_path / "x.geojson")
    _, (feature,) = features(tmp_path / "x.geojson")
    (ring,) = feature["geometry"]["coordinates"]
    expected = [
        (100 + c * x - s * mirrored * y, 200 + s * x + c * mirrored * y)
        for x, y in [(10, 20), (14, 20), (14, 26), (10, 26)]
    ]
    for found, point in zip(sorted(ring[1:]), sorted(expected), strict=True):
        assert found == pytest.approx(point, abs=0.0003)  # 0.001 px
    assert turn(ring) == pytest.approx(2 * 0.3**2 * 24, rel=0.01)


def test_geojson_in_degrees_keeps_a_thousandth_of_a_pixel(tmp_path):
    place = Georeference((1e-6, 0.0, 12.0, 0.0, -1e-6, 50.0), "EPSG:4326")
    make_result([[1.25, 2, 3, 4]], georeference=place).save(tmp_path / "x.geojson")
    crs, (feature,) = features(tmp_path / "x.geojson")
    assert [12.00000125, 49.999998] in feature["geometry"]["coordinates"][0]
    assert crs["properties"]["name"].endswith("CRS84")  # longitude first, as GeoJSON has it


def test_geojson_names_a_system_without_a_code_by_its_text(tmp_path):
    text = CRS.from_string("+proj=utm +zone=33 +ellps=bessel").to_wkt()
    place = Georeference(UTM.affine, text)
    make_result([[1, 2, 3, 4]], georeference=place).save(tmp_path / "x.geojson")
    crs, _ = features(tmp_path / "x.geojson")
    assert CRS.from_user_input(crs["properties"]["name"]) == CRS.from_wkt(text)


@pytest.mark.parametrize("place", [None, UTM])
def test_geojson_in_pixels_says_so(tmp_path, place):
    result = make_result([[10, 20, 14, 26.0005]], georeference=place)
    write_geojson([result], tmp_path / "x.geojson", pixels=True)
    crs, (feature,) = features(tmp_path / "x.geojson")
    assert crs is None
    (ring,) = feature["geometry"]["coordinates"]
    assert [min(ring), max(ring)] == [[10, 20], [14, feature["properties"]["box"][3]]]
    assert turn(ring) > 0
    assert feature["properties"]["coordinates"] == "pixels, y down"
    assert feature["properties"]["name"] is None


def test_geojson_holds_one_system(tmp_path):
    results = [make_result([], georeference=UTM, name="a.tif"), make_result([], name="b.png")]
    with pytest.raises(ValueError, match=r"b.png: expected .* EPSG:32633, got pixels"):
        write_geojson(results, tmp_path / "x.geojson")
    with pytest.raises(ValueError, match=r"a.tif: expected .* pixels, got EPSG:32633"):
        write_geojson(results[::-1], tmp_path / "x.geojson")
    write_geojson(results, tmp_path / "x.geojson", pixels=True)


@each_writer
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": [[0, 0, math.nan, 1]]}, "finite"),
        ({"scores": [math.inf]}, "finite"),
        ({"boxes": [[5, 0, 4, 1]]}, "x1 <= x2"),
        ({"labels": [0]}, r"labels must be in 1\.\.3, got 0"),
        ({"labels": [4]}, r"labels must be in 1\.\.3, got 4"),
    ],
)
def test_wrong_results_are_refused_and_the_old_file_stays(tmp_path, file, change, message):
    path = tmp_path / file
    path.write_text("old")
    bad = make_result(**{"boxes": [[0, 0, 1, 1]], "categories": NAMES, **change})
    with pytest.raises(ValueError, match=f"a.png: .*{message}"):
        WRITERS[file]([*random_results(1, 3, categories=NAMES), bad], path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == [file]


@pytest.mark.parametrize("file", [*WRITERS, "list"])
def test_an_interrupted_write_leaves_the_old_file(tmp_path, file):
    def interrupted():
        yield from random_results(2, 3)
        raise KeyboardInterrupt

    path = tmp_path / file
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        WRITERS.get(file, LIST)(interrupted(), path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == [file]


@each_writer
def test_equal_results_give_equal_bytes(tmp_path, file):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        WRITERS[file](iter(random_results(2, 9)), tmp_path / folder / file)
    assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("file", [*WRITERS, "list"])
def test_memory_does_not_grow_with_the_number_of_objects(tmp_path, file):
    (result,) = random_results(1, 400)
    peaks = []
    for count in (2, 8):
        tracemalloc.start()
        WRITERS.get(file, LIST)(itertools.repeat(result, count), tmp_path / file)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_results_with_other_categories_are_refused_in_coco(tmp_path):
    other = make_result([], categories=("x",), name="b.png")
    with pytest.raises(ValueError, match=r"b.png: expected the categories"):
        write_coco([make_result([], categories=NAMES), other], tmp_path / "x.json")


def test_the_suffix_picks_the_format(tmp_path):
    result = make_result([[0, 0, 1, 1]])
    for name, writer in WRITERS.items():
        result.save(tmp_path / name.upper())
        writer([result], tmp_path / name)
        assert (tmp_path / name.upper()).read_bytes() == (tmp_path / name).read_bytes()
    for save in (result.save, functools.partial(write_results, [result])):
        with pytest.raises(ValueError, match=r"\.json, \.csv, \.geojson, got '.*x\.xml'"):
            save(tmp_path / "x.xml")


GOOD = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}
TABLES = {"images": [{"id": 1, "file_name": "a"}], "categories": [{"id": 1, "name": "p"}]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON: Expecting"),
        ("3", "Expected `object . array`, got `int`"),
        ([3], r"results\[0\]: Expected `object`, got `int`"),
        ([GOOD, {**GOOD, "image_id": "1"}], r"results\[1\].image_id: Expected `int`"),
        ([{**GOOD, "category_id": True}], r"results\[0\].category_id: Expected `int`"),
        ([{**GOOD, "bbox": [0, 0, 1]}], r"results\[0\].bbox: Expected `array` of length 4"),
        (
            [{**GOOD, "bbox": [0, 0, -1, 1]}],
            r"results\[0\].bbox must be .* negative size",
        ),
        ([{**GOOD, "score": math.nan}], r"results\[0\].score must be finite"),
        ([{**GOOD, "score": 10**400}], r"results\[0\].score: Number out of range"),
        ({**TABLES, "annotations": [{**GOOD, "score": None}]}, r"annotations\[0\].score: Expected"),
        (
            {**TABLES, "annotations": [{**GOOD, "image_id": 2}]},
            r"annotations\[0\].image_id does",
        ),
        ({**TABLES, "annotations": {}}, "annotations: Expected `array`"),
        ({**TABLES, "annotations": [], "images": [{"id": 1}]}, r"images\[0\]: .* `file_name`"),
        ({**TABLES, "annotations": [], "images": TABLES["images"] * 2}, r"images\[1\].id must be"),
    ],
)
def test_wrong_json_is_refused(tmp_path, content, message):
    path = tmp_path / "x.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=rf"x\.json: {message}"):
        read_detections(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a,1,p,0.5,0,0,1", "line 3 must be image,label"),
        ("a,one,p,0.5,0,0,1,1", "line 3 must be image,label"),
        ("a,1,p,nan,0,0,1,1", "line 3: the score must be finite"),
        ("a,1,p,0.5,2,0,1,1", "line 3: the box must have x1 <= x2"),
        ("a,1,p,0.5,0,0,1e200,1", "line 3: the box must be finite and below 1e100"),
        (f"a,{2**63},p,0.5,0,0,1,1", "line 3 must be image,label"),
        ("a,1,q,0.5,0,0,1,1", "line 3: label 1 has two names"),
    ],
)
def test_wrong_csv_is_refused(tmp_path, line, message):
    path = tmp_path / "x.csv"
    path.write_text(f"image,label,name,score,x1,y1,x2,y2\na,1,p,0.5,0,0,1,1\n{line}\n")
    with pytest.raises(ValueError, match=rf"x\.csv: {message}"):
        read_detections(path)
    path.write_text("a,b\n")
    with pytest.raises(ValueError, match=r"x\.csv: the first line must be image,label"):
        read_detections(path)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected a file of detections, \.json or \.csv"):
        read_detections(tmp_path / "x.geojson")
    with pytest.raises(FileNotFoundError):
        read_detections(tmp_path / "x.json")


def coco_images(*names):
    return [{"id": k, "file_name": name} for k, name in enumerate(names, 1)]


def test_images_are_matched_by_the_longest_end_and_then_by_the_last_part():
    images = coco_images("1.jpg", "sea/1.jpg", "beach/2.jpg")
    found = match_images(["/data/1.jpg", "/data/sea/1.jpg", "elsewhere/2.jpg", "3.jpg"], images)
    assert found == {"/data/1.jpg": 1, "/data/sea/1.jpg": 2, "elsewhere/2.jpg": 3}
    assert match_images(["2.jpg"], images) == {"2.jpg": 3}


def test_ambiguous_images_are_refused():
    with pytest.raises(ValueError, match=r"x/1.jpg may be any of 2 images"):
        match_images(["x/1.jpg"], coco_images("sea/1.jpg", "beach/1.jpg"))
    with pytest.raises(ValueError, match=r"x/1.jpg and y/1.jpg mean the same image"):
        match_images(["x/1.jpg", "y/1.jpg"], coco_images("1.jpg"))


def test_csv_has_a_line_per_object_with_its_columns(tmp_path):
    write_csv(random_results(2, 5, categories=NAMES), tmp_path / "x.csv")
    with (tmp_path / "x.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10
    assert all(row["name"] == NAMES[int(row["label"]) - 1] for row in rows)
