"""Ratios that survive a noisy machine: two arms take turns, and each pair gives one ratio.

Speeds measured minutes apart differ by what else the machine did in between. The two halves of a pair are neighbours in
time, so what slows one slows the other; the median over pairs forgets the few that were hit on one side only.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import comb
from statistics import median
from typing import Any

PAIRS = 7
COVERAGE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A median, and the interval between two measured values that holds the true one with `coverage`.

    Source: order statistics of the binomial distribution (Conover 1999, section 3.2); nothing is assumed of the noise.
    """

    median: float
    low: float
    high: float
    coverage: float
    count: int

    def __str__(self) -> str:
        return f"{self.median:.3g} [{self.low:.3g}, {self.high:.3g}]"

    def plain(self) -> dict[str, Any]:
        """As JSON holds it, to 5 digits."""
        return {name: float(f"{value:.5g}") if name != "count" else value for name, value in asdict(self).items()}


def estimate(values: Sequence[float]) -> Estimate:
    """The median, between the two innermost values that hold it in at least 95 of 100 repetitions.

    Fewer than 6 values cannot promise that much: theirs is the whole range, with the coverage it has.

    >>> str(estimate([5.0, 1.0, 2.0, 9.0, 3.0, 4.0, 8.0])), estimate(list(range(7))).coverage
    ('4 [1, 9]', 0.984375)
    >>> estimate(list(range(20))).low
    5

    Raises:
      ValueError: no value.
    """
    if not values:
        raise ValueError("no measurement arrived: a median needs one at least. Run 7 pairs.")
    ordered, count = sorted(values), len(values)
    rank = max((k for k in range(1, count // 2 + 1) if _coverage(count, k) >= COVERAGE), default=1)
    return Estimate(median(ordered), ordered[rank - 1], ordered[-rank], _coverage(count, rank), count)


def _coverage(count: int, rank: int) -> float:
    """How often the interval from the `rank`-th smallest to the `rank`-th largest of `count` values has the median."""
    return 1.0 - 2.0 * sum(comb(count, below) for below in range(rank)) / 2.0**count


def interleaved(arms: Mapping[str, Callable[[], float]], pairs: int = PAIRS) -> dict[str, list[float]]:
    """Measure every arm once a round; every other round runs in reverse, so that no arm is always the second.

    >>> order = []
    >>> _ = interleaved({name: lambda name=name: order.append(name) or 1.0 for name in "ab"}, pairs=2)
    >>> order
    ['a', 'b', 'b', 'a']

    Args:
      arms: name -> measures once, warm, and returns a speed.
      pairs: rounds.

    Returns:
      name -> one speed a round.
    """
    speeds: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(pairs):
        for name in list(arms) if turn % 2 == 0 else list(reversed(arms)):
            speeds[name].append(arms[name]())
        told = ", ".join(f"{name} {found[-1]:.3g}" for name, found in speeds.items())
        print(f"round {turn + 1} of {pairs}: {told}", file=sys.stderr, flush=True)
    return speeds


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """The median over pairs of ours / theirs.

    >>> ratio([2.0, 4.0, 9.0], [1.0, 2.0, 3.0]).median
    2.0

    Raises:
      ValueError: the arms were not measured equally often, or not at all.
    """
    return estimate([one / other for one, other in zip(ours, theirs, strict=True)])
