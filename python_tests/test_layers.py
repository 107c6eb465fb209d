"""Which way imports point, in Python and in C++."""

import ast
import re
import subprocess
import sys

import pytest
from backends import ROOT

# What each layer may import of the package, besides itself, and of others.
LAYERS = {
    "_lib": (set(), {"torch"}),
    "_files": (set(), {"torch", "safetensors"}),
    "_triton": (set(), {"torch", "triton"}),
    "ops": ({"_triton"}, {"torch"}),
    "nn": ({"ops"}, {"torch", "torchvision", "timm", "safetensors"}),
    "models": ({"_files", "ops", "nn"}, {"torch", "torchvision", "safetensors"}),
    "data": (
        {"_files", "ops"},
        {"torch", "torchvision", "numpy", "PIL", "msgspec", "scipy", "yaml"},
    ),
    "evaluation": ({"_eval"}, {"numpy", "msgspec", "PIL", "scipy"}),
    "config": ({"_files"}, {"yaml"}),
    "plot": ({"_files"}, {"torch", "numpy", "PIL", "jinja2"}),
    "inference": ({"_files", "ops", "data", "plot"}, {"torch", "numpy", "PIL", "rasterio"}),
    "train": ({"_files", "ops", "nn", "data", "evaluation", "inference"}, {"torch", "rich"}),
    "cli": (
        {
            "_eval",
            "_files",
            "_lib",
            "ops",
            "models",
            "data",
            "evaluation",
            "config",
            "inference",
            "plot",
            "train",
        },
        {"torch", "numpy", "PIL", "tyro", "rich", "yaml", "msgspec"},
    ),
}
PYTHON_FILES = sorted((ROOT / "tinyops").rglob("*.py"))
CPP_FILES = [p for p in (ROOT / "csrc").rglob("*") if p.suffix in (".h", ".cpp", ".cu")]


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from names if node.module == "tinyops" else [node.module]


@pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_layers(path):
    parts = path.relative_to(ROOT / "tinyops").parts
    layer = parts[0].removesuffix(".py")
    if layer in ("__init__", "__main__"):
        return
    inside, outside = LAYERS[layer]
    for module in imported_modules(path):
        top, _, rest = module.partition(".")
        if top == "tinyops":
            target = rest.partition(".")[0]
            assert target in inside | {layer, ""}, f"{layer} must not import {module}"
        else:
            assert top in outside | set(sys.stdlib_module_names), f"{layer} imports {top}"


def test_importing_tinyops_needs_torch_and_numpy_alone():
    blocked = ["torchvision", "PIL", "pycocotools", "pytest", "scipy", "matplotlib", "pybind11"]
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked})); import tinyops"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("name", "package"),
    [("models", "torchvision"), ("models", "safetensors"), ("detect", "PIL")],
)
def test_what_else_is_needed_is_said(name, package):
    code = f"import sys, tinyops; sys.modules[{package!r}] = None; tinyops.{name}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].endswith('pip install "tinyops[zoo]"')


def test_tinyops_imports_the_rest_when_it_is_asked_for():
    code = """
import sys, tinyops
assert not any(name in sys.modules for name in ("tinyops.models", "tinyops.inference"))
assert callable(tinyops.detect) and callable(tinyops.models.load)
assert tinyops.inference.types.Detection and tinyops.detect is tinyops.inference.detect.detect
assert not hasattr(tinyops, "train")
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("path", CPP_FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_cpp_layers(path):
    text, relative = path.read_text(), path.relative_to(ROOT / "csrc")
    includes = re.findall(r'#include [<"]([^>"]+)[>"]', text)
    folder = relative.parts[0]
    if folder == "cpu":
        assert not any("cuda" in name for name in includes)
    if folder == "cuda":
        assert not any("cpu/" in name for name in includes)
    if folder == "ops":
        assert not any("cpu/" in name or "cuda/" in name for name in includes)
    if path.name.endswith(("_kernels.cu", "_kernels.cpp")) or path.name in ("simd.h", "launch.h"):
        assert not any("torch" in name for name in includes), "kernels know no torch"
    assert "ATen" not in text
    assert "torch/extension.h" not in text
    assert "<<<" not in re.sub(r"//.*", "", text)


def test_files_have_one_subject():
    for path in [*PYTHON_FILES, *CPP_FILES]:
        lines = path.read_text().count("\n")
        assert lines <= 450, f"{path} has {lines} lines"
