"""Every format of data sets: small examples with the quirks of the originals."""

import json

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from tinyops.data import read, write
from tinyops.data.formats import recognise
from tinyops.data.formats.coco import to_coco


def files(folder, content):
    """Texts, and images of a size, by name."""
    for name, value in content.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(value, tuple):
            Image.new("RGB", value).save(path)
        else:
            path.write_text(value)
    return folder


def rows(image):
    boxes = image.bbox.tolist()
    return list(zip(boxes, image.labels.tolist(), image.ignore.tolist(), strict=True))


TINYPERSON = {
    "type": "instance",
    "images": [
        {"id": 0, "file_name": "labeled_images/a.jpg", "width": 640, "height": 512,
         "corner": [590, 0, 1230, 512]},
        {"id": 1, "file_name": "labeled_images/a.jpg", "width": 640, "height": 512,
         "corner": [0, 0, 640, 512]},
    ],
    "annotations": [
        {"id": 0, "image_id": 1, "category_id": 1, "bbox": [0.1, 0.2, 3.3, 0.7], "area": 2.5,
         "iscrowd": 0, "ignore": False, "uncertain": True, "logo": False, "in_dense_image": True,
         "segmentation": [[0.1, 0.2, 0.1, 0.9, 3.4, 0.9, 3.4, 0.2]], "size": 1.5},
        {"id": 1, "image_id": 0, "category_id": 1, "bbox": [5, 6, 7, 8], "area": 56, "iscrowd": 0,
         "ignore": True, "uncertain": False, "logo": True, "in_dense_image": False,
         "segmentation": {"counts": "a", "size": [1, 2]}},
        {"id": 2, "image_id": 1, "category_id": 1, "bbox": [5, 6, 7, 8], "area": 56, "iscrowd": 0,
         "ignore": False, "uncertain": False, "logo": False, "in_dense_image": False},
    ],
    "categories": [{"id": 1, "name": "person", "supercategory": "none"}],
    "old_images": [{"id": 0, "file_name": "labeled_images/a.jpg", "width": 1230, "height": 512}],
}  # fmt: skip


def in_order(content):
    return {**content, "annotations": sorted(content["annotations"], key=lambda a: a["id"])}


def test_tiles_of_tinyperson_stay_as_they_are(tmp_path):
    path = files(tmp_path, {"a.json": json.dumps(TINYPERSON)}) / "a.json"
    data = read(path)
    first, second = data.images
    assert first.corner == (590, 0, 1230, 512)
    assert rows(first) == [([5, 6, 7, 8], 1, True)]
    assert second.ignore.tolist() == [True, False]
    assert second.attributes["logo"].tolist() == [False, False]
    assert in_order(to_coco(data)) == TINYPERSON
    assert write(data, tmp_path / "b.json", "coco") == []
    assert in_order(json.loads((tmp_path / "b.json").read_text())) == TINYPERSON


def test_regions_of_no_class_have_label_0_in_sodad(tmp_path):
    content = {
        "images": [{"id": 3, "file_name": "a.jpg", "width": 9, "height": 9}],
        "categories": [{"id": 1, "name": "people"}, {"id": 10, "name": "ignore"}],
        "annotations": [
            {"id": 4, "image_id": 3, "category_id": 10, "bbox": [1, 1, 2, 2], "area": 4,
             "iscrowd": 0, "ignore": 0},
            {"id": 5, "image_id": 3, "category_id": 1, "bbox": [3, 3, 2, 2], "area": 4,
             "iscrowd": 0, "ignore": 1},
        ],
    }  # fmt: skip
    data = read(files(tmp_path, {"a.json": json.dumps(content)}) / "a.json")
    assert data.classes == ("people",)
    assert rows(data.images[0]) == [([1, 1, 2, 2], 0, True), ([3, 3, 2, 2], 1, True)]
    assert to_coco(data) == content


def test_fields_that_some_annotations_lack_stay_away_from_them(tmp_path):
    annotations = [
        {"id": k, "image_id": 0, "category_id": 0, "bbox": [1, 1, 2, 2], "area": 4, "iscrowd": 0}
        for k in range(20_000)  # more than are looked at at a time
    ]
    annotations[0]["note"] = "first"
    annotations[15_000]["score"] = 0.5
    content = {
        "images": [{"id": 0, "file_name": "a.jpg", "width": 9, "height": 9}],
        "categories": [{"id": 0, "name": "x"}],
        "annotations": annotations,
    }
    data = read(files(tmp_path, {"a.json": json.dumps(content)}) / "a.json")
    assert to_coco(data) == content
    annotations[17_000]["bbox"] = [1, 1, "2", 2]
    files(tmp_path, {"a.json": json.dumps(content)})
    with pytest.raises(ValueError, match=r"a\.json: annotations\[17000\]: bbox must be of finite"):
        read(tmp_path / "a.json")


