"""Run parts of mmdet and write what they compute to mmdet_*.npz beside this file.

The tests compare tinyops with these numbers; they do not need mmdet. To run this again:

    python -m venv mmdet && . mmdet/bin/activate
    pip install torch==2.11.0 torchvision==0.26.0 numpy pycocotools scipy six
    pip install addict yapf terminaltables termcolor shapely matplotlib opencv-python-headless rich
    pip install --no-deps mmengine==0.10.7 mmcv-lite==2.1.0 mmdet==3.3.0
    python python_tests/golden/make_mmdet.py

mmcv-lite has no compiled operators. Of these, NMS and RoIAlign come from torchvision here; sampling
is made to take all there is, so that nothing is drawn at random.

Everything is computed in float64, so that no rounding decides (and stored in float32).

On purpose, two things are not as mmdet has them. To tinyops padding is no part of an image,
whatever the batch: so the shape that mmdet calls padded is the image's own here (anchors beyond are
not trained), and predictions come from the image's own cells (`from_own_cells`).
"""

import sys
import types
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import mmdet_case as case  # noqa: E402
from golden.mmdet_configs import (  # noqa: E402
    ANCHORS,
    CASCADE_HEAD,
    CASCADE_RCNN,
    FASTER_RCNN,
    RETINA_HEAD,
    RETINANET,
    ROI_HEAD,
    RPN_OF_CASCADE,
    RPN_OF_FASTER,
    anchor_generator,
)


def _fake_extension() -> types.ModuleType:
    def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
        assert offset == 0
        return torchvision.ops.nms(boxes, scores, iou_threshold)

    def missing(name: str) -> Callable[..., None]:
        if name.startswith("__"):
            raise AttributeError(name)

        def refuse(*_: object, **__: object) -> None:
            raise NotImplementedError(f"mmcv-lite has no {name}")

        return refuse

    module = types.ModuleType("mmcv._ext")
    module.nms = nms
    module.__getattr__ = missing
    return module


sys.modules["mmcv._ext"] = _fake_extension()
torch.set_default_dtype(torch.float64)

from mmdet.models import DetDataPreprocessor  # noqa: E402
from mmdet.registry import MODELS, TASK_UTILS  # noqa: E402
from mmdet.structures import DetDataSample  # noqa: E402
from mmdet.utils import register_all_modules  # noqa: E402
from mmengine.config import ConfigDict  # noqa: E402
from mmengine.structures import InstanceData  # noqa: E402

register_all_modules()


def samples() -> list[DetDataSample]:
    found = []
    for size, boxes, labels, ignored in zip(
        case.SIZES, case.BOXES, case.LABELS, case.IGNORED, strict=True
    ):
        sample = DetDataSample(
            metainfo={"img_shape": size, "pad_shape": size, "batch_input_shape": case.PADDED}
        )
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor(boxes).reshape(-1, 4),
            labels=torch.tensor(labels, dtype=torch.int64) - 1,  # the background is the last
        )
        sample.ignored_instances = InstanceData(bboxes=torch.tensor(ignored).reshape(-1, 4))
        found.append(sample)
    return found


def objects_of_one_class() -> list[DetDataSample]:
    """What a detector's RPN is given."""
    changed = samples()
    for sample in changed:
        sample.gt_instances.labels = torch.zeros_like(sample.gt_instances.labels)
    return changed


def float64(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).double()


def proposals() -> list[InstanceData]:
    return [
        InstanceData(bboxes=float64(boxes), scores=float64(scores))
        for boxes, scores in case.proposals()
    ]


def levels() -> list[Tensor]:
    return [float64(level).requires_grad_() for level in case.levels()]


def _in_float64(encode: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """mmdet's coder makes float32 of what it is given."""
    return lambda *boxes: encode(*boxes).double()


def build(config: dict, **more: object) -> nn.Module:
    """A module with the weights of `case`, in training mode."""
    module = MODELS.build(ConfigDict(config), default_args=more or None)
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.from_numpy(case.weight(name, tuple(value.shape))))
    for part in module.modules():
        if hasattr(part, "prior_generator"):
            grid = part.prior_generator.grid_priors
            part.prior_generator.grid_priors = partial(grid, dtype=torch.float64)
        if hasattr(part, "bbox_coder"):
            part.bbox_coder.encode = _in_float64(part.bbox_coder.encode)
    return module.double().train()


