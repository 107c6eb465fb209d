"""Which of the matched boxes a loss is computed on."""

import torch
from torch import Tensor, nn

from tinyops.nn.assign import BACKGROUND
from tinyops.nn.batch import GroundTruth
from tinyops.nn.distributed import image_generators
from tinyops.ops import sample_negatives, sample_negatives_from_boxes


class RandomSampler(nn.Module):
    """`num_samples` boxes of every image, up to `positive_fraction` of them positive.

    Where there are fewer positives, negatives take their place.

    Args:
        num_samples: boxes of every image.
        positive_fraction: at most this part of them is positive; in 0..1.

    Raises:
        ValueError: for numbers out of range.
    """

    def __init__(self, num_samples: int, positive_fraction: float) -> None:
        super().__init__()
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        if not 0 <= positive_fraction <= 1:
            raise ValueError(f"positive_fraction must be in 0..1, got {positive_fraction}")
        self.num_samples = num_samples
        self.positive_fraction = positive_fraction

    def forward(
        self,
        matches: Tensor,
        boxes: Tensor,
        image_ids: Tensor,
        truth: GroundTruth,
        num_images: int,
        scores: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw.

        Args:
            matches: [K] int64, the object of every box, BACKGROUND or IGNORED.
            boxes: [K, 4].
            image_ids: [K] int64.
            truth: the objects.
            num_images: of this process.
            scores: [K] objectness in 0..1 of the boxes, where there is one.

        Returns:
            Indices [P] of the positives and [Q] of the negatives, int64, image after image.
        """
        positives, negatives = [], []
        most = int(self.num_samples * self.positive_fraction)
        for image, generator in enumerate(image_generators(num_images)):
            rows = (image_ids == image).nonzero()[:, 0]  # draws must not depend on other images
            mine = matches[rows]
            chosen = _draw_evenly(mine >= 0, most, generator)
            positives.append(rows[chosen])
            others = self.draw_negatives(
                mine == BACKGROUND,
                self.num_samples - len(chosen),
                generator,
                boxes[rows],
                truth.boxes[truth.image_ids == image],
                None if scores is None else scores[rows],
            )
            negatives.append(rows[others])
        return torch.cat(positives), torch.cat(negatives)

    def draw_negatives(
        self,
        candidates: Tensor,
        count: int,
        generator: torch.Generator,
        boxes: Tensor,
        objects: Tensor,
        scores: Tensor | None,
    ) -> Tensor:
        """Indices of `count` of the candidates [K] bool, each as likely as any other."""
        return _draw_evenly(candidates, count, generator)


class WeightedNegativeSampler(RandomSampler):
    """Negatives drawn with weight exp(b * C + (1 - b) * I) (SSPNet, eq. 4).

    C is the confidence of a box, 0 where there is none (anchors), I its largest overlap with an
    object. The defaults are the released code's: b = 0.6 multiplies the overlap, and the overlap is
    intersection / area of the object; eq. 4 as printed is `balance_on="confidence"`, the prose
    ("incomplete objects") is `overlap="iof_box"`.

    Args:
        num_samples: boxes of every image.
        positive_fraction: at most this part of them is positive.
        balance: b, in 0..1.
        balance_on: "overlap" or "confidence", what b multiplies.
        overlap: "iof_target" or "iof_box", what the intersection is divided by.
        temperature: divides the exponent; below 1 hard boxes are drawn still more often.

    Raises:
        ValueError: for other words, a balance beyond 0..1, or a temperature not above 0.
    """

    def __init__(
        self,
        num_samples: int,
        positive_fraction: float,
        *,
        balance: float = 0.6,
        balance_on: str = "overlap",
        overlap: str = "iof_target",
        temperature: float = 1.0,
    ) -> None:
        super().__init__(num_samples, positive_fraction)
        for name, word, words in (
            ("balance_on", balance_on, ("overlap", "confidence")),
            ("overlap", overlap, ("iof_target", "iof_box")),
        ):
            if word not in words:
                raise ValueError(f"{name} must be one of {words}, got {word!r}")
        if not 0 <= balance <= 1:
            raise ValueError(f"balance must be in 0..1, got {balance}")
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.balance = balance
        self.balance_on = balance_on
        self.overlap = overlap
        self.temperature = temperature

    def draw_negatives(
        self,
        candidates: Tensor,
        count: int,
        generator: torch.Generator,
        boxes: Tensor,
        objects: Tensor,
        scores: Tensor | None,
    ) -> Tensor:
        """Indices of `count` of the candidates, hard ones more likely."""
        return sample_negatives_from_boxes(
            boxes,
            objects,
            scores,
            candidates,
            count,
            mode=self.overlap,
            balance=self.balance,
            balance_on=self.balance_on,
            temperature=self.temperature,
            generator=generator,
            check=False,
        )


class HardSampler(RandomSampler):
    """The boxes of greatest loss (online hard example mining, Shrivastava et al. 2016).

    Of every image the hardest positives, up to `positive_fraction`, then the hardest negatives;
    boxes that overlap are not thinned (as EFPN's code was released; the paper has NMS here).

    Args:
        num_samples: boxes of every image.
        positive_fraction: at most this part of them is positive.
    """

    def forward(
        self,
        matches: Tensor,
        boxes: Tensor,
        image_ids: Tensor,
        truth: GroundTruth,
        num_images: int,
        scores: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `RandomSampler.forward`, with the loss of every box as its score, hardest first."""
        assert scores is not None
        order = scores.argsort(descending=True, stable=True)
        most = image_ids.new_full((num_images,), int(self.num_samples * self.positive_fraction))
        positives = _first(order[matches[order] >= 0], image_ids, most)
        rest = self.num_samples - image_ids[positives].bincount(minlength=num_images)
        return positives, _first(order[matches[order] == BACKGROUND], image_ids, rest)


def _first(rows: Tensor, image_ids: Tensor, counts: Tensor) -> Tensor:
    """The first counts[k] of the rows of every image k, image after image."""
    ids, order = image_ids[rows].sort(stable=True)
    rank = torch.arange(len(ids), device=ids.device) - torch.searchsorted(ids, ids)
    return rows[order[rank < counts[ids]]]


def _draw_evenly(candidates: Tensor, count: int, generator: torch.Generator) -> Tensor:
    zeros = torch.zeros(candidates.shape, device=candidates.device)
    return sample_negatives(zeros, zeros, candidates, count, generator=generator, check=False)
