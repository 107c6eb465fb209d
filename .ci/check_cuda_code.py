"""Fails where a CUDA kernel spills registers or calls a 64-bit division.

usage: check_cuda_code.py libtinyops_cuda.so [--architectures 80,90,120]

cuobjdump and nvdisasm must be on PATH; the triton package has both in backends/nvidia/bin.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

# What a kernel may call: labels of its own (on sm_80 a CALL also leaves a divergent loop), warp
# collectives in divergent code, the path of float32 `/` and sqrt for subnormals, and float64 maths,
# which has no other way. Anything else, such as __cuda_sm20_div_s64, is an offence.
ALLOWED_CALL = re.compile(
    r"`\(\.L_x_\d+\)"
    r"|\$__cuda_sm\w\w_(\w+sync\w*|\w+_f32_slowpath|\w+_f64\w*|dblrcp\w+)\)"
    r"|\$__internal_accurate_pow\)"
)


# Kernels that come with the CUDA toolkit: CUB's sort of 64-bit keys spills on some architectures.
FOREIGN_KERNEL = re.compile(r"_ZN3cub\d")


class Kernel(NamedTuple):
    name: str
    registers: int
    offences: list[str]


def run(*command: str | Path, cwd: str | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{Path(command[0]).name} failed: {done.stderr.strip()}")
    return done.stdout


def read_cubin(path: Path) -> list[Kernel]:
    """The kernels of one cubin (one source file compiled for one architecture)."""
    offences = defaultdict(list)
    usage = {}
    for name, text in re.findall(
        r"Function (\S+):\s+(REG:.*)", run("cuobjdump", "--dump-resource-usage", path)
    ):
        numbers = {key: int(n) for key, n in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
        usage[name] = numbers["REG"]
        if numbers["STACK"] or numbers["LOCAL"]:
            offences[name].append(f"{numbers['STACK'] + numbers['LOCAL']} bytes of local memory")
    name = ""
    instructions = defaultdict(int)
    for line in run("nvdisasm", "--print-code", path).splitlines():
        if section := re.match(r"\.text\.(\S+):", line):
            name = section[1]
        elif code := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ +)?([A-Z][\w.]*)(.*)", line):
            opcode, operands = code[1].partition(".")[0], code[2]
            instructions[name] += 1
            if opcode in ("STL", "LDL"):
                offences[name].append(opcode)
            elif opcode == "CALL" and not ALLOWED_CALL.search(operands):
                offences[name].append(f"CALL {operands.split()[0]}")
    missing = [name for name in usage if not instructions[name]]
    if missing:
        sys.exit(f"nvdisasm showed no instructions of {missing}")
    return [Kernel(name, registers, offences[name]) for name, registers in usage.items()]


def read_library(library: Path) -> dict[str, list[Kernel]]:
    """The kernels of every architecture, such as "90"."""
    kernels = defaultdict(list)
    with tempfile.TemporaryDirectory() as directory:
        run("cuobjdump", "--extract-elf", "all", library.resolve(), cwd=directory)
        for cubin in sorted(Path(directory).iterdir()):
            architecture = re.search(r"\.sm_(\w+)\.cubin$", cubin.name)
            assert architecture, cubin.name
            kernels[architecture[1]] += read_cubin(cubin)
    return kernels


def demangle(name: str) -> str:
    return run("c++filt", name).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("library", type=Path)
    parser.add_argument("--architectures", default="80,90,120", help="all of them must be there")
    arguments = parser.parse_args()
    found = read_library(arguments.library)
    bad = 0
    print("architecture  kernels  most registers")
    for architecture, kernels in sorted(found.items(), key=lambda item: item[0].zfill(4)):
        most = max((k.registers for k in kernels), default=0)
        print(f"{'sm_' + architecture:12}  {len(kernels):7}  {most:14}")
        for kernel in kernels:
            if kernel.offences and not FOREIGN_KERNEL.match(kernel.name):
                bad += 1
                counts = {text: kernel.offences.count(text) for text in kernel.offences}
                what = ", ".join(f"{n} x {t}" if n > 1 else t for t, n in counts.items())
                print(f"  {demangle(kernel.name)}\n    {what}")
    for architecture in arguments.architectures.split(","):
        if not found.get(architecture):
            sys.exit(f"no kernel for sm_{architecture} in {arguments.library}")
    if bad:
        sys.exit(f"{bad} kernels spill registers or call a subroutine")


if __name__ == "__main__":
    main()
