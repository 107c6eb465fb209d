"""Models as files."""

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import tinyops
from tinyops._files import MODEL, TRAINING, read_facts, write_tensors
from tinyops.models.checkpoint import describe, load, save


class Toy(nn.Module):
    """Batch norm with buffers, shared tensors, a layout of its own and a non-persistent buffer."""

    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.first = nn.Linear(width, width)
        self.second = self.first
        self.register_buffer("grid", torch.arange(3), persistent=False)


def build(name, num_classes=1, width=4):
    if name != "toy":
        raise ValueError(f"unknown model {name}")
    model = Toy(width)
    model.recipe = {"name": name, "num_classes": num_classes, "width": width}
    return model


def made(**arguments):
    model = build("toy", **arguments)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.normal_()
        model.conv.weight[0, 0] = torch.tensor(
            [[float("nan"), float("inf"), -0.0], [1e-45, 3e38, 1.0], [0.0, -1.0, 2.0]]
        )
        model.norm.num_batches_tracked.fill_(7)
    return model


def bits(model):
    return {
        name: x.contiguous().reshape(-1).view(torch.uint8) for name, x in model.state_dict().items()
    }


def same_bits(a, b):
    a, b = bits(a), bits(b)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_model_comes_back_bit_by_bit(tmp_path):
    model = made(width=6)
    model.conv.to(memory_format=torch.channels_last)
    save(model, tmp_path / "a.safetensors", categories=["person", "boat"])
    back = load(tmp_path / "a.safetensors", build=build)
    assert same_bits(model, back)
    assert back.recipe == model.recipe
    assert back.categories == ("person", "boat")
    assert back.second is back.first
    assert not back.training
    assert all(p.requires_grad for p in back.parameters())
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_comes_back(tmp_path, dtype):
    model = made().to(dtype)
    save(model, tmp_path / "a.safetensors")
    back = load(tmp_path / "a.safetensors", build=build)
    assert same_bits(model, back)
    assert back.conv.weight.dtype == dtype


def test_categories_survive_a_second_save(tmp_path):
    save(made(), tmp_path / "a.safetensors", categories=["person"])
    save(load(tmp_path / "a.safetensors", build=build), tmp_path / "b.safetensors")
    assert load(tmp_path / "b.safetensors", build=build).categories == ("person",)


def test_the_file_says_what_it_holds(tmp_path):
    save(made(num_classes=3), tmp_path / "a.safetensors")
    kind, facts = read_facts(tmp_path / "a.safetensors", [MODEL])
    assert kind == MODEL
    assert facts == {
        "tinyops": tinyops.__version__,
        "name": "toy",
        "arguments": {"num_classes": 3, "width": 4},
        "categories": None,
    }


def test_the_state_of_a_training_is_a_model(tmp_path):
    model, average = made(), made()
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    path = tmp_path / "last.safetensors"
    write_tensors(path, TRAINING, tensors | {"optimizer.0.step": torch.ones(())}, describe(model))
    assert same_bits(load(path, build=build), model)
    tensors |= {f"average.{k}": v for k, v in average.state_dict().items()}
    write_tensors(path, TRAINING, tensors, describe(model))
    assert same_bits(load(tmp_path, build=build), average)  # the folder of the run


def test_the_folder_of_a_run_gives_its_best_model(tmp_path):
    best = made()
    write_tensors(tmp_path / "last.safetensors", TRAINING, {}, describe(best))
    save(best, tmp_path / "best.safetensors")
    assert same_bits(load(tmp_path, build=build), best)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected best\\.safetensors or last"):
        load(tmp_path, build=build)
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors: expected a file of format"):
        load(tmp_path / "none.safetensors", build=build)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("the file was unpickled",))


