"""The parts of mmdet that the golden files come from, as its configurations."""

import mmdet_case as case

L1 = {"type": "L1Loss", "loss_weight": 1.0}
NMS = {"type": "nms", "iou_threshold": 0.5}
ALL = {"type": "RandomSampler", "num": 10**6, "neg_pos_ub": -1, "pos_fraction": 0.5}
STD_BOXES = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))


def assigner(positive: float, negative: float, least: float, low_quality: bool) -> dict:
    return {
        "type": "MaxIoUAssigner",
        "pos_iou_thr": positive,
        "neg_iou_thr": negative,
        "min_pos_iou": least,
        "match_low_quality": low_quality,
        "ignore_iof_thr": 0.5,
    }


def coder(stds: tuple[float, ...]) -> dict:
    return {"type": "DeltaXYWHBBoxCoder", "target_means": [0.0] * 4, "target_stds": stds}


ANCHORS = {
    "sspnet": {"scales": [1.5, 2.5, 3.7, 8], "ratios": [0.4, 0.8, 1.4]},
    "faster": {"scales": [2], "ratios": [0.5, 1.0, 2.0]},
    "retina": {"octave_base_scale": 2, "scales_per_octave": 3, "ratios": [0.5, 1.0, 2.0]},
}


def anchor_generator(name: str) -> dict:
    return dict(type="AnchorGenerator", strides=list(case.STRIDES), **ANCHORS[name])


def smooth_l1(beta: float) -> dict:
    return {"type": "SmoothL1Loss", "beta": beta, "loss_weight": 1.0}


def rpn(loss_bbox: dict, allowed_border: int) -> dict:
    proposals = {"nms_pre": 60, "max_per_img": 150, "nms": {**NMS, "iou_threshold": 0.7}}
    return {
        "type": "RPNHead",
        "in_channels": case.CHANNELS,
        "feat_channels": case.CHANNELS,
        "anchor_generator": anchor_generator("sspnet"),
        "bbox_coder": coder((1.0, 1.0, 1.0, 1.0)),
        "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0},
        "loss_bbox": loss_bbox,
        "train_cfg": {
            "assigner": assigner(0.7, 0.3, 0.3, True),
            "sampler": {**ALL, "add_gt_as_proposals": False},
            "allowed_border": allowed_border,
            "pos_weight": -1,
        },
        "test_cfg": dict(**proposals, min_bbox_size=0),
    }


RPN_OF_FASTER = rpn(L1, allowed_border=-1)
RPN_OF_CASCADE = rpn(smooth_l1(1 / 9), allowed_border=0)


def extractor() -> dict:
    return {
        "type": "SingleRoIExtractor",
        "roi_layer": {
            "type": "RoIAlign",
            "output_size": 7,
            "sampling_ratio": 0,
            "aligned": True,
            "use_torchvision": True,
        },
        "out_channels": case.CHANNELS,
        "featmap_strides": list(case.STRIDES[:4]),
    }


def box_head(stds: tuple[float, ...], class_agnostic: bool, loss_bbox: dict) -> dict:
    return {
        "type": "Shared2FCBBoxHead",
        "in_channels": case.CHANNELS,
        "fc_out_channels": case.HIDDEN,
        "roi_feat_size": 7,
        "num_classes": case.NUM_CLASSES,
        "bbox_coder": coder(stds),
        "reg_class_agnostic": class_agnostic,
        "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0},
        "loss_bbox": loss_bbox,
    }


def rcnn(threshold: float) -> dict:
    return {
        "assigner": assigner(threshold, threshold, threshold, False),
        "sampler": {**ALL, "add_gt_as_proposals": True},
        "pos_weight": -1,
    }


RCNN_TEST = {"score_thr": 0.05, "nms": NMS, "max_per_img": 30}
ROI_HEAD = {
    "type": "StandardRoIHead",
    "bbox_roi_extractor": extractor(),
    "bbox_head": box_head(STD_BOXES[0], False, L1),
    "train_cfg": rcnn(0.5),
    "test_cfg": RCNN_TEST,
}
CASCADE_HEAD = {
    "type": "CascadeRoIHead",
    "num_stages": 3,
    "stage_loss_weights": [1, 0.5, 0.25],
    "bbox_roi_extractor": extractor(),
    "bbox_head": [box_head(stds, True, smooth_l1(1.0)) for stds in STD_BOXES],
    "train_cfg": [rcnn(threshold) for threshold in (0.5, 0.6, 0.7)],
    "test_cfg": RCNN_TEST,
}
RETINA_HEAD = {
    "type": "RetinaHead",
    "num_classes": case.NUM_CLASSES,
    "in_channels": case.CHANNELS,
    "feat_channels": case.CHANNELS,
    "stacked_convs": 2,
    "anchor_generator": anchor_generator("retina"),
    "bbox_coder": coder((1.0, 1.0, 1.0, 1.0)),
    "loss_cls": {
        "type": "FocalLoss",
        "use_sigmoid": True,
        "gamma": 2.0,
        "alpha": 0.25,
        "loss_weight": 1.0,
    },
    "loss_bbox": L1,
    "train_cfg": {
        "assigner": assigner(0.5, 0.4, 0, True),
        "sampler": {"type": "PseudoSampler"},
        "allowed_border": -1,
        "pos_weight": -1,
    },
    "test_cfg": {
        "nms_pre": 30,
        "min_bbox_size": 0,
        "score_thr": 0.05,
        "nms": NMS,
        "max_per_img": 60,
    },
}


BODY = {
    "data_preprocessor": {"type": "DetDataPreprocessor"},
    "backbone": {
        "type": "ResNet",
        "depth": 18,
        "base_channels": 16,
        "frozen_stages": 1,
        "norm_cfg": {"type": "BN", "requires_grad": True},
        "norm_eval": True,
    },
    "neck": {
        "type": "FPN",
        "in_channels": [16, 32, 64, 128],
        "out_channels": case.CHANNELS,
        "num_outs": 5,
    },
}


def two_stage(name: str, region: dict, head: dict) -> dict:
    region, head = dict(region), dict(head)
    train, test = region.pop("train_cfg"), region.pop("test_cfg")
    train_cfg = {"rpn": train, "rpn_proposal": test, "rcnn": head.pop("train_cfg")}
    test_cfg = {"rpn": test, "rcnn": head.pop("test_cfg")}
    parts = {"rpn_head": region, "roi_head": head, "train_cfg": train_cfg, "test_cfg": test_cfg}
    return {"type": name, **BODY, **parts}


def one_stage(name: str, head: dict) -> dict:
    head = dict(head)
    settings = {key: head.pop(key) for key in ("train_cfg", "test_cfg")}
    return {"type": name, **BODY, "bbox_head": head, **settings}


FASTER_RCNN = two_stage("FasterRCNN", RPN_OF_FASTER, ROI_HEAD)
CASCADE_RCNN = two_stage("CascadeRCNN", RPN_OF_CASCADE, CASCADE_HEAD)
RETINANET = one_stage("RetinaNet", RETINA_HEAD)
