"""Detectors: classes that receive their parts, and recipes that make them."""

try:
    import safetensors  # noqa: F401
    import torchvision  # noqa: F401
except ImportError as error:
    raise ImportError(
        f'tinyops.models needs the package {error.name}: pip install "tinyops[zoo]"'
    ) from error

from tinyops.models.checkpoint import load, save
from tinyops.models.classifier import create_classifier
from tinyops.models.detectors import Detector, OneStageDetector, TwoStageDetector
from tinyops.models.factory import create, list_models

__all__ = [
    "Detector",
    "OneStageDetector",
    "TwoStageDetector",
    "create",
    "create_classifier",
    "list_models",
    "load",
    "save",
]
