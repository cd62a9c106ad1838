"""Draws the results as an SVG of plain shapes and text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from figures import FIGURES, Results
from scenarios import STREAMS

_COLOURS = {"ours": "#0b7285", "llama-server": "#adb5bd"}
_WIDTH, _HEIGHT = 960, 380
_BAR = 26
_MARK = 'stroke="#c92a2a" stroke-width="2"'


def draw(results: Results) -> str:
    """Returns the picture: on the left decode, on the right how often llama-server's figure ours is, better to the right."""
    parts = [*_lines(results), *_bars(results)]
    style = "text{font:13px sans-serif;fill:#343a40}.s{font-size:11px}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">'
    background = f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>'
    return "\n".join([head, f"<style>{style}</style>", background, *parts, "</svg>"]) + "\n"


def _lines(results: Results) -> list[str]:
    """Tokens per second over the number of streams."""
    left, right, top, bottom = 50, 420, 60, 330
    medians = {
        server: [median(results.of(server, f"decode.{number}")) for number in STREAMS if results.of(server, f"decode.{number}")]
        for server in _COLOURS
    }
    highest = max([1.0, *(value for values in medians.values() for value in values)])
    step = math.pow(10.0, math.floor(math.log10(highest))) / 2
    ceiling = math.ceil(highest / step) * step

    def y(value: float) -> float:
        return bottom - value / ceiling * (bottom - top)

    parts = [_text(left, 30, "Decode: tokens/s by number of streams")]
    for index in range(int(ceiling / step) + 1):
        height = y(index * step)
        parts.append(f'<line x1="{left}" x2="{right}" y1="{height:.1f}" y2="{height:.1f}" stroke="#e9ecef"/>')
        parts.append(_text(left - 8, height + 4, f"{index * step:g}", "end"))
    places = [left + 20 + index * (right - left - 40) / (len(STREAMS) - 1) for index in range(len(STREAMS))]
    parts += [_text(place, bottom + 20, str(number), "middle") for place, number in zip(places, STREAMS, strict=True)]
    for row, (server, values) in enumerate(medians.items()):
        points = [(place, y(value)) for place, value in zip(places, values, strict=False)]
        path = " ".join(f"{x:.1f},{height:.1f}" for x, height in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{_COLOURS[server]}" stroke-width="2.5"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{height:.1f}" r="4" fill="{_COLOURS[server]}"/>' for x, height in points]
        parts.append(f'<rect x="{left + 14}" y="{top + row * 20 - 10}" width="12" height="12" fill="{_COLOURS[server]}"/>')
        parts.append(_text(left + 32, top + row * 20, server))
    return parts


def _bars(results: Results) -> list[str]:
    """How many times better than llama-server, on a logarithmic scale, with a mark where it is wanted."""
    left, right, top = 640, 940, 52
    rows = [figure for figure in FIGURES if not figure.is_own and not figure.key.startswith("decode") and figure.wanted]
    better = {figure.key: _gain(results.ratios(figure.key), figure.wanted) for figure in rows}
    reach = max([8.0, *(gain for gain in better.values() if gain)])

    def x(gain: float) -> float:
        return left + math.log2(max(gain, 0.5) / 0.5) / math.log2(reach / 0.5) * (right - left - 40)

    parts = [_text(left - 180, 30, "Times better than llama-server (mark: wanted)")]
    for index, figure in enumerate(rows):
        gain, wanted = better[figure.key], _gain([figure.wanted[1]], figure.wanted) if figure.wanted else None
        y = top + index * (_BAR + 14)
        parts.append(
            _text(left - 8, y + _BAR / 2 + 4, figure.title.partition(",")[0].partition(":")[0] + _kind(figure.key), "end")
        )
        if gain:
            start, end = sorted((x(1.0), x(gain)))
            parts.append(f'<rect x="{start:.1f}" y="{y}" width="{end - start:.1f}" height="{_BAR}" fill="{_COLOURS["ours"]}"/>')
            parts.append(_text(max(end, x(1.0)) + 6, y + _BAR / 2 + 4, f"{gain:.1f}"))
        if wanted:
            parts.append(f'<line x1="{x(wanted):.1f}" x2="{x(wanted):.1f}" y1="{y - 3}" y2="{y + _BAR + 3}" {_MARK}/>')
    bottom = top + len(rows) * (_BAR + 14)
    parts.append(f'<line x1="{x(1.0):.1f}" x2="{x(1.0):.1f}" y1="{top - 6}" y2="{bottom}" stroke="#868e96"/>')
    parts.append(_text(x(1.0), bottom + 16, "as llama-server", "middle"))
    return parts


def _gain(ratios: Sequence[float], wanted: tuple[str, float] | None) -> float | None:
    """Returns the median ratio, turned round where less is better."""
    if not ratios or wanted is None:
        return None
    return median(ratios) if wanted[0] == ">=" else 1.0 / median(ratios)


def _kind(key: str) -> str:
    return {"ttft_seconds": ": TTFT", "gap_seconds": ": longest gap", "total_seconds": ": total"}.get(
        key.split(".")[1], ": tokens/s"
    )


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'
