"""Detection in many images: groups, parts on the disk, failures."""

import csv
import errno
import json
import os
import weakref

import pytest
import torch

from tinyops.inference.directory import Directory, fingerprint, picture_path, write_all, write_maps
from tinyops.inference.parts import Index, OutputError, Parts, image_key
from tinyops.inference.result import Result
from tinyops.inference.types import Georeference

BOX = torch.tensor([[1.0, 2.0, 3.0, 4.0]])


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Files need not be on the disk for these tests, which a busy disk would slow down."""
    monkeypatch.setattr("tinyops._files._sync", lambda path: None)


class Picture:
    """A source the file of which says how many tiles it has, or what is wrong with it."""

    georeference, width, height = None, 30, 20

    def __init__(self, path):
        self.name, self.text, self.closed = str(path), path.read_text(), False
        if self.text == "unopened":
            raise OSError(f"cannot read {path}: it is\nbad")

    def close(self):
        self.closed = True


class Looker:
    """A `detect` that notes which images came together; their number is the score."""

    def __init__(self):
        self.groups = []

    def __call__(self, sources, *, on_error):
        self.groups.append([os.path.basename(source.name) for source in sources])
        for k, source in enumerate(sources):
            if source.text == "unread":
                on_error(source, ValueError(f"{source.name}: cut short"))
            else:
                yield result_of(source.name, len(sources), 1 + k)


def result_of(name, *scores, **more):
    k = len(scores)
    boxes = torch.rand(k, 4, generator=torch.Generator().manual_seed(k))
    found = {"boxes": boxes, "scores": torch.tensor(scores).float(), "labels": torch.ones(k).long()}
    return Result(found, name=name, width=30, height=20, tiles=torch.zeros(2, 4), **more)


def make_images(folder, *texts):
    images = [folder / f"{k:02d}" for k in range(len(texts))]
    for image, text in zip(images, texts, strict=True):
        image.write_text(str(text))
    return images


def run(images, out, index=None, draw=None, **processes):
    """What became of the images, and which groups were detected in."""
    parts = Parts(out)
    parts.begin({})
    looker, said = Looker(), []
    directory = Directory(
        looker,
        Picture,
        lambda source: int(source.text) if source.text.isdigit() else 1,
        group=4,
        draw=draw,
        on_failure=said.append,
    )
    outcome = directory.run(images, parts, index or parts.index(), **processes)
    assert said == outcome.failures
    return outcome, looker.groups


def texts_of(outcome, images, out):
    """The final files as bytes."""

    def write(results, path):
        path.write_text("".join(f"{x.name} {x['scores'].tolist()}\n" for x in results))

    write_all(outcome, images, Parts(out), {"all.txt": write})
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}


TEXTS = (1, 1, 3, 9, 1, "unread", "unopened", 1, 2, 2, 2, 1, 5, 1)
GROUPS = ["00 01 02", "03", "04 05 07 08", "09 10", "11 13", "12"]


def test_images_are_taken_in_groups_of_enough_tiles(tmp_path):
    outcome, groups = run(make_images(tmp_path, *TEXTS), tmp_path / "out")
    assert sorted(" ".join(group) for group in groups) == GROUPS
    assert (outcome.images, outcome.tiles, outcome.objects) == (12, 24, 24)
    assert sorted(os.path.basename(failure.image) for failure in outcome.failures) == ["05", "06"]


@pytest.mark.parametrize("kept", [[4], [0, 4], [3, 9], [4, 11, 13], [12], [0, 3, 4, 9, 12]])
def test_groups_do_not_depend_on_what_was_done_before(tmp_path, kept):
    images = make_images(tmp_path, *TEXTS)
    expected = texts_of(run(images, tmp_path / "whole")[0], images, tmp_path / "whole")
    run(images, tmp_path / "out")
    parts = Parts(tmp_path / "out")
    places = parts.index().places
    names = {places[image_key(images[k])][0] for k in kept}
    for path in parts.folder.glob("*.safetensors"):
        if path.name not in names:
            path.unlink()
    outcome, groups = run(images, tmp_path / "out")
    numbers = {f"{k:02d}" for k in kept}
    left = [group for group in GROUPS if not numbers & set(group.split())]
    again = ["05"] if 4 in kept else []
    assert sorted(" ".join(group) for group in groups) == sorted(left + again)
    assert texts_of(outcome, images, tmp_path / "out") == expected


def test_processes_share_the_groups(tmp_path):
    images = make_images(tmp_path, *TEXTS)
    alone = texts_of(run(images, tmp_path / "alone")[0], images, tmp_path / "alone")
    total, seen = run(images, tmp_path / "out", Index(), rank=0, processes=3)
    for rank in (1, 2):
        other, groups = run(images, tmp_path / "out", Index(), rank=rank, processes=3)
        total.add(other)
        seen += groups
    assert sorted(" ".join(group) for group in seen) == GROUPS
    assert texts_of(total, images, tmp_path / "out") == alone


def test_sources_of_other_processes_are_closed(tmp_path, monkeypatch):
    opened = []
    init = Picture.__init__
    monkeypatch.setattr(
        Picture, "__init__", lambda self, path: opened.append(self) or init(self, path)
    )
    run(make_images(tmp_path, 9, 9), tmp_path / "out", rank=1, processes=2)
    assert [source.closed for source in opened] == [True, False]


def test_a_later_call_detects_in_new_and_changed_images_alone(tmp_path):
    images = make_images(tmp_path, 1, 1, 1, 1)
    run(images[:3], tmp_path / "out")
    assert run(images, tmp_path / "out")[1] == [["03"]]
    images[1].write_text("2")
    os.utime(images[1], ns=(1, 1))
    outcome, groups = run(images, tmp_path / "out")
    assert groups == [["01"]]
    assert len(outcome.places) == 4
    assert run(images, tmp_path / "out")[1] == []


def test_an_image_that_failed_is_tried_again_by_itself(tmp_path):
    images = make_images(tmp_path, 1, "unread", 1, 1)
    assert run(images, tmp_path / "out")[1] == [["00", "01", "02", "03"]]
    outcome, groups = run(images, tmp_path / "out")
    assert groups == [["01"]]
    assert (outcome.images, len(outcome.places)) == (0, 3)
    outcome, groups = run(images, tmp_path / "out")
    assert groups == [["01"]]
    assert len(outcome.places) == 3
    assert [failure.reason for failure in outcome.failures] == [f"{images[1]}: cut short"]


def test_failures_are_a_table_in_the_order_of_the_images(tmp_path):
    images = make_images(tmp_path, "unread", "unopened", 1)
    images.append(tmp_path / "gone")
    outcome, _ = run(images, tmp_path / "out")
    texts_of(outcome, images, tmp_path / "out")
    with (tmp_path / "out/failures.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["image", "reason"],
            [str(images[0]), f"{images[0]}: cut short"],
            [str(images[1]), f"cannot read {images[1]}: it is bad"],
            [str(images[3]), f"{images[3]}: No such file or directory"],
        ]
    images[0].write_text("1")
    outcome, _ = run([images[0], images[2]], tmp_path / "out")
    assert set(texts_of(outcome, [images[0], images[2]], tmp_path / "out")) == {"all.txt"}


def test_a_picture_that_cannot_be_drawn_is_a_failure_of_its_image(tmp_path):
    images = make_images(tmp_path, 1, 1, 1)

    def draw(image, result):
        if image == images[1]:
            raise ValueError("too long")

    outcome, _ = run(images, tmp_path / "out", draw=draw)
    assert [failure.reason for failure in outcome.failures] == [f"{images[1]}: too long"]
    assert list(outcome.places) == [str(images[0]), str(images[2])]


def test_a_full_disk_ends_the_run(tmp_path):
    def draw(image, result):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputError, match=r"out: cannot be written: No space left on device$"):
        run(make_images(tmp_path, 1), tmp_path / "out", draw=draw)


def test_a_part_that_cannot_be_written_whole_is_not_there(tmp_path, monkeypatch):
    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    images = make_images(tmp_path, 1, 9)
    run(images[:1], tmp_path / "out")
    monkeypatch.setattr("tinyops._files.save_file", full)
    with pytest.raises(OutputError, match="No space left on device"):
        run(images, tmp_path / "out")
    assert len(list((tmp_path / "out/.parts").iterdir())) == 2
    monkeypatch.undo()
    assert run(images, tmp_path / "out")[1] == [["01"]]


def test_results_are_kept_bit_by_bit(tmp_path):
    parts = Parts(tmp_path)
    parts.begin({})
    place = Georeference((0.1, 0.0, 1 / 3, 0.0, -0.1, 7e6), "EPSG:32633")
    more = {"categories": ("sea", "état"), "georeference": place}
    written = {"a": result_of("x", 1 / 3, 0.1, **more), "b": result_of("y")}
    places = parts.put(written, ["c"])
    assert parts.index() == Index(places, {"c"})
    read = list(parts.results({"new": places["a"], "y": places["b"], "again": places["a"]}))
    assert [(x.name, x.width, x.height) for x in read] == [
        ("new", 30, 20),
        ("y", 30, 20),
        ("again", 30, 20),
    ]
    assert [(x.categories, x.georeference) for x in read[:2]] == [
        (("sea", "état"), place),
        (None, None),
    ]
    for result, expected in zip(read[:2], written.values(), strict=True):
        assert result.keys() == expected.keys()
        assert all(torch.equal(result[key], x) for key, x in expected.items())


def test_parts_that_are_not_whole_are_not_there(tmp_path):
    parts = Parts(tmp_path)
    parts.begin({})
    places = parts.put({"a": result_of("x", 0.5)}, [])
    path = parts.folder / places["a"][0]
    path.write_bytes(path.read_bytes()[:-1])
    assert parts.index() == Index()


def test_changes_of_settings_are_named(tmp_path):
    parts = Parts(tmp_path)
    assert parts.changes({"tile": (3, 4)}) == []
    parts.begin({"tile": (3, 4), "merge": "none"})
    assert parts.changes({"merge": "none", "tile": (3, 4)}) == []
    expected = ["tile was [3, 4] and is [3, 5]", "merge was none and is union"]
    assert parts.changes({"tile": (3, 5), "merge": "union"}) == expected
    assert json.loads((parts.folder / "settings.json").read_text())["tile"] == [3, 4]


def test_fresh_forgets_the_results(tmp_path):
    images, parts = make_images(tmp_path, 1), Parts(tmp_path / "out")
    run(images, tmp_path / "out")
    parts.begin({}, fresh=True)
    assert parts.index() == Index()


def test_maps_hold_few_results_at_a_time_and_spare_the_files_of_others(tmp_path):
    places = (Georeference((1, 0, 0, 0, 1, 0), crs) for crs in ("EPSG:32633", "EPSG:32634"))
    places = [None, *places] * 4
    made = []

    class Once:
        def __iter__(self):
            for k, place in enumerate(places):
                result = result_of(f"{k}", georeference=place)
                result |= {"boxes": BOX, "scores": torch.ones(1), "labels": torch.ones(1).long()}
                made.append(weakref.ref(result))
                yield result
                del result
                assert sum(one() is not None for one in made) <= 3

    names = [f"detections-{x}.geojson" for x in ("EPSG_32633", "EPSG_32634", "mine", "pixels")]
    (tmp_path / names[2]).write_text("mine")
    write_maps(Once(), tmp_path / "detections.geojson")
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for name, images in zip(names, ("1 4 7 10", "2 5 8 11", None, "0 3 6 9"), strict=True):
        if images:
            table = json.loads((tmp_path / name).read_text())
            assert [x["properties"]["image"] for x in table["features"]] == images.split()
    write_maps([result_of("0")], tmp_path / "detections.geojson")
    left = ["detections-mine.geojson", "detections.geojson"]
    assert sorted(path.name for path in tmp_path.iterdir()) == left


def test_an_image_of_which_no_process_knows_is_a_failure(tmp_path):
    images, parts = make_images(tmp_path, 1, 1), Parts(tmp_path / "out")
    outcome, _ = run(images[:1], tmp_path / "out")
    write_all(outcome, images, parts, {})
    assert [failure.image for failure in outcome.failures] == [str(images[1])]


def test_few_files_are_open_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("tinyops.inference.directory._MOST_OPEN", 2)
    _, groups = run(make_images(tmp_path, 1, 1, 1), tmp_path / "out")
    assert groups == [["00", "01"], ["02"]]


def test_an_image_is_its_path_size_and_time(tmp_path):
    (image,) = make_images(tmp_path, 1)
    keys = {image_key(image)}
    os.utime(image, ns=(5, 5))
    keys.add(image_key(image))
    image.write_text("22")
    os.utime(image, ns=(5, 5))
    keys.add(image_key(image))
    os.link(image, tmp_path / "other")
    keys.add(image_key(tmp_path / "other"))
    assert len(keys) == 4


def test_pictures_have_names_of_their_own(tmp_path):
    names = {picture_path(tmp_path, tmp_path / name) for name in ("a/1.png", "b/1.png", "a/1.tif")}
    assert len(names) == 3
    assert len(os.fsencode(picture_path(tmp_path, tmp_path / ("ö" * 120)).name)) < 120


def test_the_fingerprint_is_of_the_weights_and_the_recipe():
    model = torch.nn.BatchNorm2d(2)
    prints = {fingerprint(model), fingerprint(torch.nn.BatchNorm2d(2))}
    assert len(prints) == 1
    model.bias.data[1] = 1e-6
    prints.add(fingerprint(model))
    prints.add(fingerprint(model.bfloat16()))
    model.categories = ("x",)
    prints.add(fingerprint(model))
    model.recipe = {"scale": 2}
    prints.add(fingerprint(model))
    assert len(prints) == 5
