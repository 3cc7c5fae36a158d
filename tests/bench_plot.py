"""Figures as bars in an SVG, each beside the goal that it is to reach."""

from __future__ import annotations

from dataclasses import dataclass
from xml.sax.saxutils import escape

LINE, WIDTH, LABEL, BAR = 26, 940, 460, 300


@dataclass(frozen=True)
class Bar:
    """One figure."""

    what: str
    value: float
    goal: float | None
    most: bool  # the goal is a bound from above
    unit: str


def plot(bars: list[Bar]) -> str:
    """Return the SVG. A bar ends at half of its room where the goal is just reached; the line there is the goal."""
    parts = []
    for number, bar in enumerate(bars):
        top = number * LINE + 34
        # without a goal there is nothing that a bar could be long beside
        share = 0.0 if bar.goal is None else min(1.0, bar.value / (bar.goal or 1) / 2)
        good = bar.goal is None or (bar.value <= bar.goal if bar.most else bar.value >= bar.goal)
        colour = "#2c7a4b" if good else "#b3452c"
        said = f"{bar.value:.3g} {bar.unit}" + (
            f"  ({'≤' if bar.most else '≥'} {bar.goal:g})" if bar.goal is not None else ""
        )
        parts.append(
            f'<text x="{LABEL - 10}" y="{top + 13}" text-anchor="end">{escape(bar.what)}</text>'
            f'<rect x="{LABEL}" y="{top}" width="{share * BAR:.1f}" height="18" fill="{colour}"/>'
            f'<text x="{LABEL + BAR + 12}" y="{top + 13}">{escape(said)}</text>'
        )
    height = len(bars) * LINE + 44
    middle = LABEL + BAR / 2
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="12">'
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>'
        f'<text x="{middle}" y="20" text-anchor="middle">goal</text>'
        f'{"".join(parts)}<path d="M{middle} 26V{height - 10}" stroke="#333" stroke-dasharray="4 3"/></svg>\n'
    )
