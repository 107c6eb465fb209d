"""attention_targets: four levels, boxes of 2-20 px anywhere in the images of a batch.

The peer paints whole images in float64 and resizes them: `attention_targets_reference`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from box_harness import Call, Case, Inputs, Peer
from distributions import detections
from numpy.typing import NDArray
from peers import as_array, on
from torch import Tensor

from tinyops.ops import attention_targets, attention_targets_reference

SHAPES = {  # images, height, width, boxes in all images together
    "4x512x640": (4, 512, 640, 300),
    "1x1024x1280": (1, 1024, 1280, 1000),
}
MODES = ("paint",)
PACKAGES = ()

DEFAULT_SHAPES = {"cpu": tuple(SHAPES), "cuda": tuple(SHAPES)}
DEFAULT_MODES = MODES


def case(shape: str, mode: str, device: torch.device) -> Case:
    images, height, width, n = SHAPES[shape]
    sizes = (images, height, width)

    def make(seed: int) -> Inputs:
        boxes = detections("uniform", n, seed, (float(width), float(height)))[0]
        return boxes, np.random.default_rng(seed).integers(0, images, n)

    def prepared(function: Callable[..., list[Tensor]]) -> Callable[..., Call]:
        def prepare(boxes: NDArray, image_ids: NDArray) -> Call:
            b, ids = on(device, boxes, image_ids)
            return lambda: function(b, ids, sizes)

        return prepare

    def check(inputs: Inputs, results: dict[str, Any]) -> dict[str, str | int]:
        expected = attention_targets_reference(*on(torch.device("cpu"), *inputs), sizes)
        for name, maps in results.items():
            for level, (actual, right) in enumerate(zip(maps, expected, strict=True)):
                assert actual.shape == right.shape, f"{name}: level {level} is {actual.shape}"
                close = np.allclose(as_array(actual), as_array(right), rtol=0, atol=1e-6)
                assert close, f"{name}: wrong values at level {level}"
        return {"positive": sum(int((x > 0).sum()) for x in expected)}

    return Case(
        shape=shape,
        mode=mode,
        columns={"images": images, "H": height, "W": width, "boxes": n},
        make=make,
        small=[make(1000)],
        peers={
            "tinyops": Peer(prepared(attention_targets)),
            "reference": Peer(prepared(attention_targets_reference)),
        },
        check=check,
        memory=("tinyops", "reference"),
    )
