"""Fails where code compiled for AVX2 or AVX-512 could replace code for every machine.

usage: check_cpu_code.py <build tree>

Of a weak symbol (inline function, template) the linker keeps any one copy for all users, so each
that a vector object file defines must be a template of that instruction set: csrc/cpu/simd.h.
"""

import re
import subprocess
import sys
from pathlib import Path

ISAS = {"avx2": 1, "avx512": 2}


def weak_symbols(path: Path) -> list[str]:
    """The demangled weak functions and variables, and GNU unique ones, that `path` defines."""
    command = ["nm", "--demangle", "--defined-only", path]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    matches = (re.match(r"[0-9a-f]+ [WVwvu] (.+)", line) for line in lines)
    return [match[1] for match in matches if match]


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    bad = []
    for isa, number in ISAS.items():
        objects = sorted(Path(sys.argv[1]).glob(f"**/tinyops_{isa}.dir/**/*.o"))
        symbols = [(path.name, name) for path in objects for name in weak_symbols(path)]
        if not symbols:
            sys.exit(f"no object file of tinyops_{isa} with kernels under {sys.argv[1]}")
        print(f"{isa}: {len(objects)} object files, {len(symbols)} weak symbols")
        own = f"(tinyops::Isa){number}"
        bad += [f"{isa} {file}: {name}" for file, name in symbols if own not in name]
    if bad:
        sys.exit("weak symbols that any file could share:\n  " + "\n  ".join(bad))


if __name__ == "__main__":
    main()
