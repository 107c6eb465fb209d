"""nms is torchvision's, bit for bit, for any sizes, threads and instruction sets."""

import os
import subprocess
import sys

import box_layouts
import pytest
import torch
import torchvision

from tinyops.ops import nms

THRESHOLDS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)


def per_class(boxes, scores, labels, threshold):
    """One call per label; not batched_nms, which moves small batches apart by label instead."""
    keep = torch.zeros(len(boxes), dtype=torch.bool)
    for label in labels.unique():
        mine = torch.where(labels == label)[0]
        keep[mine[torchvision.ops.nms(boxes[mine], scores[mine], threshold)]] = True
    ranked = scores.argsort(descending=True, stable=True)
    return ranked[keep[ranked]]


# The name of the backend is in the id so that CI's sanitizer run selects these.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["cpu-f32", "cpu-f64"])
@pytest.mark.parametrize("layout", box_layouts.LAYOUTS)
def test_every_layout(layout, dtype):
    boxes = box_layouts.boxes(layout, 1000, dtype)
    for kind in ("distinct", "tied"):
        scores = box_layouts.scores(kind, 1000, dtype)
        for threshold in THRESHOLDS:
            expected = torchvision.ops.nms(boxes, scores, threshold)
            assert torch.equal(nms(boxes, scores, threshold), expected), (kind, threshold)


@pytest.mark.parametrize("layout", ["uniform", "dup", "crowd"], ids=lambda x: f"cpu-{x}")
def test_many_boxes(layout):
    boxes, scores = box_layouts.boxes(layout, 20_000), box_layouts.scores("distinct", 20_000)
    boxes = boxes * 4  # 4096 px
    for threshold in (0.5, 0.2):
        expected = torchvision.ops.nms(boxes, scores, threshold)
        assert torch.equal(nms(boxes, scores, threshold), expected)


def test_labels_where_moving_boxes_apart_fails(backend):
    n = 900
    boxes = box_layouts.boxes("grid_aligned", n)  # small boxes ...
    boxes = boxes / 7 + 20_000 - 10  # ... at the far end of a large image
    scores, labels = box_layouts.scores("distinct", n), 70 + box_layouts.ids(n, 10) % 10
    expected = per_class(boxes, scores, labels, 0.3)
    keep = backend.ops.nms(*(x.to(backend.device) for x in (boxes, scores)), 0.3,
                           labels=labels.to(backend.device))  # fmt: skip
    assert torch.equal(keep.cpu(), expected)
    moved = torchvision.ops.boxes._batched_nms_coordinate_trick(boxes, scores, labels, 0.3)
    assert not torch.equal(moved, expected)  # or this case would prove nothing


def test_labels_of_many_boxes_cpu():
    boxes, scores = box_layouts.boxes("crowd", 8000), box_layouts.scores("tied", 8000)
    labels = box_layouts.ids(8000, 6)
    assert torch.equal(
        nms(boxes, scores, 0.3, labels=labels), per_class(boxes, scores, labels, 0.3)
    )


@pytest.mark.parametrize("layout", ["uniform", "dup", "crowd", "mixed", "chain"])
def test_threads_do_not_matter_cpu(layout):
    """From 200,000 boxes on the CPU kernel divides the work."""
    n = 220_000
    boxes, scores = box_layouts.boxes(layout, n), box_layouts.scores("distinct", n)
    labels, threads = box_layouts.ids(n, 3), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append((nms(boxes, scores, 0.4), nms(boxes, scores, 0.4, labels=labels)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))
    keep = results[0][0]
    assert torch.equal(nms(boxes[keep], scores[keep], 0.4), torch.arange(len(keep)))
    few = scores >= scores.sort().values[-5000]  # the best are decided among themselves
    best = torch.where(few)[0]
    assert torch.equal(best[torchvision.ops.nms(boxes[best], scores[best], 0.4)], keep[few[keep]])


PROGRAM = """
import zlib, torch, tinyops, box_layouts
from tinyops._eval import build_facts
for layout in box_layouts.LAYOUTS:
    for dtype in (torch.float32, torch.float64):
        boxes = box_layouts.boxes(layout, 700, dtype)
        scores = box_layouts.scores("tied", 700, dtype)
        labels = box_layouts.ids(700, 3)
        for metric in ("iou", "ios"):
            for offset in (0, 1):
                for options in ({}, {"labels": labels}):
                    keep = tinyops.ops.nms(
                        boxes, scores, 0.35, metric=metric, offset=offset, **options
                    )
                    print(layout, dtype, metric, offset, len(keep), zlib.crc32(keep.numpy()))
print(build_facts()["cpu_instruction_set_in_use"])
"""


def test_every_instruction_set_keeps_the_same_cpu():
    from test_cpu_kernels import CAPABILITIES, run, supports

    tests = os.path.dirname(__file__)
    program = f"import sys; sys.path.append({tests!r})\n{PROGRAM}"
    (expected, used), *others = [run(capability, program) for capability in CAPABILITIES]
    assert used == "baseline"
    assert len(expected) == len(box_layouts.LAYOUTS) * 16
    for (lines, used), capability in zip(others, CAPABILITIES[1:], strict=True):
        assert lines == expected
        if supports(capability):
            assert used == capability


# In a process of its own: the patch is the line that users write.
DETECTOR = """
import torch, torchvision
torch.manual_seed(0)
model = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
    weights=None, weights_backbone=None, num_classes=7, box_score_thresh=0.001).eval()
images, calls = [torch.rand(3, 240, 320), torch.rand(3, 200, 180)], []
with torch.no_grad():
    before = model(images)
    import tinyops
    torchvision.ops.boxes.batched_nms = lambda b, s, i, t: tinyops.ops.nms(b, s, t, labels=i)
    ours = torchvision.ops.boxes.batched_nms
    torchvision.ops.boxes.batched_nms = lambda *a: calls.append(a) or ours(*a)
    after = model(images)
assert len(calls) == 4, "twice per image: proposals and detections"
for a, b in zip(before, after, strict=True):
    assert len(a["boxes"]) > 20
    assert all(torch.equal(a[name], b[name]) for name in a), "other detections"
"""


def test_replaces_nms_in_a_torchvision_detector_cpu():
    done = subprocess.run([sys.executable, "-c", DETECTOR], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
