"""The model inside the package."""

import json

import pytest
import torch
import yaml
from backends import ROOT

import tinyops
from tinyops.cli.demo import measure
from tinyops.data.synth import make_scene
from tinyops.models.checkpoint import EMBEDDED

HOME = ROOT / "tinyops/models/embedded"  # the package has the model alone
SIZE = (1000, 700)


@pytest.fixture(scope="module")
def model():
    return tinyops.models.load("embedded")


def test_it_is_small_and_ready(model):
    assert EMBEDDED.stat().st_size <= 6_000_000
    assert sum(p.numel() for p in model.parameters()) == 1_839_252
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.categories == ("person",)
    assert not model.training


def test_its_recipe_is_the_one_beside_it(model):
    config = yaml.safe_load((HOME / "config.yaml").read_text())
    assert model.recipe == {"name": config["model"], "num_classes": 1, **config["override"]}


def test_it_finds_people_that_training_never_saw(model):
    """The bars of the whole scenes of metrics.json are 0.8 and 0.9; this is one small scene."""
    picture, objects = make_scene(31, 0, SIZE, density=10, ground="shore")
    entries = [{"id": k, "image_id": 1, **x} for k, x in enumerate(objects, 1)]
    truth = {
        "images": [{"id": 1, "file_name": "0", "width": SIZE[0], "height": SIZE[1]}],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": entries,
    }
    result = tinyops.detect(model, picture)
    corners, scores = result["boxes"], result["scores"].tolist()
    boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1).tolist()
    found = [
        {"image_id": 1, "category_id": 1, "bbox": box, "score": score}
        for box, score in zip(boxes, scores, strict=True)
    ]
    bands = measure(truth, found)["bands"]
    assert bands["all"]["people"] > 80
    assert bands["all"]["ap50"] > 0.75
    assert bands["above 8 px"]["ap50"] > 0.85


def test_its_measures_are_those_of_the_file():
    metrics = json.loads((HOME / "metrics.json").read_text())
    assert metrics["ap50"]["all"] >= 0.8
    assert metrics["ap50"]["above 8 px"] >= 0.9
    assert min(scene["objects"]["all"] for scene in metrics["scenes"]) > 500
    assert (HOME / "train.csv").read_text().count("\n") > 100
