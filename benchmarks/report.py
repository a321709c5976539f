"""Writes what was measured into docs/performance.md, with plots: `python -m benchmarks.report`.

Knows nothing of how it was measured. The results it wrote down last are kept in `benchmarks/recorded`.
"""

import json
import math
import shutil
import statistics
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from benchmarks.__main__ import BENCHMARKS
from benchmarks.common import RESULTS, ROOT

PAGE = ROOT / "docs" / "performance.md"
IMAGES = ROOT / "docs" / "images"
RECORDED = ROOT / "benchmarks" / "recorded"
BEGIN, END = "<!-- measured -->", "<!-- /measured -->"
COLOURS = ("#2563eb", "#d97706", "#059669", "#7c3aed", "#dc2626")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 300, 70, 20, 36, 48
LOGARITHMIC_FROM = 50.0
"""Times the greatest x is of the smallest, from which on steps are multiples."""


def main() -> None:
    RECORDED.mkdir(exist_ok=True)
    for result in RESULTS.glob("*.json"):
        shutil.copy(result, RECORDED)
    results = [json.loads(file.read_text()) for file in _in_order()]
    parts = [_machines(results), _targets(results)]
    parts += [_benchmark(result) for result in results]
    head, _, rest = PAGE.read_text().partition(BEGIN)
    tail = rest.partition(END)[2]
    measured = "\n".join(parts)
    PAGE.write_text(f"{head}{BEGIN}\n\n{measured}\n{END}{tail}")


def _in_order() -> list[Path]:
    return [file for name in BENCHMARKS if (file := RECORDED / f"{name}.json").exists()]


def _machines(results: Sequence[dict[str, Any]]) -> str:
    lines = []
    for told in {json.dumps(result["machine"]): result for result in results}.values():
        machine = told["machine"]
        versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
        names = ", ".join(one["name"] for one in results if one["machine"] == machine)
        cpu = f"{machine['cores']} cores of {machine['cpu']}"
        lines.append(f"Measured ({names}) on {cpu}, Python {machine['python']}, {versions}.\n")
    return "\n".join(lines)


def _targets(results: Sequence[dict[str, Any]]) -> str:
    rows = [
        f"| {result['name']} | {target['what']} | {target['wanted']} | {_short(target['found'])} "
        f"| {'yes' if target['met'] else '**no**'} |"
        for result in results
        for target in result["targets"]
    ]
    return "\n".join(["| benchmark | aim | wanted | found | met |", "|---|---|---|---|---|", *rows, ""])


def _benchmark(result: dict[str, Any]) -> str:
    lines = [f"### {result['title']}", "", f"`make bench BENCH={result['name']}`, {result['at']}.", ""]
    lines += ["| what | median | least | most | unit | rounds |", "|---|---|---|---|---|---|"]
    for one in result["measured"]:
        values = one["values"]
        figures = (statistics.median(values), min(values), max(values))
        shown = " | ".join(_short(value) for value in figures)
        lines.append(f"| {one['what']} | {shown} | {one['unit']} | {len(values)} |")
    lines += ["", *(f"{remark}\n" for remark in result["remarks"])]
    for number, curve in enumerate(result["curves"], 1):
        name = f"performance-{result['name']}-{number}.svg".replace("_", "-")
        (IMAGES / name).write_text(plot(curve))
        lines.append(f"![{curve['title']}](images/{name})\n")
    return "\n".join(lines)


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.3g}"


# Plots --------------------------------------------------------------------------------------------


def plot(curve: dict[str, Any]) -> str:
    """Lines with their points, from zero on the y axis, as SVG that is readable on light and dark."""
    points = [point for line in curve["lines"].values() for point in line]
    xs, top = sorted({float(x) for x, _ in points}), _round_up(max(y for _, y in points))
    positive = [x for x in xs if x > 0]
    logarithmic = bool(positive) and xs[-1] / positive[0] >= LOGARITHMIC_FROM

    def place(x: float, y: float) -> tuple[float, float]:
        along = _share(x, xs, positive, logarithmic=logarithmic)
        across = y / top if top else 0.0
        return (
            LEFT + along * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - across * (HEIGHT - TOP - BOTTOM),
        )

    font = 'font-family="sans-serif" font-size="12" fill="#6b7280"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {font}>',
        f'<text x="{LEFT}" y="18" font-size="14" font-weight="bold">{escape(curve["title"])}</text>',
    ]
    for step in range(5):
        value = top * step / 4
        x, y = place(xs[0], value)
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#9ca3af55"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_short(value)}</text>')
    for value in xs:
        x, y = place(value, 0)
        parts.append(f'<text x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{_short(value)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">{escape(curve["x"])}</text>')
    parts.append(f'<text x="{LEFT}" y="{TOP - 4}">{escape(curve["y"])}</text>')
    for number, (name, line) in enumerate(curve["lines"].items()):
        colour = COLOURS[number % len(COLOURS)]
        placed = [place(float(x), float(y)) for x, y in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in placed]
        label = f'<text x="{WIDTH - RIGHT}" y="{TOP + 16 * number - 4}" text-anchor="end" fill="{colour}">'
        parts.append(f"{label}{escape(name)}</text>")
    return "\n".join([*parts, "</svg>"]) + "\n"


def _share(x: float, xs: Sequence[float], positive: Sequence[float], *, logarithmic: bool) -> float:
    """Where a value lies between the first and the last; a zero has a place of its own before multiples."""
    if len(xs) == 1:
        return 0.5
    if not logarithmic:
        return (x - xs[0]) / (xs[-1] - xs[0])
    room = 0.2 if xs[0] <= 0 else 0.0
    if x <= 0:
        return 0.0
    return room + (1 - room) * math.log(x / positive[0]) / math.log(xs[-1] / positive[0])


def _round_up(value: float) -> float:
    """The next number of one of the forms 1, 2, 2.5, 4, 5, 8 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 2.5, 4, 5, 8, 10) if step * power >= value)


if __name__ == "__main__":
    main()
