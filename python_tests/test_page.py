"""The one-page report."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from tinyops.plot import page
from tinyops.plot.page import write_page


class Elements(HTMLParser):
    """All elements with their attributes, and the text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self.open = [], "", []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag, **attributes):
        return [a for t, a in self.elements if t == tag and attributes.items() <= a.items()]


def written(tmp_path, title="Beach", **options):
    path = tmp_path / "page.html"
    write_page(path, title, **options)
    return path.read_text("utf-8")


def noise(width, height):
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3)).astype(np.uint8))


EVERYTHING = {
    "lead": "A thousand people.",
    "facts": {"Machine": "2 cores"},
    "precision": {"tiny1": 0.5, "tiny2": 1.0, "tiny3": 0.0, "small": None, "larger": float("nan")},
    "seconds": {"read": 1.0, "network": 6.0, "stitch": 1.0},
    "pictures": {"The scene": noise(60, 40)},
    "links": {"detections": "out/beach 1.json"},
}


def test_what_comes_from_outside_is_escaped(tmp_path):
    bad = "<script>alert(1)</script> & \"co\" 'x'"
    text = written(
        tmp_path,
        bad,
        lead=bad,
        facts={bad: bad},
        precision={bad: 0.5},
        seconds={bad: 1.0},
        pictures={bad: noise(8, 8)},
        links={bad: "a<b>&\"'.json"},
    )
    read = Elements(text)
    assert not read.all("script")
    assert read.open == []
    assert read.text.count(bad) == 9  # title, heading, lead, fact twice, and one each
    assert read.all("img")[0]["alt"] == bad


def test_nothing_is_loaded_from_elsewhere_and_nothing_runs(tmp_path):
    text = written(tmp_path, **EVERYTHING)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r'"data:[^"]+"', "", text), re.I)
    read = Elements(text)
    assert not read.all("script") + read.all("link") + read.all("iframe")
    assert not [a for _, a in read.elements if any(name.startswith("on") for name in a)]
    assert read.open == []


def test_it_follows_the_readers_choice_of_light_or_dark(tmp_path):
    assert "@media (prefers-color-scheme: dark)" in written(tmp_path)


def test_bars_are_as_long_as_the_precision(tmp_path):
    read = Elements(written(tmp_path, precision=EVERYTHING["precision"]))
    tracks = [float(bar["width"]) for bar in read.all("rect", **{"class": "track"})]
    bars = [float(bar["width"]) for bar in read.all("rect", **{"class": "bar"})]
    assert len(tracks) == 5
    assert bars == [tracks[0] / 2, tracks[0], 0]
    assert read.text.split("AP50")[1].count("none") == 2
    assert "0.500" in read.text


def test_stages_share_one_bar_by_their_time(tmp_path):
    read = Elements(written(tmp_path, seconds=EVERYTHING["seconds"]))
    places = [(float(r["x"]), float(r["width"])) for r in read.all("rect")]
    assert places == [(0, 60), (60, 360), (420, 60)]
    assert "network: 6.00 s (75.0 %)" in read.text
    assert "8.0 s" in read.text


def test_no_time_at_all_is_no_error(tmp_path):
    assert "read: 0.00 s (0.0 %)" in written(tmp_path, seconds={"read": 0.0})


def test_pictures_are_in_the_page(tmp_path):
    picture = Image.new("RGB", (60, 40), (200, 30, 90))
    (shown,) = Elements(written(tmp_path, pictures={"scene": picture})).all("img")
    assert (shown["width"], shown["height"]) == ("60", "40")
    kind, _, data = shown["src"].partition(",")
    assert kind == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.size == (60, 40)
        assert abs(np.asarray(image).astype(int) - (200, 30, 90)).max() <= 3


def test_large_pictures_shrink_until_the_page_is_small_enough(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "MAX_PICTURES", 60_000)
    text = written(tmp_path, pictures={"a": noise(400, 300), "b": noise(300, 400)})
    assert len(text) < 70_000
    for image in Elements(text).all("img"):
        width, height = int(image["width"]), int(image["height"])
        assert 100 < width < 400
        assert max(width, height) / min(width, height) == pytest.approx(4 / 3, rel=0.02)


def test_links_lead_to_files_beside_the_page(tmp_path):
    (link,) = Elements(written(tmp_path, links={"x": "out/beach 1&2.json"})).all("a")
    assert link["href"] == "out/beach%201%262.json"
    (link,) = Elements(written(tmp_path, links={"x": "javascript:alert(1)"})).all("a")
    assert ":" not in link["href"]


def test_what_is_not_given_has_no_heading(tmp_path):
    assert Elements(written(tmp_path)).all("h2") == []
    assert len(Elements(written(tmp_path, **EVERYTHING)).all("h2")) == 4


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("precision", {"precision": {"tiny": 50.0}}),
        ("seconds", {"seconds": {"read": -1.0}}),
    ],
)
def test_wrong_values_are_named_and_the_old_page_stays(tmp_path, argument, options):
    before = written(tmp_path)
    with pytest.raises(ValueError, match=f"^{argument} must"):
        write_page(tmp_path / "page.html", "New", **options)
    assert (tmp_path / "page.html").read_text("utf-8") == before
    assert len(list(tmp_path.iterdir())) == 1
