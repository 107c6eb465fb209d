"""The package around the operators: loading, the command line, the README."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from backends import ROOT

import tinyops
from tinyops import _lib


def python(*arguments, cwd=None, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **environment},
    )


def test_version_is_that_of_the_libraries():
    from tinyops._eval import build_facts

    assert build_facts()["version"] == tinyops.__version__


@pytest.fixture
def copy_without_libraries(tmp_path):
    """The Python files alone, as after a clone, with no installed package to fall back on."""
    sources = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "tinyops", tmp_path / "tinyops", ignore=sources)
    return tmp_path


def test_missing_library_is_one_clear_sentence(copy_without_libraries):
    hide = "import importlib.metadata as m; m.distributions = lambda **_: []; import tinyops"
    done = python("-c", hide, cwd=copy_without_libraries)
    *_, last = done.stderr.splitlines()
    assert done.returncode == 1
    assert last.startswith("ImportError: tinyops: libtinyops_cpu.so was not found in")
    assert "pip install" in last


def test_sources_that_shadow_an_installed_package_use_its_libraries(copy_without_libraries):
    code = (
        "import tinyops, torch; print(tinyops.ops.gated_upsample_add(*[torch.ones(1,1,2,2)] * 2))"
    )
    done = python("-c", code, cwd=copy_without_libraries)
    assert done.returncode == 0, done.stderr
    assert "2." in done.stdout


def test_libraries_of_another_version_are_refused(copy_without_libraries):
    init = copy_without_libraries / "tinyops/__init__.py"
    init.write_text(init.read_text().replace(tinyops.__version__, "99.0.0"))
    done = python("-c", "import tinyops", cwd=copy_without_libraries)
    *_, last = done.stderr.splitlines()
    assert f"are of version {tinyops.__version__}" in last
    assert "of version 99.0.0" in last


def test_library_that_does_not_load_is_one_clear_sentence(tmp_path):
    broken = tmp_path / "libtinyops_cpu.so"
    broken.write_bytes(b"not a library")
    with pytest.raises(ImportError, match="does not load with torch"):
        _lib._load(broken)


def test_missing_triton_is_said_at_import(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install triton"):
        _lib.require_triton()


def test_info_prints_versions_and_backends(tmp_path):
    done = python("-m", "tinyops", "info", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for text in (tinyops.__version__, "baseline", "CUDA kernels for", "gated_upsample_add  C++"):
        assert text in done.stdout


def test_unknown_command_is_a_usage_error(tmp_path):
    done = python("-m", "tinyops", "nonsense", cwd=tmp_path)
    assert done.returncode == 2
    assert "invalid choice: 'nonsense'" in done.stderr


def test_examples_of_the_readme_run(tmp_path):
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert examples
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    for example in examples:
        done = python("-c", example, cwd=tmp_path)
        assert done.returncode == 0, done.stderr


def test_typed_package():
    assert (ROOT / "tinyops/py.typed").is_file()
