"""Search spaces: which values of a setting are tried, and how one is drawn.

Trials are drawn before any of them runs, each from a generator of its own: the same search has the same trials after a
restart, and a longer one begins with those of a shorter one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import inf, isfinite, log
from typing import Any

import numpy as np

from tessera.images.augment import rng_for
from tessera.settings.keys import accepts, expectation, nearest

EXAMPLES = {
    "uniform": "{uniform: [4, 12]}",
    "log_uniform": "{log_uniform: [1e-4, 1e-2]}",
    "int": "{int: [1, 4]}",
    "choice": "{choice: [8, 16]}",
    "grid": "{grid: [8, 16]}",
}
_LISTED = ("choice", "grid")


@dataclass(frozen=True, slots=True)
class Space:
    """The values that one setting may take.

    Attributes:
      kind: `uniform` and `log_uniform` draw a number between two, `int` a whole one, both ends included; `choice` draws
        one of a list; `grid` has each of a list tried in turn.
      values: the two ends, or the list.
    """

    kind: str
    values: tuple[Any, ...]

    @property
    def listed(self) -> bool:
        """Whether all values are known beforehand."""
        return self.kind in _LISTED

    def draw(self, rng: np.random.Generator) -> Any:
        """One value, as plain Python; numbers to 4 digits, so that what is written down is what was run."""
        if self.listed:
            return self.values[int(rng.integers(len(self.values)))]
        low, high = self.values
        if self.kind == "int":
            return int(rng.integers(low, high, endpoint=True))
        drawn = np.exp(rng.uniform(log(low), log(high))) if self.kind == "log_uniform" else rng.uniform(low, high)
        return min(max(float(f"{drawn:.4g}"), float(low)), float(high))


def parse_space(key: str, hint: Any, given: Any) -> Space:
    """The space that a configuration gives for a key of this type.

    >>> parse_space("seed", int, {"choice": [1, 2]})
    Space(kind='choice', values=(1, 2))

    Raises:
      ValueError: it is none, or holds values that the key cannot take.
    """
    if not isinstance(given, Mapping) or len(given) != 1:
        raise ValueError(f"search.{key}={given} is no space: give one of {', '.join(EXAMPLES.values())}.")
    kind, values = next(iter(given.items()))
    if kind not in EXAMPLES:
        raise ValueError(f"search.{key}: there is no space {kind}. {_near_kind(str(kind))}")
    if not isinstance(values, list | tuple) or not values:
        raise ValueError(f"search.{key}.{kind}={values}: give a list, such as {EXAMPLES[kind]}.")
    space = Space(kind, tuple(values))
    if space.listed:
        _check_listed(key, hint, space)
    else:
        _check_range(key, hint, space)
    return space


def _near_kind(kind: str) -> str:
    asked = nearest(kind, list(EXAMPLES))
    return asked if asked.startswith("Did") else f"There are {', '.join(EXAMPLES)}."


def _check_listed(key: str, hint: Any, space: Space) -> None:
    wrong = [value for value in space.values if not accepts(hint, value)]
    if wrong:
        raise ValueError(f"search.{key}.{space.kind}: {wrong[0]!r} is no value of {key}: give {expectation(hint)}.")
    twice = [value for i, value in enumerate(space.values) if value in space.values[:i]]
    if twice:
        raise ValueError(
            f"search.{key}.{space.kind} holds {twice[0]} twice: it would be tried twice as often. Take one out."
        )


def _check_range(key: str, hint: Any, space: Space) -> None:
    drawn = 0 if space.kind == "int" else 0.5
    if not accepts(hint, drawn):
        instead = EXAMPLES["int"] if hint is int else "choice or grid, with a list"
        raise ValueError(
            f"search.{key}.{space.kind} draws {'whole numbers' if space.kind == 'int' else 'fractions'}, and {key} "
            f"takes {expectation(hint)}. Try {instead}."
        )
    numeric = len(space.values) == 2 and all(accepts(int if space.kind == "int" else float, v) for v in space.values)
    least = 0 if space.kind == "log_uniform" else -inf
    if not numeric or not (least < space.values[0] < space.values[1] and all(map(isfinite, space.values))):
        above = ", above 0" if space.kind == "log_uniform" else ""
        raise ValueError(
            f"search.{key}.{space.kind}={list(space.values)}: give a lower and a higher end{above}, such as "
            f"{EXAMPLES[space.kind]}."
        )


def combinations(spaces: Mapping[str, Space], kinds: Sequence[str]) -> list[dict[str, Any]]:
    """Every combination of the values of all spaces of these kinds; one empty combination where there is none.

    >>> combinations({"a": Space("grid", (1, 2)), "b": Space("grid", (3,)), "c": Space("int", (0, 9))}, ["grid"])
    [{'a': 1, 'b': 3}, {'a': 2, 'b': 3}]
    """
    chosen = {key: space.values for key, space in spaces.items() if space.kind in kinds}
    return [dict(zip(chosen, values, strict=True)) for values in product(*chosen.values())]


def draw_points(spaces: Mapping[str, Space], count: int, seed: int) -> list[dict[str, Any]]:
    """The values of each trial: the grid's combinations in turn, what is drawn from (seed, number of the trial).

    The first points of a longer list are those of a shorter one.
    """
    grid = combinations(spaces, ["grid"])
    points = []
    for index in range(count):
        rng = rng_for(seed, index)
        drawn = {key: spaces[key].draw(rng) for key in sorted(spaces) if spaces[key].kind != "grid"}
        point = grid[index % len(grid)] | drawn
        points.append({key: point[key] for key in spaces})
    return points
