"""How much one call makes this process grow: run by box_harness.py, in a process of its own.

    python benchmarks/memory.py nms crowd-100k nms tinyops,torchvision

The scratch memory of C++ and Rust is seen by no profiler of Python's or torch's, so this is the
peak resident set of Linux (VmHWM, which /proc/self/clear_refs resets) above the resident set just
before the call. Blocks of malloc above 64 kB are mappings of their own here and the free ones
are handed back first, so that nothing can be reused unseen. Good to about 0.5 MB.
"""

import ctypes
import gc
import importlib
import json
import re
import sys
from pathlib import Path

import torch
from harness import Call

PROC = Path("/proc/self")


def status(field: str) -> int:
    match = re.search(rf"^{field}:\s*(\d+) kB$", (PROC / "status").read_text(), re.M)
    assert match, f"no {field} in /proc/self/status"
    return int(match[1]) * 1024


def growth(call: Call) -> int:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    (PROC / "clear_refs").write_text("5")  # the peak starts again from what is resident now
    before = status("VmRSS")
    result = call()
    after = status("VmHWM")
    del result
    return max(0, after - before)


def main() -> None:
    operator, shape, mode, names = sys.argv[1:]
    case = importlib.import_module(f"ops.bench_{operator}").case(shape, mode, torch.device("cpu"))
    sizes = {}
    for name in names.split(","):
        prepare = case.peers[name].prepare
        for inputs in case.small:
            prepare(*inputs)()
        sizes[name] = growth(prepare(*case.make(1)))
    print(json.dumps(sizes))


if __name__ == "__main__":
    main()
