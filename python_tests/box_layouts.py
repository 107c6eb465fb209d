"""Boxes, scores and labels that are awkward for box operators: named layouts and random ones.

`boxes("crowd", 1000)` is fixed for a name, size and seed, on every machine. The strategies at the
end are for hypothesis; they draw coordinates on a grid of quarter pixels, where overlaps and scores
tie often and every sum and product is exact in float32.
"""

import hypothesis
import hypothesis.strategies as st
import torch
from torch import Tensor

IMAGE = 1024.0  # pixels; the side of the square in which the boxes lie, unless the layout says else


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _rand(g: torch.Generator, *size: int) -> Tensor:
    return torch.rand(*size, generator=g, dtype=torch.float64)


def _from_centres(centres: Tensor, sizes: Tensor) -> Tensor:
    return torch.cat([centres - sizes / 2, centres + sizes / 2], 1)


def _tiny(g: torch.Generator, n: int) -> Tensor:
    u = _rand(g, n, 1)
    return (2 + 18 * u * u * u) * (0.7 + 0.6 * _rand(g, n, 2))  # 2 to 20 px, as persons


def _uniform(g, n):
    return _from_centres(_rand(g, n, 2) * IMAGE, _tiny(g, n))


def _dup(g, n):  # ten jittered proposals of every object
    objects = _uniform(g, max(n // 10, 1))[torch.arange(n) % max(n // 10, 1)]
    sizes = (objects[:, 2:] - objects[:, :2]).repeat(1, 2)
    moved = objects + 0.1 * sizes * (_rand(g, n, 4) - 0.5)
    return torch.cat([moved[:, :2], moved[:, 2:].maximum(moved[:, :2])], 1)


def _crowd(g, n):  # clumps of about 100 boxes
    middles = (_rand(g, n // 100 + 1, 2) * IMAGE)[torch.arange(n) % (n // 100 + 1)]
    noise = _rand(g, n, 2) + _rand(g, n, 2) + _rand(g, n, 2) - 1.5  # bell-shaped
    return _from_centres(middles + 30 * noise, _tiny(g, n))


def _mixed(g, n):  # 1 px to the whole image
    powers = torch.tensor([2.0**k for k in range(10)], dtype=torch.float64)  # pow() varies by a bit
    sizes = powers[(10 * _rand(g, n, 2)).long()] * (1 + _rand(g, n, 2))
    return _from_centres(_rand(g, n, 2) * IMAGE, sizes)


def _thin(g, n):  # aspect 1:500, lying and standing
    sizes = torch.tensor([[500.0, 1.0], [1.0, 500.0]], dtype=torch.float64)[torch.arange(n) % 2]
    return _from_centres(_rand(g, n, 2) * 100, sizes * (0.9 + 0.2 * _rand(g, n, 2)))


def _grid_aligned(g, n):  # integer corners, sizes 0 to 8: many equal overlaps, some without area
    corners = (_rand(g, n, 2) * 40).floor()
    return torch.cat([corners, corners + (_rand(g, n, 2) * 9).floor()], 1)


def _line(g, n):  # each touches the next
    x = 8.0 * torch.arange(n, dtype=torch.float64)[:, None]
    return torch.cat([x, torch.zeros_like(x), x + 8, torch.full_like(x, 8)], 1)


def _chain(g, n):  # each overlaps the next by IoU 1/2, in random order
    x = 4.0 * torch.randperm(n, generator=g).double()[:, None]
    return torch.cat([x, torch.zeros_like(x), x + 12, torch.full_like(x, 8)], 1)


def _identical(g, n):
    return torch.tensor([3.0, 4.0, 11.5, 9.25], dtype=torch.float64).repeat(n, 1)


def _nested(g, n):  # one inside the other
    half = (torch.randperm(n, generator=g).double()[:, None] + 1).repeat(1, 2)
    return torch.cat([512 - half, 512 + half], 1)


def _no_area(g, n):  # points and lines among proper boxes
    x = _dup(g, n)
    kind = torch.arange(n) % 3
    x[:, 2] = torch.where(kind == 0, x[:, 0], x[:, 2])
    x[:, 3] = torch.where(kind != 2, x[:, 3], x[:, 1])
    return x


def _negative(g, n):
    return _dup(g, n) - IMAGE


def _huge(g, n):  # areas up to 1e60: infinite in float32
    return _dup(g, n) * (1e30 / IMAGE)


def _subnormal(g, n):  # below 2^-126; areas underflow to 0 in float32
    return _dup(g, n) * 2.0**-140


def _far(g, n):  # coordinates so large that float32 has steps of 1/4 pixel
    return _dup(g, n) + 2.0**22


_MAKERS = {
    "uniform": _uniform,
    "dup": _dup,
    "crowd": _crowd,
    "mixed": _mixed,
    "thin": _thin,
    "grid_aligned": _grid_aligned,
    "line": _line,
    "chain": _chain,
    "identical": _identical,
    "nested": _nested,
    "no_area": _no_area,
    "negative": _negative,
    "huge": _huge,
    "subnormal": _subnormal,
    "far": _far,
}
LAYOUTS = tuple(_MAKERS)


def boxes(layout: str, n: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """[n, 4] on the CPU, one of LAYOUTS; all are legal boxes."""
    x = _MAKERS[layout](_generator(seed), n).to(dtype)
    return torch.cat([x[:, :2], x[:, 2:].maximum(x[:, :2])], 1)


SCORES = ("distinct", "tied", "equal", "signed_zeros", "infinite")


def scores(kind: str, n: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """[n] on the CPU, one of SCORES."""
    g = _generator(seed + 1)
    if kind == "distinct":  # up to 2048 of them even in float16
        return (torch.randperm(n, generator=g) / max(n, 2048)).to(dtype)
    if kind == "tied":
        return (torch.randint(8, (n,), generator=g) / 8 - 0.25).to(dtype)
    if kind == "equal":
        return torch.full((n,), 0.5, dtype=dtype)
    choices = {"signed_zeros": [0.0, -0.0, 1e-45, -1e-45], "infinite": [1.0, torch.inf, -torch.inf]}
    values = torch.tensor(choices[kind], dtype=dtype)
    return values[torch.randint(len(values), (n,), generator=g)]


def ids(n: int, kinds: int, seed: int = 0) -> Tensor:
    """[n] int64 labels or image ids: `kinds` arbitrary ones, among them negative and huge."""
    g = _generator(seed + 2)
    values = torch.cat(
        [
            torch.tensor([0, -1, 2**63 - 1, -(2**63), 2**32]),
            torch.randint(1 << 62, (kinds,), generator=g),
        ]
    )[:kinds]
    return values[torch.randint(kinds, (n,), generator=g)]


# ---- hypothesis ----------------------------------------------------------------------------------

# For `@box_layouts.SETTINGS` above `@given`: reproducible, and the backend fixture may be shared.
SETTINGS = hypothesis.settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=40,
    suppress_health_check=[
        hypothesis.HealthCheck.function_scoped_fixture,
        hypothesis.HealthCheck.too_slow,
    ],
)

_SIDE = st.sampled_from([0, 1, 2, 3, 4, 8, 16, 80, 2000])  # quarter pixels
_PLACE = st.one_of(st.integers(0, 12), st.integers(-2000, 2000))


def drawn_boxes(n: int) -> st.SearchStrategy[Tensor]:
    """[n, 4] float64 on the quarter-pixel grid; small ones near the origin are drawn often."""
    one = st.tuples(_PLACE, _PLACE, _SIDE, _SIDE)
    return st.lists(one, min_size=n, max_size=n).map(
        lambda rows: (
            torch.tensor(
                [[x, y, x + w, y + h] for x, y, w, h in rows], dtype=torch.float64
            ).reshape(-1, 4)
            / 4
        )
    )


def drawn_scores(n: int) -> st.SearchStrategy[Tensor]:
    """[n] float64 of few values, so that many tie."""
    values = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, -0.0, -1.0])
    return st.lists(values, min_size=n, max_size=n).map(lambda x: torch.tensor(x).double())


def drawn_ids(n: int) -> st.SearchStrategy[Tensor]:
    """[n] int64 of few values."""
    values = st.sampled_from([0, 1, -1, 2**63 - 1, -(2**63)])
    return st.lists(values, min_size=n, max_size=n).map(
        lambda x: torch.tensor(x, dtype=torch.int64)
    )
