"""Packaging: decides what to build and drives CMake, which compiles (CMakeLists.txt).

Environment: TINYOPS_CUDA=0|1|auto, TORCH_CUDA_ARCH_LIST="8.0;9.0+PTX", MAX_JOBS=n, CUDA_HOME.
"""

import importlib.util
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
TORCH = "torch>=2.11"


class Torch(NamedTuple):
    directory: Path
    version: str
    cuda: str | None


def find_torch() -> Torch | None:
    """The torch to compile against, without importing it.

    First that of the build environment, then those of the environment pip installs into, of the
    user and of the system: isolation keeps the interpreter, so sysconfig still knows their places.
    Which of them does not matter to the binary, because the kernels use the stable ABI only.
    """
    spec = importlib.util.find_spec("torch")
    places = [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
    places += [Path(sysconfig.get_path(key)) / "torch" for key in ("platlib", "purelib")]
    if sees_system_packages():
        base = {"base": sys.base_prefix, "platbase": sys.base_prefix}
        places += [Path(site.getusersitepackages()) / "torch"]
        places += [Path(sysconfig.get_path("platlib", vars=base)) / "torch"]
    for directory in places:
        try:
            text = (directory / "version.py").read_text()
        except OSError:
            continue
        version = re.search(r"^__version__ *= *'([^']+)'", text, re.M)
        cuda = re.search(r"^cuda\b.*= *'([\d.]+)'", text, re.M)
        if version and tuple(map(int, version[1].split(".")[:2])) >= (2, 11):
            return Torch(directory, version[1], cuda[1] if cuda else None)
    return None


def sees_system_packages() -> bool:
    """False in a virtual environment, unless it was made with --system-site-packages."""
    try:
        text = (Path(sys.prefix) / "pyvenv.cfg").read_text().lower()
    except OSError:
        return True
    return re.search(r"include-system-site-packages\s*=\s*true", text) is not None


def find_nvcc() -> str | None:
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    candidates = [Path(home) / "bin/nvcc" for home in homes if home]
    candidates += [Path(shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc")]
    return next((str(path) for path in candidates if path.is_file()), None)


def nvcc_version(nvcc: str) -> tuple[int, int]:
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"release (\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def decide_cuda(torch: Torch) -> tuple[bool, str]:
    """Whether to build the CUDA kernels, and why in one line."""
    wish, nvcc = os.environ.get("TINYOPS_CUDA", "auto").lower(), find_nvcc()
    without = "CPU kernels, and Triton on the GPU" if torch.cuda else "CPU kernels only"
    if wish not in ("0", "1", "auto"):
        raise SystemExit(f"TINYOPS_CUDA must be 0, 1 or auto, got {wish!r}")
    if wish == "0":
        return False, f"{without}: TINYOPS_CUDA=0"
    if wish == "auto" and not torch.cuda:
        return False, f"{without}: torch {torch.version} has no CUDA"
    if not nvcc:
        if wish == "1":
            raise SystemExit("TINYOPS_CUDA=1 needs nvcc: set CUDA_HOME or put nvcc on PATH")
        return False, f"{without}: CUDA {torch.cuda} torch, but no nvcc"
    version = nvcc_version(nvcc)
    name = f"{nvcc} {version[0]}.{version[1]}"
    if version < (12, 8):
        if wish == "1":
            raise SystemExit(f"TINYOPS_CUDA=1 needs nvcc 12.8 or newer, got {name}")
        return False, f"{without}: nvcc 12.8 or newer is needed, found {name}"
    if wish == "1":
        return True, f"CPU and CUDA kernels: TINYOPS_CUDA=1, {name}"
    if version[0] != int(torch.cuda.split(".")[0]):
        # It would bring a CUDA runtime that may need a newer driver than torch does.
        return False, f"{without}: torch has CUDA {torch.cuda}, {name} is another major version"
    return True, f"CPU and CUDA kernels: CUDA {torch.cuda} torch and {name}"


class CMakeBuild(build_ext):
    def run(self) -> None:
        torch = find_torch()
        if torch is None:
            raise SystemExit(f"building tinyops needs {TORCH}, and none was found")
        cuda, reason = decide_cuda(torch)
        print(f"-- tinyops: {reason}", flush=True)

        import pybind11

        in_place = self.inplace or getattr(self, "editable_mode", False)
        out = (ROOT if in_place else Path(self.build_lib).resolve()) / "tinyops"
        # An editable install keeps its build tree and so recompiles only what changed.
        tree = Path(self.build_temp).resolve() / "cmake"
        if in_place:
            tree = ROOT / "build" / f"dev-{sys.implementation.cache_tag}"
        else:
            shutil.rmtree(tree, ignore_errors=True)
        options = {
            "CMAKE_BUILD_TYPE": "Debug" if self.debug else "Release",
            # Always given: the paths that CMake caches die with pip's build environment.
            "CMAKE_MAKE_PROGRAM": shutil.which("ninja"),
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "TINYOPS_TORCH_DIR": torch.directory,
            "TINYOPS_OUT": out,
            "TINYOPS_TESTS": "OFF",
            "TINYOPS_CUDA": "ON" if cuda else "OFF",
            "TINYOPS_CUDA_REASON": reason,
            "TINYOPS_CUDA_ARCHS": os.environ.get("TORCH_CUDA_ARCH_LIST", ""),
        }
        if cuda:
            options["CMAKE_CUDA_COMPILER"] = find_nvcc()
        else:  # left by an earlier build
            (out / "libtinyops_cuda.so").unlink(missing_ok=True)
        definitions = [f"-D{key}={value}" for key, value in options.items()]
        subprocess.run(
            ["cmake", "-S", str(ROOT), "-B", str(tree), "-G", "Ninja", *definitions], check=True
        )
        jobs = os.environ.get("MAX_JOBS")
        subprocess.run(["cmake", "--build", str(tree), *(["-j", jobs] if jobs else [])], check=True)


if __name__ == "__main__":
    setup(
        ext_modules=[Extension("tinyops._eval", sources=[])],
        cmdclass={"build_ext": CMakeBuild},
        # Where there is no torch yet, pip fetches one for the build and the same one to run with.
        setup_requires=[] if find_torch() else [TORCH],
    )
