"""Drawing of positives and negatives."""

import pytest
import torch
from detection import target, truth

from tinyops.nn.assign import BACKGROUND, IGNORED
from tinyops.nn.sampling import HardSampler, RandomSampler, WeightedNegativeSampler

WEIGHTED = [
    {},
    {"balance_on": "confidence"},
    {"overlap": "iof_box", "temperature": 0.1},
]


def mixed(positives, negatives, ignored, images=1):
    """Matches, boxes and image ids of so many boxes of every image, shuffled within it."""
    one = torch.tensor([0] * positives + [BACKGROUND] * negatives + [IGNORED] * ignored)
    generator = torch.Generator().manual_seed(5)
    matches = torch.cat([one[torch.randperm(len(one), generator=generator)] for _ in range(images)])
    corners = 50 * torch.rand(len(matches), 2, generator=generator)
    boxes = torch.cat([corners, corners + 10], 1)
    return matches, boxes, torch.arange(images).repeat_interleave(len(one))


def samplers(count, fraction):
    return [RandomSampler(count, fraction)] + [
        WeightedNegativeSampler(count, fraction, **options) for options in WEIGHTED
    ]


OBJECTS = truth(target((0, 0, 10, 10)), target((5, 5, 20, 20)))


@pytest.mark.parametrize("sampler", samplers(8, 0.5), ids=str)
@pytest.mark.parametrize(
    ("positives", "negatives", "expected"),
    [(20, 20, (4, 4)), (1, 20, (1, 7)), (20, 2, (4, 2)), (0, 20, (0, 8)), (0, 0, (0, 0))],
)
def test_numbers_of_each_kind(sampler, positives, negatives, expected):
    matches, boxes, ids = mixed(positives, negatives, 9, images=2)
    chosen, others = sampler(matches, boxes, ids, OBJECTS, 2)
    assert (matches[chosen] >= 0).all()
    assert (matches[others] == BACKGROUND).all()
    for image in range(2):
        counts = (int((ids[chosen] == image).sum()), int((ids[others] == image).sum()))
        assert counts == expected
    every = torch.cat([chosen, others]).tolist()
    assert len(set(every)) == len(every)


def test_results_come_image_after_image():
    matches, boxes, ids = mixed(9, 30, 3, images=2)
    shuffle = torch.randperm(len(ids))
    matches, boxes, ids = matches[shuffle], boxes[shuffle], ids[shuffle]
    for found in RandomSampler(10, 0.5)(matches, boxes, ids, OBJECTS, 2):
        assert ids[found].tolist() == sorted(ids[found].tolist())


def test_same_seed_same_draw():
    arguments = (*mixed(20, 50, 0), OBJECTS, 1)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(torch.cat(RandomSampler(16, 0.5)(*arguments)).tolist())
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]


@pytest.mark.parametrize("sampler", samplers(16, 0.5), ids=str)
def test_draws_of_an_image_do_not_depend_on_the_images_beside_it(sampler):
    """So that a batch draws the same in one process and split over several."""
    matches, boxes, ids = mixed(20, 50, 5, images=2)
    scores = torch.rand(len(ids))
    torch.manual_seed(3)
    together = sampler(matches, boxes, ids, OBJECTS, 2, scores)
    more = matches.new_full((13,), BACKGROUND)  # a first image with other boxes
    torch.manual_seed(3)
    beside = sampler(
        torch.cat([more, matches[ids == 1]]),
        torch.cat([boxes[:13], boxes[ids == 1]]),
        torch.cat([torch.zeros_like(more), ids[ids == 1]]),
        OBJECTS,
        2,
        torch.cat([scores[:13], scores[ids == 1]]),
    )
    first = int((ids == 0).sum())
    for one, two in zip(together, beside, strict=True):
        assert (one[one >= first] - first).tolist() == (two[two >= 13] - 13).tolist()


def test_every_positive_and_negative_is_as_likely():
    matches, boxes, ids = mixed(6, 6, 0)
    counts = torch.zeros(12)
    sampler = RandomSampler(4, 0.5)
    for _ in range(1500):
        counts[torch.cat(sampler(matches, boxes, ids, OBJECTS, 1))] += 1
    assert counts.sum() == 6000
    # 500 each; the standard deviation is sqrt(1500 * 1/3 * 2/3) = 18.
    assert (counts - 500).abs().max() < 5 * 18


