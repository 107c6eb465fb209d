"""Detectors: classes that receive their parts, and recipes that make them."""

from tinyops.models.checkpoint import load, save
from tinyops.models.detectors import Detector, OneStageDetector, TwoStageDetector
from tinyops.models.factory import create, list_models

__all__ = [
    "Detector",
    "OneStageDetector",
    "TwoStageDetector",
    "create",
    "list_models",
    "load",
    "save",
]
