"""The page of annotated images."""

import base64
import io
import re

import numpy as np
from PIL import Image
from test_page import Elements

from tinyops.plot.view_page import ViewImage, write_view_page

BOXES = np.array([[10.0, 10, 16, 16], [40, 20, 50, 30], [60, 5, 90, 40]])


def image(caption="scene", boxes=BOXES, classes=(0, 1, -1), ignore=(0, 0, 1)):
    pixels = np.zeros((60, 100, 3), np.uint8)
    pixels[20:30, 40:50] = (1, 2, 3)
    return ViewImage(caption, pixels, boxes, np.array(classes), np.array(ignore, bool))


def written(tmp_path, *images, **options):
    write_view_page(tmp_path / "view.html", "Set", images, ("person", "<drone>", "boat"), **options)
    return (tmp_path / "view.html").read_text()


def test_boxes_have_their_class_and_size(tmp_path):
    page = Elements(written(tmp_path, image(), insets=0))
    assert page.open == []
    kinds = [x["class"] for x in page.all("rect")]
    assert kinds == ["b4 ignored", "b1 c1", "b0 c0"]  # the large ones below the others
    (row,) = page.all("rect", **{"class": "b1 c1"})
    gap = 2 * 100 / 1160
    assert row["x"] == f"{40 - gap:.2f}"
    assert row["width"] == f"{10 + 2 * gap:.2f}"
    assert "<drone>, 10.0 x 10.0 px" in page.text
    assert "every class, 30.0 x 35.0 px, to be ignored" in page.text
    assert "<drone> (1)" in page.text
    assert "boat" not in page.text  # there is none to be chosen


def test_magnified_places_have_the_pixels_of_the_image(tmp_path):
    page = Elements(written(tmp_path, image(), insets=1))
    _, place = page.all("image")
    x, y, width, height = (int(place[name]) for name in ("x", "y", "width", "height"))
    data = base64.b64decode(place["href"].partition(",")[2])
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    assert (pixels == image().pixels[y : y + height, x : x + width]).all()
    assert pixels.max() == 3


def test_an_image_without_objects_is_shown(tmp_path):
    page = Elements(written(tmp_path, image(boxes=BOXES[:0], classes=(), ignore=())))
    assert not page.all("rect")
    assert len(page.all("image")) == 1


def test_what_is_not_chosen_is_hidden(tmp_path):
    """The page has no script: for every box to be ticked there is a rule of style, no other."""
    text = written(tmp_path, image())
    page = Elements(text)
    boxes = {x["id"] for x in page.all("input", type="checkbox")}
    rules = re.findall(r"body:has\(#(\w+):not\(:checked\)\) rect\.(\w+) \{ display: none; \}", text)
    assert sorted(rules) == sorted((name, name) for name in boxes)
    assert all("checked" in x for x in page.all("input"))
    kinds = {kind for x in page.all("rect") for kind in x["class"].split()}
    assert kinds == {"b0", "b1", "b4", "c0", "c1", "ignored"} <= boxes
