"""The augmentation that the settings of `tinyops train` ask for."""

from typing import Any

from tinyops.cli.train_settings import Train
from tinyops.data import read
from tinyops.data.copy_paste import CopyPaste, crop_bank
from tinyops.data.dataset import Transform
from tinyops.data.scale_match import MonotoneScaleMatch, ScaleMatch, SizeHistogram, object_sizes
from tinyops.data.transforms import in_turn, simple_augmentation, sspnet_augmentation
from tinyops.data.types import AnnotatedSet


def make_transform(settings: Train, data: AnnotatedSet) -> Transform | None:
    """What is done with every tile of the training set: copies, then scales, then the rest.

    Raises:
        ValueError: settings that do not go together, or a set without objects.
        OSError: a file cannot be read.
    """
    steps: list[Any] = []
    if settings.copy_paste or settings.copy_paste_bank:
        bank = crop_bank(data, seed=settings.seed) if settings.copy_paste_bank else ()
        steps.append(CopyPaste(settings.copy_paste, bank=bank, from_bank=settings.copy_paste_bank))
    if settings.scale_match is not None:
        if settings.augment == "sspnet":
            raise ValueError("augment must not be sspnet, which resizes, with scale_match")
        sizes = object_sizes(read(settings.scale_match, drop_empty_boxes=True))
        try:
            target = SizeHistogram.of(sizes)
        except ValueError as error:
            raise ValueError(f"{settings.scale_match}: {error}") from error
        if settings.monotone:
            steps.append(MonotoneScaleMatch(target, object_sizes(data)))
        else:
            steps.append(ScaleMatch(target))
    if settings.augment == "simple":
        steps.append(simple_augmentation())
    if settings.augment == "sspnet":  # released for tiles of 640x512: to (640, 512)..(960, 768)
        long, short = max(settings.tile), min(settings.tile)
        steps.append(sspnet_augmentation((long, round(1.5 * long)), (short, round(1.5 * short))))
    return in_turn(steps) if steps else None
