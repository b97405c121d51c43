"""Line plots as SVG text: axes with round ticks, a band around each line, a legend. No library, nothing fetched.

Colours are those of the page's style sheet (`STYLE`), which follows the reader's light or dark setting.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from html import escape

from cluster.comparison.curves import Band

WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 62, 190, 40, 52
LINE_HEIGHT = 20

# Eight hues told apart by readers with colour-blindness too (Okabe and Ito 2008, black replaced), lighter on a dark page.
_LIGHT = ("#0072b2", "#d55e00", "#009e73", "#b8538f", "#b07f00", "#3a93c4", "#7a5cc9", "#6b6b6b")
_DARK = ("#4da6e0", "#ff8a3d", "#2fc79a", "#e08fc0", "#e6b422", "#8fd0f5", "#b39cf0", "#b5b5b5")
_DASHES = ("", "7 4", "2 4")
_COLOURS = "".join(f".plot .c{number}{{--c:{colour}}}" for number, colour in enumerate(_LIGHT))
_DARK_COLOURS = "".join(f".plot .c{number}{{--c:{colour}}}" for number, colour in enumerate(_DARK))
STYLE = (
    ".plot{max-width:100%;height:auto}.plot text{font:13px system-ui,sans-serif;fill:currentColor}"
    ".plot .title{font-weight:600;font-size:15px}"
    ".plot .axis{stroke:currentColor;stroke-width:1}.plot .grid{stroke:currentColor;stroke-opacity:.15}"
    ".plot .line{fill:none;stroke:var(--c);stroke-width:2;stroke-linejoin:round}.plot .band{fill:var(--c);fill-opacity:.15;stroke:none}"
    f"{_COLOURS}@media (prefers-color-scheme:dark){{{_DARK_COLOURS}}}"
)


@dataclass(frozen=True)
class Axis:
    """One axis: `low` to `high` in its own units, linear or logarithmic, `place` from a value to a coordinate in 0..1."""

    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float:
        if self.log:
            return (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round values inside the axis."""
        return _log_ticks(self.low, self.high) if self.log else _linear_ticks(self.low, self.high)


def line_plot(title: str, x_label: str, y_label: str, curves: dict[str, Band], log_x: bool = False) -> str:
    """One plot, an `<svg>` element; curves without a point are left out of it and of its legend, which has each curve's last mean.

    Args:
        curves: by the name in the legend. Colours follow the order given, so plots of the same names agree.
    """
    numbered = {name: (number, band) for number, (name, band) in enumerate(curves.items()) if band.x}
    height = max(HEIGHT, TOP + BOTTOM + LINE_HEIGHT * len(numbered))
    parts = [f'<svg class="plot" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">']
    parts += [f"<title>{escape(title)}</title>", f'<text class="title" x="{LEFT}" y="22">{escape(title)}</text>']
    if not numbered:
        return "".join([*parts, f'<text x="{LEFT}" y="{TOP + 20}">no figures yet</text></svg>'])
    bands = [band for _, band in numbered.values()]
    x_axis = _axis([x for band in bands for x in band.x], log_x)
    y_axis = _axis([y for band in bands for y in (*band.low, *band.high)], False)

    def at_x(value: float) -> float:
        return LEFT + x_axis.place(value) * (WIDTH - LEFT - RIGHT)

    def at_y(value: float) -> float:
        return height - BOTTOM - y_axis.place(value) * (height - TOP - BOTTOM)

    parts += _frame(x_axis, y_axis, at_x, at_y, height)
    parts += [
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{height - 12}" text-anchor="middle">{escape(x_label)}</text>',
        f'<text transform="translate(15 {height / 2:.0f}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>',
    ]
    for number, band in numbered.values():
        parts.append(_curve(number, band, at_x, at_y))
    parts += [_legend_line(place, number, name, band.mean[-1]) for place, (name, (number, band)) in enumerate(numbered.items())]
    return "".join([*parts, "</svg>"])


def _frame(x_axis: Axis, y_axis: Axis, at_x: Callable[[float], float], at_y: Callable[[float], float], height: int) -> list[str]:
    """Grid, ticks and the two axes."""
    bottom, right = height - BOTTOM, WIDTH - RIGHT
    parts = []
    for value in x_axis.ticks():
        x = at_x(value)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{bottom}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{tick_text(value)}</text>')
    for value in y_axis.ticks():
        y = at_y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick_text(value)}</text>')
    parts.append(f'<path class="axis" fill="none" d="M{LEFT} {TOP}V{bottom}H{right}"/>')
    return parts


def _curve(number: int, band: Band, at_x: Callable[[float], float], at_y: Callable[[float], float]) -> str:
    high = [f"{at_x(x):.1f} {at_y(y):.1f}" for x, y in zip(band.x, band.high, strict=True)]
    low = [f"{at_x(x):.1f} {at_y(y):.1f}" for x, y in zip(band.x, band.low, strict=True)]
    middle = [f"{at_x(x):.1f} {at_y(y):.1f}" for x, y in zip(band.x, band.mean, strict=True)]
    area = f'<path class="band" d="M{"L".join([*high, *reversed(low)])}Z"/>'
    return f'<g class="{_colour(number)}">{area}<path class="line"{_dash(number)} d="M{"L".join(middle)}"/></g>'


def _legend_line(place: int, number: int, name: str, last: float) -> str:
    x, y = WIDTH - RIGHT + 14, TOP + 8 + LINE_HEIGHT * place
    line = f'<path class="line"{_dash(number)} d="M{x} {y}h24"/>'
    return f'<g class="{_colour(number)}">{line}<text x="{x + 30}" y="{y + 4}">{escape(name)} {tick_text(last)}</text></g>'


def _colour(number: int) -> str:
    return f"c{number % len(_LIGHT)}"


def _dash(number: int) -> str:
    dashes = _DASHES[number // len(_LIGHT) % len(_DASHES)]
    return f' stroke-dasharray="{dashes}"' if dashes else ""


def _axis(values: list[float], log: bool) -> Axis:
    """From the lowest to the highest value, with a little room; an axis of one value gets room on both sides."""
    low, high = min(values), max(values)
    if log:
        return Axis(low / 1.05, high * 1.05, True)
    room = 0.04 * (high - low) or 0.5 * abs(high) or 1.0
    return Axis(low - room if low < 0 or low > room else 0.0, high + room)


def _linear_ticks(low: float, high: float) -> list[float]:
    """Five to ten multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [factor * 10.0**power for power in powers for factor in (1, 2, 5) if low <= factor * 10.0**power <= high]


def tick_text(value: float) -> str:
    """`250k`, `1.5M`, `2e12` or a plain number of at most four digits."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if 1.0 <= abs(value) / size < 1000.0:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"
