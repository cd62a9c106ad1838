"""The figures of the report, and how each is judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from scenarios import STREAMS


@dataclass(frozen=True, slots=True)
class Figure:
    """A row of the report. `wanted` is for the ratio to the peer, or for our own value where the peer has none."""

    key: str
    title: str
    wanted: tuple[Literal[">=", "<=", "<"], float] | None
    is_own: bool = False
    num_digits: int = 1


FIGURES = (
    *(Figure(f"decode.{number}", f"decode, {number} streams: tokens/s", (">=", 1.0)) for number in STREAMS),
    Figure("prefix.ttft_seconds", "prefix of a busy stream, 8 at once: median TTFT, s", ("<=", 0.15), num_digits=2),
    Figure("prefix.tokens_per_second", "prefix of a busy stream, 8 at once: tokens/s", (">=", 2.5)),
    Figure("unseen.ttft_seconds", "unseen prefix, 8 at once: median TTFT, s", None, num_digits=2),
    Figure("unseen.tokens_per_second", "unseen prefix, 8 at once: tokens/s", None),
    Figure("stall.gap_seconds", "stall, 2,000-token prompt beside 6: longest gap, s", ("<=", 0.15), num_digits=3),
    Figure("stall.total_seconds", "stall: all done after, s", ("<=", 1.10), num_digits=2),
    Figure("copy.tokens_per_second", "copy at temperature 0: tokens/s", (">=", 1.5)),
    Figure("two.tokens_per_second", "two models, 4 streams each: tokens/s in sum", (">=", 5.0)),
    Figure("two.of_single", "two models: sum / one model alone at 4 streams", (">=", 0.9), is_own=True, num_digits=2),
    Figure("two.least_share", "two models: slower one / one alone at 4 streams", (">=", 0.4), is_own=True, num_digits=2),
    Figure("two.single_4", "one model alone, 4 streams: tokens/s", None, is_own=True),
    Figure("two.single_8", "one model alone, 8 streams: tokens/s", None, is_own=True),
    Figure("quota.tokens_per_second", "quota of 1 CPU, 4 streams: tokens/s", (">=", 2.0)),
    Figure("overhead.milliseconds", "HTTP process, CPU ms per token, 16 streams", ("<", 0.1), is_own=True, num_digits=3),
)


class Results:
    """All values, run by run. A run's ratio is of what was measured in that run."""

    def __init__(self) -> None:
        self.values: dict[str, dict[str, list[float]]] = {"ours": {}, "llama-server": {}}
        self.texts: dict[str, str] = {}
        self.skipped: dict[str, str] = {}

    def add(self, server: str, figures: Mapping[str, float]) -> None:
        for key, value in figures.items():
            self.values[server].setdefault(key, []).append(value)

    def of(self, server: str, key: str) -> Sequence[float]:
        return self.values[server].get(key, [])

    def ratios(self, key: str) -> list[float]:
        pairs = zip(self.of("ours", key), self.of("llama-server", key), strict=False)
        return [ours / peer for ours, peer in pairs]

    def judged(self, figure: Figure) -> float | None:
        """Returns the median that is compared with what is wanted, None if it was not measured."""
        values = self.of("ours", figure.key) if figure.is_own else self.ratios(figure.key)
        return median(values) if values else None

    def is_met(self, figure: Figure) -> bool | None:
        value = self.judged(figure)
        if value is None or figure.wanted is None:
            return None
        sign, bound = figure.wanted
        return value >= bound if sign == ">=" else value <= bound if sign == "<=" else value < bound