LINES = "10,20,5,6,1,4,0,2\n1,2,30,40,0,0,0,0,\n3,4,5,6,0,1,1,0\n7,8,9,9,1,11,0,0\n"
VISDRONE = {
    "annotations/b.txt": LINES,
    "annotations/a.txt": "",
    "images/a.jpg": (50, 40),
    "images/b.png": (60, 70),
}  # fmt: skip


def test_visdrone(tmp_path):
    data = read(files(tmp_path, VISDRONE))
    empty, image = data.images
    assert (empty.file_name, empty.width, empty.height, len(empty)) == ("a.jpg", 50, 40, 0)
    assert (image.file_name, image.id, image.width, image.height) == ("b.png", 2, 60, 70)
    assert data.classes[3] == "car"
    assert rows(image) == [
        ([10, 20, 5, 6], 4, False),
        ([1, 2, 30, 40], 0, True),  # ignored region
        ([3, 4, 5, 6], 1, True),  # score 0
        ([7, 8, 9, 9], 0, True),  # others
    ]
    assert image.attributes["occlusion"].tolist() == [2, 0, 0, 0]
    entries = to_coco(data)["annotations"]  # no evaluator counts them, whatever flag it looks at
    assert [(a["iscrowd"], a["ignore"]) for a in entries] == [(0, 0), (1, 1), (1, 1), (1, 1)]
    assert [a["category_id"] for a in entries] == [4, 11, 1, 11]  # 11 is named "ignore"
    write(data, tmp_path / "new", "visdrone")
    for name in ("a", "b"):
        new = (tmp_path / f"new/annotations/{name}.txt").read_text()
        assert new == VISDRONE[f"annotations/{name}.txt"].replace("0,\n", "0\n")


TT100K = {
    "types": ["pl30", "i2", "w55"],
    "imgs": {
        "7": {"path": "test/7.jpg", "id": 7, "objects": []},
        "5": {
            "path": "train/5.jpg",
            "id": 5,
            "objects": [
                {"category": "i2", "bbox": {"xmin": 1.5, "ymin": 2, "xmax": 4, "ymax": 8.25},
                 "polygon": [[1.5, 2], [4, 2], [4, 8.25]]},
                {"category": "pl30", "bbox": {"xmin": 0, "ymin": 0, "xmax": 9, "ymax": 9},
                 "ellipse": [[4.5, 4.5], [9, 9], 0.5]},
            ],
        },
    },
}  # fmt: skip


def test_tt100k(tmp_path):
    names = {"annotations.json": json.dumps(TT100K), "train/ids.txt": "5\n", "test/ids.txt": "7\n"}
    files(tmp_path, {**names, "train/5.jpg": (30, 20), "test/7.jpg": (8, 9)})
    data = read(tmp_path, split="train")
    assert data.classes == ("pl30", "i2", "w55")
    (image,) = data.images
    assert (image.id, image.file_name, image.width, image.height) == (5, "train/5.jpg", 30, 20)
    assert rows(image) == [([1.5, 2, 2.5, 6.25], 2, False), ([0, 0, 9, 9], 1, False)]
    with pytest.raises(ValueError, match="split must be one of those here, test, train; got None"):
        read(tmp_path)
    assert write(data, tmp_path / "new", "tt100k", images="copy") == []
    content = json.loads((tmp_path / "new/annotations.json").read_text())
    assert content["imgs"] == {"5": TT100K["imgs"]["5"]}
    assert len(read(tmp_path / "new").images) == 1


WIDER = (
    "0--Parade/a b.jpg\n2\n449 330 122 149 0 0 0 0 2 0 \n1 2 3 4 2 1 0 1 0 1 \n"
    "1--X/none.jpg\n0\n0 0 0 0 0 0 0 0 0 0 \n1--X/bare.jpg\n0\n1--X/b.jpg\n1\n5 6 7 8 0 0 0 0 0 0\n"
)


def wider(folder):
    names = {"wider_face_split/wider_face_val_bbx_gt.txt": WIDER}
    images = ("0--Parade/a b.jpg", "1--X/none.jpg", "1--X/bare.jpg", "1--X/b.jpg")
    return files(folder, {**names, **{f"WIDER_val/images/{name}": (600, 500) for name in images}})


def check_wider(data):
    first, none, bare, last = data.images
    assert data.classes == ("face",)
    assert rows(first) == [([449, 330, 122, 149], 1, False), ([1, 2, 3, 4], 1, True)]
    assert first.attributes["blur"].tolist() == [0, 2]
    assert first.attributes["pose"].tolist() == [0, 1]
    assert (len(none), len(bare), none.file_name) == (0, 0, "1--X/none.jpg")
    assert rows(last) == [([5, 6, 7, 8], 1, False)]


