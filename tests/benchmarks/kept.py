"""Rounds that are kept as they are measured: a benchmark that is stopped goes on where it was.

    results/kept/NAME.jsonl     one line a round, with what it was measured of; not committed

A round of another workload, machine or commit is no round of this one, and is measured anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from machine import ROOT
from pairs import PAIRS, interleaved

KEPT = ROOT / "tests" / "benchmarks" / "results" / "kept"


def kept_rounds(
    name: str,
    of: Mapping[str, object],
    arms: Mapping[str, Callable[[], float]],
    pairs: int = PAIRS,
    folder: Path = KEPT,
) -> dict[str, list[float]]:
    """Measure arms in turns, as `interleaved`, but for the rounds that an earlier run kept.

    Args:
      name: of the file.
      of: all that makes a round comparable with another, as JSON values.
      arms: name -> measures once.
      pairs: rounds in all.
      folder: where they are kept.

    Returns:
      name -> one value a round.
    """
    path = folder / f"{name}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    told = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    wanted = json.loads(json.dumps({"of": of, "arms": sorted(arms)}))
    rounds = [one["round"] for one in told if {"of": one["of"], "arms": sorted(one["round"])} == wanted][:pairs]
    for turn in range(len(rounds), pairs):
        # Every other round runs in reverse, here as there.
        order = list(arms) if turn % 2 == 0 else list(reversed(arms))
        found = interleaved({arm: arms[arm] for arm in order}, pairs=1)
        rounds.append({arm: values[0] for arm, values in found.items()})
        with path.open("a") as file:
            file.write(json.dumps({"of": of, "round": rounds[-1]}) + "\n")
    return {arm: [one[arm] for one in rounds] for arm in arms}