def test_foreign_and_corrupt_files_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    for content in (b"", b"hello", pickle.dumps(Bomb())):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.safetensors: expected a complete safetensors"):
            load(path, build=build)
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=r"a\.safetensors: expected .*tinyops-model-1.*got None"):
        load(path, build=build)
    save_file({"weight": torch.ones(2)}, path, {"format": "pt"})
    with pytest.raises(ValueError, match="got pt"):
        load(path, build=build)
    save_file({"weight": torch.ones(2)}, path, {"format": MODEL, "name": "{"})
    with pytest.raises(ValueError, match=r"a\.safetensors: expected"):
        load(path, build=build)
    save_file({"weight": torch.ones(2)}, path, {"format": MODEL})
    with pytest.raises(ValueError, match=r"a\.safetensors: expected"):
        load(path, build=build)


@pytest.mark.parametrize(
    "arguments",
    [
        {"weights": "imagenet"},
        {"timm_options": {"pretrained": True}},
        {"timm_options": {"checkpoint_path": "other.pth"}},
        {"name": "faster_rcnn_fpn_timm:hf-hub:somebody/something"},
    ],
)
def test_a_file_cannot_ask_for_other_files(tmp_path, arguments):
    path = tmp_path / "a.safetensors"
    facts = {"tinyops": "0.1.0", "name": "toy", "categories": None, "arguments": arguments}
    if "name" in arguments:
        facts |= {"name": arguments["name"], "arguments": {}}
    write_tensors(path, MODEL, made().state_dict(), facts)
    with pytest.raises(ValueError, match="in the file itself"):
        load(path, build=lambda **_: pytest.fail("nothing may be built"))


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.999])
def test_a_file_cut_short_is_refused(tmp_path, kept):
    path = tmp_path / "a.safetensors"
    save(made(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(ValueError, match=r"a\.safetensors: expected a complete safetensors file"):
        load(path, build=build)


def test_tensors_of_another_model_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save(made(), path)
    tensors = load_file(path)
    facts = describe(made())
    write_tensors(path, MODEL, {k: v for k, v in tensors.items() if k != "norm.bias"}, facts)
    with pytest.raises(ValueError, match=r"(?s)a\.safetensors: expected .*toy.*norm\.bias"):
        load(path, build=build)
    write_tensors(path, MODEL, tensors | {"other": torch.ones(1)}, facts)
    with pytest.raises(ValueError, match=r"(?s)a\.safetensors: .*other"):
        load(path, build=build)
    write_tensors(path, MODEL, tensors, facts | {"arguments": {"width": 5}})
    with pytest.raises(ValueError, match=r"(?s)a\.safetensors: .*size mismatch"):
        load(path, build=build)
    write_tensors(path, MODEL, tensors, facts | {"arguments": {"depth": 5}})
    with pytest.raises(ValueError, match=r"(?s)a\.safetensors: .*depth"):
        load(path, build=build)
    write_tensors(path, MODEL, tensors, facts | {"name": "other"})
    with pytest.raises(ValueError, match=r"(?s)a\.safetensors: .*unknown model other"):
        load(path, build=build)


@pytest.mark.parametrize("recipe", [None, {}, {"name": "toy", "size": (1, 2)}, {"name": len}])
def test_models_without_a_recipe_are_not_saved(tmp_path, recipe):
    model = made()
    model.recipe = recipe
    with pytest.raises(ValueError, match="recipe"):
        save(model, tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save(made(), path)
    before = path.read_bytes()

    def torn(tensors, target, metadata):
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("tinyops._files.save_file", torn)
    with pytest.raises(OSError, match="disk full"):
        save(made(), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_file_that_is_read_meanwhile_stays_whole(tmp_path):
    path = tmp_path / "a.safetensors"
    save(made(), path)
    before = path.read_bytes()
    with path.open("rb") as reader:
        save(made(), path)
        assert reader.read() == before
    assert path.read_bytes() != before


def test_facts_must_be_values_of_json(tmp_path):
    with pytest.raises(ValueError, match="best must consist of values of JSON"):
        write_tensors(tmp_path / "a.safetensors", MODEL, {}, {"best": float("nan")})
    write_tensors(tmp_path / "a.safetensors", MODEL, {}, {"best": [1, None, "x"]})
    assert json.loads(json.dumps(read_facts(tmp_path / "a.safetensors", [MODEL])[1]["best"]))