def test_wider_face_knows_images_without_faces(tmp_path):
    check_wider(read(wider(tmp_path)))
    data = read(tmp_path / "wider_face_split/wider_face_val_bbx_gt.txt")
    check_wider(data)
    write(data, tmp_path / "new", "widerface", split="val", images="link")
    check_wider(read(tmp_path / "new"))
    text = (tmp_path / "new/wider_face_split/wider_face_val_bbx_gt.txt").read_text()
    assert "1--X/bare.jpg\n0\n0 0 0 0 0 0 0 0 0 0\n1--X/b.jpg\n1\n" in text


def test_wider_face_from_matlab(tmp_path):
    data = read(wider(tmp_path))

    def cells(values):
        column = np.empty((len(values), 1), object)
        column[:, 0] = values
        return column

    def nested(make):
        groups = (data.images[:1], data.images[1:])
        return cells([cells([make(image) for image in group]) for group in groups])

    def attribute(key):
        return nested(lambda image: image.attributes[key].reshape(-1, 1).astype(np.uint8))

    content = {
        "event_list": cells(["0--Parade", "1--X"]),
        "file_list": nested(lambda image: image.file_name[:-4].partition("/")[2]),
        "face_bbx_list": nested(lambda image: image.bbox),
    }
    keys = ("blur", "expression", "illumination", "invalid", "occlusion", "pose")
    content |= {f"{key}_label_list": attribute(key) for key in keys}
    path = tmp_path / "wider_face_split/wider_face_val.mat"
    savemat(path, content)
    check_wider(read(path))
    savemat(path, {"event_list": content["event_list"]})
    with pytest.raises(ValueError, match=r"val\.mat must be a mat of WIDER FACE: .*blur_label"):
        read(path)


XML = """<annotation><folder>V</folder><filename>wrong</filename>
<size><width>50</width><height>40</height><depth>3</depth></size>
<object><name>dog</name><pose>Left</pose><truncated>1</truncated><difficult>0</difficult>
<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>1</xmax><ymax>11.5</ymax></bndbox></object>
<object><name>cat</name><difficult>1</difficult>
<bndbox><xmax>20</xmax><xmin>11</xmin><ymax>20</ymax><ymin>11</ymin></bndbox>
<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object></annotation>"""


def voc(folder, text=XML):
    names = {"Annotations/a.xml": text, "ImageSets/Main/train.txt": "a\n"}
    names["ImageSets/Main/bird_train.txt"] = "a -1\n"
    return files(folder, {**names, "JPEGImages/a.png": (50, 40)})


def test_voc_counts_pixels_from_1(tmp_path):
    data = read(voc(tmp_path))
    assert data.classes == ("bird", "cat", "dog")
    (image,) = data.images
    assert image.file_name == "a.png"
    assert rows(image) == [([0, 1, 1, 10.5], 3, False), ([10, 10, 10, 10], 2, True)]
    assert image.attributes["truncated"].tolist() == [1, 0]
    assert image.attributes["pose"].tolist() == ["Left", None]
    notes = write(data, tmp_path / "new", "voc", images="copy")
    assert notes == ["1 boxes are rounded: VOC has whole pixels"]
    again = read(tmp_path / "new")
    assert again.classes == data.classes
    assert rows(again.images[0]) == [([0, 1, 1, 11], 3, False), ([10, 10, 10, 10], 2, True)]
    assert again.images[0].attributes["pose"].tolist() == ["Left", None]


@pytest.mark.parametrize("size", ["", "<size><width>0</width><height>0</height></size>"])
def test_voc_without_sizes_has_them_from_the_images(tmp_path, size):
    (image,) = read(voc(tmp_path, f"<annotation>{size}</annotation>")).images
    assert (image.width, image.height) == (50, 40)


YOLO = {
    "data.yaml": "train: ../images/train\nval: images/val\nnames: {0: a, 1: b}\n",
    "labels/train/x.txt": "1 0.5 0.25 0.1 0.5\n",
    "labels/val/y.txt": "\n",
    "images/train/x.jpg": (100, 20),
    "images/val/y.jpg": (10, 10),
    "images/val/z.jpg": (10, 10),
}


