"""Memory and time of reading a large image by windows, as `tinyops detect` does.

    python benchmarks/read_windows.py --side 20000

A TinySea scene of 2000 x 2000 px is repeated over a square image, which is written in several
formats, and read in windows of 640 x 512 that overlap by 100 px; each in a process of its own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL
import rasterio
from memory import growth
from PIL import Image
from report import cpu_name

from tinyops.data.synth import make_scene
from tinyops.data.tiles import tile_windows
from tinyops.inference.source import open_source

RASTER = {"driver": "GTiff", "dtype": "uint8", "count": 3, "compress": "deflate"}
FORMATS = {
    "TIFF in tiles, deflate": ("tiles.tif", {"tiled": True}),
    "TIFF in strips, deflate": ("strips.tif", {}),
    "PNG": ("whole.png", {"compress_level": 1}),
    "JPEG": ("whole.jpg", {"quality": 90}),
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=20_000)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def write(pixels: np.ndarray, path: Path, options: dict) -> None:
    if path.suffix != ".tif":
        Image.fromarray(pixels).save(path, **options)
        return
    height, width = pixels.shape[:2]
    with rasterio.open(path, "w", width=width, height=height, **RASTER, **options) as file:
        for row in range(0, height, 1024):  # in whole blocks
            part = pixels[row : row + 1024]
            file.write(part.transpose(2, 0, 1), window=((row, row + len(part)), (0, width)))


def read(path: Path) -> dict[str, float]:
    seconds: list[float] = []

    def all_windows() -> None:
        start = time.perf_counter()
        source = open_source(path)
        for window in tile_windows(source.width, source.height, (640, 512), 100):
            source.read(window)
            seconds.append(time.perf_counter() - start)
        source.close()

    size = growth(all_windows)
    return {"windows": len(seconds), "MiB": size / 2**20, "first": seconds[0], "all": seconds[-1]}


def main() -> None:
    options = parse()
    if options.read:
        print(json.dumps(read(options.read)))
        return
    scene, _ = make_scene(1, 0, (2000, 2000))
    repeats = -(-options.side // 2000)
    pixels = np.tile(scene, (repeats, repeats, 1))[: options.side, : options.side]
    print(f"{cpu_name()}; Pillow {PIL.__version__}, rasterio {rasterio.__version__}\n")
    print("| file | windows | MiB | first window s | all windows s |")
    print("| --- | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        for name, (file, settings) in FORMATS.items():
            path = Path(folder) / file
            write(pixels, path, settings)
            command = [sys.executable, __file__, "--read", str(path)]
            out = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            row = f"| {name} | {out['windows']:,} | {out['MiB']:.0f} | {out['first']:.2f}"
            print(f"{row} | {out['all']:.1f} |", flush=True)
            path.unlink()


if __name__ == "__main__":
    main()