def draws_of_two(sampler, boxes, scores, rounds=2000):
    """How often each of two negatives is drawn, one at a time."""
    ids = torch.zeros(2, dtype=torch.int64)
    matches = torch.full((2,), BACKGROUND)
    objects = truth(target((0, 0, 10, 10)))
    counts = torch.zeros(2)
    for _ in range(rounds):
        counts[sampler(matches, boxes, ids, objects, 1, scores)[1]] += 1
    return counts / rounds


@pytest.mark.parametrize(
    ("options", "scores", "logit"),
    [
        ({}, None, 0.6 * 0.5),  # half of the object is inside the first box
        ({}, (0.5, 1.0), 0.6 * 0.5 - 0.4 * 0.5),
        ({"balance_on": "confidence"}, (0.5, 1.0), 0.4 * 0.5 - 0.6 * 0.5),
        ({"overlap": "iof_box"}, None, 0.6 * 0.25),  # a quarter of the box is inside the object
        ({"balance": 1.0, "temperature": 0.25}, None, 0.5 / 0.25),
    ],
)
def test_weights_of_negatives(options, scores, logit):
    boxes = torch.tensor([[0.0, 5, 20, 15], [50, 50, 60, 60]])
    scores = None if scores is None else torch.tensor(scores)
    share = draws_of_two(WeightedNegativeSampler(1, 0.5, **options), boxes, scores)
    expected = torch.tensor([logit, 0.0]).softmax(0)
    assert share.sum() == 1
    assert abs(float(share[0] - expected[0])) < 4 * 0.5 / 2000**0.5


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num_samples": 0}, "num_samples must be at least 1, got 0"),
        ({"positive_fraction": 1.5}, r"positive_fraction must be in 0\.\.1, got 1\.5"),
        ({"balance": -0.1}, r"balance must be in 0\.\.1, got -0\.1"),
        ({"balance_on": "score"}, "balance_on must be one of .*, got 'score'"),
        ({"overlap": "iou"}, "overlap must be one of .*, got 'iou'"),
        ({"temperature": 0.0}, r"temperature must be above 0, got 0\.0"),
    ],
)
def test_bad_settings(options, text):
    with pytest.raises(ValueError, match=text):
        WeightedNegativeSampler(**{"num_samples": 8, "positive_fraction": 0.5, **options})


def test_image_without_objects():
    matches, boxes, ids = mixed(0, 30, 0)
    for sampler in samplers(8, 0.5):
        assert len(sampler(matches, boxes, ids, truth(target()), 1)[1]) == 8


def test_the_hardest_are_taken_from_every_image():
    matches = torch.tensor([0, BACKGROUND, 0, BACKGROUND, IGNORED, 0, BACKGROUND, BACKGROUND, 1])
    losses = torch.tensor([0.1, 0.5, 0.7, 0.9, 9.0, 0.7, 0.5, 0.2, 0.0])
    images = torch.tensor([0, 0, 0, 0, 0, 0, 0, 1, 1])
    sampler = HardSampler(4, 0.5)
    boxes = torch.zeros(9, 4)
    positives, negatives = sampler(matches, boxes, images, OBJECTS, 2, losses)
    assert positives.tolist() == [2, 5, 8]  # the equal ones by index
    assert negatives.tolist() == [3, 1, 7]  # at most 4 - 2 of the first image
    sampler = HardSampler(4, 0.25)
    positives, negatives = sampler(matches, boxes, images, OBJECTS, 3, losses)
    assert positives.tolist() == [2, 8]
    assert negatives.tolist() == [3, 1, 6, 7]  # in place of positives


def test_without_boxes_the_hardest_are_none():
    none = torch.zeros(0, dtype=torch.int64)
    found = HardSampler(4, 0.5)(none, torch.zeros(0, 4), none, OBJECTS, 2, torch.zeros(0))
    assert [x.tolist() for x in found] == [[], []]