def from_own_cells(head: nn.Module) -> None:
    """Make a dense head predict from the cells that begin inside the image."""
    predict = head.predict_by_feat

    def predict_images(
        scores: list[Tensor], offsets: list[Tensor], batch_img_metas: list[dict], **more: object
    ) -> list[InstanceData]:
        results = []
        for k, meta in enumerate(batch_img_metas):
            height, width = meta["img_shape"]
            cells = [
                (slice(k, k + 1), slice(None), slice(-(-height // s)), slice(-(-width // s)))
                for s in case.STRIDES
            ]
            maps = ([x[c] for x, c in zip(xs, cells, strict=True)] for xs in (scores, offsets))
            results += predict(*maps, batch_img_metas=[meta], **more)
        return results

    head.predict_by_feat = predict_images


def sampled(head: nn.Module) -> np.ndarray:
    """How many positives and negatives there were, and what mmdet divided the losses by."""
    results = head._raw_positive_infos["sampling_results"]
    return np.array(
        [
            sum(len(result.pos_inds) for result in results),
            sum(len(result.neg_inds) for result in results),
            sum(result.avg_factor for result in results),
        ]
    )


Record = dict[str, np.ndarray]


def losses_and_gradients(
    module: nn.Module, losses: Mapping[str, object], features: list[Tensor] | None = None
) -> Record:
    """Losses summed over levels; gradients of their sum by `case.gradient_summary`."""
    record, total = {}, torch.zeros(())
    for name, loss in losses.items():
        if "loss" in name:
            parts = loss if isinstance(loss, list) else [loss]
            record[f"loss/{name}"] = sum(part.sum() for part in parts)
            total = total + record[f"loss/{name}"]
    total.backward()
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            record[f"gradient/{name}"] = case.gradient_summary(name, parameter.grad.numpy())
    for k, level in enumerate(features or []):
        if level.grad is not None:
            record[f"gradient/P{k + 2}"] = case.gradient_summary(f"P{k + 2}", level.grad.numpy())
    return record


def found(prefix: str, results: list[InstanceData]) -> Record:
    record = {}
    for k, result in enumerate(results):
        record[f"{prefix}/{k}/boxes"] = result.bboxes
        record[f"{prefix}/{k}/scores"] = result.scores
        if "labels" in result and prefix == "detections":
            record[f"{prefix}/{k}/labels"] = result.labels + 1
    return record


def anchors() -> Record:
    record = {}
    for name in ANCHORS:
        generator = TASK_UTILS.build(anchor_generator(name))
        sizes = [(3, 5), (2, 3), (1, 2), (1, 1), (1, 1)]
        for k, level in enumerate(generator.grid_priors(sizes, device="cpu")):
            record[f"{name}/{k}"] = level
    return record


def fpn() -> Record:
    """C2 to C5 of 8, 12, 16, 20 channels, sides that are not halves of each other."""
    neck = build({"type": "FPN", "in_channels": [8, 12, 16, 20], "out_channels": 4, "num_outs": 5})
    inputs = [float64(level) for level in case.backbone_levels()]
    return {str(k): level for k, level in enumerate(neck(inputs))}


def regions(config: dict) -> Record:
    head, features = build(config), levels()
    from_own_cells(head)
    record = losses_and_gradients(head, head.loss(features, objects_of_one_class()), features)
    record["sampled"] = sampled(head)
    return record | found("proposals", head.eval().predict(features, samples(), rescale=False))


def second_stage(config: dict) -> Record:
    head, features = build(config), levels()
    losses = head.loss(features, proposals(), samples())
    record = losses_and_gradients(head, losses, features)
    return record | found("detections", head.eval().predict(features, proposals(), samples()))


def one_stage() -> Record:
    head, features = build(RETINA_HEAD), levels()
    from_own_cells(head)
    record = losses_and_gradients(head, head.loss(features, samples()), features)
    record["sampled"] = sampled(head)
    return record | found("detections", head.eval().predict(features, samples()))


def detector(config: dict) -> Record:
    """From images in 0..1 to losses and detections."""
    model = build(config)
    prepare = DetDataPreprocessor(
        mean=[255 * x for x in case.MEAN], std=[255 * x for x in case.STD], pad_size_divisor=32
    )
    images = [255 * float64(image) for image in case.images()]
    batch = prepare({"inputs": images, "data_samples": samples()}, training=True)
    for sample in batch["data_samples"]:
        sample.set_metainfo({"pad_shape": sample.img_shape})
    batch = (batch["inputs"].double(), batch["data_samples"])
    dense = model.rpn_head if hasattr(model, "rpn_head") else model.bbox_head
    from_own_cells(dense)
    record = losses_and_gradients(model, model.loss(*batch))
    record["sampled"] = sampled(dense)
    results = model.eval().predict(*batch, rescale=False)
    return record | found("detections", [result.pred_instances for result in results])


def write(name: str, record: Record) -> None:
    arrays = {key: np.asarray(torch.as_tensor(value).detach()) for key, value in record.items()}
    for key, value in arrays.items():
        if value.dtype == np.float64 and value.ndim > 1:
            arrays[key] = value.astype(np.float32)
    path = HERE / f"mmdet_{name}.npz"
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {path.stat().st_size} bytes")
    for key, value in arrays.items():
        print(f"  {key} {value.shape} {value if value.size < 3 else ''}")


def main() -> None:
    write("anchors", anchors())
    write("fpn", fpn())
    write("rpn", regions(RPN_OF_FASTER))
    write("rpn_of_cascade", regions(RPN_OF_CASCADE))
    write("roi", second_stage(ROI_HEAD))
    write("cascade", second_stage(CASCADE_HEAD))
    write("retina", one_stage())
    write("faster_rcnn", detector(FASTER_RCNN))
    write("cascade_rcnn", detector(CASCADE_RCNN))
    write("retinanet", detector(RETINANET))


if __name__ == "__main__":
    main()
