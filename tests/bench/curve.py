"""The fan-out curve: servers against wall and CPU, as an SVG written by hand."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from statistics import median

from tests.bench.bench import Bench
from tests.bench.fanout import OURS, Cost, in_turn, open_fanout

SIZES = (10, 25, 50, 100, 200, 500, 1000)
MOST_ROUNDS = 2

PANEL_WIDTH, PANEL_HEIGHT = 400, 320
LEFT, TOP, GAP, BOTTOM, RIGHT = 60, 50, 80, 90, 30
# Okabe and Ito's, which most eyes can tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
PAPER, INK, GRID = "#ffffff", "#222222", "#dddddd"

# By program, the points: servers and seconds.
Lines = Mapping[str, Sequence[tuple[float, float]]]


def measure(bench: Bench) -> str:
    """The curve up to the number of servers that is asked for."""
    sizes = sorted({*(size for size in SIZES if size < bench.servers), bench.servers})
    with open_fanout(bench, "curve", bench.servers) as fanout:
        costs = in_turn(fanout.programs, sizes, min(bench.rounds, MOST_ROUNDS), bench)
    return draw(costs)


def draw(costs: Mapping[tuple[str, int], Sequence[Cost]]) -> str:
    """Medians of `costs`, which are by program and number of servers."""
    names = list(dict.fromkeys(name for name, _ in costs))
    walls: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    cpus: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for (name, size), kept in costs.items():
        walls[name].append((size, median(cost.wall_seconds for cost in kept)))
        cpus[name].append((size, median(cost.cpu_seconds for cost in kept)))
    width = LEFT + 2 * PANEL_WIDTH + GAP + RIGHT
    height = TOP + PANEL_HEIGHT + BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="sans-serif" font-size="12" fill="{INK}">',
        f'<rect width="{width}" height="{height}" fill="{PAPER}"/>',
        *_panel("wall seconds", walls, LEFT),
        *_panel("CPU seconds of the client", cpus, LEFT + PANEL_WIDTH + GAP),
        *_legend(names, TOP + PANEL_HEIGHT + 60),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


@dataclass(frozen=True, slots=True)
class Axis:
    """From numbers to places, logarithmic."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def around(cls, values: Sequence[float], start: float, end: float) -> "Axis":
        low, high = min(values), max(values)
        return cls(low / 1.2, high * 1.2, start, end)

    def place(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """1, 2 and 5 of each power of ten within."""
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        candidates = (digit * 10.0**power for power in powers for digit in (1, 2, 5))
        return [tick for tick in candidates if self.low <= tick <= self.high]


def _panel(title: str, lines: Lines, left: float) -> list[str]:
    points = [point for line in lines.values() for point in line]
    right, bottom = left + PANEL_WIDTH, TOP + PANEL_HEIGHT
    across = Axis.around([servers for servers, _ in points], left, right)
    up = Axis.around([seconds for _, seconds in points], bottom, TOP)
    parts = [_text(left, TOP - 15, title, "start", "bold")]
    for servers in sorted({servers for servers, _ in points}):
        x = across.place(servers)
        parts += [
            _line(x, TOP, x, bottom, GRID),
            _text(x, bottom + 18, f"{servers:g}", "middle"),
        ]
    for tick in up.ticks():
        y = up.place(tick)
        parts += [_line(left, y, right, y, GRID), _text(left - 8, y + 4, f"{tick:g}", "end")]
    parts.append(_text((left + right) / 2, bottom + 38, "servers", "middle"))
    parts.append(
        f'<rect x="{left}" y="{TOP}" width="{PANEL_WIDTH}" height="{PANEL_HEIGHT}" '
        f'fill="none" stroke="{INK}"/>'
    )
    for number, (name, line) in enumerate(lines.items()):
        places = [(across.place(servers), up.place(seconds)) for servers, seconds in line]
        parts += _drawn(name, places, COLOURS[number % len(COLOURS)])
    return parts


def _drawn(name: str, places: Sequence[tuple[float, float]], colour: str) -> list[str]:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    width = 3 if name == OURS else 1.5
    return [
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>',
        *(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places),
    ]


def _legend(names: Sequence[str], y: float) -> list[str]:
    parts = []
    step = (2 * PANEL_WIDTH + GAP) / max(len(names), 4)
    for number, name in enumerate(names):
        x = LEFT + number * step
        colour = COLOURS[number % len(COLOURS)]
        parts += [
            f'<circle cx="{x:.0f}" cy="{y - 4:.0f}" r="5" fill="{colour}"/>',
            _text(x + 10, y, name, "start"),
        ]
    return parts


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _text(x: float, y: float, text: str, anchor: str, weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}">'
        f"{escape(text)}</text>"
    )
