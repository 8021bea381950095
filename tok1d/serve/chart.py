"""Small charts as SVG, in the colours of the page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 50, 8, 24, 34
COLOURS = ("#7c3aed", "#2563eb", "#0891b2", "#059669", "#ca8a04", "#dc2626")


def lines(series: Sequence[tuple[str, Sequence[float], Sequence[float]]], across: str, up: str, title: str) -> str:
    """Curves (name, x, y); the first name of "" has no legend. The last point of each has its value as text."""
    xs = [x for _, row, _ in series for x in row]
    ys = [y for _, _, row in series for y in row]
    (x0, x1), (y0, y1) = _range(xs), _range(ys)
    body = [_axes(x0, x1, y0, y1, across, up)]
    for i, (name, row, values) in enumerate(series):
        points = [
            (_place(x, x0, x1, LEFT, WIDTH - RIGHT), _place(y, y0, y1, HEIGHT - BOTTOM, TOP))
            for x, y in zip(row, values)
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dashed = ' stroke-dasharray="4 3"' if name == "picture" else ""
        colour = "currentColor" if name == "picture" else COLOURS[i % len(COLOURS)]
        body.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dashed}/>')
        if name:
            at = TOP + 12 + 13 * i
            body.append(f'<path d="M{WIDTH - 96} {at - 4}h16" stroke="{colour}" stroke-width="2" fill="none"{dashed}/>')
            body.append(f'<text x="{WIDTH - 76}" y="{at}">{escape(name)}</text>')
    return _svg(body, title)


def bars(values: Sequence[float], across: str, up: str, title: str, marked: int) -> str:
    """A bar for each value, numbered from 1; the marked one has another colour."""
    top = max([*values, 1e-12])
    body = [_axes(1, len(values), 0.0, top, across, up)]
    width = (WIDTH - LEFT - RIGHT) / max(len(values), 1)
    for i, value in enumerate(values):
        y = _place(value, 0.0, top, HEIGHT - BOTTOM, TOP)
        colour = COLOURS[5] if i == marked else COLOURS[1]
        body.append(
            f'<rect x="{LEFT + i * width + width * 0.1:.1f}" y="{y:.1f}" width="{width * 0.8:.1f}" '
            f'height="{HEIGHT - BOTTOM - y:.1f}" fill="{colour}"/>'
        )
    return _svg(body, title)


def _svg(body: Sequence[str], title: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(body)}</svg>"
    )


def _axes(x0: float, x1: float, y0: float, y1: float, across: str, up: str) -> str:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = [f'<path d="M{LEFT} {TOP}V{bottom}H{right}" fill="none" stroke="currentColor" opacity="0.4"/>']
    for share in (0.0, 0.5, 1.0):
        y = bottom + share * (TOP - bottom)
        parts.append(f'<text x="{LEFT - 4}" y="{y + 4:.0f}" text-anchor="end">{y0 + share * (y1 - y0):.2g}</text>')
    for share, anchor in ((0.0, "start"), (1.0, "end")):
        x, value = LEFT + share * (right - LEFT), x0 + share * (x1 - x0)
        shown = f"{value:.0f}"
        parts.append(f'<text x="{x:.0f}" y="{bottom + 14}" text-anchor="{anchor}">{shown}</text>')
    middle = (LEFT + right) / 2
    parts.append(f'<text x="{middle:.0f}" y="{HEIGHT - 4}" text-anchor="middle">{escape(across)}</text>')
    parts.append(f'<text x="4" y="12">{escape(up)}</text>')
    return "".join(parts)


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _place(value: float, low: float, high: float, at_low: float, at_high: float) -> float:
    return at_low + (value - low) / (high - low) * (at_high - at_low)