def test_yolo(tmp_path):
    data = read(files(tmp_path, YOLO), split="train")  # Roboflow's ../ is forgiven
    assert (data.classes, data.images[0].file_name) == (("a", "b"), "x.jpg")
    assert rows(data.images[0]) == [([45, 0, 10, 10], 2, False)]
    data = read(tmp_path / "data.yaml", split="val")
    assert [(image.file_name, len(image)) for image in data.images] == [("y.jpg", 0), ("z.jpg", 0)]
    with pytest.raises(ValueError, match="split must be one of those here, train, val; got None"):
        read(tmp_path)


@pytest.mark.parametrize("beside", [False, True])
def test_yolo_with_a_text_of_classes(tmp_path, beside):
    places = ("", "") if beside else ("images/", "labels/")
    names = {"classes.txt": "a\nb\n", f"{places[0]}x.jpg": (100, 20), f"{places[1]}x.txt": ""}
    names[f"{places[1]}x.txt"] = "0 .5 .5 1 1\n"
    data = read(files(tmp_path, names))
    assert rows(data.images[0]) == [([0, 0, 100, 20], 1, False)]


def test_polygons_of_yolo_give_the_boxes_around_them(tmp_path):
    names = {"classes.txt": "a\nb\n", "x.jpg": (100, 20), "x.txt": "1 .5 .5 .25 .25 .75 .5 .5 1\n"}
    data = read(files(tmp_path, names))
    assert rows(data.images[0]) == [([25, 5, 50, 15], 2, False)]


def test_yolo_images_in_a_folder_of_that_name_keep_their_labels(tmp_path):
    """Readers replace the last folder `images` of a path, which may be the file name's own."""
    names = {"labels/x.txt": "0 .5 .5 1 1\n", "images/x.jpg": (100, 20)}
    files(tmp_path, {**names, "data.yaml": "train: .\nnames: [a]\n"})
    data = read(tmp_path)
    assert data.images[0].file_name == "images/x.jpg"
    write(data, tmp_path / "new", "yolo", images="copy")
    assert rows(read(tmp_path / "new").images[0]) == [([0, 0, 100, 20], 1, False)]


def test_yolo_without_any_label_is_refused(tmp_path):
    files(tmp_path, {"data.yaml": "train: a\nnames: [x]\n", "a/b.jpg": (9, 9), "a/c.jpg": (9, 9)})
    with pytest.raises(FileNotFoundError, match=r"none of 2 images has a text .*a/b\.txt"):
        read(tmp_path)


def test_yolo_lists_of_images(tmp_path):
    files(tmp_path, YOLO)
    names = {"data.yaml": "train: list.txt\nnames: [a, b]\n", "list.txt": "./images/train/x.jpg\n"}
    data = read(files(tmp_path, {**names}))
    assert len(data.images[0]) == 1
    files(tmp_path, {"data.yaml": "train: [images/train, images/val]\nnames: [a, b]\n"})
    data = read(tmp_path)
    assert [image.file_name for image in data.images] == ["train/x.jpg", "val/y.jpg", "val/z.jpg"]


def test_yolo_cuts_boxes_at_the_edge_and_has_no_regions(tmp_path):
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 10, "height": 10}],
        "categories": [{"id": 1, "name": "x"}],
        "annotations": [
            {"image_id": 1, "category_id": 1, "bbox": [-2, 8, 4, 4]},
            {"image_id": 1, "category_id": 1, "bbox": [11, 1, 2, 2]},
            {"image_id": 1, "category_id": 1, "bbox": [1, 1, 2, 2], "iscrowd": 1},
        ],
    }
    files(tmp_path, {"a.json": json.dumps(content), "a.png": (10, 10)})
    notes = write(read(tmp_path / "a.json", images=tmp_path), tmp_path / "y", "yolo", images="copy")
    assert notes == [
        "1 boxes marked ignore are left out: YOLO has no place for them",
        "1 boxes are cut at the edge of their image: YOLO has shares of it",
        "1 boxes outside their image are left out: YOLO has shares of it",
    ]
    assert rows(read(tmp_path / "y").images[0]) == [([0, 8, 2, 2], 1, False)]


def test_what_lies_at_a_path_tells_the_format(tmp_path):
    found = {
        "visdrone": files(tmp_path / "v", VISDRONE),
        "voc": voc(tmp_path / "voc"),
        "widerface": wider(tmp_path / "w"),
        "yolo": files(tmp_path / "y", YOLO),
        "tt100k": files(tmp_path / "t", {"annotations.json": json.dumps(TT100K)}),
        "coco": files(tmp_path / "c", {"a.json": json.dumps(TINYPERSON)}),
    }
    for name, path in found.items():
        assert recognise(path)[0] == name
    assert recognise(found["coco"])[1].name == "a.json"
    with pytest.raises(ValueError, match=r"cannot tell the format\. Looked for coco: .*; yolo"):
        recognise(files(tmp_path / "n", {"a.txt": ""}))
