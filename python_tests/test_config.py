"""Dataclasses as YAML files."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from tinyops.config import dump_yaml, from_plain, load_yaml, parse_yaml, to_plain


@dataclass
class Optimizer:
    kind: Literal["sgd", "adamw"] = "sgd"
    rate: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)


@dataclass
class Run:
    images: Path
    tile: tuple[int, int] = (640, 512)
    steps: tuple[int, ...] = (8, 11)
    clip: float | None = None
    seed: int | str = 0
    flag: bool = False
    optimizer: Optimizer = field(default_factory=Optimizer)
    second: Optimizer | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)

    def __post_init__(self):
        if isinstance(self.seed, int) and self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")


def written(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def test_what_is_written_is_read_back(tmp_path):
    run = Run(
        images=Path("a/b"),
        tile=(64, 32),
        steps=(),
        clip=35.0,
        seed="1e-3",
        flag=True,
        optimizer=Optimizer("adamw", 1e-5, (0.5, 1.0)),
        second=Optimizer(rate=float("inf")),
        overrides={"channels": 64, "scales": [1.5, 2], "deep": {"on": None}, "text": "yes"},
        names=["person", "12", "~", "größe"],
    )
    dump_yaml(run, tmp_path / "run.yaml")
    assert load_yaml(Run, tmp_path / "run.yaml") == run
    assert [p.name for p in tmp_path.iterdir()] == ["run.yaml"]


def test_defaults_fill_what_is_left_out(tmp_path):
    assert load_yaml(Run, written(tmp_path, "images: x\noptimizer: {rate: 2}")) == Run(
        Path("x"), optimizer=Optimizer(rate=2.0)
    )


def test_numbers_with_an_exponent_are_numbers():
    assert parse_yaml("[1e-3, 2E+2, 1.5e3, -1e-5]") == [1e-3, 200.0, 1500.0, -1e-5]


def test_an_integer_stays_one_in_a_union_with_float():
    assert type(from_plain(float | int, 1)) is int
    assert type(from_plain(float | None, 1)) is float


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tile: [1, 2]", "images is missing, expected Path"),
        ("images: x\nimage: y", "image is unknown, expected one of images, tile, steps"),
        ("images: x\noptimizer: {lr: 1}", "optimizer.lr is unknown, expected one of kind, rate"),
        ("images: x\noptimizer: {rate: fast}", "optimizer.rate must be float, got str 'fast'"),
        ("images: x\noptimizer: {rate: true}", "optimizer.rate must be float, got bool True"),
        ("images: x\noptimizer: {kind: lion}", "optimizer.kind must be one of 'sgd', 'adamw'"),
        ("images: x\noptimizer: 3", "optimizer must be a mapping of the fields of Optimizer"),
        ("images: x\nsecond: {lr: 3}", "second.lr is unknown"),
        ("images: 3", "images must be Path, got int 3"),
        ("images: x\nflag: 1", "flag must be bool, got int 1"),
        ("images: x\nseed: 1.5", "seed must be int or str, got float 1.5"),
        ("images: x\nseed: true", "seed must be int or str, got bool True"),
        ("images: x\nseed: -1", "seed must be at least 0, got -1"),
        ("images: x\nclip: a", "clip must be float or null, got str 'a'"),
        ("images: x\ntile: [1, 2, 3]", r"tile must be tuple\[int, int\], got list \[1, 2, 3\]"),
        ("images: x\ntile: [1, a]", r"tile\[1\] must be int, got str 'a'"),
        ("images: x\nsteps: 3", r"steps must be tuple\[int, ...\], got int 3"),
        ("images: x\noverrides: {1: 2}", "a key of overrides must be str, got int 1"),
        ("images: x\nnames: [a, null]", r"names\[1\] must be str, got null"),
        ("images: x\nimages: y", "the key 'images' is there twice"),
        ("- images", "the file must be a mapping of the fields of Run, got list"),
        ("images: [", "expected YAML"),
        ("images: !!python/object/apply:os.system [ls]", "expected YAML"),
    ],
)
def test_mistakes_name_their_place(tmp_path, text, message):
    path = written(tmp_path, text)
    with pytest.raises(ValueError, match=message) as caught:
        load_yaml(Run, path)
    assert str(path) in str(caught.value)


def test_a_placeholder_stands_for_what_is_missing(tmp_path):
    placeholder = object()
    path = written(tmp_path, "flag: true")
    assert load_yaml(Run, path, missing=placeholder).images is placeholder


def test_an_empty_file_is_an_empty_mapping(tmp_path):
    assert load_yaml(Optimizer, written(tmp_path, "")) == Optimizer()


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = written(tmp_path, "images: x")
    with pytest.raises(Exception, match="cannot represent"):
        dump_yaml(Run(Path("y"), overrides={"bad": object()}), path)
    assert path.read_text() == "images: x"
    assert [p.name for p in tmp_path.iterdir()] == ["run.yaml"]


def test_plain_values_are_those_of_json():
    assert to_plain(Run(Path("x")))["tile"] == [640, 512]
    assert to_plain(Run(Path("x")))["optimizer"]["betas"] == [0.9, 0.999]
