"""Finds and loads the compiled libraries."""

import importlib
import importlib.metadata
import importlib.util
import json
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

import torch

_HERE = Path(__file__).resolve().parent
_HOW = "install with `pip install .` or `pip install -e . --no-build-isolation`"


def library_directory() -> Path:
    """The directory of the compiled libraries.

    They lie next to this file, or, when Python runs in a checkout whose sources shadow an installed
    tinyops, in the installed package.
    """
    for directory in [_HERE, *map(_installed_in, importlib.metadata.distributions(name="tinyops"))]:
        if (directory / "libtinyops_cpu.so").is_file():
            return directory
    raise ImportError(f"tinyops: libtinyops_cpu.so was not found in {_HERE}; {_HOW}")


def load(version: str, package_path: list[str]) -> bool:
    """Load the operator libraries; True if the CUDA kernels are among them.

    Raises ImportError, with one sentence that says what to do, if a library is missing, was built
    from another version, or does not load.
    """
    directory = library_directory()
    if str(directory) != str(_HERE):
        package_path.append(str(directory))  # where `tinyops._eval` is found then
    try:
        built = importlib.import_module("tinyops._eval").build_facts()["version"]
    except ImportError as error:
        raise ImportError(
            f"tinyops: the module _eval in {directory} does not load in this Python ({error}); "
            f"{_HOW}"
        ) from None
    if built != version:
        raise ImportError(
            f"tinyops: the libraries in {directory} are of version {built}, the Python files in "
            f"{_HERE} of version {version}; {_HOW}"
        )
    _load(directory / "libtinyops_cpu.so")
    cuda = directory / "libtinyops_cuda.so"
    if torch.version.cuda is None or not cuda.is_file():
        return False
    _load(cuda)
    return True


def require_triton() -> None:
    """Triton stands in for the CUDA kernels where none were built."""
    if importlib.util.find_spec("triton") is None:
        raise ImportError(
            "tinyops: it was built without CUDA kernels, and Triton, which stands in for them with "
            "a CUDA build of torch, is not installed; `pip install triton`, or install tinyops "
            "where nvcc is"
        )


def _installed_in(distribution: importlib.metadata.Distribution) -> Path:
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable"):
        return Path(url2pathname(urlparse(origin["url"]).path)) / "tinyops"
    return Path(str(distribution.locate_file("tinyops")))


def _load(path: Path) -> None:
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        raise ImportError(
            f"tinyops: {path} does not load with torch {torch.__version__} ({error}); {_HOW}"
        ) from None
