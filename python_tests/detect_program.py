"""`tinyops detect` with a quick model, also as a process that dies in the middle."""

import json
import os
import signal
import sys
import time

import numpy as np
import torch
from PIL import Image
from torch import nn

import tinyops._files
import tinyops.cli.detect
from tinyops.cli import main

OPTIONS = ["--tile", "32", "32", "--overlap", "8", "--batch", "3", "--device", "cpu"]


class Bright(nn.Module):
    """Finds white pixels. Scores depend on all images of a batch, which must be the same ones."""

    num_classes, categories = 2, None

    def __init__(self, seconds=0.0):
        super().__init__()
        self.bias = nn.Parameter(torch.tensor(0.5))
        self.seconds = seconds

    def forward(self, images):
        time.sleep(self.seconds)
        mean = torch.cat([image.flatten() for image in images]).double().mean()
        found = []
        for image in images:
            y, x = (image[0] > 0.9).nonzero(as_tuple=True)
            boxes = torch.stack([x - 1, y - 1, x + 2, y + 2], 1).float()
            scores = self.bias + (mean * 1e4 % 0.4).float() - 1e-4 * torch.arange(len(x))
            found.append({"boxes": boxes, "scores": scores, "labels": 1 + x % 2})
        return found


def draw_image(path, seed, size=(40, 30)):
    """Grey with a few white pixels."""
    random = np.random.default_rng(seed)
    pixels = np.full((size[1], size[0], 3), random.integers(1, 200), np.uint8)
    for _ in range(5):
        pixels[random.integers(2, size[1] - 2), random.integers(2, size[0] - 2)] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def use_quick_model(replace=setattr, **options):
    """Instead of the model of the command line."""
    replace(tinyops.cli.detect, "load", lambda name: Bright(**options))
    replace(tinyops._files, "_sync", lambda path: None)  # a killed process loses nothing


def detect(*words):
    return main(["detect", *map(str, words), *OPTIONS])


def boxes_of(out):
    """Per image x y w h of the objects, best first."""
    table = json.loads((out / "detections.json").read_text())
    found = {image["file_name"]: [] for image in table["images"]}
    names = {image["id"]: image["file_name"] for image in table["images"]}
    for entry in table["annotations"]:
        found[names[entry["image_id"]]].append(entry["bbox"])
    return found


def die_in_write(number):
    """Arrange the death of this process in the `number`-th part, half of it written."""
    write, calls = tinyops._files.save_file, []

    def half_a_file(tensors, path, metadata):
        write(tensors, path, metadata)
        calls.append(path)
        if len(calls) == number:
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    tinyops._files.save_file = half_a_file


def command(arguments, die=None):
    """The command as a process."""
    use_quick_model()
    if die is not None:
        die_in_write(die)
    sys.exit(main(arguments))


def slow(arguments):
    """The same with a model that takes its time."""
    use_quick_model(seconds=0.2)
    sys.exit(main(arguments))


if __name__ == "__main__":
    command(sys.argv[1:])
