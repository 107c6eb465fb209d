"""A page of the numbers of a data set, in one file that needs nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyops.plot.page import COLORS, share, write_html


@dataclass(frozen=True)
class Counts:
    """A bar for each name."""

    title: str
    note: str
    counts: Mapping[str, int]


@dataclass(frozen=True)
class Histogram:
    """Columns between edges, one edge more than counts; they are drawn equally wide."""

    title: str
    note: str
    edges: Sequence[float]
    counts: Sequence[float]


@dataclass(frozen=True)
class Curves:
    """Lines over the same x in 0..1, with values in 0..1."""

    title: str
    note: str
    x: Sequence[float]
    lines: Mapping[str, Sequence[float]]


def write_data_page(
    path: Path | str,
    title: str,
    *,
    lead: str,
    facts: Mapping[str, Any],
    charts: Sequence[Counts | Histogram | Curves],
    tables: Mapping[str, Sequence[Mapping[str, Any]]],
) -> None:
    """Write it; the file is replaced when the new one is complete.

    Nothing in it is loaded from elsewhere, and it has no script.

    Args:
        path: of the file.
        title: of the page.
        lead: a sentence or two below the title.
        facts: a table of names and values.
        charts: what is not empty is drawn.
        tables: title -> rows, column -> value; float: two decimals.

    Raises:
        ValueError: a curve leaves 0..1.
    """
    values = {
        "title": title,
        "lead": lead,
        "facts": facts,
        "charts": [_chart(chart) for chart in charts],
        "tables": {name: rows for name, rows in tables.items() if rows},
        "cell": cell,
    }
    write_html(path, "data_stats.html", values)


def cell(value: Any) -> str:
    """A value as tables show it."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _chart(chart: Counts | Histogram | Curves) -> dict[str, Any]:
    """What the template draws, in units of a picture of 480 x 300."""
    values: dict[str, Any] = {"kind": type(chart).__name__, "title": chart.title}
    values["note"] = chart.note
    if isinstance(chart, Curves):
        lines = []
        for k, (name, line) in enumerate(chart.lines.items()):
            points = [
                f"{40 + 420 * (share('x', x) or 0):.1f},{290 - 280 * (share(name, y) or 0):.1f}"
                for x, y in zip(chart.x, line, strict=True)
            ]
            lines.append({"name": name, "color": COLORS[k % len(COLORS)], "points": points})
        return {**values, "lines": lines}
    if isinstance(chart, Counts):
        most = max(chart.counts.values(), default=0) or 1
        total = sum(chart.counts.values()) or 1
        rows = [
            {
                "name": name,
                "width": 240 * count / most,
                "text": f"{count:,} ({100 * count / total:.1f} %)",
            }
            for name, count in chart.counts.items()
        ]
        return {**values, "rows": rows}
    highest = max(chart.counts, default=0) or 1
    step = 460 / max(1, len(chart.counts))
    columns = [
        {
            "x": 10 + k * step,
            "width": max(step - 1, 0.5),
            "height": 250 * count / highest,
            "text": f"{_short(chart.edges[k])} to {_short(chart.edges[k + 1])}: {count:,}",
        }
        for k, count in enumerate(chart.counts)
    ]
    every = -(-len(chart.edges) // 9)  # edges that have a label
    ticks = [
        {"x": 10 + k * step, "text": _short(edge)}
        for k, edge in enumerate(chart.edges)
        if k % every == 0
    ]
    return {**values, "columns": columns, "ticks": ticks, "most": f"{highest:,}"}


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
